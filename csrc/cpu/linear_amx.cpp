// Linear layers with AMX: few rows as with AVX-512; many as tiles of bf16, quantised weights expanded a few panels at a
// time, so that what is expanded stays in the second-level cache while the rows pass.
#include "lanes_avx512.h"

#include "ahead.h"
#include "linear_impl.h"
#include "tiles_amx.h"

namespace octavo {
namespace {

constexpr int64_t tile_numbers = 16 * 32; // bf16 in a tile of 1 KB

// Eight tiles of 64 bytes a row: 0 to 3 sums, 4 and 5 of x, 6 and 7 of the weight, which has 16 rows. Products take time
// by the rows of sums, so fewer than 16 are said.

void tile(const void* x, Number type, int64_t stride, int64_t rows, int64_t inputs, uint16_t* tiles, int64_t begin,
          int64_t end) {
    const int64_t steps = padded(inputs, 32) / 32;
    for (int64_t t = begin; t < end; ++t) {
        uint16_t* to = tiles + t * steps * tile_numbers;
        for (int64_t i = 0; i < 16; ++i) {
            const int64_t row = 16 * t + i;
            for (int64_t s = 0; s < steps; ++s) {
                uint16_t* out = to + s * tile_numbers + 32 * i;
                const int64_t left = inputs - 32 * s, at = row * stride + 32 * s;
                if (row >= rows) {
                    _mm512_storeu_si512(out, _mm512_setzero_si512());
                } else if (left >= 32) {
                    if (type == Number::bf16) {
                        _mm512_storeu_si512(out, _mm512_loadu_si512(static_cast<const uint16_t*>(x) + at));
                    } else {
                        store_bf16(out, load_as(x, type, at));
                        store_bf16(out + 16, load_as(x, type, at + 16));
                    }
                } else {
                    for (int64_t k = 0; k < 32; ++k)
                        out[k] = k < left ? bf16_of_float(load_number(x, type, at + k)) : 0;
                }
            }
        }
    }
}

// (a, b) lane by lane as a pair of bf16.
inline __m512i bf16_pairs(Vec a, Vec b, __m512i order) {
    const __m512bh both = _mm512_cvtne2ps_pbh(b.v, a.v); // those of a, then those of b
    __m512i bits;
    std::memcpy(&bits, &both, 64);
    return _mm512_permutexvar_epi16(order, bits);
}

inline __m512i pair_order() {
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_or_si512(low, _mm512_slli_epi32(_mm512_add_epi32(low, _mm512_set1_epi32(16)), 16));
}

// The same for values of quantised blocks, in fewer cycles: ties away from zero, and a NaN must not be one of those
// whose upper bits are all set.
inline __m512i bf16_pairs(Vec a, Vec b) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i first = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(a.v), half), 16);
    const __m512i second = _mm512_add_epi32(_mm512_castps_si512(b.v), half);
    return _mm512_mask_blend_epi16(0xaaaaaaaa, first, second);
}

// q to a number without a conversion: in the mantissa of 1, `place` bits up, it makes 1 + q / 2^(23 - place), from which
// one multiplication and addition make the value. Exact where there is no minimum, 2^-13 of a step of q where there is.
template <int place>
struct Placed {
    __m512 scale, base;
    __m512i mask;
    Placed(Vec s, Vec zero, int bits) : mask(_mm512_set1_epi32(((1 << bits) - 1) << place)) {
        scale = _mm512_mul_ps(s.v, _mm512_set1_ps(static_cast<float>(1 << (23 - place))));
        base = _mm512_sub_ps(zero.v, scale);
    }
    Vec value(__m512i q) const {
        const __m512i one = _mm512_set1_epi32(0x3f800000);
        const __m512 number = _mm512_castsi512_ps(_mm512_ternarylogic_epi32(q, mask, one, 0xea)); // q & mask | one
        return {_mm512_fmadd_ps(number, scale, base)};
    }
};

// The value that q = 0 stands for.
template <Format F>
inline Vec zero_of(Vec scale, Vec minimum) {
    return offset_of(F) == 0 ? minimum : mul(scale, set(-offset_of(F)));
}

