// How a binding runs its work: now, with the interpreter's lock given back where that is worth it, and onto the tape
// that is being recorded.
#pragma once

#include <nanobind/nanobind.h>

#include "tape.h"

namespace octavo {

// `work` is about how many operations it is. `call` is copied, so it owns what it captured. `name` is a literal.
template <class Function>
void submit(int64_t work, Function call, const char* name = "other") {
    if (work <= short_work) {
        call();
    } else {
        nanobind::gil_scoped_release release;
        call();
    }
    if (Tape* tape = Tape::recording()) tape->add(name, std::move(call));
}

} // namespace octavo
