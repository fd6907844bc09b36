// Norms, activations, rotation and cache writes as Python calls them.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "fused.h"
#include "submit.h"
#include "threads.h"

namespace nb = nanobind;

namespace octavo {
namespace {

void rms_norm(Address x, int type, int64_t outer, int64_t inner, int64_t size, int64_t outer_stride,
              int64_t inner_stride, Address weight, float eps, float offset, Address out) {
    NormCall call{pointer_to<void>(x), pointer_to<void>(weight), pointer_to<void>(out), number_type(type), outer,
                  inner, size, outer_stride, inner_stride, eps, offset};
    submit(outer * inner * size, [call] {
        parallel_for(call.outer * call.inner, rows_worth_a_thread(call.size),
                     [&](int64_t begin, int64_t end) { fused_kernels().rms_norm(call, begin, end); });
    }, "norm");
}

void add_rms_norm(Address x, int type, int64_t x_stride, Address residual, int wide, int64_t residual_stride,
                  int64_t rows, int64_t size, Address weight, float eps, float offset, Address out, Address total) {
    AddNormCall call{pointer_to<void>(x), pointer_to<void>(residual), pointer_to<void>(weight), pointer_to<void>(out),
                     pointer_to<void>(total), number_type(type), number_type(wide), rows, size, x_stride,
                     residual_stride, eps, offset};
    if (call.wide != call.type && call.wide != Number::f32)
        throw std::invalid_argument("a residual is of the rows' type or float32");
    submit(rows * size, [call] {
        parallel_for(call.rows, rows_worth_a_thread(call.size),
                     [&](int64_t begin, int64_t end) { fused_kernels().add_rms_norm(call, begin, end); });
    }, "norm");
}

void gated_rms_norm(Address x, int type, int64_t x_stride, Address gate, int64_t gate_stride, int64_t rows,
                    int64_t size, int64_t num_groups, Address weight, float eps, bool norm_before_gate, Address out) {
    if (num_groups < 1 || size % num_groups) throw std::invalid_argument("groups do not divide the row");
    GatedNormCall call{pointer_to<void>(x), pointer_to<void>(gate), pointer_to<void>(weight), pointer_to<void>(out),
                       number_type(type), rows, size, x_stride, gate_stride, num_groups, eps, norm_before_gate};
    submit(8 * rows * size, [call] {
        parallel_for(call.rows, rows_worth_a_thread(4 * call.size),
                     [&](int64_t begin, int64_t end) { fused_kernels().gated_rms_norm(call, begin, end); });
    }, "norm");
}

void activate(int kind, Address x, int type, int64_t stride, int64_t rows, int64_t size, Address out) {
    if (kind < 0 || kind > 2) throw std::invalid_argument("no such activation: " + std::to_string(kind));
    ActivationCall call{pointer_to<void>(x), pointer_to<void>(out), number_type(type), static_cast<Activation>(kind),
                        rows, size, stride};
    submit(8 * rows * size, [call] {
        const int64_t pieces = (call.size + activation_piece - 1) / activation_piece;
        const int64_t worth = rows_worth_a_thread(2 * (call.size < activation_piece ? call.size : activation_piece));
        parallel_for(call.rows * pieces, worth,
                     [&](int64_t begin, int64_t end) { fused_kernels().activate(call, begin, end); });
    }, "activation");
}

// Slots past the cache would write somewhere: looked at in each run, as they lie behind an address.
void check_slots(const WriteCall& call) {
    const int64_t end = call.pages.num_blocks * call.pages.block_size;
    for (int64_t t = 0; t < call.tokens; ++t)
        if (call.slots[t] >= end) throw std::out_of_range("slot of a cache that has fewer");
}

using Part = std::tuple<Address, int64_t, int64_t>;                          // address, strides of tokens and heads
using Cache = std::tuple<Address, int, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>; // as in Pages

Heads heads_of(const Part& part, int64_t count) {
    return {pointer_to<void>(std::get<0>(part)), count, std::get<1>(part), std::get<2>(part)};
}

Pages pages_of(const Cache& cache) {
    const auto& [data, type, blocks, block_size, block, part, token, head] = cache;
    if (block_size < 1) throw std::invalid_argument("a block of no tokens");
    return {pointer_to<void>(data), cache_type(type), blocks, block_size, block, part, token, head};
}

void write_kv(const Part& k, const Part& v, int type, int64_t tokens, int64_t heads, int64_t size, const Cache& cache,
              Address slots) {
    WriteCall call{heads_of(k, heads), heads_of(v, heads), number_type(type), pages_of(cache),
                   pointer_to<const int64_t>(slots), tokens, size};
    submit(2 * tokens * heads * size, [call] {
        check_slots(call);
        parallel_for(call.tokens, rows_worth_a_thread(2 * call.k.count * call.size),
                     [&](int64_t begin, int64_t end) { fused_kernels().write_kv(call, begin, end); });
    }, "rope and cache");
}

void rope_and_write(const Part& q, int64_t q_heads, const Part& k, const Part& v, int type, int64_t tokens,
                    int64_t heads, int64_t size, const Cache& cache, Address slots, Address positions, Address cos_sin,
                    int64_t num_positions, int64_t table_stride, int64_t rotated, Address q_norm, Address k_norm,
                    float eps, float offset, Address out) {
    if (rotated < 0 || rotated > size || rotated % 2)
        throw std::invalid_argument("heads are shorter than their angles, or those are odd");
    RopeCall call{{heads_of(k, heads), heads_of(v, heads), number_type(type), pages_of(cache),
                   pointer_to<const int64_t>(slots), tokens, size},
                  heads_of(q, q_heads), pointer_to<void>(out), pointer_to<const int64_t>(positions),
                  pointer_to<const float>(cos_sin), num_positions, table_stride, rotated, pointer_to<void>(q_norm),
                  pointer_to<void>(k_norm), eps, offset};
    submit(4 * tokens * (q_heads + heads) * size, [call] {
        check_slots(call.write);
        for (int64_t t = 0; t < call.write.tokens; ++t)
            if (call.positions[t] < 0 || call.positions[t] >= call.num_positions)
                throw std::out_of_range("position without angles");
        const int64_t each = (call.q.count + 2 * call.write.k.count) * call.write.size;
        parallel_for(call.write.tokens, rows_worth_a_thread(2 * each),
                     [&](int64_t begin, int64_t end) { fused_kernels().rope_and_write(call, begin, end); });
    }, "rope and cache");
}

void mark_bad_rows(Address x, int type, int64_t stride, int64_t tokens, int64_t size, Address row_of_token,
                   int64_t num_rows, Address out) {
    FiniteCall call{pointer_to<void>(x), number_type(type), tokens, size, stride, nullptr};
    const int64_t* rows = pointer_to<const int64_t>(row_of_token);
    uint8_t* bad_rows = pointer_to<uint8_t>(out);
    submit(tokens * size, [call, rows, bad_rows, num_rows]() mutable {
        static thread_local std::vector<uint8_t> is_bad;
        is_bad.resize(static_cast<size_t>(call.rows));
        call.is_bad = is_bad.data();
        parallel_for(call.rows, rows_worth_a_thread(call.size),
                     [&](int64_t begin, int64_t end) { fused_kernels().find_bad(call, begin, end); });
        for (int64_t row = 0; row < num_rows; ++row) bad_rows[row] = 0;
        for (int64_t t = 0; t < call.rows; ++t)
            if (call.is_bad[t] && rows[t] >= 0 && rows[t] < num_rows) bad_rows[rows[t]] = 1;
    }, "bad rows");
}

} // namespace

void bind_fused(nb::module_& m) {
    m.def("rms_norm", &rms_norm);
    m.def("add_rms_norm", &add_rms_norm);
    m.def("gated_rms_norm", &gated_rms_norm);
    m.def("activate", &activate);
    m.def("write_kv", &write_kv);
    m.def("rope_and_write", &rope_and_write);
    m.def("mark_bad_rows", &mark_bad_rows);
}

} // namespace octavo