// Step J of a block of more than 4 bits: four inputs.
template <Format F, int J>
inline void expand_bytes(const uint8_t* quants, const Scales& s, uint16_t* out) {
    constexpr int place = bits_of(F) == 8 ? 15 : 16;
    const Vec scale = J < 4 ? s.first : s.second;
    const Placed<place> placed(scale, zero_of<F>(scale, s.minimum), bits_of(F));
    const __m512i q = step<F, J>(quants).v, third = place == 16 ? q : _mm512_srli_epi32(q, 1);
    const Vec a = placed.value(_mm512_slli_epi32(q, place)), b = placed.value(_mm512_slli_epi32(q, place - 8));
    const Vec c = placed.value(third), d = placed.value(_mm512_srli_epi32(q, 24 - place));
    _mm512_storeu_si512(out + 64 * J, bf16_pairs(a, b));
    _mm512_storeu_si512(out + 64 * J + 32, bf16_pairs(c, d));
}

// Blocks of 4 bits: steps j and j + 4 share their bytes.
template <Format F>
inline void expand_nibbles(const uint8_t* quants, const Scales& s, uint16_t* out) {
    const Vec zero = zero_of<F>(s.first, s.minimum);
    const Placed<12> low(s.first, zero, 4);
    const Placed<16> high(s.first, zero, 4);
    for (int j = 0; j < 4; ++j) {
        const __m512i q = _mm512_loadu_si512(quants + 64 * j);
        const __m512i a = _mm512_slli_epi32(q, 12), b = _mm512_slli_epi32(q, 4);
        const __m512i c = _mm512_srli_epi32(q, 4), d = _mm512_srli_epi32(q, 12);
        uint16_t* to = out + 64 * j;
        _mm512_storeu_si512(to, bf16_pairs(low.value(a), low.value(b)));
        _mm512_storeu_si512(to + 32, bf16_pairs(low.value(c), low.value(d)));
        _mm512_storeu_si512(to + 256, bf16_pairs(high.value(a), high.value(b)));
        _mm512_storeu_si512(to + 288, bf16_pairs(high.value(c), high.value(d)));
    }
}

// A panel as bf16 tiles [inputs / 32][16][16][2].
template <Format F>
inline void expand_tiles(const uint8_t* panel, int64_t inputs, uint16_t* out) {
    if constexpr (is_quantized(F)) {
        each_block<F>(panel, inputs, [&](const uint8_t* quants, const Scales& scales, int64_t b) {
            uint16_t* to = out + b * tile_numbers;
            if constexpr (bits_of(F) == 4) {
                expand_nibbles<F>(quants, scales, to);
            } else {
                expand_bytes<F, 0>(quants, scales, to), expand_bytes<F, 1>(quants, scales, to);
                expand_bytes<F, 2>(quants, scales, to), expand_bytes<F, 3>(quants, scales, to);
                expand_bytes<F, 4>(quants, scales, to), expand_bytes<F, 5>(quants, scales, to);
                expand_bytes<F, 6>(quants, scales, to), expand_bytes<F, 7>(quants, scales, to);
            }
        });
    } else {
        const __m512i order = pair_order();
        for (int64_t k = 0; k < padded(inputs, 32); k += 2) {
            Vec pair[2];
            for (int i = 0; i < 2; ++i)
                pair[i] = k + i < inputs ? load_f16(panel + (k + i) * 32) : set(0);
            _mm512_storeu_si512(out + k * 16, bf16_pairs(pair[0], pair[1], order));
        }
    }
}

// 16 rows of x: tiles, or rows of a matrix.
struct Rows {
    const uint16_t* data;
    int64_t stride, step; // between rows in bytes; between steps in numbers
};

inline Rows rows_at(const Activations& x, int64_t row) {
    if (x.tiles == nullptr) return {x.plain + row * x.plain_stride, 2 * x.plain_stride, 32};
    return {x.tiles + row / 16 * (x.stride / 32) * tile_numbers, 64, tile_numbers};
}

// Where the 16 rows of a tile begin, `row` on; the last of a matrix goes over some rows twice.
inline int64_t start_of(const Activations& x, int64_t row) {
    return x.tiles != nullptr || x.rows < 16 || row + 16 <= x.rows ? row : x.rows - 16;
}

// To 1.5e-4 of it, for what is rounded to bf16 afterwards: 1 / (1 + 2^x).
inline Vec short_sigmoid(Vec x) { return {_mm512_rcp14_ps(add(set(1), short_exp2(x)).v)}; }

