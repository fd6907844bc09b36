// Attention with AVX2.
#include "vec_avx2.h"

#include "attention_lanes_avx2.h"

#include "attention_impl.h"

namespace octavo {

const AttentionKernels avx2_attention{stream, tiles_of_floats, merge, 8, 8, false};

} // namespace octavo
