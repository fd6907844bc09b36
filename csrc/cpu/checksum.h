// A sum over memory, quick enough to look at every byte of a file that was mapped.
#pragma once

#include <cstdint>

namespace octavo {

// Changes when any bit does, but for one case in 2^64; no protection from intent. The same on every machine, whatever
// its threads. On all threads.
uint64_t checksum(const void* data, int64_t bytes);

} // namespace octavo
