// The kernels of attention, written once over the 16 lanes of vec_*.h and lanes_*.h, which come before this.
#pragma once

#include "ahead.h"
#include "attention.h"
#include "linear.h" // scratch
#include "typed_lanes.h"

namespace octavo {
namespace {

constexpr float log2_e = 1.44269504f;
constexpr float lowest = -1e30f; // where a maximum starts: finite, so that nothing is ever inf - inf
constexpr float headroom = 8;    // powers of 2 that a weight may be over 1, which saves most corrections of sums
constexpr int64_t stream_keys = 64, tile_keys = 64; // that pass at a time

inline int64_t round_up(int64_t n, int64_t to) { return (n + to - 1) / to * to; }
inline int64_t least(int64_t a, int64_t b) { return a < b ? a : b; }
inline int64_t most(int64_t a, int64_t b) { return a > b ? a : b; }
inline int64_t clamp(int64_t x, int64_t low, int64_t high) { return least(most(x, low), high); }

inline const char* advance(const void* p, Number type, int64_t n) {
    return static_cast<const char*>(p) + n * size_of(type);
}

// Hands out this thread's memory in pieces that begin at multiples of 64 bytes.
class Space {
  public:
    template <class T>
    int64_t reserve(int64_t count) {
        const int64_t at = size_;
        size_ += round_up(count * static_cast<int64_t>(sizeof(T)), 64);
        return at;
    }
    void allocate() { data_ = static_cast<char*>(scratch(1, static_cast<size_t>(size_))); }
    template <class T>
    T* at(int64_t place) const { return reinterpret_cast<T*>(data_ + place); }

  private:
    int64_t size_ = 0;
    char* data_ = nullptr;
};

// Where keys lie in the cache, in bytes from its start; values lie `kv` further.
inline void find_keys(const Attention& a, const Piece& piece, int64_t key, int64_t count, int64_t* at) {
    const int64_t block = a.block * size_of(a.cache_type), slot = a.slot * size_of(a.cache_type);
    int64_t index = key / a.block_size, place = key % a.block_size, base = piece.table[index] * block;
    for (int64_t i = 0; i < count; ++i) {
        at[i] = base + place * slot;
        if (++place == a.block_size && i + 1 < count) place = 0, base = piece.table[++index] * block;
    }
}

inline const char* keys_of(const Attention& a, int64_t head) { return advance(a.cache, a.cache_type, head * a.head); }

// What the numbers of a key or value are to be multiplied by.
inline float scale_of(const Attention& a, const char* row) {
    float scale = 1;
    if (a.cache_type == Number::i8) std::memcpy(&scale, row + a.head_dim, head_scale_bytes);
    return scale;
}

inline int64_t token_of(const Attention& a, const Piece& piece, int64_t query) {
    const int64_t i = query / a.group();
    return piece.tokens != nullptr ? piece.tokens[i] : piece.token + i;
}

inline const void* query_of(const Attention& a, const Piece& piece, int64_t head, int64_t query) {
    const int64_t token = token_of(a, piece, query), n = head * a.group() + query % a.group();
    return advance(a.q, a.q_type, token * a.q_token + n * a.q_head);
}

inline float sink_of(const Attention& a, int64_t head, int64_t query) {
    return load_number(a.sinks, a.sink_type, head * a.group() + query % a.group()) * log2_e;
}

// Where the result of a query goes: out, or the part of it that a piece has.
struct Target {
    void* data;
    Number type;
    int64_t at;
};

inline Target target_of(const Attention& a, const Piece& piece, int64_t head, int64_t query) {
    if (piece.partial.data != nullptr)
        return {piece.partial.data, Number::f32, piece.partial.index(head, query) * a.head_dim};
    const int64_t token = token_of(a, piece, query), n = head * a.group() + query % a.group();
    return {a.out, a.q_type, (token * a.heads + n) * a.head_dim};
}

inline float& maximum_of(const Attention& a, const Partial& partial, int64_t index) {
    return partial.data[partial.count() * a.head_dim + index];
}
inline float& sum_of(const Attention& a, const Partial& partial, int64_t index) {
    return partial.data[partial.count() * (a.head_dim + 1) + index];
}

inline void keep_partial(const Attention& a, const Piece& piece, int64_t head, int64_t query, float maximum, float sum) {
    const int64_t at = piece.partial.index(head, query);
    maximum_of(a, piece.partial, at) = maximum, sum_of(a, piece.partial, at) = sum;
}

// c * tanh(x * scale / c)
inline Vec capped(const Attention& a, Vec x) {
    const Vec y = mul(x, set(2 * log2_e * a.scale / a.soft_cap));
    const Vec e = exp2(smaller(set(40), larger(set(-40), y))); // the second where either is NaN
    return mul(set(a.soft_cap), sub(set(1), divide(set(2), add(e, set(1)))));
}

// What turns scores, capped or not, into powers of 2.
inline float exponent_scale(const Attention& a) { return a.soft_cap > 0 ? log2_e : a.scale * log2_e; }

// ---- one token -------------------------------------------------------------------------------------------------------

// The keys that pass next and their values, of all heads: 16 keys from each of four places on.
struct NextKeys : Ahead {
    int64_t size = 0; // of a stream

