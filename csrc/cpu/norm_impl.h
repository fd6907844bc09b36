// Norms, gated activations and the search for broken rows, over the 16 lanes of lanes_*.h.
#pragma once

#include "fused.h"
#include "vec_math.h"

namespace octavo {
namespace {

template <Number N>
inline const void* at(const void* p, int64_t i) { return static_cast<const char*>(p) + i * bytes_of<N>; }
template <Number N>
inline void* at(void* p, int64_t i) { return static_cast<char*>(p) + i * bytes_of<N>; }

// Four sums, so that one addition need not wait for the one before.
struct Sums {
    Vec a = set(0), b = set(0), c = set(0), d = set(0);
    float total() const { return sum_of(add(add(a, b), add(c, d))); }
};

// Sum of value(i, count)^2 over [0, n); what is past the end reads as zero.
template <class F>
inline float sum_of_squares(int64_t n, F&& value) {
    Sums sums;
    int64_t i = 0;
    for (; i + 64 <= n; i += 64) {
        const Vec a = value(i, 16), b = value(i + 16, 16), c = value(i + 32, 16), d = value(i + 48, 16);
        sums.a = fma(a, a, sums.a), sums.b = fma(b, b, sums.b), sums.c = fma(c, c, sums.c), sums.d = fma(d, d, sums.d);
    }
    for (; i < n; i += 16) {
        const Vec a = value(i, n - i < 16 ? n - i : 16);
        sums.a = fma(a, a, sums.a);
    }
    return sums.total();
}

inline float inverse_root(float sum, int64_t n, float eps) {
    return 1.0f / __builtin_sqrtf(sum / static_cast<float>(n) + eps);
}

// With an offset the weight is added to first and the product rounded once; without, twice.
template <Number N>
inline Vec weighted(Vec normed, Vec weight, float offset) {
    if (offset != 0) return mul(normed, add(weight, set(offset)));
    return mul(rounded<N>(normed), weight);
}

template <Number N> struct RmsNorm {
    static void run(const NormCall& c, int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const void* x = at<N>(c.x, row / c.inner * c.outer_stride + row % c.inner * c.inner_stride);
            void* out = at<N>(c.out, row * c.size);
            const float sum = sum_of_squares(c.size, [&](int64_t i, int64_t count) { return get<N>(x, i, count); });
            const Vec scale = set(inverse_root(sum, c.size, c.eps));
            each_vector(c.size, [&](int64_t i, int64_t count) {
                const Vec normed = mul(get<N>(x, i, count), scale);
                put<N>(out, i, weighted<N>(normed, get<N>(c.weight, i, count), c.weight_offset), count);
            });
        }
    }
};

template <Number N, Number W>
void add_norm(const AddNormCall& c, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
        const void* x = at<N>(c.x, row * c.x_stride);
        const void* residual = at<W>(c.residual, row * c.residual_stride);
        void* total = at<W>(c.total, row * c.size);
        void* out = at<N>(c.out, row * c.size);
        const float sum = sum_of_squares(c.size, [&](int64_t i, int64_t count) {
            const Vec value = rounded<W>(add(get<N>(x, i, count), get<W>(residual, i, count)));
            put<W>(total, i, value, count);
            return rounded<N>(value);
        });
        const Vec scale = set(inverse_root(sum, c.size, c.eps));
        each_vector(c.size, [&](int64_t i, int64_t count) {
            const Vec normed = mul(rounded<N>(get<W>(total, i, count)), scale);
            put<N>(out, i, weighted<N>(normed, get<N>(c.weight, i, count), c.weight_offset), count);
        });
    }
}

template <Number N> struct AddRmsNorm {
    static void run(const AddNormCall& c, int64_t begin, int64_t end) {
        if (c.wide == N) add_norm<N, N>(c, begin, end);
        else add_norm<N, Number::f32>(c, begin, end);
    }
};

