// Attention with AMX: tiles of 16 queries multiply bf16, and all else is as with AVX-512.
//
//   products [16 keys][16 queries] = keys [16][32 dims] x queries [32 dims][16], in pairs of dims
//   values   [16 dims][16 queries] += values [16 dims][32 keys] x weights [32 keys][16 queries], in pairs of keys
//
// So a lane is a query everywhere, maxima and sums need no shuffles, and weights come out in the order in which they are
// multiplied. Keys are copied into tiles and values turned once for all queries of a piece.
#include "vec_avx512.h"

#include "attention_lanes_avx512.h"

#include "attention_impl.h"
#include "tiles_amx.h"

namespace octavo {
namespace {

constexpr int64_t tile_numbers = 16 * 32; // bf16 in a tile of 1 KB
constexpr int64_t block_keys = 256;       // that pass at a time

// Eight tiles of 16 rows of 64 bytes: 0 to 3 sums, 4 and 5 the first operand, 6 the second.

// Stores before it are made before tiles are loaded after it.
inline void finish_stores() { asm volatile("" : : : "memory"); }

inline __mmask32 mask_of(int64_t count) { return count >= 32 ? ~__mmask32{0} : (__mmask32{1} << count) - 1; }

// Up to 32 numbers from d on as bf16, and zeros.
template <Number T = Number::bf16>
inline __m512i load_dims(const void* row, int64_t d, int64_t head_dim) {
    if constexpr (T == Number::i8) {
        const char* bytes = static_cast<const char*>(row);
        const __m256i x = _mm256_maskz_loadu_epi8(mask_of(head_dim - d), bytes + d);
        const __m512i low = _mm512_cvtepi8_epi32(_mm256_castsi256_si128(x));
        const __m512i high = _mm512_cvtepi8_epi32(_mm256_extracti128_si256(x, 1));
        float scale;
        std::memcpy(&scale, bytes + head_dim, head_scale_bytes);
        const __m512 scales = _mm512_set1_ps(scale);
        const __m512bh both = _mm512_cvtne2ps_pbh(_mm512_mul_ps(_mm512_cvtepi32_ps(high), scales),
                                                  _mm512_mul_ps(_mm512_cvtepi32_ps(low), scales));
        __m512i bits;
        std::memcpy(&bits, &both, 64);
        return bits;
    } else {
        return _mm512_maskz_loadu_epi16(mask_of(head_dim - d), static_cast<const uint16_t*>(row) + d);
    }
}

// Queries of a tile as [steps][16 pairs of dims][16 queries][2].
inline void put_queries(const Attention& a, const Piece& piece, int64_t head, int64_t t, uint16_t* out) {
    for (int64_t i = 16 * t + 16; i < least(16 * t + 32, piece.queries); ++i) { // the next tile's lines
        const char* line = static_cast<const char*>(query_of(a, piece, head, piece.query + i));
        for (int64_t b = 0; b < 2 * a.head_dim; b += 64) prefetch(line + b);
    }
    for (int64_t d = 0; d < a.head_dim; d += 32, out += tile_numbers) {
        __m512i rows[16];
        for (int64_t i = 0; i < 16; ++i) {
            const int64_t query = 16 * t + i;
            rows[i] = query >= piece.queries
                          ? _mm512_setzero_si512()
                          : load_dims(query_of(a, piece, head, piece.query + query), d, a.head_dim);
        }
        transpose(rows);
        for (int64_t i = 0; i < 16; ++i) _mm512_storeu_si512(out + 32 * i, rows[i]);
    }
}

// Keys as [count / 16][steps][16][32]; those beyond count, to a multiple of 32, are zero.
template <Number T>
inline void put_keys(const char* k, const int64_t* at, int64_t count, int64_t head_dim, int64_t steps, uint16_t* out) {
    for (int64_t i = 0; i < round_up(count, 32); ++i)
        for (int64_t s = 0; s < steps; ++s)
            _mm512_storeu_si512(out + ((i / 16 * steps + s) * 16 + i % 16) * 32,
                                i < count ? load_dims<T>(k + at[i], 32 * s, head_dim) : _mm512_setzero_si512());
}

// Values as [count / 32][dims / 16][16 dims][32 keys].
template <Number T>
inline void put_values(const char* v, const int64_t* at, int64_t count, int64_t head_dim, int64_t dims, uint16_t* out) {
    for (int64_t first = 0; first < count; first += 32, out += dims * 32) {
        for (int64_t d = 0; d < dims; d += 32) {
            __m512i low[16], high[16]; // pairs of keys; of each 8 dims, the lower and the upper 4
            for (int64_t j = 0; j < 16; ++j) {
                const int64_t i = first + 2 * j;
                const __m512i a = i < count ? load_dims<T>(v + at[i], d, head_dim) : _mm512_setzero_si512();
                const __m512i b = i + 1 < count ? load_dims<T>(v + at[i + 1], d, head_dim) : _mm512_setzero_si512();
                low[j] = _mm512_unpacklo_epi16(a, b), high[j] = _mm512_unpackhi_epi16(a, b);
            }
            transpose(low), transpose(high);
            for (int64_t e = 0; e < 16; ++e) {
                const int64_t dim = d + e / 4 * 8 + e % 4;
                if (dim < dims) _mm512_storeu_si512(out + dim * 32, low[e]);
                if (dim + 4 < dims) _mm512_storeu_si512(out + (dim + 4) * 32, high[e]);
            }
        }
    }
}

// Products of M times 16 keys with a tile of queries.
template <int M>
inline void multiply_keys(const uint16_t* k, const uint16_t* q, int64_t steps, float* out) {
    _tile_zero(0);
    if (M > 1) _tile_zero(1);
    if (M > 2) _tile_zero(2);
    if (M > 2) _tile_zero(3);
    const int64_t next = steps * tile_numbers;
    for (int64_t s = 0; s < steps; ++s, k += tile_numbers) {
        _tile_loadd(6, q + s * tile_numbers, 64);
        _tile_loadd(4, k, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (M > 1) {
            _tile_loadd(5, k + next, 64);
            _tile_dpbf16ps(1, 5, 6);
        }
        if (M > 2) {
            _tile_loadd(4, k + 2 * next, 64);
            _tile_dpbf16ps(2, 4, 6);
            _tile_loadd(5, k + 3 * next, 64);
            _tile_dpbf16ps(3, 5, 6);
        }
    }
    _tile_stored(0, out, 64);
    if (M > 1) _tile_stored(1, out + 256, 64);
    if (M > 2) _tile_stored(2, out + 512, 64);
    if (M > 2) _tile_stored(3, out + 768, 64);
}

// Adds weighted values of M times 16 dims.
template <int M>
inline void add_values(const uint16_t* v, const uint16_t* weights, int64_t steps, int64_t dims, float* out) {
    _tile_loadd(0, out, 64);
    if (M > 1) _tile_loadd(1, out + 256, 64);
    if (M > 2) _tile_loadd(2, out + 512, 64);
    if (M > 2) _tile_loadd(3, out + 768, 64);
    for (int64_t s = 0; s < steps; ++s, v += dims * 32) {
        _tile_loadd(6, weights + s * tile_numbers, 64);
        _tile_loadd(4, v, 64);
        _tile_dpbf16ps(0, 4, 6);
        if (M > 1) {
            _tile_loadd(5, v + tile_numbers, 64);
            _tile_dpbf16ps(1, 5, 6);
        }
        if (M > 2) {
            _tile_loadd(4, v + 2 * tile_numbers, 64);
            _tile_dpbf16ps(2, 4, 6);
            _tile_loadd(5, v + 3 * tile_numbers, 64);
            _tile_dpbf16ps(3, 5, 6);
        }
    }
    _tile_stored(0, out, 64);
    if (M > 1) _tile_stored(1, out + 256, 64);
    if (M > 2) _tile_stored(2, out + 512, 64);
    if (M > 2) _tile_stored(3, out + 768, 64);
}

// Pairs of bf16, lane by lane; to nearest, and NaN of other bf16 stays NaN.
inline __m512i pair_of(__m512 a, __m512 b) {
    const __m512i half = _mm512_set1_epi32(0x8000);
    const __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(a), half), 16);
    const __m512i high = _mm512_add_epi32(_mm512_castps_si512(b), half);
    return _mm512_ternarylogic_epi32(_mm512_set1_epi32(static_cast<int>(0xffff0000)), high, low, 0xca); // high, else low
}

// Weights of a tile from its products, in pairs of keys, and their sums.
inline void weigh(const Attention& a, const Tile& tile, int64_t dims, const Span& span, float* products,
                  uint16_t* weights) {
    const Vec scale = set(exponent_scale(a)), maxima = negative(settle(a, tile, dims, span, products));
    Vec sum = load(tile.sums), other = set(0);
    for (int64_t k = span.low; k < span.high; k += 2) {
        const Vec first = short_exp2(fma(load(products + 16 * k), scale, maxima));
        const Vec second = short_exp2(fma(load(products + 16 * k + 16), scale, maxima));
        sum = add(sum, first), other = add(other, second);
        _mm512_storeu_si512(weights + 16 * k, pair_of(first.v, second.v));
    }
    store(tile.sums, add(sum, other));
}

template <Number T>
void tiles_of_bf16(const Attention& a, const Piece& piece) {
    const int64_t steps = round_up(a.head_dim, 32) / 32, dims = round_up(a.head_dim, 16);
    Space space;
    Tiles tiles;
    tiles.reserve(space, piece, dims);
    const int64_t q_at = space.reserve<uint16_t>(tiles.count * steps * tile_numbers);
    const int64_t k_at = space.reserve<uint16_t>(block_keys / 16 * steps * tile_numbers);
    const int64_t v_at = space.reserve<uint16_t>(block_keys * dims);
    const int64_t products_at = space.reserve<float>(2 * block_keys * 16);
    const int64_t weights_at = space.reserve<uint16_t>(block_keys * 16);
    space.allocate();
    tiles.start(space, a, piece);
    uint16_t *q = space.at<uint16_t>(q_at), *k = space.at<uint16_t>(k_at), *v = space.at<uint16_t>(v_at);
    uint16_t* weights = space.at<uint16_t>(weights_at);
    float* products = space.at<float>(products_at);
    const TileRegisters registers;
    for (int64_t head = piece.head; head < piece.head + piece.heads; ++head) {
        tiles.clear(a, piece, head);
        for (int64_t t = 0; t < tiles.count; ++t) put_queries(a, piece, head, t, q + t * steps * tile_numbers);
        for (int64_t key = piece.key; key < piece.key_end; key += block_keys) {
            const int64_t count = least(block_keys, piece.key_end - key);
            int64_t at[block_keys];
            find_keys(a, piece, key, count, at);
            const char* from = keys_of(a, head);
            put_keys<T>(from, at, count, a.head_dim, steps, k);
            put_values<T>(from + size_of(T) * a.kv, at, count, a.head_dim, dims, v);
            finish_stores();
            // The products of a tile are under way while the weights of the one before are made.
            const auto multiply = [&](int64_t t, const Span& span, float* out) {
                const uint16_t* here = q + t * steps * tile_numbers;
                int64_t i = span.low / 16;
                for (; i + 4 <= span.high / 16; i += 4)
                    multiply_keys<4>(k + i * steps * tile_numbers, here, steps, out + 256 * i);
                if (i < span.high / 16) multiply_keys<2>(k + i * steps * tile_numbers, here, steps, out + 256 * i);
            };
            const auto add = [&](int64_t t, const Span& span, float* scores) {
                const Tile tile = tiles(a, piece, t);
                weigh(a, tile, dims, span_of(a, tile, key, span), scores, weights);
                finish_stores();
                const int64_t first = span.low / 32, number = (span.high - span.low) / 32;
                const uint16_t *from_v = v + first * dims * 32, *from_weights = weights + first * tile_numbers;
                int64_t d = 0;
                for (; d + 64 <= dims; d += 64)
                    add_values<4>(from_v + d * 32, from_weights, number, dims, tile.values + d * 16);
                for (; d + 32 <= dims; d += 32)
                    add_values<2>(from_v + d * 32, from_weights, number, dims, tile.values + d * 16);
                if (d < dims) add_values<1>(from_v + d * 32, from_weights, number, dims, tile.values + d * 16);
            };
            int64_t before = -1;
            Span span_before{};
            for (int64_t t = 0; t < tiles.count; ++t) {
                const Tile tile = tiles(a, piece, t);
                const Span span = span_of(a, piece, tile, tile, key, count, 32);
                if (span.low >= span.high) continue;
                multiply(t, span, products + t % 2 * block_keys * 16);
                if (before >= 0) add(before, span_before, products + before % 2 * block_keys * 16);
                before = t, span_before = span;
            }
            if (before >= 0) add(before, span_before, products + before % 2 * block_keys * 16);
        }
        tiles.finish(a, piece, head);
    }
}

// ---- one token -------------------------------------------------------------------------------------------------------
//
// Rows of keys are multiplied where they lie, 16 at a time:
//
//   products [16 keys][16 queries] = keys [16][32 dims] x queries [32 dims][16], in pairs of dims
//
// and turned for up to four queries, so that a lane is a key. Values are multiplied in pairs of keys by vectors: turning
// them into tiles would take longer than few queries are worth.

// Products of 16 M keys, whose rows are `stride` bytes apart from each of `rows` on.
template <int M>
inline void multiply_rows_of_keys(const char* const* rows, int64_t stride, const uint16_t* q, int64_t steps,
                                  NextKeys& ahead, float* out) {
    _tile_zero(0);
    if (M > 1) _tile_zero(1);
    if (M > 2) _tile_zero(2);
    if (M > 3) _tile_zero(3);
    for (int64_t s = 0; s < steps; ++s) {
        _tile_loadd(6, q + s * tile_numbers, 64);
        _tile_loadd(4, rows[0] + 64 * s, stride);
        _tile_dpbf16ps(0, 4, 6);
        ahead.step();
        if (M > 1) {
            _tile_loadd(5, rows[1] + 64 * s, stride);
            _tile_dpbf16ps(1, 5, 6);
            ahead.step();
        }
        if (M > 2) {
            _tile_loadd(4, rows[2] + 64 * s, stride);
            _tile_dpbf16ps(2, 4, 6);
            ahead.step();
        }
        if (M > 3) {
            _tile_loadd(5, rows[3] + 64 * s, stride);
            _tile_dpbf16ps(3, 5, 6);
            ahead.step();
        }
    }
    _tile_stored(0, out, 64);
    if (M > 1) _tile_stored(1, out + 256, 64);
    if (M > 2) _tile_stored(2, out + 512, 64);
    if (M > 3) _tile_stored(3, out + 768, 64);
}

// Columns [0, G) of products [count][16], count rounded up to 16, as rows.
template <int G>
inline void turn_products(const float* products, int64_t count, float (*rows)[stream_keys]) {
    for (int64_t i = 0; i < count; i += 16, products += 256) {
        __m512 r[4]; // r[j]: of keys j, 4 + j, 8 + j, 12 + j
        for (int j = 0; j < 4; ++j) {
            r[j] = _mm512_castps128_ps512(_mm_load_ps(products + 16 * j));
            r[j] = _mm512_insertf32x4(r[j], _mm_load_ps(products + 16 * (4 + j)), 1);
            r[j] = _mm512_insertf32x4(r[j], _mm_load_ps(products + 16 * (8 + j)), 2);
            r[j] = _mm512_insertf32x4(r[j], _mm_load_ps(products + 16 * (12 + j)), 3);
        }
        const __m512d a = _mm512_castps_pd(_mm512_unpacklo_ps(r[0], r[1]));
        const __m512d b = _mm512_castps_pd(_mm512_unpacklo_ps(r[2], r[3]));
        _mm512_store_ps(rows[0] + i, _mm512_castpd_ps(_mm512_unpacklo_pd(a, b)));
        if (G > 1) _mm512_store_ps(rows[1] + i, _mm512_castpd_ps(_mm512_unpackhi_pd(a, b)));
        if (G <= 2) continue;
        const __m512d c = _mm512_castps_pd(_mm512_unpackhi_ps(r[0], r[1]));
        const __m512d d = _mm512_castps_pd(_mm512_unpackhi_ps(r[2], r[3]));
        _mm512_store_ps(rows[2] + i, _mm512_castpd_ps(_mm512_unpacklo_pd(c, d)));
        if (G > 3) _mm512_store_ps(rows[3] + i, _mm512_castpd_ps(_mm512_unpackhi_pd(c, d)));
    }
}

// Adds values of keys [first, count), weighted, to what there is times its factor: W times 32 dims from d on. Sums lie
// as pairs of keys are multiplied: of 32 dims those of the lower half of each quarter, then those of the upper.
template <int G, int W>
inline void add_pairs(const Keys& keys, int64_t first, const uint32_t (*weights)[stream_keys / 2], const float* factors,
                      int64_t d, int64_t head_dim, float* values) {
    __m512 sums[G][2 * W];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
        for (int i = 0; i < 2 * W; ++i)
            sums[g][i] = _mm512_mul_ps(_mm512_loadu_ps(values + g * head_dim + d + 16 * i), _mm512_set1_ps(factors[g]));
    const auto add = [&](int64_t pair, const __m512i* low, const __m512i* high) {
        __m512bh v[2 * W];
#pragma GCC unroll 2
        for (int i = 0; i < W; ++i) {
            v[2 * i] = reinterpret_cast<__m512bh>(_mm512_unpacklo_epi16(low[i], high[i]));
            v[2 * i + 1] = reinterpret_cast<__m512bh>(_mm512_unpackhi_epi16(low[i], high[i]));
        }
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
            const __m512bh weight = reinterpret_cast<__m512bh>(_mm512_set1_epi32(static_cast<int>(weights[g][pair])));
#pragma GCC unroll 4
            for (int i = 0; i < 2 * W; ++i) sums[g][i] = _mm512_dpbf16_ps(sums[g][i], v[i], weight);
        }
    };
    const char* v = keys.v + 2 * d;
    const auto row = [&](int64_t k, __m512i* to) {
#pragma GCC unroll 2
        for (int i = 0; i < W; ++i) to[i] = _mm512_loadu_si512(v + keys.at[k] + 64 * i);
    };
    __m512i low[W], high[W];
    const auto clear = [&](__m512i* to) {
        for (int i = 0; i < W; ++i) to[i] = _mm512_setzero_si512(); // what nobody sees may be anything
    };
    int64_t k = first;
    if (k % 2) {
        clear(low), row(k, high), add(k / 2, low, high);
        ++k;
    }
    for (; k + 2 <= keys.count; k += 2) {
        keys.next->step();
        row(k, low), row(k + 1, high), add(k / 2, low, high);
    }
    if (k < keys.count) row(k, low), clear(high), add(k / 2, low, high);
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
        for (int i = 0; i < 2 * W; ++i) _mm512_storeu_ps(values + g * head_dim + d + 16 * i, sums[g][i]);
}

