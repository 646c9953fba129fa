#include <algorithm>

#include "kernels/cpu/ops.h"
#include "kernels/gradients/gradients.h"

namespace hxq::kernels {
namespace {

/// g [tokens, rows] packed into panels of tokens, as for `linear`.
const float* pack(const cpu::Ops& ops, const float* g, int64_t tokens, int64_t rows, const CpuContext& context) {
  const int64_t panels = (tokens + ops.panel_tokens - 1) / ops.panel_tokens;
  float* packed = context.shared(Scratch::kPackedInput, panels * ops.panel_tokens * rows);
  if (context.measures) return packed;
  const Range mine = context.team.share(panels);
  for (int64_t p = mine.begin; p < mine.end; ++p) {
    const int64_t first = p * ops.panel_tokens;
    ops.pack_panel(g + first * rows, rows, std::min(ops.panel_tokens, tokens - first), rows, packed + first * rows);
  }
  context.team.barrier();
  return packed;
}

void divide_by_scales(std::span<const float> scales, const LinearTransposedArgs& args, const CpuContext& context) {
  const auto cols = static_cast<int64_t>(scales.size());
  const Range mine = context.team.share(args.tokens);
  for (int64_t t = mine.begin; t < mine.end; ++t) {
    for (int64_t c = 0; c < cols; ++c) args.dx[t * cols + c] /= scales[static_cast<size_t>(c)];
  }
  context.team.barrier();
}

/// dx (+)= g W for weight rows `panel` alone, decoded [panel, cols]; `packed`: g of all weight rows. Weights are turned
/// into tiles [tile_rows, panel] of the transpose: the product is then that of `linear`, summed over rows in order.
void multiply_panel(const float* decoded, Range panel, const CpuMatrix& weight, const float* packed,
                    const LinearTransposedArgs& args, const CpuContext& context) {
  const int64_t cols = weight.cols();
  const int64_t rows = panel.end - panel.begin;
  const cpu::Ops& ops = cpu::ops_of(context.target);
  const int64_t wide = 8 * ops.tile_rows;
  float* tiles = context.own(wide * cpu::kTileStride);
  if (context.measures) return;
  const Range mine = context.team.share(cols, ops.tile_rows);
  for (int64_t col = mine.begin; col < mine.end; col += wide) {
    const int64_t width = std::min(wide, mine.end - col);
    for (int64_t c = 0; c < wide; ++c) {
      for (int64_t r = 0; r < rows; ++r)
        tiles[c * cpu::kTileStride + r] = c < width ? decoded[r * cols + col + c] : 0.0f;
    }
    for (int64_t first = 0; first < args.tokens; first += ops.panel_tokens) {
      LinearArgs part{.y = args.dx + first * cols, .y_stride = cols};
      part.tokens = std::min(ops.panel_tokens, args.tokens - first);
      part.accumulate = panel.begin > 0;
      const float* gradient = packed + first * weight.rows() + panel.begin * ops.panel_width(part.tokens);
      for (int64_t c = 0; c < width; c += ops.tile_rows) {
        ops.multiply_tile(tiles + c * cpu::kTileStride, gradient, rows, part, col + c,
                          std::min(ops.tile_rows, width - c));
      }
    }
  }
}

}  // namespace

void linear_transposed(const CpuMatrix& weight, const LinearTransposedArgs& args, const CpuContext& context) noexcept {
  const float* packed = pack(cpu::ops_of(context.target), args.g, args.tokens, weight.rows(), context);
  const int64_t panel_rows = std::min(cpu::kBlockCols, weight.rows());
  float* decoded = context.shared(Scratch::kDecodedPanel, panel_rows * weight.cols());
  for (int64_t row = 0; row < weight.rows(); row += panel_rows) {
    const Range panel{row, std::min(row + panel_rows, weight.rows())};
    weight.decode_rows(panel.begin, panel.end, decoded, context);
    multiply_panel(decoded, panel, weight, packed, args, context);
    context.team.barrier();
  }
  if (context.measures) return;
  if (const InputTransform transform = weight.transform(); !transform.scales.empty()) {
    divide_by_scales(transform.scales, args, context);
  }
}

}  // namespace hxq::kernels
