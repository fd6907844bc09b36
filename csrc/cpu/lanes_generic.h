// More of what 16 lanes do, for norms, activations and sampling: the rest of vec_generic.h. lanes_avx2.h and
// lanes_avx512.h do the same with vectors.
#pragma once

#include "vec_generic.h"

namespace octavo {
namespace {

struct Flags { bool v[16]; }; // of lanes

inline Vec sub(Vec a, Vec b) { for (int i = 0; i < 16; ++i) a.v[i] -= b.v[i]; return a; }
inline Vec div(Vec a, Vec b) { for (int i = 0; i < 16; ++i) a.v[i] /= b.v[i]; return a; }
// Of a NaN and a number, in either place: the second.
inline Vec largest(Vec a, Vec b) { for (int i = 0; i < 16; ++i) a.v[i] = a.v[i] > b.v[i] ? a.v[i] : b.v[i]; return a; }
inline Vec least(Vec a, Vec b) { for (int i = 0; i < 16; ++i) a.v[i] = a.v[i] < b.v[i] ? a.v[i] : b.v[i]; return a; }
inline Vec magnitude(Vec a) { for (float& v : a.v) v = std::fabs(v); return a; }
inline Vec nearest(Vec a) { for (float& v : a.v) v = std::nearbyint(v); return a; } // integer
// x * 2^n for integers n of -150 to 128.
inline Vec times_power(Vec x, Vec n) {
    for (int i = 0; i < 16; ++i) {
        const int32_t power = static_cast<int32_t>(n.v[i] == n.v[i] ? n.v[i] : 0), half = power / 2;
        x.v[i] *= float_of_bits(static_cast<uint32_t>(half + 127) << 23);
        x.v[i] *= float_of_bits(static_cast<uint32_t>(power - half + 127) << 23);
    }
    return x;
}
inline float sum_of(Vec a) {
    for (int n = 8; n > 0; n /= 2)
        for (int i = 0; i < n; ++i) a.v[i] += a.v[i + n];
    return a.v[0];
}
inline float largest_of(Vec a) { // of no NaN
    for (int n = 8; n > 0; n /= 2)
        for (int i = 0; i < n; ++i) a.v[i] = a.v[i] > a.v[i + n] ? a.v[i] : a.v[i + n];
    return a.v[0];
}
// Rounded to that type and back.
inline Vec as_f16(Vec a) { for (float& v : a.v) v = float_of_f16(f16_of_float(v)); return a; }
inline Vec as_bf16(Vec a) { for (float& v : a.v) v = float_of_bf16(bf16_of_float(v)); return a; }

inline Flags greater(Vec a, Vec b) { Flags r; for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] > b.v[i]; return r; }
inline Flags at_least(Vec a, Vec b) { Flags r; for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] >= b.v[i]; return r; }
inline Flags equal(Vec a, Vec b) { Flags r; for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] == b.v[i]; return r; }
inline Flags is_nan(Vec a) { Flags r; for (int i = 0; i < 16; ++i) r.v[i] = a.v[i] != a.v[i]; return r; }
inline uint32_t bits_of(Flags f) { uint32_t r = 0; for (int i = 0; i < 16; ++i) r |= uint32_t{f.v[i]} << i; return r; }
inline Flags flags_of(uint32_t bits) { Flags r; for (int i = 0; i < 16; ++i) r.v[i] = bits >> i & 1; return r; }
inline Vec select(Flags f, Vec a, Vec b) { for (int i = 0; i < 16; ++i) if (!f.v[i]) a.v[i] = b.v[i]; return a; }
// Those that are flagged, in order, from p on; may write 16. Returns how many.
inline int store_flagged(float* p, Flags f, Vec a) {
    int n = 0;
    for (int i = 0; i < 16; ++i) if (f.v[i]) p[n++] = a.v[i];
    return n;
}

} // namespace
} // namespace octavo