    // From here on as much as head h, of so many, leaves behind it.
    void reach(int64_t h, int64_t heads) { end = size * (h + 1) / heads; }
};

// Some keys of one head that pass together. The places repeat the last one up to stream_keys.
struct Keys {
    const char *k, *v;
    const int64_t* at;
    int64_t count;
    NextKeys* next;
};

// 32 numbers of a row in the order that costs least: those of bf16 come as the even and the odd ones.
template <Number T>
inline void load_pair(const char* row, int64_t i, Vec* pair) {
    if constexpr (T == Number::bf16) {
        const Bytes both = load_bytes(reinterpret_cast<const uint8_t*>(row) + 2 * i);
        pair[0] = first_bf16(both), pair[1] = second_bf16(both);
    } else {
        pair[0] = load_as(row, T, i), pair[1] = load_as(row, T, i + 16);
    }
}

// Products of four keys with G queries.
template <Number T, int G, bool Short>
inline void multiply_four(const char* const* rows, const void* q, int64_t head_dim, Vec (*sums)[4]) {
    for (int g = 0; g < G; ++g)
        for (int j = 0; j < 4; ++j) sums[g][j] = set(0);
    if constexpr (Short) {
        for (int64_t d = 0; d < head_dim; d += 32) {
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j)
                    sums[g][j] = dot_bf16(sums[g][j], rows[j] + 2 * d, static_cast<const uint16_t*>(q) + g * head_dim + d);
        }
    } else {
        for (int64_t d = 0; d < head_dim; d += 16) {
            Vec k[4];
#pragma GCC unroll 4
            for (int j = 0; j < 4; ++j) k[j] = load_as(rows[j], T, d);
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g) {
                const Vec x = load(static_cast<const float*>(q) + g * head_dim + d);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) sums[g][j] = fma(k[j], x, sums[g][j]);
            }
        }
    }
}

// Adds weighted values, W pairs of vectors from d on, to what there is times its factor.
template <Number T, int G, int W>
inline void stream_values(const Keys& keys, const float (*weights)[stream_keys], const float* factors, int64_t d,
                          int64_t head_dim, float* values) {
    Vec sums[G][2 * W];
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
        for (int i = 0; i < 2 * W; ++i) sums[g][i] = mul(load(values + g * head_dim + d + 16 * i), set(factors[g]));
    for (int64_t k = 0; k < keys.count; ++k) {
        if (k % 2 == 0) keys.next->step();
        Vec v[2 * W];
#pragma GCC unroll 2
        for (int i = 0; i < W; ++i) load_pair<T>(keys.v + keys.at[k], d + 32 * i, v + 2 * i);
#pragma GCC unroll 4
        for (int g = 0; g < G; ++g) {
            const Vec weight = set(weights[g][k]);
#pragma GCC unroll 4
            for (int i = 0; i < 2 * W; ++i) sums[g][i] = fma(v[i], weight, sums[g][i]);
        }
    }
#pragma GCC unroll 4
    for (int g = 0; g < G; ++g)
#pragma GCC unroll 4
        for (int i = 0; i < 2 * W; ++i) store(values + g * head_dim + d + 16 * i, sums[g][i]);
}

