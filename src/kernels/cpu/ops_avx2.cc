// AVX2, FMA, F16C.
#include "kernels/cpu/vec_avx2-inl.h"

#define HXQ_TILE_ROWS 6
#define HXQ_PANEL_VECTORS 2
#define HXQ_GEMV_ROWS 2
#define HXQ_GEMV_TOKENS 2

#include "kernels/cpu/ops-inl.h"

namespace hxq::kernels::cpu {

constinit const Ops kAvx2Ops = common_ops(Target::avx2);

}  // namespace hxq::kernels::cpu
