// AVX2, FMA, F16C.
#include "kernels/cpu/vec_avx2-inl.h"

#define HXQ_TILE_ROWS 6
#define HXQ_PANEL_VECTORS 2
#define HXQ_GEMV_ROWS 2
#define HXQ_GEMV_TOKENS 2

#include "kernels/cpu/grouped_bytes_avx2-inl.h"
#include "kernels/cpu/ops-inl.h"

namespace hxq::kernels::cpu {

namespace {

constexpr Ops avx2_ops() {
  Ops ops = common_ops(Target::avx2);
  ops.grouped_gemv = choose_grouped_gemv;
  return ops;
}

}  // namespace

constinit const Ops kAvx2Ops = avx2_ops();

}  // namespace hxq::kernels::cpu