// Products of G queries with keys [first, count) of some that pass together become weights, the others' 0. What was
// summed up before is to be multiplied by `factors`.
template <int G>
inline void weigh_streamed(const Attention& a, int64_t first, int64_t count, float (*weights)[stream_keys],
                           float* maxima, float* sums, float* factors) {
    const float scale = exponent_scale(a);
    const int64_t padded = round_up(count, 16);
    for (int g = 0; g < G; ++g) {
        if (a.soft_cap > 0)
            for (int64_t i = 0; i < padded; i += 16) store(weights[g] + i, capped(a, load(weights[g] + i)));
        for (int64_t i = 0; i < first; ++i) weights[g][i] = -__builtin_inff();
        for (int64_t i = count; i < padded; ++i) weights[g][i] = -__builtin_inff();
        Vec top = load(weights[g]);
        for (int64_t i = 16; i < padded; i += 16) top = larger(load(weights[g] + i), top);
        const float before = maxima[g], here = largest(top) * scale, maximum = here > before ? here : before;
        maxima[g] = maximum;
        Vec sum = set(0);
        for (int64_t i = 0; i < padded; i += 16) {
            const Vec weight = exp2(fma(load(weights[g] + i), set(scale), set(-maximum)));
            store(weights[g] + i, weight);
            sum = add(sum, weight);
        }
        float factor[16];
        store(factor, exp2(set(before - maximum)));
        factors[g] = factor[0];
        sums[g] = sums[g] * factors[g] + total(sum);
    }
}

// G queries of one head go over some keys. Sums of values are [G][head_dim], in the order of load_pair.
template <Number T, int G, bool Short>
void stream_keys_of(const Attention& a, const Keys& keys, const void* q, float* values, float* maxima, float* sums) {
    alignas(64) float weights[G][stream_keys];
    const int64_t padded = round_up(keys.count, 16);
    const auto scales = [&](const char* rows, int64_t i) { // of 16 of them
        float all[16];
        for (int64_t j = 0; j < 16; ++j) all[j] = scale_of(a, rows + keys.at[i + j]);
        return load(all);
    };
    for (int64_t i = 0; i < padded; i += 16) {
        Vec quads[G][4];
#pragma GCC unroll 4
        for (int j = 0; j < 4; ++j) {
            const char* rows[4];
            for (int n = 0; n < 4; ++n) rows[n] = keys.k + keys.at[i + 4 * j + n];
            keys.next->step();
            Vec products[G][4];
            multiply_four<T, G, Short>(rows, q, a.head_dim, products);
#pragma GCC unroll 4
            for (int g = 0; g < G; ++g)
                quads[g][j] = quad(products[g][0], products[g][1], products[g][2], products[g][3]);
        }
        for (int g = 0; g < G; ++g) {
            const Vec products = join(quads[g][0], quads[g][1], quads[g][2], quads[g][3]);
            if constexpr (T == Number::i8) store(weights[g] + i, mul(products, scales(keys.k, i)));
            else store(weights[g] + i, products);
        }
    }
    float factors[G];
    weigh_streamed<G>(a, 0, keys.count, weights, maxima, sums, factors);
    if constexpr (T == Number::i8)
        for (int64_t i = 0; i < padded; i += 16) {
            const Vec scale = scales(keys.v, i);
            for (int g = 0; g < G; ++g) store(weights[g] + i, mul(load(weights[g] + i), scale));
        }
    constexpr int pairs = most_rows >= 8 ? 2 : 1; // that registers hold for G queries
    int64_t d = 0;
    for (; d + 32 * pairs <= a.head_dim; d += 32 * pairs)
        stream_values<T, G, pairs>(keys, weights, factors, d, a.head_dim, values);
    for (; d < a.head_dim; d += 32) stream_values<T, G, 1>(keys, weights, factors, d, a.head_dim, values);
}

// What the queries of a piece have before any key; sums of values are [heads][group][head_dim].
inline void start_streamed(const Attention& a, const Piece& piece, float* values, float* maxima, float* sums) {
    const int64_t group = a.group();
    const bool has_sink = a.sinks != nullptr && piece.is_first && piece.before.data == nullptr;
    for (int64_t i = 0; i < piece.heads * group; ++i) {
        for (int64_t d = 0; d < a.head_dim; d += 16) store(values + i * a.head_dim + d, set(0));
        maxima[i] = has_sink ? sink_of(a, piece.head + i / group, i % group) : lowest, sums[i] = has_sink ? 1.0f : 0.0f;
    }
}

