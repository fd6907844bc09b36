// Functions of 16 lanes, and rows that end inside a vector. After lanes_*.h.
#pragma once

#include "numbers.h"

namespace octavo {
namespace {

// e^x to 2 units in the last place; exactly 0 for minus infinity, NaN stays. e^x = 2^n e^r, |r| <= log(2) / 2, and e^r
// is 1 + r + r^2 p(r), p the polynomial of least relative error, 9e-9.
inline Vec exp_of(Vec x) {
    x = least(set(89.0f), largest(set(-104.0f), x));
    const Vec n = nearest(mul(x, set(1.44269504f)));
    const Vec r = fma(n, set(2.12194440e-4f), fma(n, set(-0.693359375f), x)); // log(2) in two parts
    Vec p = fma(set(1.3901283964514732e-3f), r, set(8.363146334886551e-3f));
    p = fma(p, r, set(4.166685417294502e-2f));
    p = fma(p, r, set(0.16666577756404877f));
    p = fma(p, r, set(0.5f));
    return times_power(add(fma(mul(r, r), p, r), set(1.0f)), n);
}

inline Vec sigmoid(Vec x) { return div(set(1.0f), add(set(1.0f), exp_of(negative(x)))); }

inline Vec silu(Vec x) { return div(x, add(set(1.0f), exp_of(negative(x)))); }

// 0.5 (1 + tanh(u)) = sigmoid(2u)
inline Vec gelu_tanh(Vec x) {
    const Vec cubic = fma(mul(mul(x, x), x), set(0.044715f), x);
    return div(x, add(set(1.0f), exp_of(mul(cubic, set(-1.5957691216057308f)))));
}

// x Phi(x); Phi(-|x|) is erfc(t) / 2, t = |x| / sqrt(2). erfc(t) is exp(-t^2) times a polynomial in 1 / (1 + 0.4 t),
// that of least relative error for t up to 10, 6e-8.
inline Vec gelu(Vec x) {
    const Vec t = least(set(11.0f), mul(magnitude(x), set(0.70710678f))); // where erfc is 0 in float32
    const Vec k = div(set(1.0f), fma(t, set(0.4f), set(1.0f)));
    Vec p = fma(set(0.04125372692942619f), k, set(-0.1403225213289261f));
    p = fma(p, k, set(0.08399391919374466f));
    p = fma(p, k, set(0.08795694261789322f));
    p = fma(p, k, set(0.07976145297288895f));
    p = fma(p, k, set(0.19339117407798767f));
    p = fma(p, k, set(0.2018880844116211f));
    p = fma(p, k, set(0.22644303739070892f));
    p = fma(p, k, set(0.22563423216342926f));
    const Vec tail = mul(mul(set(0.5f), mul(p, k)), exp_of(negative(mul(t, t))));
    return mul(x, select(greater(x, set(0.0f)), sub(set(1.0f), tail), tail));
}

// ---- numbers of a type known at compile time -------------------------------------------------------------------------

template <Number N>
inline Vec get(const void* p, int64_t i) {
    if constexpr (N == Number::f32) return load(static_cast<const float*>(p) + i);
    else if constexpr (N == Number::f16) return load_f16(static_cast<const uint16_t*>(p) + i);
    else return load_bf16(static_cast<const uint16_t*>(p) + i);
}

template <Number N>
inline void put(void* p, int64_t i, Vec x) {
    if constexpr (N == Number::f32) store(static_cast<float*>(p) + i, x);
    else if constexpr (N == Number::f16) store_f16(static_cast<uint16_t*>(p) + i, x);
    else put_bf16(static_cast<uint16_t*>(p) + i, x);
}

// As it is once stored as N.
template <Number N>
inline Vec rounded(Vec x) {
    if constexpr (N == Number::f32) return x;
    else if constexpr (N == Number::f16) return as_f16(x);
    else return as_bf16(x);
}

template <Number N>
constexpr int64_t bytes_of = size_of(N);

// `count` of the 16 lanes are there; the others read as zero.
template <Number N>
inline Vec get(const void* p, int64_t i, int64_t count) {
    if (count >= 16) return get<N>(p, i);
    alignas(64) char bytes[64] = {};
    std::memcpy(bytes, static_cast<const char*>(p) + i * bytes_of<N>, static_cast<size_t>(count * bytes_of<N>));
    return get<N>(bytes, 0);
}

template <Number N>
inline void put(void* p, int64_t i, Vec x, int64_t count) {
    if (count >= 16) return put<N>(p, i, x);
    alignas(64) char bytes[64];
    put<N>(bytes, 0, x);
    std::memcpy(static_cast<char*>(p) + i * bytes_of<N>, bytes, static_cast<size_t>(count * bytes_of<N>));
}

// function(i, count) for each 16 of [0, n).
template <class F>
inline void each_vector(int64_t n, F&& function) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) function(i, 16);
    if (i < n) function(i, n - i);
}

// Calls Template<type>::run(...).
template <template <Number> class Template, class... Args>
inline void by_number(Number type, Args&&... args) {
    switch (type) {
    case Number::f32: Template<Number::f32>::run(args...); break;
    case Number::f16: Template<Number::f16>::run(args...); break;
    default: Template<Number::bf16>::run(args...);
    }
}

} // namespace
} // namespace octavo
