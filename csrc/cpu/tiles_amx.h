// The tile registers of AMX: eight of 16 rows of 64 bytes.
#pragma once

#include <immintrin.h>

#include <cstdint>

namespace octavo {
namespace {

struct alignas(64) TileConfig {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
static_assert(sizeof(TileConfig) == 64);

// This thread's tile registers, while it lives. The first six have fewer rows if `rows` is below 16.
class TileRegisters {
  public:
    explicit TileRegisters(int64_t rows = 16) {
        TileConfig config;
        for (int i = 0; i < 6; ++i) config.rows[i] = static_cast<uint8_t>(rows < 16 ? rows : 16);
        // gcc's intrinsic tells the compiler of 8 of the 64 bytes only; "memory" tells it of all
        asm volatile("ldtilecfg %0" : : "m"(config) : "memory");
    }
    ~TileRegisters() { _tile_release(); }
};

} // namespace
} // namespace octavo