// Results, from sums of values in the order of dims and what there was before.
inline void finish_streamed(const Attention& a, const Piece& piece, const float* values, const float* maxima,
                            const float* sums) {
    const int64_t group = a.group();
    for (int64_t i = 0; i < piece.heads * group; ++i) {
        const int64_t head = piece.head + i / group, query = i % group;
        const float* others = nullptr;
        float maximum = maxima[i], sum = sums[i];
        Vec own = set(1), other = set(0); // what each kind of sums is to be multiplied by
        if (piece.before.data != nullptr) {
            const int64_t at = piece.before.index(head, query);
            const float before = maximum_of(a, piece.before, at);
            others = piece.before.data + at * a.head_dim;
            maximum = before > maximum ? before : maximum;
            own = exp2(set(maxima[i] - maximum)), other = exp2(set(before - maximum));
            float weight[2][16];
            store(weight[0], own), store(weight[1], other);
            sum = sum * weight[0][0] + sum_of(a, piece.before, at) * weight[1][0];
        }
        if (piece.partial.data == nullptr) {
            const Vec factor = inverse(set(sum));
            own = mul(own, factor), other = mul(other, factor);
        }
        const Target to = target_of(a, piece, head, query);
        for (int64_t d = 0; d < a.head_dim; d += 16) {
            Vec x = mul(load(values + i * a.head_dim + d), own);
            if (others != nullptr) x = fma(load(others + d), other, x);
            store_some(to.data, to.type, to.at + d, x, 16);
        }
        if (piece.partial.data != nullptr) keep_partial(a, piece, head, query, maximum, sum);
    }
}

// Places of the keys that pass together from `key` on; the last one is repeated up to stream_keys.
inline void find_streamed(const Attention& a, const Piece& piece, int64_t key, int64_t* places) {
    const int64_t count = least(stream_keys, piece.key_end - key);
    if (count <= 0) return;
    find_keys(a, piece, key, count, places);
    for (int64_t i = count; i < stream_keys; ++i) places[i] = places[count - 1];
}

// Those of a piece from `key` on, whose places are `places`; none without a piece.
inline NextKeys next_keys(const Attention& a, const Piece* piece, int64_t key, const int64_t* places) {
    NextKeys next{};
    const int64_t keys = piece == nullptr ? 0 : least(stream_keys, piece->key_end - key);
    if (keys <= 0) return next;
    next.size = 16 * a.slot * size_of(a.cache_type);
    for (int64_t i = 0; i < 4; ++i) { // where there are fewer keys, some streams twice
        const char* k = static_cast<const char*>(a.cache) + places[16 * least(i, (keys - 1) / 16)];
        next.streams[2 * i] = k, next.streams[2 * i + 1] = k + a.kv * size_of(a.cache_type);
    }
    return next;
}

constexpr int streamed_together = most_rows >= 8 ? 4 : most_rows >= 4 ? 2 : 1; // queries

template <Number T, bool Short>
void stream_of(const Attention& a, const Piece& piece, const Piece* upcoming) {
    const int64_t group = a.group(), head_dim = a.head_dim, num_queries = piece.heads * group;
    Space space;
    const int64_t q_at = space.reserve<float>(num_queries * head_dim);
    const int64_t values_at = space.reserve<float>(num_queries * head_dim);
    const int64_t maxima_at = space.reserve<float>(num_queries), sums_at = space.reserve<float>(num_queries);
    const int64_t places_at = space.reserve<int64_t>(2 * stream_keys);
    space.allocate();
    float *values = space.at<float>(values_at), *maxima = space.at<float>(maxima_at), *sums = space.at<float>(sums_at);
    const int64_t q_bytes = head_dim * (Short ? 2 : 4);
    char* q = space.at<char>(q_at);
    for (int64_t i = 0; i < num_queries; ++i) {
        const int64_t head = piece.head + i / group;
        const void* from = query_of(a, piece, head, i % group);
        if (Short) std::memcpy(q + i * q_bytes, from, static_cast<size_t>(q_bytes));
        else
            for (int64_t d = 0; d < head_dim; d += 16)
                store(reinterpret_cast<float*>(q + i * q_bytes) + d, load_as(from, a.q_type, d));
    }
    start_streamed(a, piece, values, maxima, sums);
    int64_t *at = space.at<int64_t>(places_at), *next = at + stream_keys;
    find_streamed(a, piece, piece.key, at);
    for (int64_t key = piece.key; key < piece.key_end; key += stream_keys) {
        const bool is_last = key + stream_keys >= piece.key_end;
        const Piece* later = is_last ? upcoming : &piece;
        const int64_t next_key = !is_last ? key + stream_keys : upcoming != nullptr ? upcoming->key : 0;
        if (later != nullptr) find_streamed(a, *later, next_key, next);
        NextKeys ahead = next_keys(a, later, next_key, next);
        for (int64_t h = 0; h < piece.heads; ++h) {
            ahead.reach(h, piece.heads);
            const char* k = keys_of(a, piece.head + h);
            const Keys keys{k, k + a.kv * size_of(T), at, least(stream_keys, piece.key_end - key), &ahead};
            int64_t g = h * group;
            const auto pass = [&](auto function, int number) {
                function(a, keys, q + g * q_bytes, values + g * head_dim, maxima + g, sums + g);
                g += number;
            };
            if constexpr (streamed_together >= 4)
                while ((h + 1) * group - g >= 4) pass(stream_keys_of<T, 4, Short>, 4);
            if constexpr (streamed_together >= 4)
                if ((h + 1) * group - g == 3) pass(stream_keys_of<T, 3, Short>, 3);
            if constexpr (streamed_together >= 2)
                while ((h + 1) * group - g >= 2) pass(stream_keys_of<T, 2, Short>, 2);
            while (g < (h + 1) * group) pass(stream_keys_of<T, 1, Short>, 1);
            ahead.finish();
        }
        int64_t* kept = at;
        at = next, next = kept;
    }
    if (T == Number::bf16)
        for (int64_t i = 0; i < num_queries * head_dim; i += 32) {
            Vec first = load(values + i), second = load(values + i + 16);
            interleave(first, second);
            store(values + i, first), store(values + i + 16, second);
        }
    finish_streamed(a, piece, values, maxima, sums);
}

