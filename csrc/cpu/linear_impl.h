// The kernels of linear layers, written once over the 16 lanes of lanes_*.h, which comes before this.
#pragma once

#include "ahead.h"
#include "linear.h"
#include "typed_lanes.h"
#include "vec_math.h"

namespace octavo {
namespace {

inline Vec with_bias(const Output& out, int64_t column, int64_t count, Vec x) {
    return out.bias == nullptr ? x : add(x, load_some(out.bias, out.bias_type, column, count));
}

// 16 outputs of one row, or the `count` that are there.
inline void put(const Output& out, int64_t row, int64_t column, int64_t count, Vec x) {
    store_some(out.data, out.type, row * out.stride + column, with_bias(out, column, count, x), count);
}

inline Vec activated(Activation activation, Vec x) {
    switch (activation) {
    case Activation::silu: return silu(x);
    case Activation::gelu: return gelu(x);
    default: return gelu_tanh(x);
    }
}

inline void put_gated(const Output& out, int64_t row, int64_t column, int64_t count, Vec gate, Vec up) {
    gate = activated(out.activation, with_bias(out, column, count, gate));
    up = with_bias(out, column + out.up_bias, count, up);
    store_some(out.data, out.type, row * out.stride + column, mul(gate, up), count);
}

void widen(const void* x, Number type, int64_t n, float* out) {
    int64_t i = 0;
    for (; i + 16 <= n; i += 16) store(out + i, load_as(x, type, i));
    for (; i < n; ++i) out[i] = load_number(x, type, i);
}

void quantize(const float* x, int64_t inputs, int64_t q_rows, int8_t* q, Rounded* rounded) {
    for (int64_t b = 0; b < inputs / 32; ++b) {
        int32_t sums[2];
        const float scale = quantize_block(x + 32 * b, q + 32 * q_rows * b, sums);
        const int32_t all = sums[0] + sums[1];
        rounded[q_rows * b] = {scale, scale * static_cast<float>(all), -all, -sums[0]};
    }
}

// ---- blocks of a quantised panel -------------------------------------------------------------------------------------

// Step J of a block: [16][4] of q.
template <Format F, int J>
inline Bytes step(const uint8_t* quants) {
    if constexpr (bits_of(F) == 8) {
        return load_bytes(quants + 64 * J);
    } else {
        const Bytes both = load_bytes(quants + 64 * (J % 4));
        const Bytes low = mask(J < 4 ? both : shift_right<4>(both), 15);
        if constexpr (bits_of(F) == 4) return low;
        else if constexpr (bits_of(F) == 5)
            return either(low, mask(shift_right<J - 4>(load_bytes(quants + 256)), 16));
        else return either(low, mask(shift_right<2 * (J % 4) - 4>(load_bytes(quants + 256 + 64 * (J / 4))), 48));
    }
}

// value = scale * (q - offset) + minimum, for each output. The first 16 inputs and the others may differ in scale.
struct Scales { Vec first, second, minimum; };
struct Head { Vec d, dmin; };

template <Format F>
inline Head read_head(const uint8_t* p) {
    if constexpr (head_bytes(F) == 64) return {load_f16(p), load_f16(p + 32)};
    else return {load_f16(p), set(0)};
}

template <Format F>
inline Scales read_scales(const uint8_t* p, const Head& head) {
    if constexpr (F == Format::q6_k) {
        return {mul(head.d, to_float(load_i8(p))), mul(head.d, to_float(load_i8(p + 16))), set(0)};
    } else if constexpr (has_head(F)) {
        const Vec s = mul(head.d, to_float(load_u8(p)));
        return {s, s, negative(mul(head.dmin, to_float(load_u8(p + 16))))};
    } else {
        const Vec s = load_f16(p);
        return {s, s, has_minimum(F) ? load_f16(p + 32) : set(0)};
    }
}

// Calls f(block, b) for the blocks of a panel, with heads read on the way.
template <Format F, class Each>
inline void each_block(const uint8_t* panel, int64_t inputs, Each&& each) {
    Head head{};
    for (int64_t b = 0; b < inputs / 32; ++b) {
        if constexpr (has_head(F)) {
            if (b % 8 == 0) head = read_head<F>(panel), panel += head_bytes(F);
        }
        each(panel + scale_bytes(F), read_scales<F>(panel, head), b);
        panel += block_bytes(F);
    }
}

template <Format F>
inline Int dot_step(Int acc, Bytes u, const int8_t* x) {
    return bits_of(F) == 8 ? dot_wide(acc, u, x) : dot(acc, u, x);
}

// What is asked for while `bytes` of a panel pass R rows: other panels, as long as memory is what takes the time, else
// what follows in this one, so that it is in the nearest cache.
template <int R>
inline void ask_ahead(Ahead& ahead, const uint8_t* here, int64_t bytes) {
    if constexpr (R <= 2) {
        ahead.follow(bytes);
    } else {
        constexpr int64_t near = 4096;
        for (int64_t i = 0; i < bytes; i += 64) __builtin_prefetch(here + near + i);
    }
}

// ---- few rows --------------------------------------------------------------------------------------------------------

template <Format F, int R>
inline void few_quantized(const uint8_t* panel, const Activations& x, int64_t row, Ahead& ahead, Vec* total) {
    constexpr int offset = bits_of(F) == 8 ? wide_offset : offset_of(F);
    constexpr int log_offset = offset == 0 ? 0 : offset == 8 ? 3 : offset == 16 ? 4 : offset == 32 ? 5 : 7;
    static_assert(offset == 0 || offset == 1 << log_offset);
    each_block<F>(panel, x.inputs, [&](const uint8_t* quants, const Scales& scales, int64_t b) {
        ask_ahead<R>(ahead, quants, block_bytes(F));
        const Bytes steps[8] = {step<F, 0>(quants), step<F, 1>(quants), step<F, 2>(quants), step<F, 3>(quants),
                                step<F, 4>(quants), step<F, 5>(quants), step<F, 6>(quants), step<F, 7>(quants)};
        const int8_t* q = x.q + (x.q_rows * b + row) * 32;
        const Rounded* rounded = x.rounded + x.q_rows * b + row;
#pragma GCC unroll 8
        for (int r = 0; r < R; ++r, q += 32) {
            const Rounded& here = rounded[r];
            const Vec scale = set(here.scale);
            const auto start = [&](int32_t minus) { return shift_left<log_offset>(set_int(offset == 0 ? 0 : minus)); };
            if constexpr (F == Format::q6_k) { // two scales
                Int first = start(here.minus16), second = start(here.minus - here.minus16);
#pragma GCC unroll 4
                for (int j = 0; j < 4; ++j) {
                    first = dot_step<F>(first, steps[j], q + 4 * j);
                    second = dot_step<F>(second, steps[j + 4], q + 16 + 4 * j);
                }
                total[r] = fma(mul(scales.first, to_float(first)), scale, total[r]);
                total[r] = fma(mul(scales.second, to_float(second)), scale, total[r]);
            } else {
                Int sum = start(here.minus);
                if constexpr (R >= 4) { // rows enough that one sum each keeps the units busy
#pragma GCC unroll 8
                    for (int j = 0; j < 8; ++j) sum = dot_step<F>(sum, steps[j], q + 4 * j);
                } else {
                    Int other = set_int(0);
#pragma GCC unroll 4
                    for (int j = 0; j < 4; ++j) {
                        sum = dot_step<F>(sum, steps[j], q + 4 * j);
                        other = dot_step<F>(other, steps[j + 4], q + 16 + 4 * j);
                    }
                    sum = add(sum, other);
                }
                total[r] = fma(mul(scales.first, to_float(sum)), scale, total[r]);
            }
            if constexpr (has_minimum(F)) total[r] = fma(scales.minimum, set(here.sum), total[r]);
        }
    });
}

template <Format F, int R>
inline void few_numbers(const uint8_t* panel, const Activations& x, int64_t row, Ahead& ahead, Vec* total) {
    const float* rows[R];
    for (int r = 0; r < R; ++r) rows[r] = x.floats + (row + r) * x.stride;
    constexpr int chains = R == 1 ? 4 : 2; // sums of a row at once, for the same reason
    Vec sums[R][chains];
    for (int r = 0; r < R; ++r)
        for (int c = 0; c < chains; ++c) sums[r][c] = set(0);
    const int64_t steps = F == Format::bf16 ? x.stride / chains : x.inputs / chains;
    int64_t k = 0;
    constexpr int64_t step_bytes = chains * (F == Format::f32 ? 64 : 32);
    for (int64_t i = 0; i < steps; ++i, k += chains) {
        ask_ahead<R>(ahead, panel + i * step_bytes, step_bytes);
#pragma GCC unroll 4
        for (int c = 0; c < chains; ++c) {
            Vec w;
            if constexpr (F == Format::f32) w = load(reinterpret_cast<const float*>(panel) + (k + c) * 16);
            else if constexpr (F == Format::f16) w = load_f16(panel + (k + c) * 32);
            else w = c % 2 ? second_bf16(load_bytes(panel + (k + c) / 2 * 64)) : first_bf16(load_bytes(panel + (k + c) / 2 * 64));
#pragma GCC unroll 8
            for (int r = 0; r < R; ++r) sums[r][c] = fma(w, set(rows[r][k + c]), sums[r][c]);
        }
    }
    if constexpr (F != Format::bf16) {
        for (; k < x.inputs; ++k) {
            const Vec w = F == Format::f32 ? load(reinterpret_cast<const float*>(panel) + k * 16) : load_f16(panel + k * 32);
            for (int r = 0; r < R; ++r) sums[r][0] = fma(w, set(rows[r][k]), sums[r][0]);
        }
    }
    for (int r = 0; r < R; ++r) {
        total[r] = add(sums[r][0], sums[r][1]);
        if constexpr (chains == 4) total[r] = add(total[r], add(sums[r][2], sums[r][3]));
    }
}

template <Format F, int R>
inline void few_rows(const Panels& panels, int64_t p, const Activations& x, const Output& out, int64_t row, Ahead& ahead) {
    const int64_t skipped = p * panel_bytes(F, x.inputs), column = panels.column + 16 * p;
    const bool is_gated = panels.up != nullptr;
    Vec total[R];
    float gates[R][16];
    for (int half = 0; half <= is_gated; ++half) {
        for (int r = 0; r < R; ++r) total[r] = set(0);
        const uint8_t* panel = (half == 0 ? panels.data : panels.up) + skipped;
        if constexpr (is_quantized(F)) few_quantized<F, R>(panel, x, row, ahead, total);
        else few_numbers<F, R>(panel, x, row, ahead, total);
        if (half < is_gated)
            for (int r = 0; r < R; ++r) store(gates[r], total[r]);
    }
    for (int r = 0; r < R; ++r) {
        if (is_gated) put_gated(out, row + r, column, panels.columns - 16 * p, load(gates[r]), total[r]);
        else put(out, row + r, column, panels.columns - 16 * p, total[r]);
    }
}

template <Format F>
void few_of(const Panels& panels, const Activations& x, const Output& out) {
    const int64_t bytes = panel_bytes(F, x.inputs), streams = Ahead::count / (panels.up != nullptr ? 2 : 1);
    Ahead ahead{};
    for (int64_t p = 0; p < panels.count; ++p) {
        if (p % streams == 0) { // a panel a stream; where there are fewer, some twice
            if (x.rows <= 2) ahead.finish();
            ahead = {{}, p + streams < panels.count ? bytes : 0};
            for (int64_t i = 0; i < streams; ++i) {
                const int64_t next = p + streams + i < panels.count ? p + streams + i : panels.count - 1;
                ahead.streams[i] = reinterpret_cast<const char*>(panels.data + next * bytes);
                if (panels.up != nullptr) ahead.streams[streams + i] = ahead.streams[i] + (panels.up - panels.data);
            }
        }
        int64_t row = 0;
        if constexpr (most_rows >= 8)
            for (; row + 8 <= x.rows; row += 8) few_rows<F, 8>(panels, p, x, out, row, ahead);
        if constexpr (most_rows >= 4)
            for (; row + 4 <= x.rows; row += 4) few_rows<F, 4>(panels, p, x, out, row, ahead);
        if constexpr (most_rows >= 2)
            for (; row + 2 <= x.rows; row += 2) few_rows<F, 2>(panels, p, x, out, row, ahead);
        for (; row < x.rows; ++row) few_rows<F, 1>(panels, p, x, out, row, ahead);
    }
}

// ---- many rows -------------------------------------------------------------------------------------------------------

template <Format F, int J>
inline void expand_step(const uint8_t* quants, const Scales& s, Vec* values) {
    const Bytes q = step<F, J>(quants);
    const Vec scale = J < 4 ? s.first : s.second;
    Vec base = s.minimum;
    if constexpr (offset_of(F) != 0) base = mul(scale, set(-offset_of(F)));
    values[0] = fma(scale, to_float(byte_of<0>(q)), base);
    values[1] = fma(scale, to_float(byte_of<1>(q)), base);
    values[2] = fma(scale, to_float(byte_of<2>(q)), base);
    values[3] = fma(scale, to_float(byte_of<3>(q)), base);
}

// Calls f(k, values of k to k+3) for the inputs of a quantised panel in order.
template <Format F, class Each>
inline void each_four(const uint8_t* panel, int64_t inputs, Each&& each) {
    each_block<F>(panel, inputs, [&](const uint8_t* quants, const Scales& s, int64_t b) {
        Vec values[4];
        expand_step<F, 0>(quants, s, values), each(32 * b, values);
        expand_step<F, 1>(quants, s, values), each(32 * b + 4, values);
        expand_step<F, 2>(quants, s, values), each(32 * b + 8, values);
        expand_step<F, 3>(quants, s, values), each(32 * b + 12, values);
        expand_step<F, 4>(quants, s, values), each(32 * b + 16, values);
        expand_step<F, 5>(quants, s, values), each(32 * b + 20, values);
        expand_step<F, 6>(quants, s, values), each(32 * b + 24, values);
        expand_step<F, 7>(quants, s, values), each(32 * b + 28, values);
    });
}

// A panel as float32 [inputs][16].
template <Format F>
inline void expand(const uint8_t* panel, int64_t inputs, float* out) {
    if constexpr (is_quantized(F)) {
        each_four<F>(panel, inputs, [&](int64_t k, const Vec* values) {
            for (int i = 0; i < 4; ++i) store(out + (k + i) * 16, values[i]);
        });
    } else {
        for (int64_t k = 0; k < inputs; ++k) {
            if constexpr (F == Format::f32) store(out + k * 16, load(reinterpret_cast<const float*>(panel) + k * 16));
            else if constexpr (F == Format::f16) store(out + k * 16, load_f16(panel + k * 32));
            else {
                const Bytes pair = load_bytes(panel + k / 2 * 64);
                store(out + k * 16, k % 2 ? second_bf16(pair) : first_bf16(pair));
            }
        }
    }
}

template <int R>
inline void many_rows(const float* w, const Activations& x, int64_t row, Vec* total) {
    for (int r = 0; r < R; ++r) total[r] = set(0);
    const float* from = x.floats + row * x.stride;
    for (int64_t k = 0; k < x.inputs; ++k) {
        const Vec v = load(w + 16 * k);
#pragma GCC unroll 16
        for (int r = 0; r < R; ++r) total[r] = fma(v, set(from[r * x.stride + k]), total[r]);
    }
}

template <int R>
inline void many_rows_out(const float* const* w, const Panels& panels, int64_t p, const Activations& x,
                          const Output& out, int64_t row) {
    const int64_t column = panels.column + 16 * p, count = panels.columns - 16 * p;
    Vec total[R];
    many_rows<R>(w[0], x, row, total);
    if (panels.up == nullptr) {
        for (int r = 0; r < R; ++r) put(out, row + r, column, count, total[r]);
        return;
    }
    float gates[R][16];
    for (int r = 0; r < R; ++r) store(gates[r], total[r]);
    many_rows<R>(w[1], x, row, total);
    for (int r = 0; r < R; ++r) put_gated(out, row + r, column, count, load(gates[r]), total[r]);
}

template <Format F>
void many_of(const Panels& panels, const Activations& x, const Output& out) {
    constexpr int R = most_rows >= 8 ? 12 : most_rows;
    float* space = static_cast<float*>(scratch(1, static_cast<size_t>(x.inputs) * 128));
    const float* const w[2] = {space, space + 16 * x.inputs};
    const int64_t bytes = panel_bytes(F, x.inputs);
    for (int64_t p = 0; p < panels.count; ++p) {
        expand<F>(panels.data + p * bytes, x.inputs, space);
        if (panels.up != nullptr) expand<F>(panels.up + p * bytes, x.inputs, space + 16 * x.inputs);
        int64_t row = 0;
        for (; row + R <= x.rows; row += R) many_rows_out<R>(w, panels, p, x, out, row);
        for (; row < x.rows; ++row) many_rows_out<1>(w, panels, p, x, out, row);
    }
}

// ---- by format -------------------------------------------------------------------------------------------------------

template <template <Format> class Kernel>
void by_format(const Panels& panels, const Activations& x, const Output& out) {
    switch (panels.format) {
    case Format::f32: return Kernel<Format::f32>::run(panels, x, out);
    case Format::f16: return Kernel<Format::f16>::run(panels, x, out);
    case Format::bf16: return Kernel<Format::bf16>::run(panels, x, out);
    case Format::q4_0: return Kernel<Format::q4_0>::run(panels, x, out);
    case Format::q4_1: return Kernel<Format::q4_1>::run(panels, x, out);
    case Format::q5_0: return Kernel<Format::q5_0>::run(panels, x, out);
    case Format::q5_1: return Kernel<Format::q5_1>::run(panels, x, out);
    case Format::q8_0: return Kernel<Format::q8_0>::run(panels, x, out);
    case Format::q4_k: return Kernel<Format::q4_k>::run(panels, x, out);
    case Format::q5_k: return Kernel<Format::q5_k>::run(panels, x, out);
    case Format::q6_k: return Kernel<Format::q6_k>::run(panels, x, out);
    }
}

template <Format F> struct Few {
    static void run(const Panels& p, const Activations& x, const Output& out) { few_of<F>(p, x, out); }
};
template <Format F> struct Many {
    static void run(const Panels& p, const Activations& x, const Output& out) { many_of<F>(p, x, out); }
};

void few(const Panels& p, const Activations& x, const Output& out) { by_format<Few>(p, x, out); }
[[maybe_unused]] void many(const Panels& p, const Activations& x, const Output& out) { by_format<Many>(p, x, out); }

} // namespace
} // namespace octavo