template <Number N> struct GatedRmsNorm {
    static void run(const GatedNormCall& c, int64_t begin, int64_t end) {
        const int64_t size = c.size / c.num_groups;
        for (int64_t part = begin * c.num_groups; part < end * c.num_groups; ++part) {
            const int64_t row = part / c.num_groups, column = part % c.num_groups * size;
            const void* x = at<N>(c.x, row * c.x_stride + column);
            const void* gate = at<N>(c.gate, row * c.gate_stride + column);
            const void* weight = at<N>(c.weight, column);
            void* out = at<N>(c.out, row * c.size + column);
            const auto opened = [&](int64_t i, int64_t count) { return silu(get<N>(gate, i, count)); };
            if (c.norm_before_gate) {
                const float sum = sum_of_squares(size, [&](int64_t i, int64_t n) { return get<N>(x, i, n); });
                const Vec scale = set(inverse_root(sum, size, c.eps));
                each_vector(size, [&](int64_t i, int64_t count) {
                    const Vec normed = mul(mul(get<N>(x, i, count), scale), get<N>(weight, i, count));
                    put<N>(out, i, mul(normed, opened(i, count)), count);
                });
            } else {
                const auto value = [&](int64_t i, int64_t n) { return mul(get<N>(x, i, n), opened(i, n)); };
                const Vec scale = set(inverse_root(sum_of_squares(size, value), size, c.eps));
                each_vector(size, [&](int64_t i, int64_t count) {
                    const Vec normed = rounded<N>(mul(value(i, count), scale));
                    put<N>(out, i, mul(normed, get<N>(weight, i, count)), count);
                });
            }
        }
    }
};

template <Activation A>
inline Vec activated(Vec x) {
    if constexpr (A == Activation::silu) return silu(x);
    else if constexpr (A == Activation::gelu) return gelu(x);
    else return gelu_tanh(x);
}

template <Number N, Activation A>
void activate_as(const ActivationCall& c, int64_t begin, int64_t end) {
    const int64_t pieces = (c.size + activation_piece - 1) / activation_piece; // of a row
    for (int64_t piece = begin; piece < end; ++piece) {
        const int64_t row = piece / pieces, first = piece % pieces * activation_piece;
        const int64_t n = c.size - first < activation_piece ? c.size - first : activation_piece;
        const void* gate = at<N>(c.x, row * c.stride + first);
        const void* up = at<N>(c.x, row * c.stride + c.size + first);
        void* out = at<N>(c.out, row * c.size + first);
        each_vector(n, [&](int64_t i, int64_t count) {
            put<N>(out, i, mul(rounded<N>(activated<A>(get<N>(gate, i, count))), get<N>(up, i, count)), count);
        });
    }
}

template <Number N> struct Activate {
    static void run(const ActivationCall& c, int64_t begin, int64_t end) {
        switch (c.kind) {
        case Activation::silu: activate_as<N, Activation::silu>(c, begin, end); break;
        case Activation::gelu: activate_as<N, Activation::gelu>(c, begin, end); break;
        default: activate_as<N, Activation::gelu_tanh>(c, begin, end);
        }
    }
};

template <Number N> struct FindBad {
    static void run(const FiniteCall& c, int64_t begin, int64_t end) {
        for (int64_t row = begin; row < end; ++row) {
            const void* x = at<N>(c.x, row * c.stride);
            Sums zeros; // 0 * x is 0, or NaN where x is not finite
            int64_t i = 0;
            for (; i + 32 <= c.size; i += 32) {
                zeros.a = fma(get<N>(x, i), set(0), zeros.a);
                zeros.b = fma(get<N>(x, i + 16), set(0), zeros.b);
            }
            for (; i < c.size; i += 16)
                zeros.c = fma(get<N>(x, i, c.size - i < 16 ? c.size - i : 16), set(0), zeros.c);
            c.is_bad[row] = !(zeros.total() == 0);
        }
    }
};

void rms_norm(const NormCall& c, int64_t begin, int64_t end) { by_number<RmsNorm>(c.type, c, begin, end); }
void add_rms_norm(const AddNormCall& c, int64_t begin, int64_t end) { by_number<AddRmsNorm>(c.type, c, begin, end); }
void gated_rms_norm(const GatedNormCall& c, int64_t begin, int64_t end) {
    by_number<GatedRmsNorm>(c.type, c, begin, end);
}
void activate(const ActivationCall& c, int64_t begin, int64_t end) { by_number<Activate>(c.type, c, begin, end); }
void find_bad(const FiniteCall& c, int64_t begin, int64_t end) { by_number<FindBad>(c.type, c, begin, end); }

} // namespace
} // namespace octavo
