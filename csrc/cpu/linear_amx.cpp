// Linear layers with AMX: few rows as with AVX-512; many as tiles of bf16, quantised weights expanded a few panels at a
// time, so that what is expanded stays in the second-level cache while the rows pass.
#include "vec_avx512.h"

#include "linear_impl.h"

namespace octavo {
namespace {

constexpr int64_t tile_numbers = 16 * 32; // bf16 in a tile of 1 KB

// Eight tiles of 16 rows of 64 bytes: 0 to 3 sums, 4 and 5 of x, 6 and 7 of the weight.
struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

class Tiles { // this thread's tile registers, while it lives
  public:
    Tiles() {
        const TileConfig config;
        // gcc's intrinsic tells the compiler of 8 of the 64 bytes only; "memory" tells it of all
        asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
    }
    ~Tiles() { _tile_release(); }
};

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

// A panel as bf16 tiles [inputs / 32][16][16][2].
template <Format F>
inline void expand_tiles(const uint8_t* panel, int64_t inputs, uint16_t* out) {
    if constexpr (is_quantized(F)) {
        each_four<F>(panel, inputs, [&](int64_t k, const Vec* values) {
            _mm512_storeu_si512(out + k * 16, pair_bf16(values[0], values[1]));
            _mm512_storeu_si512(out + k * 16 + 32, pair_bf16(values[2], values[3]));
        });
    } else {
        for (int64_t k = 0; k < padded(inputs, 32); k += 2) {
            Vec pair[2];
            for (int i = 0; i < 2; ++i) {
                if (k + i >= inputs) pair[i] = set(0);
                else if (F == Format::f32) pair[i] = load(reinterpret_cast<const float*>(panel) + (k + i) * 16);
                else pair[i] = load_f16(panel + (k + i) * 32);
            }
            _mm512_storeu_si512(out + k * 16, pair_bf16(pair[0], pair[1]));
        }
    }
}

// Steps of 32 inputs that pass at a time: the weight's tiles of them stay in the first-level cache, 36 KB of its 48,
// while the rows come from the second level.
constexpr int64_t most_steps = 18;

// 16 rows of x from some step on: tiles, or rows of a matrix.
struct Rows {
    const uint16_t* data;
    int64_t stride, step; // between rows in bytes; between steps in numbers
};

inline Rows rows_at(const Activations& x, int64_t t, int64_t first) {
    if (16 * t < x.num_plain) return {x.plain + 16 * t * x.plain_stride + 32 * first, 2 * x.plain_stride, 32};
    const int64_t at = (t - x.num_plain / 16) * (x.stride / 32) + first;
    return {x.tiles + at * tile_numbers, 64, tile_numbers};
}

// sums [4][16][16] (+)= 16 M rows times N panels, over `steps`; w are tiles.
template <int M, int N>
inline void product(const uint16_t* const* w, const Rows* x, int64_t steps, bool is_first, float* sums) {
    if (is_first) {
        _tile_zero(0);
        if (N > 1) _tile_zero(1);
        if (M > 1) _tile_zero(2);
        if (M > 1 && N > 1) _tile_zero(3);
    } else {
        _tile_loadd(0, sums, 64);
        if (N > 1) _tile_loadd(1, sums + 256, 64);
        if (M > 1) _tile_loadd(2, sums + 512, 64);
        if (M > 1 && N > 1) _tile_loadd(3, sums + 768, 64);
    }
    const Rows x0 = x[0], x1 = x[M - 1];
    const uint16_t *w0 = w[0], *w1 = w[N - 1];
    for (int64_t s = 0; s < steps; ++s) {
        _tile_loadd(6, w0 + s * tile_numbers, 64);
        _tile_loadd(4, x0.data + s * x0.step, x0.stride);
        _tile_dpbf16ps(0, 4, 6);
        if (N > 1) {
            _tile_loadd(7, w1 + s * tile_numbers, 64);
            _tile_dpbf16ps(1, 4, 7);
        }
        if (M > 1) {
            _tile_loadd(5, x1.data + s * x1.step, x1.stride);
            _tile_dpbf16ps(2, 5, 6);
            if (N > 1) _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, 64);
    if (N > 1) _tile_stored(1, sums + 256, 64);
    if (M > 1) _tile_stored(2, sums + 512, 64);
    if (M > 1 && N > 1) _tile_stored(3, sums + 768, 64);
}

template <Format F>
void many_tiles(const Panels& panels, const Activations& x, const Output& out) {
    const Tiles registers;
    const int64_t bytes = panel_bytes(F, x.inputs), steps = x.stride / 32, num_tiles = (x.rows + 15) / 16;
    const int64_t num_passes = (steps + most_steps - 1) / most_steps, pass = (steps + num_passes - 1) / num_passes;
    const size_t expanded = F == Format::bf16 ? 0 : 2 * static_cast<size_t>(steps) * 1024;
    const size_t kept = static_cast<size_t>(num_passes > 1 ? (num_tiles + 1) / 2 : 1) * 4096;
    uint16_t* space = static_cast<uint16_t*>(scratch(1, expanded + kept));
    float* all_sums = reinterpret_cast<float*>(reinterpret_cast<char*>(space) + expanded);
    for (int64_t p = 0; p < panels.count; p += 2) {
        const int64_t pair = p + 1 < panels.count ? 2 : 1;
        const uint16_t* whole[2];
        for (int64_t i = 0; i < pair; ++i) {
            const uint8_t* panel = panels.data + (p + i) * bytes;
            if constexpr (F == Format::bf16) {
                whole[i] = reinterpret_cast<const uint16_t*>(panel);
            } else {
                expand_tiles<F>(panel, x.inputs, space + i * steps * tile_numbers);
                whole[i] = space + i * steps * tile_numbers;
            }
        }
        for (int64_t first = 0; first < steps; first += pass) {
            const int64_t here = first + pass < steps ? pass : steps - first;
            const bool is_last = first + here == steps;
            const uint16_t* w[2] = {whole[0] + first * tile_numbers, whole[pair - 1] + first * tile_numbers};
            for (int64_t t = 0; t < num_tiles; t += 2) {
                float* sums = num_passes > 1 ? all_sums + t / 2 * 1024 : all_sums;
                const bool two = t + 1 < num_tiles;
                const Rows from[2] = {rows_at(x, t, first), rows_at(x, two ? t + 1 : t, first)};
                if (two && pair == 2) product<2, 2>(w, from, here, first == 0, sums);
                else if (two) product<2, 1>(w, from, here, first == 0, sums);
                else if (pair == 2) product<1, 2>(w, from, here, first == 0, sums);
                else product<1, 1>(w, from, here, first == 0, sums);
                if (!is_last) continue;
                for (int64_t m = 0; m < (two ? 2 : 1); ++m)
                    for (int64_t n = 0; n < pair; ++n)
                        for (int64_t i = 0; i < 16 && 16 * (t + m) + i < x.rows; ++i)
                            put(out, 16 * (t + m) + i, panels.column + 16 * (p + n), panels.columns - 16 * (p + n),
                                load(sums + 512 * m + 256 * n + 16 * i));
            }
        }
    }
}

template <Format F> struct ManyTiles {
    static void run(const Panels& p, const Activations& x, const Output& out) { many_tiles<F>(p, x, out); }
};

void many_by_tiles(const Panels& p, const Activations& x, const Output& out) { by_format<ManyTiles>(p, x, out); }

} // namespace

const LinearKernels amx_linear{widen, quantize, few, many_by_tiles, tile, 4, 8};

} // namespace octavo
