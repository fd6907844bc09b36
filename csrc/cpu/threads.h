// The one pool of threads. The thread that calls takes part, so a pool of one has no threads of its own.
//
// Two kinds: "own" threads, pinned, that spin for a moment after their last work and then sleep; and "openmp", torch's
// own, borrowed from the OpenMP runtime that is loaded in this process.
#pragma once

#include <cstdint>
#include <string>
#include <type_traits>
#include <vector>

namespace octavo {

// One thread for each of these logical CPUs, the caller among them, so workers are pinned to all but the first; -1 is
// any CPU.
// Replaces the pool there was. Not to be called beside work.
void start_threads(const std::vector<int>& cpus, const std::string& kind);
int num_threads();
std::string threads_kind();

using RangeFunction = void (*)(void* context, int64_t begin, int64_t end);

// Runs function(context, begin, end) over [0, n) in pieces of `grain`. Each thread has a part of [0, n) of its own, the
// same in every call with these sizes, and takes from others' when it is through. Returns when all are done. From several
// threads at once, or from inside itself: the second to come runs alone.
void run_ranges(int64_t n, int64_t grain, RangeFunction function, void* context);

template <class F>
void parallel_for(int64_t n, int64_t grain, F&& function) {
    using Plain = std::remove_reference_t<F>;
    run_ranges(
        n, grain, [](void* context, int64_t begin, int64_t end) { (*static_cast<Plain*>(context))(begin, end); },
        const_cast<void*>(static_cast<const void*>(&function)));
}

} // namespace octavo