template <Activation A>
inline Vec short_activated(Vec x) {
    if constexpr (A == Activation::silu) return mul(x, short_sigmoid(mul(x, set(-1.44269504f))));
    const Vec cubic = fma(mul(mul(x, x), x), set(0.044715f), x);
    constexpr float scale = -2.3022082f; // -2 log2(e) sqrt(2 / pi)
    if constexpr (A == Activation::gelu_tanh) return mul(x, short_sigmoid(mul(cubic, set(scale))));
    return activated(A, x);
}

// What a product leaves to be done with its sums, beside the next product: between the instructions of tiles there is
// room for others.
class Results {
  public:
    Number type = Number::bf16;
    Activation activation = Activation::silu;
    int64_t columns = 0; // of both panels; of gates

    Results() = default;
    // Rows `first` and `second` on, each 16 or those that there are, of all; no second ones if it is below 0.
    Results(const Output& out, const float* sums, int64_t first, int64_t second, int64_t all, int64_t column,
            int64_t count, bool is_gated)
        : type(out.type), activation(out.activation), columns(count), sums_(sums) {
        const int64_t size = size_of(type);
        char* const to = static_cast<char*>(out.data) + column * size;
        stride_ = out.stride * size;
        to_[0] = to_[1] = to + first * stride_;
        rows_[0] = all - first < 16 ? all - first : 16;
        if (second >= 0) to_[1] = to + second * stride_, rows_[1] = all - second < 16 ? all - second : 16;
        if (out.bias == nullptr) return;
        bias_[0] = load_some(out.bias, out.bias_type, column, count < 16 ? count : 16);
        if (is_gated) bias_[1] = load_some(out.bias, out.bias_type, column + out.up_bias, count);
        else if (count > 16) bias_[1] = load_some(out.bias, out.bias_type, column + 16, count - 16);
    }

    // For where row i of both sixteens goes.
    void ask(int64_t i) const {
        for (const char* to : to_) __builtin_prefetch(to + i * stride_, 0, 2);
    }
    // Row i of both.
    template <class Row>
    void put(int64_t i) const {
        for (int half = 0; half < 2; ++half) {
            if (i >= rows_[half]) continue;
            const float* from = sums_ + 512 * half + 16 * i;
            Row::put(*this, to_[half] + i * stride_, add(load(from), bias_[0]), add(load(from + 256), bias_[1]));
        }
    }

  private:
    const float* sums_ = nullptr; // [2][2][16][16]: 16 rows and 16 more, of two panels
    char* to_[2] = {};            // where both sixteens begin
    int64_t stride_ = 0, rows_[2] = {};
    Vec bias_[2] = {set(0), set(0)};
};

// Both panels' sums, side by side.
struct Plain {
    static void put(const Results& results, char* to, Vec a, Vec b) {
        if (results.columns == 32) return store_two(to, results.type, 0, a, b);
        store_some(to, results.type, 0, a, results.columns);
        if (results.columns > 16) store_some(to, results.type, 16, b, results.columns - 16);
    }
};

// The first panel's sums are gates, the second's what they are for.
struct Gated {
    static void put(const Results& results, char* to, Vec gate, Vec up) {
        store_some(to, results.type, 0, mul(activated(results.activation, gate), up), results.columns);
    }
};

// The same, to bf16.
template <Activation A> struct GatedShort {
    static void put(const Results& results, char* to, Vec gate, Vec up) {
        const Vec x = mul(short_activated<A>(gate), up);
        if (results.columns < 16) return store_some(to, Number::bf16, 0, x, results.columns);
        const __m256bh half = _mm512_cvtneps_pbh(x.v);
        std::memcpy(to, &half, 32);
    }
};

// What is asked for beside a product.
struct Beside {
    Ahead weights;                             // of the next group
    int64_t weight_bytes = 0;                  // of each stream a step
    const char *x = nullptr, *x_end = nullptr; // the next rows, where they may not be near
    int64_t x_bytes = 0;                       // a step

    void step() {
        weights.step(weight_bytes);
        if (x >= x_end) return;
        for (int64_t i = 0; i < x_bytes; i += 64) __builtin_prefetch(x + i, 0, 2);
        x += x_bytes;
    }
};

