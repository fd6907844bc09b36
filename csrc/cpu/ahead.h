// What is read next, asked for while something else is computed.
#pragma once

#include <cstdint>

namespace octavo {
namespace {

// Eight streams that are read side by side into the second-level cache, a line of each at a time: memory gives eight of
// them half as much again as one, and few lines at once do not hold up what is computed meanwhile (design 010).
struct Ahead {
    static constexpr int count = 8;
    const char* streams[count];
    int64_t end; // of each, in bytes
    int64_t next = 0, passed = 0;

    void step(int64_t bytes = 64) {
        if (next >= end) return;
        for (int64_t i = next; i < next + bytes; i += 64)
            for (const char* stream : streams) __builtin_prefetch(stream + i, 0, 2);
        next += bytes;
    }
    // So much more has been read of what came before, which was asked for in the same way.
    void follow(int64_t bytes) {
        passed += bytes;
        while (next < end && next * count < passed) step();
    }
    void finish() {
        while (next < end) step();
    }
};

} // namespace
} // namespace octavo
