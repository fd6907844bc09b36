#include "fused.h"

#include "isa.h"

namespace octavo {

const FusedKernels& fused_kernels() {
    switch (active()) {
#if defined(OCTAVO_AVX512)
    case Isa::amx:
    case Isa::avx512: return avx512_fused;
#endif
#if defined(OCTAVO_AVX2)
    case Isa::avx2: return avx2_fused;
#endif
    default: return generic_fused;
    }
}

} // namespace octavo
