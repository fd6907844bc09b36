// Heads on their way to attention and the cache, over the 16 lanes of lanes_*.h.
#pragma once

#include "linear.h" // scratch
#include "norm_impl.h"

namespace octavo {
namespace {

template <Number N>
inline const void* head_of(const Heads& heads, int64_t token, int64_t head) {
    return at<N>(heads.data, token * heads.token_stride + head * heads.head_stride);
}

// Where a head goes; part 0 are keys, 1 values.
template <Number C>
inline void* place_of(const Pages& pages, int64_t slot, int64_t part, int64_t head) {
    const int64_t block = slot / pages.block_size, offset = slot % pages.block_size;
    return at<C>(pages.data, block * pages.block_stride + part * pages.part_stride + offset * pages.token_stride +
                                 head * pages.head_stride);
}

// A head as bytes in units of a 127th of its largest magnitude, and that unit; heads that are not finite have one that is
// not, and all bytes 1. Magnitudes of which none reaches 1e-30 become zeros.
template <Number N>
inline void quantize_head(const void* from, void* to, int64_t n) {
    Vec most = set(0);
    uint32_t nan = 0;
    each_vector(n, [&](int64_t i, int64_t count) {
        const Vec x = get<N>(from, i, count);
        most = largest(magnitude(x), most);
        nan |= bits_of(is_nan(x));
    });
    const float top = largest_of(most);
    const float scale = nan ? __builtin_nanf("") : top / 127.0f;
    std::memcpy(static_cast<char*>(to) + n, &scale, head_scale_bytes);
    if (nan || top > largest_float) {
        std::memset(to, 1, static_cast<size_t>(n));
        return;
    }
    const Vec inverse = set(top < 1e-30f ? 0.0f : 127.0f / top);
    each_vector(n, [&](int64_t i, int64_t count) {
        int8_t bytes[16];
        store_i8(bytes, mul(get<N>(from, i, count), inverse));
        std::memcpy(static_cast<int8_t*>(to) + i, bytes, static_cast<size_t>(count));
    });
}

template <Number N, Number C>
inline void copy(const void* from, void* to, int64_t n) {
    if constexpr (C == Number::i8) quantize_head<N>(from, to, n);
    else if constexpr (N == C) std::memcpy(to, from, static_cast<size_t>(n * bytes_of<N>));
    else each_vector(n, [&](int64_t i, int64_t count) { put<C>(to, i, get<N>(from, i, count), count); });
}

// One head, normed where there is a weight, and turned: pairs (i, i + rotated / 2) by the angles of its position. What
// is stored as C was rounded to N before.
template <Number N, Number C>
inline void turn(const RopeCall& c, const void* x, const void* norm, const float* cos_sin, void* out) {
    const int64_t size = c.write.size, half = c.rotated / 2;
    Vec scale = set(1);
    if (norm != nullptr) {
        const float sum = sum_of_squares(size, [&](int64_t i, int64_t count) { return get<N>(x, i, count); });
        scale = set(inverse_root(sum, size, c.eps));
    }
    const auto value = [&](int64_t i, int64_t count) {
        const Vec plain = get<N>(x, i, count);
        if (norm == nullptr) return plain;
        return rounded<N>(weighted<N>(mul(plain, scale), get<N>(norm, i, count), c.weight_offset));
    };
    each_vector(half, [&](int64_t i, int64_t count) {
        const Vec cos = get<Number::f32>(cos_sin, i, count), sin = get<Number::f32>(cos_sin, half + i, count);
        const Vec first = value(i, count), second = value(half + i, count);
        put<C>(out, i, rounded<N>(fma(negative(second), sin, mul(first, cos))), count);
        put<C>(out, half + i, rounded<N>(fma(first, sin, mul(second, cos))), count);
    });
    each_vector(size - 2 * half, [&](int64_t i, int64_t count) {
        put<C>(out, 2 * half + i, rounded<N>(value(2 * half + i, count)), count);
    });
}

// Template<type of the rows, type of the cache>::run(...)
template <template <Number, Number> class Template, Number N, class... Args>
inline void by_second_number(Number type, Args&&... args) {
    switch (type) {
    case Number::f32: Template<N, Number::f32>::run(args...); break;
    case Number::f16: Template<N, Number::f16>::run(args...); break;
    case Number::i8: Template<N, Number::i8>::run(args...); break;
    default: Template<N, Number::bf16>::run(args...);
    }
}

template <template <Number, Number> class Template, class... Args>
inline void by_two_numbers(Number type, Number other, Args&&... args) {
    switch (type) {
    case Number::f32: by_second_number<Template, Number::f32>(other, args...); break;
    case Number::f16: by_second_number<Template, Number::f16>(other, args...); break;
    default: by_second_number<Template, Number::bf16>(other, args...);
    }
}

template <Number N, Number C> struct WriteKv {
    static void run(const WriteCall& c, int64_t begin, int64_t end) {
        for (int64_t t = begin; t < end; ++t) {
            const int64_t slot = c.slots[t];
            if (slot < 0) continue;
            for (int64_t head = 0; head < c.k.count; ++head) {
                copy<N, C>(head_of<N>(c.k, t, head), place_of<C>(c.pages, slot, 0, head), c.size);
                copy<N, C>(head_of<N>(c.v, t, head), place_of<C>(c.pages, slot, 1, head), c.size);
            }
        }
    }
};

template <Number N, Number C> struct RopeAndWrite {
    static void run(const RopeCall& c, int64_t begin, int64_t end) {
        const WriteCall& w = c.write;
        for (int64_t t = begin; t < end; ++t) {
            const float* cos_sin = c.cos_sin + c.positions[t] * c.table_stride;
            for (int64_t head = 0; head < c.q.count; ++head)
                turn<N, N>(c, head_of<N>(c.q, t, head), c.q_norm, cos_sin,
                           at<N>(c.out, (t * c.q.count + head) * w.size));
            const int64_t slot = w.slots[t];
            if (slot < 0) continue;
            for (int64_t head = 0; head < w.k.count; ++head) {
                const void* key = head_of<N>(w.k, t, head);
                void* place = place_of<C>(w.pages, slot, 0, head);
                if constexpr (C == Number::i8) { // whose scale is known once all of it is turned
                    void* turned = scratch(1, static_cast<size_t>(w.size * bytes_of<N>));
                    turn<N, N>(c, key, c.k_norm, cos_sin, turned);
                    quantize_head<N>(turned, place, w.size);
                } else {
                    turn<N, C>(c, key, c.k_norm, cos_sin, place);
                }
                copy<N, C>(head_of<N>(w.v, t, head), place_of<C>(w.pages, slot, 1, head), w.size);
            }
        }
    }
};

void write_kv(const WriteCall& c, int64_t begin, int64_t end) {
    by_two_numbers<WriteKv>(c.type, c.pages.type, c, begin, end);
}
void rope_and_write(const RopeCall& c, int64_t begin, int64_t end) {
    by_two_numbers<RopeAndWrite>(c.write.type, c.write.pages.type, c, begin, end);
}

} // namespace
} // namespace octavo
