// Linear layers on any machine.
#include "lanes_generic.h"

#include "linear_impl.h"

namespace octavo {

const LinearKernels generic_linear{widen, quantize, few, many, nullptr, 1, 1, 1};

} // namespace octavo