void stream(const Attention& a, const Piece& piece, const Piece* upcoming) {
    switch (a.cache_type) {
    case Number::f32: return stream_of<Number::f32, false>(a, piece, upcoming);
    case Number::f16: return stream_of<Number::f16, false>(a, piece, upcoming);
    case Number::i8: return stream_of<Number::i8, false>(a, piece, upcoming);
    default:
        if constexpr (has_dot_bf16)
            if (a.q_type == Number::bf16) return stream_of<Number::bf16, true>(a, piece, upcoming);
        return stream_of<Number::bf16, false>(a, piece, upcoming);
    }
}

// ---- tiles of 16 queries: a lane is a query --------------------------------------------------------------------------

// 16 queries of one head: where they are, and what they have so far.
struct Tile {
    int64_t first, last; // positions: the least and the most
    float* positions;    // [16]; lanes without a query have the last one's
    float *maxima, *sums, *values; // [16], [16], [dims][16]
};

class Tiles {
  public:
    // `dims`: of values, at least head_dim and a multiple of 16.
    void reserve(Space& space, const Piece& piece, int64_t dims) {
        count = (piece.queries + 15) / 16, dims_ = dims;
        at_ = space.reserve<float>(count * (dims + 3) * 16);
    }
    void start(const Space& space, const Attention& a, const Piece& piece) {
        data_ = space.at<float>(at_);
        for (int64_t t = 0; t < count; ++t) {
            const Tile tile = (*this)(a, piece, t);
            for (int64_t i = 0; i < 16; ++i)
                tile.positions[i] = static_cast<float>(position(a, piece, 16 * t + i) - tile.first);
        }
    }
    void clear(const Attention& a, const Piece& piece, int64_t head) {
        for (int64_t t = 0; t < count; ++t) {
            const Tile tile = (*this)(a, piece, t);
            const bool has_sinks = a.sinks != nullptr && piece.is_first;
            for (int64_t i = 0; i < 16; ++i) {
                tile.maxima[i] = has_sinks ? sink_of(a, head, piece.query + 16 * t + i) : lowest;
                tile.sums[i] = has_sinks ? 1.0f : 0.0f;
            }
            for (int64_t d = 0; d < dims_; ++d) store(tile.values + 16 * d, set(0));
        }
    }
    Tile operator()(const Attention& a, const Piece& piece, int64_t t) const {
        float* data = data_ + t * (dims_ + 3) * 16;
        return {position(a, piece, 16 * t), position(a, piece, 16 * t + 15), data, data + 16, data + 32, data + 48};
    }
    // Results of all tiles, to where they belong.
    void finish(const Attention& a, const Piece& piece, int64_t head) const {
        for (int64_t t = 0; t < count; ++t) {
            const Tile tile = (*this)(a, piece, t);
            const int64_t query = piece.query + 16 * t, queries = least(16, piece.queries - 16 * t);
            const Vec factor = piece.partial.data != nullptr ? set(1) : inverse(load(tile.sums));
            Target to[16];
            for (int64_t i = 0; i < queries; ++i) to[i] = target_of(a, piece, head, query + i);
            for (int64_t i = 16; i < least(32, piece.queries - 16 * t); ++i) { // the next tile's lines
                const Target next = target_of(a, piece, head, query + i);
                const int64_t size = size_of(next.type);
                const char* line = static_cast<const char*>(next.data) + next.at * size;
                for (int64_t b = 0; b < a.head_dim * size; b += 64) prefetch_written(line + b);
            }
            const auto turned = [&](int64_t d, Vec* rows) {
                for (int64_t i = 0; i < 16; ++i) rows[i] = mul(load(tile.values + 16 * (d + i)), factor);
                transpose(rows);
            };
            int64_t d = 0;
            for (; d + 32 <= a.head_dim; d += 32) {
                Vec low[16], high[16];
                turned(d, low), turned(d + 16, high);
                for (int64_t i = 0; i < queries; ++i) store_two(to[i].data, to[i].type, to[i].at + d, low[i], high[i]);
            }
            for (; d < a.head_dim; d += 16) {
                Vec rows[16];
                turned(d, rows);
                for (int64_t i = 0; i < queries; ++i)
                    store_some(to[i].data, to[i].type, to[i].at + d, rows[i], a.head_dim - d);
            }
            if (piece.partial.data != nullptr)
                for (int64_t i = 0; i < queries; ++i)
                    keep_partial(a, piece, head, query + i, tile.maxima[i], tile.sums[i]);
        }
    }

