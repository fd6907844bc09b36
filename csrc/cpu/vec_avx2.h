// 16 lanes as two AVX2 registers; vec_generic.h says what each does.
#pragma once

#include <cstdint>
#include <cstring>
#include <immintrin.h>

#include "numbers.h"

namespace octavo {
namespace {

struct Vec { __m256 a, b; };
struct Int { __m256i a, b; };
struct Bytes { __m256i a, b; };

constexpr int most_rows = 4;
constexpr int wide_offset = 0;

inline Vec set(float x) { const __m256 v = _mm256_set1_ps(x); return {v, v}; }
inline Vec load(const float* p) { return {_mm256_loadu_ps(p), _mm256_loadu_ps(p + 8)}; }
inline void store(float* p, Vec x) { _mm256_storeu_ps(p, x.a), _mm256_storeu_ps(p + 8, x.b); }
inline Vec fma(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.a, b.a, c.a), _mm256_fmadd_ps(a.b, b.b, c.b)}; }
inline Vec add(Vec a, Vec b) { return {_mm256_add_ps(a.a, b.a), _mm256_add_ps(a.b, b.b)}; }
inline Vec mul(Vec a, Vec b) { return {_mm256_mul_ps(a.a, b.a), _mm256_mul_ps(a.b, b.b)}; }
inline Vec negative(Vec a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_xor_ps(a.a, sign), _mm256_xor_ps(a.b, sign)};
}
inline Vec load_f16(const void* p) {
    const __m128i* q = static_cast<const __m128i*>(p);
    return {_mm256_cvtph_ps(_mm_loadu_si128(q)), _mm256_cvtph_ps(_mm_loadu_si128(q + 1))};
}
inline __m256 widen_bf16(__m128i x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
inline Vec load_bf16(const void* p) {
    const __m128i* q = static_cast<const __m128i*>(p);
    return {widen_bf16(_mm_loadu_si128(q)), widen_bf16(_mm_loadu_si128(q + 1))};
}
inline void store_f16(void* p, Vec x) {
    __m128i* q = static_cast<__m128i*>(p);
    _mm_storeu_si128(q, _mm256_cvtps_ph(x.a, _MM_FROUND_TO_NEAREST_INT));
    _mm_storeu_si128(q + 1, _mm256_cvtps_ph(x.b, _MM_FROUND_TO_NEAREST_INT));
}
// To nearest even, in the low 16 bits of each lane; NaN stays one.
inline __m256i round_bf16(__m256 x) {
    const __m256i bits = _mm256_castps_si256(x);
    const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
    const __m256i sum = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    const __m256i nan = _mm256_or_si256(bits, _mm256_set1_epi32(0x400000));
    const __m256i is_nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
    return _mm256_srli_epi32(_mm256_blendv_epi8(sum, nan, is_nan), 16);
}
inline void store_bf16(void* p, Vec x) {
    const __m256i packed = _mm256_packus_epi32(round_bf16(x.a), round_bf16(x.b)); // quarters 0 2 1 3
    _mm256_storeu_si256(static_cast<__m256i*>(p), _mm256_permute4x64_epi64(packed, 0xd8));
}

inline void store_i8(void* p, Vec x) {
    const __m256i words = _mm256_packs_epi32(_mm256_cvtps_epi32(x.a), _mm256_cvtps_epi32(x.b)); // quarters 0 2 1 3
    const __m256i whole = _mm256_permute4x64_epi64(words, 0xd8);
    _mm_storeu_si128(static_cast<__m128i*>(p),
                     _mm_packs_epi16(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1)));
}

inline Int set_int(int32_t x) { const __m256i v = _mm256_set1_epi32(x); return {v, v}; }
inline Int add(Int a, Int b) { return {_mm256_add_epi32(a.a, b.a), _mm256_add_epi32(a.b, b.b)}; }
template <int N> inline Int shift_left(Int x) { return {_mm256_slli_epi32(x.a, N), _mm256_slli_epi32(x.b, N)}; }
inline Vec to_float(Int x) { return {_mm256_cvtepi32_ps(x.a), _mm256_cvtepi32_ps(x.b)}; }
inline Int load_u8(const uint8_t* p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepu8_epi32(v), _mm256_cvtepu8_epi32(_mm_srli_si128(v, 8))};
}
inline Int load_i8(const uint8_t* p) {
    const __m128i v = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
    return {_mm256_cvtepi8_epi32(v), _mm256_cvtepi8_epi32(_mm_srli_si128(v, 8))};
}

