// 16 lanes as one AVX-512 register; vec_generic.h says what each does.
#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>

#include "numbers.h"

namespace octavo {
namespace {

struct Vec { __m512 v; };
struct Int { __m512i v; };
struct Bytes { __m512i v; };

constexpr int most_rows = 8;
constexpr int wide_offset = 128;

inline Vec set(float x) { return {_mm512_set1_ps(x)}; }
inline Vec load(const float* p) { return {_mm512_loadu_ps(p)}; }
inline void store(float* p, Vec x) { _mm512_storeu_ps(p, x.v); }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
inline Vec add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
inline Vec mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
inline Vec negative(Vec a) { return {_mm512_xor_ps(a.v, _mm512_set1_ps(-0.0f))}; }
inline Vec load_f16(const void* p) { return {_mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(p)))}; }
inline Vec load_bf16(const void* p) {
    const __m512i wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(static_cast<const __m256i*>(p)));
    return {_mm512_castsi512_ps(_mm512_slli_epi32(wide, 16))};
}
inline void store_f16(void* p, Vec x) {
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm512_cvtps_ph(x.v, _MM_FROUND_TO_NEAREST_INT));
}
// To nearest even, in the high 16 bits of each lane; NaN stays one.
inline __m512i round_bf16(__m512 x) {
    const __m512i bits = _mm512_castps_si512(x);
    const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
    const __m512i sum = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    const __mmask16 is_nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
    return _mm512_mask_or_epi32(sum, is_nan, bits, _mm512_set1_epi32(0x400000));
}
inline void store_bf16(void* p, Vec x) {
    const __m256i packed = _mm512_cvtepi32_epi16(_mm512_srli_epi32(round_bf16(x.v), 16));
    _mm256_storeu_si256(static_cast<__m256i*>(p), packed);
}

inline void store_i8(void* p, Vec x) {
    _mm_storeu_si128(static_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x.v)));
}

inline Int set_int(int32_t x) { return {_mm512_set1_epi32(x)}; }
inline Int add(Int a, Int b) { return {_mm512_add_epi32(a.v, b.v)}; }
template <int N> inline Int shift_left(Int x) { return {_mm512_slli_epi32(x.v, N)}; }
inline Vec to_float(Int x) { return {_mm512_cvtepi32_ps(x.v)}; }
inline Int load_u8(const uint8_t* p) {
    return {_mm512_cvtepu8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}
inline Int load_i8(const uint8_t* p) {
    return {_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))};
}

inline Bytes load_bytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
inline Bytes mask(Bytes x, uint8_t m) { return {_mm512_and_si512(x.v, _mm512_set1_epi8(static_cast<char>(m)))}; }
inline Bytes either(Bytes a, Bytes b) { return {_mm512_or_si512(a.v, b.v)}; }
template <int N> inline Bytes shift_right(Bytes x) {
    if constexpr (N >= 0) return {_mm512_srli_epi16(x.v, N)};
    else return {_mm512_slli_epi16(x.v, -N)};
}
template <int I> inline Int byte_of(Bytes x) {
    if constexpr (I == 3) return {_mm512_srli_epi32(x.v, 24)};
    else return {_mm512_and_si512(_mm512_srli_epi32(x.v, 8 * I), _mm512_set1_epi32(255))};
}
inline Vec first_bf16(Bytes x) { return {_mm512_castsi512_ps(_mm512_slli_epi32(x.v, 16))}; }
inline Vec second_bf16(Bytes x) {
    return {_mm512_castsi512_ps(_mm512_and_si512(x.v, _mm512_set1_epi32(static_cast<int>(0xffff0000))))};
}

inline Int dot(Int acc, Bytes u, const int8_t* x) {
    // by hand, since gcc loads the four bytes in an instruction of their own
    asm("vpdpbusd %2%{1to16%}, %1, %0" : "+v"(acc.v) : "v"(u.v), "m"(*reinterpret_cast<const int32_t*>(x)));
    return acc;
}
inline Int dot_wide(Int acc, Bytes u, const int8_t* x) { return dot(acc, u, x); }

inline float quantize_block(const float* x, int8_t* q, int32_t* sums) {
    const __m512 a = _mm512_loadu_ps(x), b = _mm512_loadu_ps(x + 16);
    const float most = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(a), _mm512_abs_ps(b)));
    const bool has_nan = _mm512_cmp_ps_mask(a, a, _CMP_UNORD_Q) | _mm512_cmp_ps_mask(b, b, _CMP_UNORD_Q);
    if (has_nan || most > largest_float) return quantize_infinite(has_nan, q, sums);
    const __m512 inverse = _mm512_set1_ps(most > 0 ? 127.0f / most : 0.0f);
    const __m512i m = _mm512_cvtps_epi32(_mm512_mul_ps(a, inverse)), n = _mm512_cvtps_epi32(_mm512_mul_ps(b, inverse));
    sums[0] = _mm512_reduce_add_epi32(m), sums[1] = _mm512_reduce_add_epi32(n);
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtsepi32_epi8(m));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(q + 16), _mm512_cvtsepi32_epi8(n));
    return most / 127.0f;
}

inline __m512 above_floor(__m512 x) { return _mm512_reduce_ps(x, 0x09); } // x - floor(x), and 0 for an infinite x
// To 8e-5 of it: what is rounded to bf16 afterwards needs no more.
inline Vec short_exp2(Vec x) {
    const __m512 f = above_floor(x.v);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(7.8024521e-2f), f, _mm512_set1_ps(2.2606716e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9583356e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.9992520e-1f));
    return {_mm512_scalef_ps(p, x.v)};
}

} // namespace
} // namespace octavo