    int64_t count = 0;

  private:
    static int64_t position(const Attention& a, const Piece& piece, int64_t query) {
        return piece.first + (piece.query + least(query, piece.queries - 1)) / a.group();
    }

    int64_t dims_ = 0, at_ = 0;
    float* data_ = nullptr;
};

// Keys [low, high) of those that pass together; all queries of a tile see [open, open_end).
struct Span {
    int64_t low, open, open_end, high;
    Vec last; // of each lane, the last key it sees
};

// Of the `count` keys from `key` on, those that tiles `first` to `last` see, in steps.
inline Span span_of(const Attention& a, const Piece& piece, const Tile& first, const Tile& last, int64_t key,
                    int64_t count, int64_t step) {
    const int64_t seen = a.window > 0 ? most(first.first - a.window + 1 - key, 0) : 0;
    Span span;
    span.low = seen / step * step;
    span.high = least(round_up(least(last.last + 1, piece.key_end) - key, step), round_up(count, step));
    return span;
}

// The same for one of those tiles.
inline Span span_of(const Attention& a, const Tile& tile, int64_t key, Span span) {
    span.open = a.window > 0 ? clamp(tile.last - a.window + 1 - key, span.low, span.high) : span.low;
    span.open_end = clamp(tile.first + 1 - key, span.open, span.high);
    span.last = add(load(tile.positions), set(static_cast<float>(tile.first - key)));
    return span;
}

// Makes products [keys][16] exponents of weights but for the scale: caps them, leaves out what is not seen, and sees to
// it that no weight comes out far over 1. Returns what is to be taken off the scaled ones.
inline Vec settle(const Attention& a, const Tile& tile, int64_t dims, const Span& span, float* scores) {
    if (a.soft_cap > 0)
        for (int64_t k = span.low; k < span.high; ++k) store(scores + 16 * k, capped(a, load(scores + 16 * k)));
    const float infinity = __builtin_inff();
    const Vec earliest = a.window > 0 ? sub(span.last, set(static_cast<float>(a.window - 1))) : set(-infinity);
    Vec top = set(-infinity);
    const auto hide = [&](int64_t begin, int64_t end) {
        for (int64_t k = begin; k < end; ++k) {
            const Vec key = set(static_cast<float>(k));
            const Vec seen = keep_if(key, earliest, keep_if(span.last, key, load(scores + 16 * k)));
            store(scores + 16 * k, seen);
            top = larger(seen, top);
        }
    };
    hide(span.low, span.open);
    Vec others[3] = {top, top, top};
    int64_t k = span.open;
    for (; k + 4 <= span.open_end; k += 4) {
        top = larger(load(scores + 16 * k), top);
        for (int i = 0; i < 3; ++i) others[i] = larger(load(scores + 16 * (k + i + 1)), others[i]);
    }
    for (; k < span.open_end; ++k) top = larger(load(scores + 16 * k), top);
    top = larger(larger(others[0], others[1]), larger(others[2], top));
    hide(span.open_end, span.high);

    top = mul(top, set(exponent_scale(a)));
    const Vec before = load(tile.maxima);
    if (!any_above(top, add(before, set(headroom)))) return before;
    const Vec maxima = larger(top, before), factor = exp2(sub(before, maxima));
    store(tile.maxima, maxima);
    store(tile.sums, mul(load(tile.sums), factor));
    for (int64_t d = 0; d < dims; ++d) store(tile.values + 16 * d, mul(load(tile.values + 16 * d), factor));
    return maxima;
}

