// Linear layers with AVX2 and FMA.
#include "lanes_avx2.h"

#include "linear_impl.h"

namespace octavo {

const LinearKernels avx2_linear{widen, quantize, few, many, nullptr, 4, 4, 16};

} // namespace octavo
