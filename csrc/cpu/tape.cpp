#include "tape.h"

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
    for (const Call& call : calls_) call();
}

} // namespace octavo