constexpr int tile_rows = most_rows, tiles_together = most_rows >= 8 ? 2 : 1; // that registers hold the products of

// R rows of numbers times Q tiles of queries: out[r][16].
template <int R, int Q>
inline void multiply_rows(const float* const* rows, const float* q, int64_t q_stride, int64_t n, float* out,
                          int64_t out_stride) {
    Vec sums[R][Q];
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < Q; ++t) sums[r][t] = set(0);
    const float* from[R];
    for (int r = 0; r < R; ++r) from[r] = rows[r];
    for (int64_t d = 0; d < n; ++d) {
        Vec x[Q];
        for (int t = 0; t < Q; ++t) x[t] = load(q + 16 * d + t * q_stride);
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const Vec k = set(from[r][d]);
#pragma GCC unroll 2
            for (int t = 0; t < Q; ++t) sums[r][t] = fma(k, x[t], sums[r][t]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < Q; ++t) store(out + 16 * r + t * out_stride, sums[r][t]);
}

// Adds R numbers of each row, weighted for Q tiles, to out[r][16].
template <int R, int Q>
inline void add_rows(const float* const* rows, int64_t d, const float* weights, int64_t weight_stride, int64_t begin,
                     int64_t end, float* out, int64_t out_stride) {
    Vec sums[R][Q];
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < Q; ++t) sums[r][t] = load(out + 16 * (d + r) + t * out_stride);
    for (int64_t k = begin; k < end; ++k) {
        Vec x[Q];
        for (int t = 0; t < Q; ++t) x[t] = load(weights + 16 * k + t * weight_stride);
        const float* v = rows[k] + d;
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r) {
            const Vec value = set(v[r]);
#pragma GCC unroll 2
            for (int t = 0; t < Q; ++t) sums[r][t] = fma(value, x[t], sums[r][t]);
        }
    }
    for (int r = 0; r < R; ++r)
        for (int t = 0; t < Q; ++t) store(out + 16 * (d + r) + t * out_stride, sums[r][t]);
}

// The keys of a head that pass together, as float32.
struct Block {
    const float *k[tile_keys], *v[tile_keys];
    int64_t key, count;
};

template <int Q>
inline void attend_tiles(const Attention& a, const Piece& piece, const Block& block, const Tiles& tiles, int64_t t,
                         const float* q, int64_t q_stride, float* weights) {
    const int64_t dims = round_up(a.head_dim, 16), stride = (dims + 3) * 16, weight_stride = 16 * tile_keys;
    const Tile first = tiles(a, piece, t);
    const Span both = span_of(a, piece, first, tiles(a, piece, t + Q - 1), block.key, block.count, 1);
    if (both.low >= both.high) return;
    int64_t k = both.low;
    for (; k + tile_rows <= both.high; k += tile_rows)
        multiply_rows<tile_rows, Q>(block.k + k, q, q_stride, a.head_dim, weights + 16 * k, weight_stride);
    for (; k < both.high; ++k) multiply_rows<1, Q>(block.k + k, q, q_stride, a.head_dim, weights + 16 * k, weight_stride);
    const Vec scale = set(exponent_scale(a));
    for (int i = 0; i < Q; ++i) {
        const Tile tile = tiles(a, piece, t + i);
        float* own = weights + i * weight_stride;
        const Vec maxima = negative(settle(a, tile, dims, span_of(a, tile, block.key, both), own));
        Vec sum = load(tile.sums);
        for (k = both.low; k < both.high; ++k) {
            const Vec weight = exp2(fma(load(own + 16 * k), scale, maxima));
            store(own + 16 * k, weight);
            sum = add(sum, weight);
        }
        store(tile.sums, sum);
    }
    int64_t d = 0;
    for (; d + tile_rows <= a.head_dim; d += tile_rows)
        add_rows<tile_rows, Q>(block.v, d, weights, weight_stride, both.low, both.high, first.values, stride);
    for (; d < a.head_dim; ++d)
        add_rows<1, Q>(block.v, d, weights, weight_stride, both.low, both.high, first.values, stride);
}

