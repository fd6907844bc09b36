// From logits to tokens as Python calls it.
#include <nanobind/nanobind.h>
#include <nanobind/stl/tuple.h>

#include <stdexcept>
#include <tuple>

#include "arguments.h"
#include "sampling.h"
#include "submit.h"

namespace nb = nanobind;

namespace octavo {
namespace {

using Rows = std::tuple<Address, int, int64_t, int64_t, int64_t>; // as in LogitRows

LogitRows rows_of(const Rows& rows) {
    const auto& [data, type, count, size, stride] = rows;
    if (size < 1 || size > INT32_MAX) throw std::invalid_argument("a vocabulary of no tokens, or of too many");
    return {pointer_to<void>(data), number_type(type), count, size, stride};
}

template <class F>
void submit_rows(const LogitRows& rows, F&& call) {
    submit(8 * rows.rows * rows.size, static_cast<F&&>(call), "sampling");
}

void bound_choose_tokens(const Rows& logits, Address temperature, Address top_k, Address top_p, Address min_p,
                         Address seeds, Address positions, Address ids, Address greatest) {
    const LogitRows rows = rows_of(logits);
    const Choices choices{pointer_to<const float>(temperature), pointer_to<const int64_t>(top_k),
                          pointer_to<const float>(top_p),       pointer_to<const float>(min_p),
                          pointer_to<const int64_t>(seeds),     pointer_to<const int64_t>(positions)};
    submit_rows(rows, [=] { choose_tokens(rows, choices, pointer_to<int64_t>(ids), pointer_to<float>(greatest)); });
}

void bound_argmax(const Rows& logits, Address ids, Address greatest) {
    const LogitRows rows = rows_of(logits);
    submit_rows(rows, [=] { find_maxima(rows, pointer_to<int64_t>(ids), pointer_to<void>(greatest)); });
}

void bound_sample(const Rows& logits, Address uniform, Address ids) {
    const LogitRows rows = rows_of(logits);
    submit_rows(rows, [=] { sample(rows, pointer_to<const double>(uniform), pointer_to<int64_t>(ids)); });
}

void bound_mask_truncated(const Rows& logits, Address top_k, Address top_p, Address min_p, Address out) {
    const LogitRows rows = rows_of(logits);
    submit_rows(rows, [=] {
        mask_truncated(rows, pointer_to<const int64_t>(top_k), pointer_to<const float>(top_p),
                       pointer_to<const float>(min_p), pointer_to<void>(out));
    });
}

void bound_row_uniform(Address seeds, Address positions, int64_t count, Address out) {
    submit(count, [=] {
        const int64_t* seed = pointer_to<const int64_t>(seeds);
        const int64_t* position = pointer_to<const int64_t>(positions);
        double* to = pointer_to<double>(out);
        for (int64_t i = 0; i < count; ++i) to[i] = uniform_of(seed[i], position[i]);
    });
}

void bound_gather_logprobs(const Rows& logits, Address token_ids, int64_t num_top, Address ids, Address logprobs,
                           Address ranks) {
    const LogitRows rows = rows_of(logits);
    if (num_top < 0 || num_top > rows.size) throw std::invalid_argument("more tokens than the vocabulary has");
    submit_rows(rows, [=] {
        gather_logprobs(rows, pointer_to<const int64_t>(token_ids), num_top, pointer_to<int64_t>(ids),
                        pointer_to<float>(logprobs), pointer_to<int64_t>(ranks));
    });
}

void bound_log_mass(const Rows& logits, Address out) {
    const LogitRows rows = rows_of(logits);
    submit_rows(rows, [=] { log_mass(rows, pointer_to<float>(out)); });
}

void bound_token_ranks(const Rows& logits, Address token_ids, int64_t columns, Address ranks) {
    const LogitRows rows = rows_of(logits);
    submit_rows(rows, [=] {
        token_ranks(rows, pointer_to<const int64_t>(token_ids), columns, pointer_to<int64_t>(ranks));
    });
}

void bound_apply_bitmask(const Rows& logits, Address which, int64_t num_rows, Address bits, int64_t words) {
    const LogitRows rows = rows_of(logits);
    if (words * 32 < rows.size) throw std::invalid_argument("a mask shorter than the vocabulary");
    submit_rows(rows, [=] {
        apply_bitmask(rows, pointer_to<const int64_t>(which), num_rows, pointer_to<const uint32_t>(bits), words);
    });
}

void bound_apply_penalties(const Rows& logits, Address in_prompt, int64_t prompt_stride, Address counts,
                           int64_t counts_stride, int64_t num_slots, Address slots, Address repetition,
                           Address frequency, Address presence, Address out) {
    const LogitRows rows = rows_of(logits);
    const Penalties penalties{pointer_to<const uint8_t>(in_prompt), pointer_to<const int32_t>(counts),
                              prompt_stride,                        counts_stride,
                              num_slots,                            pointer_to<const int64_t>(slots),
                              pointer_to<const float>(repetition),  pointer_to<const float>(frequency),
                              pointer_to<const float>(presence)};
    submit_rows(rows, [=] { apply_penalties(rows, penalties, pointer_to<void>(out)); });
}

} // namespace

void bind_sampling(nb::module_& m) {
    m.def("choose_tokens", &bound_choose_tokens);
    m.def("argmax", &bound_argmax);
    m.def("sample", &bound_sample);
    m.def("mask_truncated", &bound_mask_truncated);
    m.def("row_uniform", &bound_row_uniform);
    m.def("gather_logprobs", &bound_gather_logprobs);
    m.def("log_mass", &bound_log_mass);
    m.def("token_ranks", &bound_token_ranks);
    m.def("apply_bitmask", &bound_apply_bitmask);
    m.def("apply_penalties", &bound_apply_penalties);
}

} // namespace octavo
