// AVX-512 F, BW, DQ, VL, VBMI, VNNI (Ice Lake and later), FMA, F16C.
#include "kernels/cpu/quantize_avx512-inl.h"

#define HXQ_TILE_ROWS 14
#define HXQ_PANEL_VECTORS 2
#define HXQ_GEMV_ROWS 4
#define HXQ_GEMV_TOKENS 3

#include "kernels/cpu/codebook_gemm_avx512-inl.h"
#include "kernels/cpu/grouped_gemm_avx512-inl.h"
#include "kernels/cpu/grouped_gemv_avx512-inl.h"
#include "kernels/cpu/ops-inl.h"
#include "kernels/cpu/table_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

constexpr Ops avx512_ops() {
  Ops ops = common_ops(Target::avx512);
  ops.codebook_gemv = choose_gemv;
  ops.decode_codebook = decode_codebook;
  ops.codebook_gemm = {supports_integer_gemm, integer_panel_floats, pack_integer_panel<CodebookView>,
                       integer_memory_floats, codebook_gemm};
  ops.grouped_gemv = choose_grouped_gemv;
  ops.grouped_gemm = {has_integer_groups, integer_panel_floats, pack_integer_panel<GroupedView>, integer_memory_floats,
                      grouped_gemm};
  return ops;
}

}  // namespace

constinit const Ops kAvx512Ops = avx512_ops();

}  // namespace hxq::kernels::cpu
