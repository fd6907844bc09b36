// attention_lanes_generic.h says what each does.
#pragma once

#include <immintrin.h>

namespace octavo {
namespace {

constexpr bool has_dot_bf16 = false;

inline Vec sub(Vec a, Vec b) { return {_mm256_sub_ps(a.a, b.a), _mm256_sub_ps(a.b, b.b)}; }
inline Vec divide(Vec a, Vec b) { return {_mm256_div_ps(a.a, b.a), _mm256_div_ps(a.b, b.b)}; }
inline Vec larger(Vec a, Vec b) { return {_mm256_max_ps(a.a, b.a), _mm256_max_ps(a.b, b.b)}; }
inline Vec smaller(Vec a, Vec b) { return {_mm256_min_ps(a.a, b.a), _mm256_min_ps(a.b, b.b)}; }
inline __m256 keep_if(__m256 a, __m256 b, __m256 x) {
    return _mm256_blendv_ps(_mm256_set1_ps(-__builtin_inff()), x, _mm256_cmp_ps(a, b, _CMP_GE_OQ));
}
inline Vec keep_if(Vec a, Vec b, Vec x) { return {keep_if(a.a, b.a, x.a), keep_if(a.b, b.b, x.b)}; }
inline bool any_above(Vec a, Vec b) {
    return _mm256_movemask_ps(_mm256_or_ps(_mm256_cmp_ps(a.a, b.a, _CMP_GT_OQ), _mm256_cmp_ps(a.b, b.b, _CMP_GT_OQ)));
}
inline __m256 inverse(__m256 x) {
    const __m256 is_zero = _mm256_cmp_ps(x, _mm256_setzero_ps(), _CMP_EQ_OQ);
    return _mm256_andnot_ps(is_zero, _mm256_div_ps(_mm256_set1_ps(1), x));
}
inline Vec inverse(Vec x) { return {inverse(x.a), inverse(x.b)}; }
inline float largest(Vec x) {
    const __m256 m = _mm256_max_ps(x.a, x.b);
    __m128 r = _mm_max_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    r = _mm_max_ps(r, _mm_movehl_ps(r, r));
    return _mm_cvtss_f32(_mm_max_ss(r, _mm_movehdup_ps(r)));
}
inline float total(Vec x) {
    const __m256 m = _mm256_add_ps(x.a, x.b);
    __m128 r = _mm_add_ps(_mm256_castps256_ps128(m), _mm256_extractf128_ps(m, 1));
    r = _mm_add_ps(r, _mm_movehl_ps(r, r));
    return _mm_cvtss_f32(_mm_add_ss(r, _mm_movehdup_ps(r)));
}

inline __m256 exp2(__m256 x) {
    x = _mm256_min_ps(_mm256_set1_ps(127), _mm256_max_ps(_mm256_set1_ps(-127), x)); // the second where either is NaN
    const __m256 whole = _mm256_floor_ps(x), f = _mm256_sub_ps(x, whole);
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(1.8775767e-3f), f, _mm256_set1_ps(8.9893397e-3f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(5.5826318e-2f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(2.4015361e-1f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(6.9315308e-1f));
    p = _mm256_fmadd_ps(p, f, _mm256_set1_ps(9.9999994e-1f));
    const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
    return _mm256_mul_ps(p, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
inline Vec exp2(Vec x) { return {exp2(x.a), exp2(x.b)}; }

// In each half the sums of that half of a, b, c, d.
inline __m256 halves(__m256 a, __m256 b, __m256 c, __m256 d) {
    return _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
}
inline Vec quad(Vec a, Vec b, Vec c, Vec d) {
    const __m256 sums = halves(_mm256_add_ps(a.a, a.b), _mm256_add_ps(b.a, b.b), _mm256_add_ps(c.a, c.b),
                               _mm256_add_ps(d.a, d.b));
    return {sums, sums};
}
inline __m256 join(__m256 a, __m256 b) {
    return _mm256_add_ps(_mm256_permute2f128_ps(a, b, 0x20), _mm256_permute2f128_ps(a, b, 0x31));
}
inline Vec join(Vec a, Vec b, Vec c, Vec d) { return {join(a.a, b.a), join(c.a, d.a)}; }

inline void transpose8(__m256* r) {
    __m256 t[8];
    for (int i = 0; i < 8; i += 2) {
        t[i] = _mm256_unpacklo_ps(r[i], r[i + 1]);
        t[i + 1] = _mm256_unpackhi_ps(r[i], r[i + 1]);
    }
    __m256 u[8];
    for (int i = 0; i < 8; i += 4) {
        u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44), u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
        u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44), u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
    }
    for (int i = 0; i < 4; ++i) {
        r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
        r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    }
}
inline void transpose(Vec* rows) {
    __m256 a[8], b[8], c[8], d[8]; // quarters: a b over c d
    for (int i = 0; i < 8; ++i) a[i] = rows[i].a, b[i] = rows[i].b, c[i] = rows[i + 8].a, d[i] = rows[i + 8].b;
    transpose8(a), transpose8(b), transpose8(c), transpose8(d);
    for (int i = 0; i < 8; ++i) rows[i] = {a[i], c[i]}, rows[i + 8] = {b[i], d[i]};
}
inline Vec interleave(__m256 a, __m256 b) {
    const __m256 low = _mm256_unpacklo_ps(a, b), high = _mm256_unpackhi_ps(a, b);
    return {_mm256_permute2f128_ps(low, high, 0x20), _mm256_permute2f128_ps(low, high, 0x31)};
}
inline void interleave(Vec& a, Vec& b) {
    const Vec first = interleave(a.a, b.a), second = interleave(a.b, b.b);
    a = first, b = second;
}

inline void prefetch_written(const void* p) { __builtin_prefetch(p, 1); } // what will be written
inline Vec dot_bf16(Vec acc, const void*, const void*) { return acc; }

} // namespace
} // namespace octavo
