// Which instruction set the kernels use: the best this machine has, unless a test forces a lesser one.
#pragma once

#include <string>
#include <vector>

namespace octavo {

// In order: each includes those before it.
//   avx2    AVX2, FMA, F16C
//   avx512  AVX-512 F, BW, VL, DQ and VNNI
//   amx     those, AVX-512 BF16, and AMX tiles of bf16 and int8
enum class Isa : int { generic = 0, avx2, avx512, amx };

const char* name_of(Isa isa);
std::vector<Isa> present();          // on this machine and in this build, ascending
Isa active();                        // what kernels run with
void force(const std::string& name); // throws std::invalid_argument for what is not present; "" is the best

} // namespace octavo
