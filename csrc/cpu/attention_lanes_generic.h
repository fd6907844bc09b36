// What attention asks of 16 lanes beyond vec_generic.h, in plain C++; lanes_avx2.h and lanes_avx512.h do the same. NaN in
// gives NaN out, unless said otherwise.
#pragma once

#include <cmath>

namespace octavo {
namespace {

constexpr bool has_dot_bf16 = false; // dot_bf16 below

inline Vec sub(Vec a, Vec b) { for (int i = 0; i < 16; ++i) a.v[i] -= b.v[i]; return a; }
inline Vec divide(Vec a, Vec b) { for (int i = 0; i < 16; ++i) a.v[i] /= b.v[i]; return a; }
// The larger of each pair; b where either is NaN.
inline Vec larger(Vec a, Vec b) { for (int i = 0; i < 16; ++i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
inline Vec smaller(Vec a, Vec b) { for (int i = 0; i < 16; ++i) a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
// x where a >= b, minus infinity elsewhere.
inline Vec keep_if(Vec a, Vec b, Vec x) {
    for (int i = 0; i < 16; ++i) x.v[i] = a.v[i] >= b.v[i] ? x.v[i] : -__builtin_inff();
    return x;
}
inline bool any_above(Vec a, Vec b) {
    bool found = false;
    for (int i = 0; i < 16; ++i) found = found || a.v[i] > b.v[i];
    return found;
}
// 1 / x, and 0 for 0.
inline Vec inverse(Vec x) { for (float& v : x.v) v = v == 0 ? 0 : 1 / v; return x; }
inline float largest(Vec x) { float r = x.v[0]; for (float v : x.v) r = v > r ? v : r; return r; }
inline float total(Vec x) { float r = 0; for (float v : x.v) r += v; return r; }

// 2^x to 2e-7 of it for x up to 127; 0 below -127.
inline Vec exp2(Vec x) {
    for (float& v : x.v) {
        const float at = v < -127.0f ? -127.0f : v > 127.0f ? 127.0f : v;
        const float whole = std::floor(at), f = at - whole;
        const float p = ((((1.8775767e-3f * f + 8.9893397e-3f) * f + 5.5826318e-2f) * f + 2.4015361e-1f) * f +
                         6.9315308e-1f) * f + 9.9999994e-1f;
        v = at == at ? p * float_of_bits(static_cast<uint32_t>(static_cast<int32_t>(whole) + 127) << 23) : at;
    }
    return x;
}

// Sums of the lanes of 16 vectors: join(quad(v0, v1, v2, v3), ..., quad(v12, v13, v14, v15)).
inline Vec quad(Vec a, Vec b, Vec c, Vec d) {
    Vec r{};
    r.v[0] = total(a), r.v[1] = total(b), r.v[2] = total(c), r.v[3] = total(d);
    return r;
}
inline Vec join(Vec a, Vec b, Vec c, Vec d) {
    for (int i = 0; i < 4; ++i) a.v[4 + i] = b.v[i], a.v[8 + i] = c.v[i], a.v[12 + i] = d.v[i];
    return a;
}

// Rows become columns.
inline void transpose(Vec* rows) {
    for (int i = 0; i < 16; ++i)
        for (int j = 0; j < i; ++j) {
            const float kept = rows[i].v[j];
            rows[i].v[j] = rows[j].v[i], rows[j].v[i] = kept;
        }
}
// a0 b0 a1 b1 ... in two vectors.
inline void interleave(Vec& a, Vec& b) {
    float both[32];
    for (int i = 0; i < 16; ++i) both[2 * i] = a.v[i], both[2 * i + 1] = b.v[i];
    a = load(both), b = load(both + 16);
}

inline void prefetch_written(const void*) {}
inline Vec dot_bf16(Vec acc, const void*, const void*) { return acc; }

} // namespace
} // namespace octavo
