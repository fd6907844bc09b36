// The rest of vec_avx512.h; lanes_generic.h says what each does.
#pragma once

#include "vec_avx512.h"

namespace octavo {
namespace {

struct Flags { __mmask16 v; };

inline Vec sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
inline Vec div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
inline Vec largest(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
inline Vec least(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
inline Vec magnitude(Vec a) { return {_mm512_abs_ps(a.v)}; }
inline Vec nearest(Vec a) { return {_mm512_roundscale_ps(a.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
inline Vec times_power(Vec x, Vec n) { return {_mm512_scalef_ps(x.v, n.v)}; }
inline float sum_of(Vec a) { return _mm512_reduce_add_ps(a.v); }
inline float largest_of(Vec a) { return _mm512_reduce_max_ps(a.v); }
inline Vec as_f16(Vec a) { return {_mm512_cvtph_ps(_mm512_cvtps_ph(a.v, _MM_FROUND_TO_NEAREST_INT))}; }
inline Vec as_bf16(Vec a) {
    const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000));
    return {_mm512_castsi512_ps(_mm512_and_si512(round_bf16(a.v), high))};
}

inline Flags greater(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GT_OQ)}; }
inline Flags at_least(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_GE_OQ)}; }
inline Flags equal(Vec a, Vec b) { return {_mm512_cmp_ps_mask(a.v, b.v, _CMP_EQ_OQ)}; }
inline Flags is_nan(Vec a) { return {_mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q)}; }
inline uint32_t bits_of(Flags f) { return f.v; }
inline Flags flags_of(uint32_t bits) { return {static_cast<__mmask16>(bits)}; }
inline Vec select(Flags f, Vec a, Vec b) { return {_mm512_mask_blend_ps(f.v, b.v, a.v)}; }
inline int store_flagged(float* p, Flags f, Vec a) {
    _mm512_storeu_ps(p, _mm512_maskz_compress_ps(f.v, a.v));
    return __builtin_popcount(f.v);
}

} // namespace
} // namespace octavo