// sums [4][16][16] = 16 M rows times N panels, whose `results` will go where the cache is to have lines; those of the
// product before are put there. A tile of the next step is asked for as soon as the last product that reads the register
// has been issued. Tiles of weights leave the nearest cache to x, which the next panels meet again.
template <class Row, int M, int N>
void product(const uint16_t* w0, const uint16_t* w1, const Rows* x, int64_t steps, Beside& beside,
             const Results& before, const Results& results, float* sums) {
    _tile_zero(0);
    if (N > 1) _tile_zero(1);
    if (M > 1) _tile_zero(2);
    if (M > 1 && N > 1) _tile_zero(3);
    const uint16_t *x0 = x[0].data, *x1 = x[M - 1].data;
    const int64_t stride0 = x[0].stride, stride1 = x[M - 1].stride, step0 = x[0].step, step1 = x[M - 1].step;
    _tile_loadd(4, x0, stride0);
    _tile_stream_loadd(6, w0, 64);
    if (N > 1) _tile_stream_loadd(7, w1, 64);
    if (M > 1) _tile_loadd(5, x1, stride1);
    const auto step = [&] {
        beside.step();
        x0 += step0, x1 += step1, w0 += tile_numbers, w1 += tile_numbers;
        _tile_dpbf16ps(0, 4, 6);
        if (N > 1) _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(4, x0, stride0);
        if (M > 1) _tile_dpbf16ps(2, 5, 6);
        _tile_stream_loadd(6, w0, 64);
        if (M > 1 && N > 1) _tile_dpbf16ps(3, 5, 7);
        if (M > 1) _tile_loadd(5, x1, stride1);
        if (N > 1) _tile_stream_loadd(7, w1, 64);
    };
    int64_t row = 0, s = 1;
    for (; row < 16 && s < steps; ++row, ++s) {
        results.ask(row);
        before.put<Row>(row);
        step();
    }
    for (; s < steps; ++s) step();
    _tile_dpbf16ps(0, 4, 6);
    if (N > 1) _tile_dpbf16ps(1, 4, 7);
    if (M > 1) _tile_dpbf16ps(2, 5, 6);
    if (M > 1 && N > 1) _tile_dpbf16ps(3, 5, 7);
    for (; row < 16; ++row) before.put<Row>(row);
    _tile_stored(0, sums, 64);
    if (N > 1) _tile_stored(1, sums + 256, 64);
    if (M > 1) _tile_stored(2, sums + 512, 64);
    if (M > 1 && N > 1) _tile_stored(3, sums + 768, 64);
}

using Product = void (*)(const uint16_t*, const uint16_t*, const Rows*, int64_t, Beside&, const Results&,
                         const Results&, float*);

struct Products {
    Product of[2][2]; // [M - 1][N - 1]
    void (*put)(const Results&);
};

template <class Row>
constexpr Products products_of{{{product<Row, 1, 1>, product<Row, 1, 2>}, {product<Row, 2, 1>, product<Row, 2, 2>}},
                               [](const Results& results) {
                                   for (int64_t i = 0; i < 16; ++i) results.put<Row>(i);
                               }};

const Products& products_for(const Output& out, bool is_gated) {
    if (!is_gated) return products_of<Plain>;
    if (out.type != Number::bf16) return products_of<Gated>;
    switch (out.activation) {
    case Activation::silu: return products_of<GatedShort<Activation::silu>>;
    case Activation::gelu: return products_of<GatedShort<Activation::gelu>>;
    default: return products_of<GatedShort<Activation::gelu_tanh>>;
    }
}

// `count` panels as tiles: as they are, or expanded into `space`.
template <Format F>
inline const uint16_t* tiles_of(const uint8_t* data, int64_t count, const Activations& x, uint16_t* space) {
    if constexpr (F == Format::bf16) {
        return reinterpret_cast<const uint16_t*>(data);
    } else {
        for (int64_t i = 0; i < count; ++i)
            expand_tiles<F>(data + i * panel_bytes(F, x.inputs), x.inputs, space + i * x.stride * 16);
        return space;
    }
}

// Panels that 32 rows meet before the next 32 do: what is written of a row lies together, and all fits in the
// second-level cache beside rows_bytes of x.
constexpr int64_t most_group = 8, group_bytes = 256 << 10;

