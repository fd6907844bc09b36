#include "checksum.h"

#include <cstring>
#include <vector>

#include "threads.h"

namespace octavo {
namespace {

// The constants and the round of xxHash64 (https://github.com/Cyan4973/xxHash/blob/dev/doc/xxhash_spec.md), four lanes of
// 8 bytes; pieces are summed apart, so that they may be on several threads.
constexpr uint64_t prime1 = 0x9E3779B185EBCA87u, prime2 = 0xC2B2AE3D27D4EB4Fu, prime3 = 0x165667B19E3779F9u;
constexpr int64_t piece = 1 << 20;

uint64_t rotated(uint64_t value, int bits) { return value << bits | value >> (64 - bits); }
uint64_t round_of(uint64_t sum, uint64_t word) { return rotated(sum + word * prime2, 31) * prime1; }

uint64_t mixed(uint64_t sum) {
    sum = (sum ^ sum >> 33) * prime2;
    sum = (sum ^ sum >> 29) * prime3;
    return sum ^ sum >> 32;
}

uint64_t sum_of_piece(const unsigned char* data, int64_t bytes, uint64_t seed) {
    uint64_t lanes[4] = {seed + prime1, seed + prime2, seed + prime3, seed}, words[4];
    int64_t at = 0;
    for (; at + 32 <= bytes; at += 32) {
        std::memcpy(words, data + at, 32);
        for (int i = 0; i < 4; ++i) lanes[i] = round_of(lanes[i], words[i]);
    }
    std::memset(words, 0, 32);
    if (at < bytes) std::memcpy(words, data + at, static_cast<size_t>(bytes - at)); // no bytes may be at no address
    uint64_t sum = static_cast<uint64_t>(bytes);
    for (int i = 0; i < 4; ++i) sum = mixed(round_of(sum, round_of(lanes[i], words[i])));
    return sum;
}

} // namespace

uint64_t checksum(const void* data, int64_t bytes) {
    const auto* from = static_cast<const unsigned char*>(data);
    const int64_t count = (bytes + piece - 1) / piece;
    std::vector<uint64_t> sums(static_cast<size_t>(count));
    parallel_for(count, 1, [&](int64_t begin, int64_t end) {
        for (int64_t i = begin; i < end; ++i) {
            const int64_t first = i * piece, left = bytes - first;
            sums[static_cast<size_t>(i)] =
                sum_of_piece(from + first, left < piece ? left : piece, static_cast<uint64_t>(i));
        }
    });
    return sum_of_piece(reinterpret_cast<const unsigned char*>(sums.data()), count * 8, static_cast<uint64_t>(bytes));
}

} // namespace octavo
