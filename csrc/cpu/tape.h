// Calls of kernels, recorded while they run, to be run again without Python between them.
//
// A binding hands its work to `submit` as a function that owns all it needs: addresses and sizes by value. What differs
// between two runs lies behind the addresses. Whoever records keeps that memory alive.
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace octavo {

class Tape {
  public:
    struct Call {
        const char* name; // of the kernel, for profiles
        std::function<void()> function;
    };
    struct Share {
        std::string name;
        int64_t calls;
        double seconds;
    };

    // From here on calls of this thread are recorded too; one tape a thread at a time (std::logic_error).
    void start();
    void stop();
    bool is_recording() const;
    size_t size() const { return calls_.size(); }
    void clear() { calls_.clear(); }
    // Runs all calls again, in order. What a call throws ends the run.
    void run() const;
    // The same, with a clock: what the calls of each name took, in the order in which names first occur.
    std::vector<Share> run_timed() const;

    void add(const char* name, std::function<void()> function) { calls_.push_back({name, std::move(function)}); }
    static Tape* recording(); // of this thread; may be null

  private:
    std::vector<Call> calls_;
};

// Below this many operations a call keeps the interpreter's lock: getting it back can take longer than the call.
constexpr int64_t short_work = 64 << 20;

} // namespace octavo
