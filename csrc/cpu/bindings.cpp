// What Python sees: addresses and sizes as integers. Whoever calls keeps the memory alive, and checks shapes and types;
// what is checked here is what would write past an end.
#include <nanobind/nanobind.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/tuple.h>
#include <nanobind/stl/vector.h>

#include <new>
#include <stdexcept>
#include <string>
#include <tuple>
#include <vector>

#include "arguments.h"
#include "checksum.h"
#include "isa.h"
#include "linear.h"
#include "packing.h"
#include "submit.h"
#include "tape.h"
#include "threads.h"

namespace nb = nanobind;

namespace octavo {

void bind_attention(nb::module_&);
void bind_batch(nb::module_&);
void bind_fused(nb::module_&);
void bind_sampling(nb::module_&);

namespace {

Format format_of(int number) {
    if (number < 0 || number >= num_formats) throw std::invalid_argument("no such format: " + std::to_string(number));
    return static_cast<Format>(number);
}

void check_shape(Format format, int64_t rows, int64_t inputs) {
    const int64_t multiple = has_head(format) ? 256 : is_quantized(format) ? 32 : 1;
    if (rows < 1 || inputs < 1 || inputs % multiple)
        throw std::invalid_argument("a weight [" + std::to_string(rows) + ", " + std::to_string(inputs) +
                                    "] has no rows, or rows that are no multiple of " + std::to_string(multiple));
}

int64_t checked_bytes(int format, int64_t rows, int64_t inputs) {
    check_shape(format_of(format), rows, inputs);
    return packed_bytes(format_of(format), rows, inputs);
}

void pack_from_blocks(int format, uint64_t source, int64_t source_bytes, int64_t rows, int64_t inputs, uint64_t target,
                      int64_t target_bytes) {
    const Format f = format_of(format);
    if (!is_quantized(f)) throw std::invalid_argument("numbers are no blocks");
    if (target_bytes != checked_bytes(format, rows, inputs) || source_bytes != rows * ggml_row_bytes(f, inputs))
        throw std::invalid_argument("sizes do not fit the weight");
    nb::gil_scoped_release release;
    pack_blocks(f, pointer_to<const uint8_t>(source), rows, inputs, pointer_to<uint8_t>(target));
}

void pack_from_numbers(int format, uint64_t source, int type, int64_t stride, int64_t rows, int64_t inputs,
                       uint64_t target, int64_t target_bytes) {
    const Format f = format_of(format);
    if (is_quantized(f)) throw std::invalid_argument("numbers are not quantised here");
    if (target_bytes != checked_bytes(format, rows, inputs)) throw std::invalid_argument("sizes do not fit the weight");
    const Number number = number_type(type);
    nb::gil_scoped_release release;
    pack_numbers(f, pointer_to<const void>(source), number, stride, rows, inputs, pointer_to<uint8_t>(target));
}

void pack_as_numbers(int blocks, uint64_t source, int64_t source_bytes, int64_t rows, int64_t inputs, int numbers,
                     uint64_t target, int64_t target_bytes) {
    const Format from = format_of(blocks), to = format_of(numbers);
    if (!is_quantized(from) || is_quantized(to)) throw std::invalid_argument("blocks become numbers");
    check_shape(from, rows, inputs);
    if (target_bytes != checked_bytes(numbers, rows, inputs) || source_bytes != rows * ggml_row_bytes(from, inputs))
        throw std::invalid_argument("sizes do not fit the weight");
    nb::gil_scoped_release release;
    pack_expanded(from, pointer_to<const uint8_t>(source), rows, inputs, to, pointer_to<uint8_t>(target));
}

uint64_t checksum_of(uint64_t address, int64_t bytes) {
    if (bytes < 0) throw std::invalid_argument("bytes");
    nb::gil_scoped_release release;
    return checksum(pointer_to<const void>(address), bytes);
}

using PartTuple = std::tuple<int, int64_t, uint64_t, int64_t>; // format, rows, address, bytes

void make_linear(Linear* self, int64_t inputs, const std::vector<PartTuple>& parts) {
    std::vector<Linear::Part> made;
    for (const auto& [format, rows, address, bytes] : parts) {
        if (bytes != checked_bytes(format, rows, inputs)) throw std::invalid_argument("sizes do not fit the weight");
        made.push_back({format_of(format), rows, pointer_to<const uint8_t>(address)});
    }
    if (made.empty()) throw std::invalid_argument("a weight without parts");
    new (self) Linear(inputs, std::move(made));
}

// A weight is alive as long as its Python object, which whoever records a tape keeps.
void apply(const Linear& self, uint64_t x, int type, int64_t x_stride, int64_t rows, uint64_t out, int out_type,
           int64_t out_stride, uint64_t bias, int bias_type) {
    const Output output{pointer_to<void>(out),   number_type(out_type), out_stride, pointer_to<const void>(bias),
                        number_type(bias_type), Activation::silu,    0};
    const Number number = number_type(type);
    submit(rows * self.inputs() * self.outputs(), [&self, x, number, x_stride, rows, output] {
        self.apply(pointer_to<const void>(x), number, x_stride, rows, output);
    }, "linear");
}

void apply_gated(const Linear& self, int kind, uint64_t x, int type, int64_t x_stride, int64_t rows, uint64_t out,
                 int out_type, int64_t out_stride, uint64_t bias, int bias_type) {
    if (kind < 0 || kind > 2) throw std::invalid_argument("no such activation: " + std::to_string(kind));
    if (!self.is_gated()) throw std::invalid_argument("a gated product has two parts of one size and format");
    const Output output{pointer_to<void>(out),   number_type(out_type),           out_stride, pointer_to<const void>(bias),
                        number_type(bias_type), static_cast<Activation>(kind), 0};
    const Number number = number_type(type);
    submit(rows * self.inputs() * self.outputs(), [&self, x, number, x_stride, rows, output] {
        self.apply_gated(pointer_to<const void>(x), number, x_stride, rows, output);
    }, "linear");
}

void rows_of(const Linear& self, uint64_t ids, int64_t n, uint64_t out, int type) {
    const Number number = number_type(type);
    submit(n * self.inputs(), [&self, ids, n, out, number] {
        self.rows(pointer_to<const int64_t>(ids), n, pointer_to<void>(out), number);
    }, "embedding");
}

std::vector<std::tuple<std::string, int64_t, double>> time_tape(const Tape& tape) {
    std::vector<std::tuple<std::string, int64_t, double>> shares;
    nb::gil_scoped_release release;
    for (const Tape::Share& share : tape.run_timed()) shares.emplace_back(share.name, share.calls, share.seconds);
    return shares;
}

void run_tape(const Tape& tape) {
    nb::gil_scoped_release release;
    tape.run();
}

} // namespace
} // namespace octavo

