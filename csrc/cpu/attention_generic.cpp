// Attention on any machine.
#include "vec_generic.h"

#include "attention_lanes_generic.h"

#include "attention_impl.h"

namespace octavo {

const AttentionKernels generic_attention{stream, tiles_of_floats, merge, 8, 8, false};

} // namespace octavo
