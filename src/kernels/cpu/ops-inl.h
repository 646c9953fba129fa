// The functions every target has, with the codebook in memory. Before this a target includes its vectors and defines
// HXQ_TILE_ROWS and HXQ_PANEL_VECTORS for GEMM, HXQ_GEMV_ROWS and HXQ_GEMV_TOKENS for GEMV: what is in registers at
// once.

#pragma once

#include "kernels/cpu/attention-inl.h"
#include "kernels/cpu/codebook-inl.h"
#include "kernels/cpu/dense-inl.h"
#include "kernels/cpu/gemm-inl.h"
#include "kernels/cpu/grouped-inl.h"
#include "kernels/cpu/mamba-inl.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu/read-inl.h"
#include "kernels/cpu/ssd-inl.h"

namespace hxq::kernels::cpu {
namespace {

template <class View>
const IntegerGemm<View>* no_integer_gemm(const View&) {
  return nullptr;
}

constexpr Ops common_ops(Target target) {
  return {
      .target = target,
      .lanes = kLanes,
      .codebook_gemv = lookup_gemv_for,
      .grouped_gemv = decoded_gemv_for,
      .pack_columns = pack_columns,
      .dense_gemv = dense_gemv,
      .decode_codebook = decode_codebook_by_lookup,
      .decode_grouped = decode_grouped,
      .decode_dense = decode_dense,
      .tile_rows = kTileRows,
      .panel_tokens = kPanelTokens,
      .panel_width = panel_width,
      .pack_panel = pack_panel,
      .multiply_tile = multiply_tile,
      .codebook_gemm = no_integer_gemm<CodebookView>,
      .grouped_gemm = no_integer_gemm<GroupedView>,
      .rms_norm = rms_norm,
      .conv = conv,
      .scan = scan,
      .ssd = ssd,
      .read_bytes = read_bytes,
      .extend_cache = extend_cache,
      .attention_floats = attention_floats,
      .attend = attend,
      .gated_activation = gated_activation,
      .exp = apply<vec_exp>,
      .softplus = apply<vec_softplus>,
      .silu = apply<vec_silu>,
      .gelu = apply<vec_gelu>,
  };
}

}  // namespace
}  // namespace hxq::kernels::cpu
