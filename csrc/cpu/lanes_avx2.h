// The rest of vec_avx2.h; lanes_generic.h says what each does.
#pragma once

#include "vec_avx2.h"

namespace octavo {
namespace {

struct Flags { __m256 a, b; }; // all bits of a lane, or none

inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.a, b.a), _mm256_sub_ps(a.b, b.b)}; }
inline Vec div(Vec a, Vec b) { return {_mm256_div_ps(a.a, b.a), _mm256_div_ps(a.b, b.b)}; }
inline Vec largest(Vec a, Vec b) { return {_mm256_max_ps(a.a, b.a), _mm256_max_ps(a.b, b.b)}; }
inline Vec least(Vec a, Vec b) { return {_mm256_min_ps(a.a, b.a), _mm256_min_ps(a.b, b.b)}; }
inline Vec magnitude(Vec a) {
    const __m256 sign = _mm256_set1_ps(-0.0f);
    return {_mm256_andnot_ps(sign, a.a), _mm256_andnot_ps(sign, a.b)};
}
constexpr int to_nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
inline Vec nearest(Vec a) { return {_mm256_round_ps(a.a, to_nearest), _mm256_round_ps(a.b, to_nearest)}; }
inline __m256 power_of_two(__m256i n) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(n, _mm256_set1_epi32(127)), 23));
}
inline __m256 times_power(__m256 x, __m256 n) {
    const __m256i power = _mm256_cvtps_epi32(n), half = _mm256_srai_epi32(power, 1);
    return _mm256_mul_ps(_mm256_mul_ps(x, power_of_two(half)), power_of_two(_mm256_sub_epi32(power, half)));
}
inline Vec times_power(Vec x, Vec n) { return {times_power(x.a, n.a), times_power(x.b, n.b)}; }
inline float sum_of(Vec a) {
    const __m256 s = _mm256_add_ps(a.a, a.b);
    __m128 t = _mm_add_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    t = _mm_add_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_add_ss(t, _mm_movehdup_ps(t)));
}
inline float largest_of(Vec a) {
    const __m256 s = _mm256_max_ps(a.a, a.b);
    __m128 t = _mm_max_ps(_mm256_castps256_ps128(s), _mm256_extractf128_ps(s, 1));
    t = _mm_max_ps(t, _mm_movehl_ps(t, t));
    return _mm_cvtss_f32(_mm_max_ss(t, _mm_movehdup_ps(t)));
}
inline __m256 as_f16(__m256 a) { return _mm256_cvtph_ps(_mm256_cvtps_ph(a, _MM_FROUND_TO_NEAREST_INT)); }
inline Vec as_f16(Vec a) { return {as_f16(a.a), as_f16(a.b)}; }
inline __m256 as_bf16(__m256 a) { return _mm256_castsi256_ps(_mm256_slli_epi32(round_bf16(a), 16)); }
inline Vec as_bf16(Vec a) { return {as_bf16(a.a), as_bf16(a.b)}; }

inline Flags greater(Vec a, Vec b) {
    return {_mm256_cmp_ps(a.a, b.a, _CMP_GT_OQ), _mm256_cmp_ps(a.b, b.b, _CMP_GT_OQ)};
}
inline Flags at_least(Vec a, Vec b) {
    return {_mm256_cmp_ps(a.a, b.a, _CMP_GE_OQ), _mm256_cmp_ps(a.b, b.b, _CMP_GE_OQ)};
}
inline Flags equal(Vec a, Vec b) {
    return {_mm256_cmp_ps(a.a, b.a, _CMP_EQ_OQ), _mm256_cmp_ps(a.b, b.b, _CMP_EQ_OQ)};
}
inline Flags is_nan(Vec a) {
    return {_mm256_cmp_ps(a.a, a.a, _CMP_UNORD_Q), _mm256_cmp_ps(a.b, a.b, _CMP_UNORD_Q)};
}
inline uint32_t bits_of(Flags f) {
    return static_cast<uint32_t>(_mm256_movemask_ps(f.a)) | static_cast<uint32_t>(_mm256_movemask_ps(f.b)) << 8;
}
inline __m256 flags_of_eight(uint32_t bits) {
    const __m256i lanes = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
    const __m256i on = _mm256_and_si256(_mm256_set1_epi32(static_cast<int>(bits)), lanes);
    return _mm256_castsi256_ps(_mm256_cmpeq_epi32(on, lanes));
}
inline Flags flags_of(uint32_t bits) { return {flags_of_eight(bits), flags_of_eight(bits >> 8)}; }
inline Vec select(Flags f, Vec a, Vec b) {
    return {_mm256_blendv_ps(b.a, a.a, f.a), _mm256_blendv_ps(b.b, a.b, f.b)};
}
inline int store_flagged(float* p, Flags f, Vec a) {
    uint32_t bits = bits_of(f);
    if (bits == 0) return 0;
    float values[16];
    store(values, a);
    int n = 0;
    for (; bits != 0; bits &= bits - 1) p[n++] = values[__builtin_ctz(bits)];
    return n;
}

} // namespace
} // namespace octavo
