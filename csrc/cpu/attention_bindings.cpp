// Attention as Python sees it: addresses and sizes as integers, strides in numbers.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <stdexcept>
#include <tuple>

#include "arguments.h"
#include "attention.h"
#include "submit.h"

namespace nb = nanobind;

namespace octavo {
namespace {

using Tensor = std::tuple<Address, int>;                                 // address, type
using QueryShape = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t>; // tokens, heads, head_dim, their strides
using CacheShape = std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t>; // block_size, heads, strides
using TableShape = std::tuple<int64_t, int64_t, int64_t>;                // rows, width, stride

void attention(Tensor q, QueryShape q_shape, Tensor cache, CacheShape cache_shape, Address table,
               TableShape table_shape, Address query_start, Address seq_lens, float scale, int64_t window,
               float soft_cap, Tensor sinks, Address out) {
    Attention a{};
    a.q = pointer_to<const void>(std::get<0>(q)), a.q_type = number_type(std::get<1>(q));
    std::tie(a.tokens, a.heads, a.head_dim, a.q_token, a.q_head) = q_shape;
    a.cache = pointer_to<const void>(std::get<0>(cache)), a.cache_type = cache_type(std::get<1>(cache));
    std::tie(a.block_size, a.key_heads, a.block, a.kv, a.slot, a.head) = cache_shape;
    a.table = pointer_to<const int32_t>(table);
    std::tie(a.rows, a.table_width, a.table_stride) = table_shape;
    a.query_start = pointer_to<const int32_t>(query_start), a.seq_lens = pointer_to<const int32_t>(seq_lens);
    a.scale = scale, a.window = window, a.soft_cap = soft_cap;
    a.sinks = pointer_to<const void>(std::get<0>(sinks)), a.sink_type = number_type(std::get<1>(sinks));
    a.out = pointer_to<void>(out);
    if (a.key_heads < 1 || a.heads < 1 || a.heads % a.key_heads || a.head_dim < 1 || a.block_size < 1)
        throw std::invalid_argument("heads do not share their keys evenly, or sizes are below 1");
    if (!(scale > 0) || window < 0 || !(soft_cap >= 0))
        throw std::invalid_argument("a scale is above 0, a window and a cap are none, 0, or above");
    submit(work_of(a), [a] { attend(a); }, "attention");
}

} // namespace

void bind_attention(nb::module_& m) { m.def("attention", &attention); }

} // namespace octavo