template <Format F>
void many_tiles(const Panels& panels, const Activations& x, const Output& out) {
    const TileRegisters registers(x.rows);
    const bool is_gated = panels.up != nullptr;
    const Products& products = products_for(out, is_gated);
    const int64_t bytes = panel_bytes(F, x.inputs), steps = x.stride / 32, num_blocks = (x.rows + 31) / 32;
    // panels go in pairs: neighbours, or a gate with its up
    int64_t group = group_bytes / (steps * 1024) / 2 * 2;
    group = group < 2 ? 2 : group > most_group ? most_group : group;
    const size_t expanded = F == Format::bf16 ? 0 : static_cast<size_t>(group * steps) * 1024;
    uint16_t* space = static_cast<uint16_t*>(scratch(1, expanded + 2 * 4096));
    float* sums = reinterpret_cast<float*>(reinterpret_cast<char*>(space) + expanded); // of a product, and of the next
    const int64_t width = is_gated ? 1 : 2, columns_group = group / 2 * width;
    const int64_t all_steps = group / 2 * steps; // while 32 rows meet a group
    const auto lines_of = [](int64_t size, int64_t parts) { return (size / 64 + parts - 1) / parts * 64; };
    const int64_t streams = Ahead::count / (is_gated ? 2 : 1), row_bytes = x.tiles ? 2 * x.stride : 2 * x.plain_stride;
    Beside beside;
    beside.weight_bytes = lines_of(lines_of(columns_group * bytes, streams), all_steps * num_blocks);
    beside.x_bytes = lines_of(32 * row_bytes, all_steps);
    Results results[2]; // of a product, and of the one before
    int64_t turn = 0;
    for (int64_t g = 0; g < panels.count; g += columns_group) {
        const int64_t count = g + columns_group < panels.count ? columns_group : panels.count - g;
        const uint8_t *data = panels.data + g * bytes, *next = data + count * bytes;
        const uint16_t *tiles = tiles_of<F>(data, count, x, space), *up_tiles = nullptr;
        if (is_gated) up_tiles = tiles_of<F>(panels.up + g * bytes, count, x, space + count * x.stride * 16);
        const int64_t after = panels.count - g - count;
        beside.weights = {{}, lines_of((after < columns_group ? after : columns_group) * bytes, streams)};
        for (int64_t i = 0; i < streams; ++i) {
            const char*& stream = beside.weights.streams[i];
            stream = reinterpret_cast<const char*>(next) + i * beside.weights.end;
            if (is_gated) beside.weights.streams[streams + i] = stream + (panels.up - panels.data);
        }
        for (int64_t row = 0; row < x.rows; row += 32) {
            const int64_t left = x.rows - row, first = start_of(x, row), second = left > 16 ? start_of(x, row + 16) : -1;
            const Rows from[2] = {rows_at(x, first), rows_at(x, left > 16 ? second : first)};
            if (g == 0 && left > 32) { // these rows come from far away; for the next groups they are near
                beside.x = reinterpret_cast<const char*>(rows_at(x, row + 32).data);
                beside.x_end = beside.x + (left < 64 ? left - 32 : 32) * row_bytes;
            }
            for (int64_t p = 0; p < count; p += width) {
                const uint16_t* w0 = tiles + p * steps * tile_numbers;
                const uint16_t* w1 = is_gated ? up_tiles + p * steps * tile_numbers : w0 + steps * tile_numbers;
                const bool is_pair = is_gated || p + 1 < count;
                const int64_t column = 16 * (g + p), rest = panels.columns - column;
                const int64_t most = is_gated || !is_pair ? 16 : 32;
                float* here = sums + 1024 * turn;
                const int64_t columns = rest < most ? rest : most;
                results[turn] = {out, here, first, second, x.rows, panels.column + column, columns, is_gated};
                products.of[left > 16][is_pair](w0, w1, from, steps, beside, results[1 - turn], results[turn], here);
                turn = 1 - turn;
            }
        }
    }
    products.put(results[1 - turn]);
}

template <Format F> struct ManyTiles {
    static void run(const Panels& p, const Activations& x, const Output& out) {
        if constexpr (F == Format::f32) many_of<F>(p, x, out); // in float32
        else many_tiles<F>(p, x, out);
    }
};

void many_by_tiles(const Panels& p, const Activations& x, const Output& out) { by_format<ManyTiles>(p, x, out); }

} // namespace

const LinearKernels amx_linear{widen, quantize, few, many_by_tiles, tile, 8, 4, 16};

} // namespace octavo
