// 16 lanes in plain C++: what vec_avx2.h and vec_avx512.h do with vectors. Include in one unit of each instruction set;
// everything is in an unnamed namespace, so that no code for one reaches another.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

#include "numbers.h"

namespace octavo {
namespace {

struct Vec { float v[16]; };       // 16 float32
struct Int { int32_t v[16]; };     // 16 int32
struct Bytes { uint8_t v[64]; };   // [16][4]

constexpr int most_rows = 1;       // that a kernel keeps in registers
constexpr int wide_offset = 128;   // what dot_wide adds to signed bytes: their stored form is unsigned

inline Vec set(float x) { Vec r; for (float& v : r.v) v = x; return r; }
inline Vec load(const float* p) { Vec r; std::memcpy(r.v, p, 64); return r; }
inline void store(float* p, Vec x) { std::memcpy(p, x.v, 64); }
inline Vec fma(Vec a, Vec b, Vec c) { for (int i = 0; i < 16; ++i) c.v[i] += a.v[i] * b.v[i]; return c; }
inline Vec add(Vec a, Vec b) { for (int i = 0; i < 16; ++i) a.v[i] += b.v[i]; return a; }
inline Vec mul(Vec a, Vec b) { for (int i = 0; i < 16; ++i) a.v[i] *= b.v[i]; return a; }
inline Vec negative(Vec a) { for (float& v : a.v) v = -v; return a; }
inline Vec load_f16(const void* p) {
    Vec r;
    for (int i = 0; i < 16; ++i) r.v[i] = load_number(p, Number::f16, i);
    return r;
}
inline Vec load_bf16(const void* p) {
    Vec r;
    for (int i = 0; i < 16; ++i) r.v[i] = load_number(p, Number::bf16, i);
    return r;
}
inline void store_f16(void* p, Vec x) { for (int i = 0; i < 16; ++i) store_number(p, Number::f16, i, x.v[i]); }
inline void store_bf16(void* p, Vec x) { for (int i = 0; i < 16; ++i) store_number(p, Number::bf16, i, x.v[i]); }

inline void store_i8(void* p, Vec x) { // to nearest; -127 to 127
    for (int i = 0; i < 16; ++i) static_cast<int8_t*>(p)[i] = static_cast<int8_t>(std::nearbyint(x.v[i]));
}

inline Int set_int(int32_t x) { Int r; for (int32_t& v : r.v) v = x; return r; }
inline Int add(Int a, Int b) { for (int i = 0; i < 16; ++i) a.v[i] += b.v[i]; return a; }
template <int N> inline Int shift_left(Int x) { for (int32_t& v : x.v) v *= 1 << N; return x; }
inline Vec to_float(Int x) { Vec r; for (int i = 0; i < 16; ++i) r.v[i] = static_cast<float>(x.v[i]); return r; }
inline Int load_u8(const uint8_t* p) { Int r; for (int i = 0; i < 16; ++i) r.v[i] = p[i]; return r; }
inline Int load_i8(const uint8_t* p) {
    Int r;
    for (int i = 0; i < 16; ++i) r.v[i] = static_cast<int8_t>(p[i]);
    return r;
}

inline Bytes load_bytes(const uint8_t* p) { Bytes r; std::memcpy(r.v, p, 64); return r; }
inline Bytes mask(Bytes x, uint8_t m) { for (uint8_t& v : x.v) v &= m; return x; }
inline Bytes either(Bytes a, Bytes b) { for (int i = 0; i < 64; ++i) a.v[i] |= b.v[i]; return a; }
// Shifts may carry bits between neighbours: mask afterwards. N < 0 shifts left.
template <int N> inline Bytes shift_right(Bytes x) {
    for (uint8_t& v : x.v) v = static_cast<uint8_t>(N >= 0 ? v >> (N >= 0 ? N : 0) : v << (N < 0 ? -N : 0));
    return x;
}
template <int I> inline Int byte_of(Bytes x) { Int r; for (int i = 0; i < 16; ++i) r.v[i] = x.v[4 * i + I]; return r; }
// As pairs of bf16: the first and the second of each lane.
inline Vec first_bf16(Bytes x) {
    Vec r;
    for (int i = 0; i < 16; ++i) r.v[i] = load_number(x.v, Number::bf16, 2 * i);
    return r;
}
inline Vec second_bf16(Bytes x) {
    Vec r;
    for (int i = 0; i < 16; ++i) r.v[i] = load_number(x.v, Number::bf16, 2 * i + 1);
    return r;
}

// acc + the sum over 4 bytes of each lane: u (up to 63) times the signed bytes x.
inline Int dot(Int acc, Bytes u, const int8_t* x) {
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < 4; ++j) acc.v[i] += u.v[4 * i + j] * x[j];
    return acc;
}
// The same for all of 0 to 255. Where wide_offset is 0, u counts as u - 128.
inline Int dot_wide(Int acc, Bytes u, const int8_t* x) { return dot(acc, u, x); }

// 32 values as scale * q, |q| <= 127. Returns the scale, NaN if any value is; sums of q over each 16.
inline float quantize_block(const float* x, int8_t* q, int32_t* sums) {
    float most = 0;
    bool is_nan = false;
    for (int i = 0; i < 32; ++i) {
        most = std::fabs(x[i]) > most ? std::fabs(x[i]) : most;
        is_nan = is_nan || std::isnan(x[i]);
    }
    if (is_nan || most > largest_float) return quantize_infinite(is_nan, q, sums);
    const float inverse = most > 0 ? 127.0f / most : 0.0f;
    sums[0] = sums[1] = 0;
    for (int i = 0; i < 32; ++i) {
        q[i] = static_cast<int8_t>(std::nearbyint(x[i] * inverse));
        sums[i / 16] += q[i];
    }
    return most / 127.0f;
}

} // namespace
} // namespace octavo
