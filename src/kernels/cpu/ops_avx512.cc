// AVX-512 F, BW, DQ, VL, VBMI, VNNI (Ice Lake and later), FMA, F16C; with AMX-INT8 (Sapphire Rapids and later) a second
// table.
#include "kernels/cpu/quantize_avx512-inl.h"

#define HXQ_TILE_ROWS 14
#define HXQ_PANEL_VECTORS 2
#define HXQ_GEMV_ROWS 4
#define HXQ_GEMV_TOKENS 3

#include "kernels/cpu/codebook_gemm_avx512-inl.h"
#include "kernels/cpu/codebook_tiles_amx-inl.h"
#include "kernels/cpu/grouped_gemm_avx512-inl.h"
#include "kernels/cpu/grouped_gemv_avx512-inl.h"
#include "kernels/cpu/grouped_tiles_amx-inl.h"
#include "kernels/cpu/ops-inl.h"
#include "kernels/cpu/table_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

constexpr Ops avx512_ops() {
  Ops ops = common_ops(Target::avx512);
  ops.codebook_gemv = choose_gemv;
  ops.decode_codebook = decode_codebook;
  ops.codebook_gemm = choose_codebook_gemm;
  ops.grouped_gemv = choose_grouped_gemv;
  ops.grouped_gemm = choose_grouped_gemm;
  return ops;
}

const Gemv<CodebookView>& choose_tile_gemv(const CodebookView& weight) {
  return supports_tiles(weight) ? kTileGemv : choose_gemv(weight);
}

const IntegerGemm<CodebookView>* choose_tile_gemm(const CodebookView& weight) {
  return supports_tiles(weight) ? &kCodebookTileGemm : choose_codebook_gemm(weight);
}

const IntegerGemm<GroupedView>* choose_grouped_tile_gemm(const GroupedView& weight) {
  return supports_grouped_tiles(weight) ? &kGroupedTileGemm : choose_grouped_gemm(weight);
}

constexpr Ops amx_ops() {
  Ops ops = avx512_ops();
  ops.target = Target::amx;
  ops.codebook_gemv = choose_tile_gemv;
  ops.codebook_gemm = choose_tile_gemm;
  ops.grouped_gemm = choose_grouped_tile_gemm;
  return ops;
}

}  // namespace

constinit const Ops kAvx512Ops = avx512_ops();
constinit const Ops kAmxOps = amx_ops();

}  // namespace hxq::kernels::cpu