inline Bytes load_bytes(const uint8_t* p) {
    const __m256i* q = reinterpret_cast<const __m256i*>(p);
    return {_mm256_loadu_si256(q), _mm256_loadu_si256(q + 1)};
}
inline Bytes mask(Bytes x, uint8_t m) {
    const __m256i v = _mm256_set1_epi8(static_cast<char>(m));
    return {_mm256_and_si256(x.a, v), _mm256_and_si256(x.b, v)};
}
inline Bytes either(Bytes a, Bytes b) { return {_mm256_or_si256(a.a, b.a), _mm256_or_si256(a.b, b.b)}; }
template <int N> inline Bytes shift_right(Bytes x) {
    if constexpr (N >= 0) return {_mm256_srli_epi16(x.a, N), _mm256_srli_epi16(x.b, N)};
    else return {_mm256_slli_epi16(x.a, -N), _mm256_slli_epi16(x.b, -N)};
}
template <int I> inline Int byte_of(Bytes x) {
    const __m256i m = _mm256_set1_epi32(255);
    return {_mm256_and_si256(_mm256_srli_epi32(x.a, 8 * I), m), _mm256_and_si256(_mm256_srli_epi32(x.b, 8 * I), m)};
}
inline Vec first_bf16(Bytes x) {
    return {_mm256_castsi256_ps(_mm256_slli_epi32(x.a, 16)), _mm256_castsi256_ps(_mm256_slli_epi32(x.b, 16))};
}
inline Vec second_bf16(Bytes x) {
    const __m256i m = _mm256_set1_epi32(static_cast<int>(0xffff0000));
    return {_mm256_castsi256_ps(_mm256_and_si256(x.a, m)), _mm256_castsi256_ps(_mm256_and_si256(x.b, m))};
}

inline __m256i four_bytes(const int8_t* x) {
    int32_t value;
    std::memcpy(&value, x, 4);
    return _mm256_set1_epi32(value);
}
// Sums of two products stay below 2^15: 2 * 63 * 127.
inline Int dot(Int acc, Bytes u, const int8_t* x) {
    const __m256i v = four_bytes(x), ones = _mm256_set1_epi16(1);
    return {_mm256_add_epi32(acc.a, _mm256_madd_epi16(_mm256_maddubs_epi16(u.a, v), ones)),
            _mm256_add_epi32(acc.b, _mm256_madd_epi16(_mm256_maddubs_epi16(u.b, v), ones))};
}
// u - 128 has its sign moved to x: 2 * 128 * 127 is still below 2^15.
inline __m256i dot_signed(__m256i u, __m256i v) {
    const __m256i w = _mm256_xor_si256(u, _mm256_set1_epi8(static_cast<char>(0x80)));
    const __m256i products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(v, w));
    return _mm256_madd_epi16(products, _mm256_set1_epi16(1));
}
inline Int dot_wide(Int acc, Bytes u, const int8_t* x) {
    const __m256i v = four_bytes(x);
    return {_mm256_add_epi32(acc.a, dot_signed(u.a, v)), _mm256_add_epi32(acc.b, dot_signed(u.b, v))};
}

inline int32_t sum_of(__m256i x) {
    __m128i s = _mm_add_epi32(_mm256_castsi256_si128(x), _mm256_extracti128_si256(x, 1));
    s = _mm_add_epi32(s, _mm_shuffle_epi32(s, 0x4e));
    return _mm_cvtsi128_si32(_mm_add_epi32(s, _mm_shuffle_epi32(s, 0xb1)));
}
inline float quantize_block(const float* x, int8_t* q, int32_t* sums) {
    const __m256 magnitude = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 v[4], most = _mm256_setzero_ps(), is_nan = most;
    for (int i = 0; i < 4; ++i) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        most = _mm256_max_ps(most, _mm256_and_ps(v[i], magnitude));
        is_nan = _mm256_or_ps(is_nan, _mm256_cmp_ps(v[i], v[i], _CMP_UNORD_Q));
    }
    __m128 m = _mm_max_ps(_mm256_castps256_ps128(most), _mm256_extractf128_ps(most, 1));
    m = _mm_max_ps(m, _mm_movehl_ps(m, m));
    m = _mm_max_ss(m, _mm_movehdup_ps(m));
    const float largest = _mm_cvtss_f32(m);
    const bool has_nan = _mm256_movemask_ps(is_nan) != 0;
    if (has_nan || largest > largest_float) return quantize_infinite(has_nan, q, sums);
    const __m256 inverse = _mm256_set1_ps(largest > 0 ? 127.0f / largest : 0.0f);
    __m256i n[4];
    for (int i = 0; i < 4; ++i) n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
    sums[0] = sum_of(_mm256_add_epi32(n[0], n[1])), sums[1] = sum_of(_mm256_add_epi32(n[2], n[3]));
    const __m256i bytes = _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
    const __m256i order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(q), _mm256_permutevar8x32_epi32(bytes, order));
    return largest / 127.0f;
}

} // namespace
} // namespace octavo
