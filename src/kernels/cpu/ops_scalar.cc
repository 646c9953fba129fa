// Any processor: vectors of 4 are lowered to what its baseline has, table lookups are plain loads.
#include "kernels/cpu/vec_scalar-inl.h"

#define HXQ_TILE_ROWS 3
#define HXQ_PANEL_VECTORS 3
#define HXQ_GEMV_ROWS 2
#define HXQ_GEMV_TOKENS 2

#include "kernels/cpu/ops-inl.h"

namespace hxq::kernels::cpu {

constinit const Ops kScalarOps = common_ops(Target::scalar);

}  // namespace hxq::kernels::cpu