void tiles_of_floats(const Attention& a, const Piece& piece) {
    const int64_t head_dim = a.head_dim, dims = round_up(head_dim, 16);
    const bool is_wide = a.cache_type == Number::f32;
    Space space;
    Tiles tiles;
    tiles.reserve(space, piece, dims);
    const int64_t q_at = space.reserve<float>(tiles.count * dims * 16);
    const int64_t kv_at = space.reserve<float>(is_wide ? 0 : 2 * tile_keys * dims);
    const int64_t weights_at = space.reserve<float>(tiles_together * tile_keys * 16);
    space.allocate();
    tiles.start(space, a, piece);
    float *q = space.at<float>(q_at), *kv = space.at<float>(kv_at), *weights = space.at<float>(weights_at);
    for (int64_t head = piece.head; head < piece.head + piece.heads; ++head) {
        tiles.clear(a, piece, head);
        for (int64_t t = 0; t < tiles.count; ++t) {
            for (int64_t d = 0; d < head_dim; d += 16) {
                Vec rows[16];
                for (int64_t i = 0; i < 16; ++i) {
                    const int64_t query = 16 * t + i;
                    rows[i] = query >= piece.queries ? set(0)
                                                     : load_some(query_of(a, piece, head, piece.query + query), a.q_type,
                                                                 d, head_dim - d);
                }
                transpose(rows);
                for (int64_t i = 0; i < 16; ++i) store(q + 16 * (t * dims + d + i), rows[i]);
            }
        }
        for (int64_t key = piece.key; key < piece.key_end; key += tile_keys) {
            Block block;
            block.key = key, block.count = least(tile_keys, piece.key_end - key);
            int64_t at[tile_keys];
            find_keys(a, piece, key, block.count, at);
            const char *k = keys_of(a, head), *v = k + a.kv * size_of(a.cache_type);
            for (int64_t i = 0; i < block.count; ++i) {
                if (is_wide) {
                    block.k[i] = reinterpret_cast<const float*>(k + at[i]);
                    block.v[i] = reinterpret_cast<const float*>(v + at[i]);
                    continue;
                }
                float *wide_k = kv + 2 * i * dims, *wide_v = wide_k + dims;
                const Vec k_scale = set(scale_of(a, k + at[i])), v_scale = set(scale_of(a, v + at[i]));
                for (int64_t d = 0; d < head_dim; d += 16) {
                    store(wide_k + d, mul(load_some(k + at[i], a.cache_type, d, head_dim - d), k_scale));
                    store(wide_v + d, mul(load_some(v + at[i], a.cache_type, d, head_dim - d), v_scale));
                }
                block.k[i] = wide_k, block.v[i] = wide_v;
            }
            int64_t t = 0;
            for (; t + tiles_together <= tiles.count; t += tiles_together)
                attend_tiles<tiles_together>(a, piece, block, tiles, t, q + 16 * t * dims, 16 * dims, weights);
            for (; t < tiles.count; ++t)
                attend_tiles<1>(a, piece, block, tiles, t, q + 16 * t * dims, 16 * dims, weights);
        }
        tiles.finish(a, piece, head);
    }
}

// ---- parts of keys ---------------------------------------------------------------------------------------------------

void merge(const Attention& a, const Piece& piece, int64_t parts, int64_t stride) {
    const Partial& first = piece.partial;
    Piece whole = piece;
    whole.partial.data = nullptr;
    for (int64_t i = 0; i < first.count(); ++i) {
        const float *maxima = &maximum_of(a, first, i), *sums = &sum_of(a, first, i);
        float maximum = lowest;
        for (int64_t p = 0; p < parts; ++p)
            if (maxima[p * stride] > maximum) maximum = maxima[p * stride];
        Vec sum = set(0);
        for (int64_t p = 0; p < parts; ++p)
            sum = fma(exp2(set(maxima[p * stride] - maximum)), set(sums[p * stride]), sum);
        const Vec factor = inverse(sum);
        const Target to = target_of(a, whole, first.head + i / first.queries, first.query + i % first.queries);
        for (int64_t d = 0; d < a.head_dim; d += 16) {
            Vec values = set(0);
            for (int64_t p = 0; p < parts; ++p) {
                const Vec part = load_some(first.data + p * stride, Number::f32, i * a.head_dim + d, a.head_dim - d);
                values = fma(exp2(set(maxima[p * stride] - maximum)), part, values);
            }
            store_some(to.data, to.type, to.at + d, mul(values, factor), a.head_dim - d);
        }
    }
}

} // namespace
} // namespace octavo
