#include "isa.h"

#include <atomic>
#include <stdexcept>

#if defined(__x86_64__)
#include <cpuid.h>
#if defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>
#endif
#endif

namespace octavo {
namespace {

#if defined(OCTAVO_AMX)
// Linux grants the tile registers to a process once it has asked for them.
bool has_amx() {
#if defined(__linux__)
    constexpr int request_permission = 0x1023, tile_data = 18; // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return false;
    constexpr unsigned bf16 = 1u << 22, tile = 1u << 24, int8 = 1u << 25;
    if ((d & (bf16 | tile | int8)) != (bf16 | tile | int8)) return false;
    return syscall(SYS_arch_prctl, request_permission, tile_data) == 0;
#else
    return false;
#endif
}
#endif

std::vector<Isa> find() {
    std::vector<Isa> found{Isa::generic};
#if defined(OCTAVO_AVX2)
    __builtin_cpu_init();
    if (!(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c")))
        return found;
    found.push_back(Isa::avx2);
#endif
#if defined(OCTAVO_AVX512)
    if (!(__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
          __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
          __builtin_cpu_supports("avx512vnni")))
        return found;
    found.push_back(Isa::avx512);
#endif
#if defined(OCTAVO_AMX)
    if (__builtin_cpu_supports("avx512bf16") && has_amx()) found.push_back(Isa::amx);
#endif
    return found;
}

std::atomic<int> forced{-1};

} // namespace

const char* name_of(Isa isa) {
    static const char* const names[] = {"generic", "avx2", "avx512", "amx"};
    return names[static_cast<int>(isa)];
}

std::vector<Isa> present() {
    static const std::vector<Isa> found = find();
    return found;
}

Isa active() {
    static const Isa best = present().back();
    const int value = forced.load(std::memory_order_relaxed);
    return value < 0 ? best : static_cast<Isa>(value);
}

void force(const std::string& name) {
    if (name.empty()) {
        forced = -1;
        return;
    }
    for (Isa isa : present()) {
        if (name == name_of(isa)) {
            forced = static_cast<int>(isa);
            return;
        }
    }
    throw std::invalid_argument("instruction set " + name + " is not on this machine or not in this build");
}

} // namespace octavo
