// The row table as Python calls it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <stdexcept>
#include <tuple>

#include "arguments.h"
#include "batch.h"
#include "submit.h"

namespace nb = nanobind;

namespace octavo {
namespace {

using Typed = std::tuple<Address, bool>;                     // address, int64 or int32
using Table = std::tuple<Address, int64_t, int64_t, int64_t>; // address, stride, rows, columns
using GroupTuple = std::tuple<Address, int64_t, int64_t, Address, Address, int64_t, int64_t>; // as in Group

Integers integers_of(const Typed& typed) { return {pointer_to<void>(std::get<0>(typed)), std::get<1>(typed)}; }

void bound_build_batch(const Typed& rows, const Typed& counts, int64_t num_rows, const Table& tokens, Address computed,
                       const std::vector<GroupTuple>& groups, int64_t block_size, const Typed& input_ids,
                       int64_t num_tokens, Address positions, Address row_of_token, Address query_start,
                       Address seq_lens) {
    if (block_size < 1) throw std::invalid_argument("a block of no tokens");
    const auto& [data, stride, table_rows, width] = tokens;
    BatchCall call{integers_of(rows), integers_of(counts), num_rows, num_tokens, pointer_to<const int32_t>(data),
                   stride, width, table_rows, pointer_to<int64_t>(computed), {}, block_size, integers_of(input_ids),
                   pointer_to<int64_t>(positions), pointer_to<int64_t>(row_of_token), pointer_to<int32_t>(query_start),
                   pointer_to<int32_t>(seq_lens)};
    for (const auto& [table, table_stride, table_width, slots, gathered, gathered_stride, gathered_width] : groups) {
        if (table_width < 1) throw std::invalid_argument("a block table without columns");
        call.groups.push_back({pointer_to<const int32_t>(table), table_stride, table_width, pointer_to<int64_t>(slots),
                               pointer_to<int32_t>(gathered), gathered_stride, gathered_width});
    }
    submit(num_tokens, [call] { build_batch(call); }, "batch");
}

void bound_append_sampled(const Typed& rows, const Typed& ids, int64_t num_rows, const Table& tokens, Address length) {
    const auto& [data, stride, table_rows, width] = tokens;
    AppendCall call{integers_of(rows), integers_of(ids), num_rows, pointer_to<int32_t>(data), stride, width,
                    table_rows, pointer_to<int64_t>(length)};
    submit(num_rows, [call] { append_sampled(call); }, "batch");
}

} // namespace

void bind_batch(nb::module_& m) {
    m.def("build_batch", &bound_build_batch);
    m.def("append_sampled", &bound_append_sampled);
}

} // namespace octavo
