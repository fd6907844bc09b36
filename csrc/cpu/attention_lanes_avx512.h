// attention_lanes_generic.h says what each does.
#pragma once

#include <immintrin.h>

namespace octavo {
namespace {

inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec divide(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec larger(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec smaller(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec keep_if(Vec a, Vec b, Vec x) {
    const __mmask16 kept = _mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ);
    return {_mm512_mask_blend_ps(kept, _mm512_set1_ps(-__builtin_inff()), x.v)};
}
inline bool any_above(Vec a, Vec b) { return _mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ) != 0; }
inline Vec inverse(Vec x) {
    const __mmask16 other = _mm512_cmp_ps_mask(x.v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    return {_mm512_maskz_div_ps(other, _mm512_set1_ps(1), x.v)};
}
inline float largest(Vec x) { return _mm512_reduce_max_ps(x.v); }
inline float total(Vec x) { return _mm512_reduce_add_ps(x.v); }

inline Vec exp2(Vec x) {
    const __m512 f = above_floor(x.v);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(1.8775767e-3f), f, _mm512_set1_ps(8.9893397e-3f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5826318e-2f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4015361e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9315308e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.9999994e-1f));
    return {_mm512_scalef_ps(p, x.v)}; // takes the floor of x itself
}
inline __m512 pairs(__m512 a, __m512 b) { return _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)); }
// Of each quarter, the sums of that quarter of a, b, c, d.
inline Vec quad(Vec a, Vec b, Vec c, Vec d) {
    const __m512d low = _mm512_castps_pd(pairs(a.v, b.v)), high = _mm512_castps_pd(pairs(c.v, d.v));
    return {_mm512_add_ps(_mm512_castpd_ps(_mm512_unpacklo_pd(low, high)),
                          _mm512_castpd_ps(_mm512_unpackhi_pd(low, high)))};
}
inline __m512 quarters(__m512 a, __m512 b) {
    return _mm512_add_ps(_mm512_shuffle_f32x4(a, b, 0x88), _mm512_shuffle_f32x4(a, b, 0xdd));
}
inline Vec join(Vec a, Vec b, Vec c, Vec d) { return {quarters(quarters(a.v, b.v), quarters(c.v, d.v))}; }

inline void transpose(__m512i* r) { // 32-bit elements
    __m512i t[16];
    for (int i = 0; i < 16; i += 2) {
        t[i] = _mm512_unpacklo_epi32(r[i], r[i + 1]);
        t[i + 1] = _mm512_unpackhi_epi32(r[i], r[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]), r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]), r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    // r[4 g + j]: columns j, 4 + j, 8 + j, 12 + j of rows 4 g to 4 g + 3
    for (int j = 0; j < 4; ++j) {
        t[j] = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88), t[4 + j] = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
        t[8 + j] = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
        t[12 + j] = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    }
    for (int j = 0; j < 4; ++j) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0x88), r[8 + j] = _mm512_shuffle_i32x4(t[j], t[8 + j], 0xdd);
        r[4 + j] = _mm512_shuffle_i32x4(t[4 + j], t[12 + j], 0x88);
        r[12 + j] = _mm512_shuffle_i32x4(t[4 + j], t[12 + j], 0xdd);
    }
}
inline void transpose(Vec* rows) {
    __m512i r[16];
    for (int i = 0; i < 16; ++i) r[i] = _mm512_castps_si512(rows[i].v);
    transpose(r);
    for (int i = 0; i < 16; ++i) rows[i] = {_mm512_castsi512_ps(r[i])};
}
inline void interleave(Vec& a, Vec& b) {
    const __m512i first = _mm512_setr_epi32(0, 16, 1, 17, 2, 18, 3, 19, 4, 20, 5, 21, 6, 22, 7, 23);
    const __m512i second = _mm512_add_epi32(first, _mm512_set1_epi32(8));
    const __m512 low = _mm512_permutex2var_ps(a.v, first, b.v);
    b.v = _mm512_permutex2var_ps(a.v, second, b.v), a.v = low;
}

inline void prefetch(const void* p) { _mm_prefetch(static_cast<const char*>(p), _MM_HINT_T0); }
inline void prefetch_written(const void* p) { __builtin_prefetch(p, 1); } // what will be written

// acc + products of 32 bf16, two a lane.
#if defined(__AVX512BF16__)
constexpr bool has_dot_bf16 = true;
inline Vec dot_bf16(Vec acc, const void* a, const void* b) {
    return {_mm512_dpbf16_ps(acc.v, reinterpret_cast<__m512bh>(_mm512_loadu_si512(a)),
                             reinterpret_cast<__m512bh>(_mm512_loadu_si512(b)))};
}
#else
constexpr bool has_dot_bf16 = false;
inline Vec dot_bf16(Vec acc, const void*, const void*) { return acc; }
#endif

} // namespace
} // namespace octavo
