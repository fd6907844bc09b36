// Linear layers with AVX-512 and VNNI.
#include "lanes_avx512.h"

#include "linear_impl.h"

namespace octavo {

const LinearKernels avx512_linear{widen, quantize, few, many, nullptr, 8, 8, 32};

} // namespace octavo