// G queries of one head go over keys [first, keys.count), of which `products` has the products.
template <int G>
inline void stream_bf16_keys(const Attention& a, const Keys& keys, int64_t first, const float* products, float* values,
                             float* maxima, float* sums) {
    alignas(64) float weights[G][stream_keys];
    alignas(64) uint32_t pairs[G][stream_keys / 2];
    float factors[G];
    turn_products<G>(products, keys.count, weights);
    weigh_streamed<G>(a, first, keys.count, weights, maxima, sums, factors);
    for (int g = 0; g < G; ++g)
        for (int64_t i = 0; i < keys.count; i += 32) {
            const __m512 after = i + 16 < keys.count ? _mm512_load_ps(weights[g] + i + 16) : _mm512_setzero_ps();
            const __m512bh both = _mm512_cvtne2ps_pbh(after, _mm512_load_ps(weights[g] + i));
            std::memcpy(pairs[g] + i / 2, &both, 64);
        }
    int64_t d = 0;
    for (; d + 64 <= a.head_dim; d += 64) add_pairs<G, 2>(keys, first, pairs, factors, d, a.head_dim, values);
    if (d < a.head_dim) add_pairs<G, 1>(keys, first, pairs, factors, d, a.head_dim, values);
}

void stream_bf16(const Attention& a, const Piece& piece, const Piece* upcoming) {
    const int64_t group = a.group(), head_dim = a.head_dim, steps = head_dim / 32, num_queries = piece.heads * group;
    Space space;
    const int64_t q_at = space.reserve<uint16_t>(piece.heads * steps * tile_numbers);
    const int64_t products_at = space.reserve<float>(stream_keys * 16);
    const int64_t values_at = space.reserve<float>(num_queries * head_dim);
    const int64_t maxima_at = space.reserve<float>(num_queries), sums_at = space.reserve<float>(num_queries);
    const int64_t places_at = space.reserve<int64_t>(2 * stream_keys);
    space.allocate();
    uint16_t* q = space.at<uint16_t>(q_at);
    float *products = space.at<float>(products_at), *values = space.at<float>(values_at);
    float *maxima = space.at<float>(maxima_at), *sums = space.at<float>(sums_at);
    for (int64_t h = 0; h < piece.heads; ++h) put_queries(a, piece, piece.head + h, 0, q + h * steps * tile_numbers);
    start_streamed(a, piece, values, maxima, sums);
    const TileRegisters registers;
    const int64_t stride = 2 * a.slot;
    const auto begin_of = [](const Piece& p) { return p.key / 16 * 16; }; // so that 16 keys are of one block
    int64_t *at = space.at<int64_t>(places_at), *next = at + stream_keys;
    find_streamed(a, piece, begin_of(piece), at);
    for (int64_t key = begin_of(piece); key < piece.key_end; key += stream_keys) {
        const bool is_last = key + stream_keys >= piece.key_end;
        const Piece* later = is_last ? upcoming : &piece;
        const int64_t next_key = !is_last ? key + stream_keys : upcoming != nullptr ? begin_of(*upcoming) : 0;
        if (later != nullptr) find_streamed(a, *later, next_key, next);
        NextKeys ahead = next_keys(a, later, next_key, next);
        const int64_t first = most(piece.key - key, 0), count = least(stream_keys, piece.key_end - key);
        for (int64_t h = 0; h < piece.heads; ++h) {
            ahead.reach(h, piece.heads);
            const char* k = keys_of(a, piece.head + h);
            const Keys keys{k, k + 2 * a.kv, at, count, &ahead};
            const char* rows[4];
            for (int i = 0; i < 4; ++i) rows[i] = k + at[16 * i];
            const uint16_t* here = q + h * steps * tile_numbers;
            finish_stores();
            switch ((count + 15) / 16) {
            case 1: multiply_rows_of_keys<1>(rows, stride, here, steps, ahead, products); break;
            case 2: multiply_rows_of_keys<2>(rows, stride, here, steps, ahead, products); break;
            case 3: multiply_rows_of_keys<3>(rows, stride, here, steps, ahead, products); break;
            default: multiply_rows_of_keys<4>(rows, stride, here, steps, ahead, products);
            }
            finish_stores();
            int64_t g = 0;
            const auto pass = [&](auto function, int number) {
                const int64_t i = h * group + g;
                function(a, keys, first, products + g, values + i * head_dim, maxima + i, sums + i);
                g += number;
            };
            while (group - g >= 4) pass(stream_bf16_keys<4>, 4);
            if (group - g == 3) pass(stream_bf16_keys<3>, 3);
            if (group - g == 2) pass(stream_bf16_keys<2>, 2);
            if (group - g == 1) pass(stream_bf16_keys<1>, 1);
            ahead.finish();
        }
        int64_t* kept = at;
        at = next, next = kept;
    }
    const __m512i low = _mm512_setr_epi32(0, 1, 2, 3, 16, 17, 18, 19, 4, 5, 6, 7, 20, 21, 22, 23);
    const __m512i high = _mm512_add_epi32(low, _mm512_set1_epi32(8));
    for (int64_t i = 0; i < num_queries * head_dim; i += 32) {
        const __m512 first = _mm512_loadu_ps(values + i), second = _mm512_loadu_ps(values + i + 16);
        _mm512_storeu_ps(values + i, _mm512_permutex2var_ps(first, low, second));
        _mm512_storeu_ps(values + i + 16, _mm512_permutex2var_ps(first, high, second));
    }
    finish_streamed(a, piece, values, maxima, sums);
}

void stream_any(const Attention& a, const Piece& piece, const Piece* upcoming) {
    const bool is_short = a.q_type == Number::bf16 && a.cache_type == Number::bf16;
    (is_short && a.block_size % 16 == 0 ? stream_bf16 : stream)(a, piece, upcoming);
}

void tiles(const Attention& a, const Piece& piece) {
    if (a.q_type != Number::bf16) return tiles_of_floats(a, piece);
    switch (a.cache_type) {
    case Number::bf16: return tiles_of_bf16<Number::bf16>(a, piece);
    case Number::i8: return tiles_of_bf16<Number::i8>(a, piece);
    default: return tiles_of_floats(a, piece);
    }
}

} // namespace

const AttentionKernels amx_attention{stream_any, tiles, merge, 8, 4, true};

} // namespace octavo