NB_MODULE(_cpu, m) {
    nb::set_leak_warnings(false); // what a process still holds when it ends, such as a server's weights, goes with it
    using namespace octavo;
    m.doc() = "octavo's CPU kernels; octavo/ops/cpu calls them.";

    m.def("isas", [] {
        std::vector<std::string> names;
        for (Isa isa : present()) names.push_back(name_of(isa));
        return names;
    });
    m.def("isa", [] { return std::string(name_of(active())); });
    m.def("set_isa", &force, nb::arg("name"));

    m.def("start_threads", &start_threads, nb::arg("cpus"), nb::arg("kind") = "own",
          nb::call_guard<nb::gil_scoped_release>());
    m.def("num_threads", &num_threads);
    m.def("threads_kind", &threads_kind);

    m.def("packed_bytes", &checked_bytes, nb::arg("format"), nb::arg("rows"), nb::arg("inputs"));
    m.def("pack_blocks", &pack_from_blocks);
    m.def("pack_numbers", &pack_from_numbers);
    m.def("pack_expanded", &pack_as_numbers);
    m.def("layout", [] { return std::string(OCTAVO_LAYOUT); });
    m.def("checksum", &checksum_of, nb::arg("address"), nb::arg("bytes"));

    bind_attention(m);

    nb::class_<Linear>(m, "Linear")
        .def("__init__", &make_linear, nb::arg("inputs"), nb::arg("parts"))
        .def("apply", &apply)
        .def("apply_gated", &apply_gated)
        .def("rows", &rows_of);

    nb::class_<Tape>(m, "Tape")
        .def(nb::init<>())
        .def("start", &Tape::start)
        .def("stop", &Tape::stop)
        .def("run", &run_tape)
        .def("run_timed", &time_tape)
        .def("clear", &Tape::clear)
        .def("__len__", &Tape::size);

    bind_fused(m);
    bind_batch(m);
    bind_sampling(m);
}
