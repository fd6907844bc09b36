// Numbers of a type that is known when it runs, 16 at a time from and to lanes. After vec_*.h.
#pragma once

#include "numbers.h"

namespace octavo {
namespace {

inline Vec load_as(const void* p, Number type, int64_t i) {
    switch (type) {
    case Number::f32: return load(static_cast<const float*>(p) + i);
    case Number::f16: return load_f16(static_cast<const uint16_t*>(p) + i);
    case Number::i8: return to_float(load_i8(static_cast<const uint8_t*>(p) + i)); // to be multiplied by scale_of the row
    default: return load_bf16(static_cast<const uint16_t*>(p) + i);
    }
}

// The first `count`, and zeros.
inline Vec load_some(const void* p, Number type, int64_t i, int64_t count) {
    if (count >= 16) return load_as(p, type, i);
    float values[16] = {};
    for (int64_t j = 0; j < count; ++j) values[j] = load_number(p, type, i + j);
    return load(values);
}

inline void store_some(void* p, Number type, int64_t i, Vec x, int64_t count) {
    if (count >= 16) {
        switch (type) {
        case Number::f32: return store(static_cast<float*>(p) + i, x);
        case Number::f16: return store_f16(static_cast<uint16_t*>(p) + i, x);
        default: return store_bf16(static_cast<uint16_t*>(p) + i, x);
        }
    }
    float values[16];
    store(values, x);
    for (int64_t j = 0; j < count; ++j) store_number(p, type, i + j, values[j]);
}

// 32 numbers from place i on: of bf16 a whole line, if they begin at one.
inline void store_two(void* p, Number type, int64_t i, Vec a, Vec b) {
#if defined(__AVX512BF16__)
    if (type == Number::bf16) {
        const __m512bh both = _mm512_cvtne2ps_pbh(b.v, a.v);
        std::memcpy(static_cast<uint16_t*>(p) + i, &both, 64);
        return;
    }
#endif
    store_some(p, type, i, a, 16), store_some(p, type, i + 16, b, 16);
}

} // namespace
} // namespace octavo
