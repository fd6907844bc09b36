// What of a step is neither product nor attention, on any machine.
#include "lanes_generic.h"

#include "norm_impl.h"
#include "rope_impl.h"
#include "sampling_impl.h"

namespace octavo {

const FusedKernels generic_fused{rms_norm,  add_rms_norm, gated_rms_norm, write_kv, rope_and_write, activate, find_bad,
                               summarise, gather,       weigh,          weigh_block, find,         count_greater,
                               truncate,  mask,         penalise};

} // namespace octavo
