// AVX-512 F, BW, DQ, VL, VBMI, VNNI (Ice Lake and later), FMA, F16C.
#include "kernels/cpu/vec_avx512-inl.h"

#define HXQ_TILE_ROWS 14
#define HXQ_PANEL_VECTORS 2

#include "kernels/cpu/codebook_avx512-inl.h"
#include "kernels/cpu/ops-inl.h"
#include "kernels/cpu/whole_gemm_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

constexpr Ops avx512_ops() {
  Ops ops = common_ops(Target::avx512);
  ops.arranged_floats = arranged_floats;
  ops.arrange = arrange;
  ops.codebook_rows = codebook_rows;
  ops.decode_codebook = decode_codebook;
  ops.whole = {supports_whole, whole_panel_floats, pack_whole, whole_memory_floats, multiply_whole};
  return ops;
}

}  // namespace

constinit const Ops kAvx512Ops = avx512_ops();

}  // namespace hxq::kernels::cpu
