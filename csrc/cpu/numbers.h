// Number types of tensors, and conversions one at a time, for any machine. Kernels convert by vectors (vec_*.h).
#pragma once

#include <cstdint>
#include <cstring>

namespace octavo {

// i8 only in caches: a head's bytes are to be multiplied by its scale, a float32 that follows them.
enum class Number : int { f32 = 0, f16, bf16, i8 };

constexpr int64_t head_scale_bytes = 4;

constexpr int size_of(Number type) { return type == Number::f32 ? 4 : type == Number::i8 ? 1 : 2; }

static inline float float_of_bits(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

static inline uint32_t bits_of_float(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, 4);
    return bits;
}

static inline float float_of_bf16(uint16_t x) { return float_of_bits(uint32_t{x} << 16); }

// To nearest, ties to even; NaN stays NaN.
static inline uint16_t bf16_of_float(float x) {
    const uint32_t bits = bits_of_float(x);
    if ((bits & 0x7fffffff) > 0x7f800000) return static_cast<uint16_t>(bits >> 16 | 0x40);
    return static_cast<uint16_t>((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

static inline float float_of_f16(uint16_t x) {
    const uint32_t sign = uint32_t{x & 0x8000u} << 16, rest = x & 0x7fffu;
    if (rest >= 0x7c00) return float_of_bits(sign | 0x7f800000 | (rest & 0x3ff) << 13);
    if (rest >= 0x400) return float_of_bits(sign | ((rest << 13) + ((127 - 15) << 23)));
    const float magnitude = static_cast<float>(rest) * (1.0f / 16777216.0f); // subnormal: units of 2^-24
    return sign ? -magnitude : magnitude;
}

static inline uint16_t f16_of_float(float x) {
    const uint32_t bits = bits_of_float(x), sign = bits >> 16 & 0x8000, rest = bits & 0x7fffffff;
    if (rest > 0x7f800000) return static_cast<uint16_t>(sign | 0x7e00);
    if (rest >= 0x477ff000) return static_cast<uint16_t>(sign | 0x7c00); // rounds to 65536 and more
    if (rest < 0x38800000) { // below 2^-14: in units of 2^-24, which the sum's last bit is
        const float shifted = float_of_bits(rest) + 0.5f;
        return static_cast<uint16_t>(sign | (bits_of_float(shifted) - 0x3f000000));
    }
    return static_cast<uint16_t>(sign | ((rest + 0xfff + (rest >> 13 & 1) - ((127u - 15) << 23)) >> 13));
}

static constexpr float largest_float = 3.402823466e38f;

// A block of 32 with a value that is not finite, in quantised form: whatever it multiplies is not finite either.
static inline float quantize_infinite(bool is_nan, int8_t* q, int32_t* sums) {
    std::memset(q, 1, 32);
    sums[0] = sums[1] = 16;
    return is_nan ? __builtin_nanf("") : __builtin_inff();
}

static inline float load_number(const void* data, Number type, int64_t i) {
    switch (type) {
    case Number::f32: return static_cast<const float*>(data)[i];
    case Number::f16: return float_of_f16(static_cast<const uint16_t*>(data)[i]);
    case Number::i8: return static_cast<const int8_t*>(data)[i]; // without its scale
    default: return float_of_bf16(static_cast<const uint16_t*>(data)[i]);
    }
}

static inline void store_number(void* data, Number type, int64_t i, float value) {
    switch (type) {
    case Number::f32: static_cast<float*>(data)[i] = value; break;
    case Number::f16: static_cast<uint16_t*>(data)[i] = f16_of_float(value); break;
    default: static_cast<uint16_t*>(data)[i] = bf16_of_float(value);
    }
}

} // namespace octavo
