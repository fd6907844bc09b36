// Attention with AVX-512.
#include "vec_avx512.h"

#include "attention_lanes_avx512.h"

#include "attention_impl.h"

namespace octavo {

const AttentionKernels avx512_attention{stream, tiles_of_floats, merge, 8, 8, false};

} // namespace octavo
