// AVX2, FMA, F16C.
#include "kernels/cpu/quantize_avx2-inl.h"

#define HXQ_TILE_ROWS 6
#define HXQ_PANEL_VECTORS 2
#define HXQ_GEMV_ROWS 2
#define HXQ_GEMV_TOKENS 2

#include "kernels/cpu/codebook_gemm_avx2-inl.h"
#include "kernels/cpu/codebook_segments_avx2-inl.h"
#include "kernels/cpu/grouped_gemm_avx2-inl.h"
#include "kernels/cpu/grouped_gemv_avx2-inl.h"
#include "kernels/cpu/ops-inl.h"

namespace hxq::kernels::cpu {

namespace {

constexpr Ops avx2_ops() {
  Ops ops = common_ops(Target::avx2);
  ops.codebook_gemv = choose_gemv;
  ops.codebook_gemm = choose_codebook_gemm;
  ops.grouped_gemv = choose_grouped_gemv;
  ops.grouped_gemm = choose_grouped_gemm;
  return ops;
}

}  // namespace

constinit const Ops kAvx2Ops = avx2_ops();

}  // namespace hxq::kernels::cpu
