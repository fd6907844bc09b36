#include "tape.h"

#include <chrono>
#include <stdexcept>

namespace octavo {
namespace {
thread_local Tape* current = nullptr;
}

Tape* Tape::recording() { return current; }

bool Tape::is_recording() const { return current == this; }

void Tape::start() {
    if (current != nullptr) throw std::logic_error("another tape of this thread is being recorded");
    calls_.clear();
    current = this;
}

void Tape::stop() {
    if (current == this) current = nullptr;
}

void Tape::run() const {
    for (const Call& call : calls_) call.function();
}

std::vector<Tape::Share> Tape::run_timed() const {
    using Clock = std::chrono::steady_clock;
    std::vector<Share> shares;
    for (const Call& call : calls_) {
        size_t i = 0;
        while (i < shares.size() && shares[i].name != call.name) ++i;
        if (i == shares.size()) shares.push_back({call.name, 0, 0.0});
        const auto started = Clock::now();
        call.function();
        shares[i].seconds += std::chrono::duration<double>(Clock::now() - started).count();
        ++shares[i].calls;
    }
    return shares;
}

} // namespace octavo
