#include <algorithm>

#include "codec/index_packing.h"
#include "kernels/codebook_view.h"
#include "kernels/gradients/ops.h"
#include "kernels/scratch.h"

namespace hxq::kernels {
namespace {

/// Rows of g^T x whose sums per codeword are made apart and then added in order, so that the team does not matter.
constexpr int64_t kParts = 16;

/// g [tokens, rows] packed into panels of tokens, as for `linear`.
const float* pack(const cpu::Ops& ops, const float* g, int64_t tokens, int64_t rows, const Context& context) {
  const int64_t panels = (tokens + ops.panel_tokens - 1) / ops.panel_tokens;
  float* packed = context.scratch.shared(Scratch::kPackedInput, static_cast<size_t>(panels * ops.panel_tokens * rows),
                                         context.team);
  const Range mine = context.team.share(panels);
  for (int64_t p = mine.begin; p < mine.end; ++p) {
    const int64_t first = p * ops.panel_tokens;
    ops.pack_panel(g + first * rows, rows, std::min(ops.panel_tokens, tokens - first), rows, packed + first * rows);
  }
  context.team.barrier();
  return packed;
}

/// dx += (g U) Vt.
void add_low_rank(const LowRank& term, int64_t rows, int64_t cols, const LinearTransposedArgs& args,
                  const Context& context) {
  const gradients::Ops& ops = gradients::ops_of(context.target);
  const Range mine = context.team.share(args.tokens);
  for (int64_t t = mine.begin; t < mine.end; ++t) {
    for (int64_t n = 0; n < term.rank; ++n) {
      double sum = 0;
      for (int64_t r = 0; r < rows; ++r) {
        sum += static_cast<double>(args.g[t * rows + r]) * term.u_scaled[static_cast<size_t>(r * term.rank + n)];
      }
      ops.add_scaled(static_cast<float>(sum), term.vt.data() + n * cols, args.dx + t * cols, cols);
    }
  }
  context.team.barrier();
}

void divide_by_scales(const std::vector<float>& scales, const LinearTransposedArgs& args, const Context& context) {
  const auto cols = static_cast<int64_t>(scales.size());
  const Range mine = context.team.share(args.tokens);
  for (int64_t t = mine.begin; t < mine.end; ++t) {
    for (int64_t c = 0; c < cols; ++c) args.dx[t * cols + c] /= scales[static_cast<size_t>(c)];
  }
  context.team.barrier();
}

/// Adds g^T x of one weight row, [cols], to the sums of its codewords.
void add_row(const CodebookMatrix& weight, int64_t row, const float* product, double* sums) {
  const int64_t codes = weight.cols / weight.d;
  uint32_t outlier = weight.sidecar.row_begin.empty() ? 0 : weight.sidecar.row_begin[static_cast<size_t>(row)];
  const uint32_t outlier_end =
      weight.sidecar.row_begin.empty() ? 0 : weight.sidecar.row_begin[static_cast<size_t>(row + 1)];
  for (int64_t c = 0; c < weight.cols; ++c) {
    if (outlier < outlier_end && weight.sidecar.col[outlier] == c) {
      ++outlier;
      continue;
    }
    const int64_t code = index_at(weight.layout, weight.indices, row * codes + c / weight.d);
    sums[code * weight.d + c % weight.d] += static_cast<double>(product[c]);
  }
}

/// Sums of kParts parts, [kParts, k * d] in doubles, in the team's memory.
double* clear_sums(const CodebookMatrix& weight, const Context& context) {
  const int64_t size = int64_t{weight.k} * weight.d;
  float* memory = context.scratch.shared(Scratch::kPackedInput, static_cast<size_t>(2 * kParts * size), context.team);
  auto* sums = reinterpret_cast<double*>(memory);
  const Range mine = context.team.share(kParts);
  std::fill(sums + mine.begin * size, sums + mine.end * size, 0.0);
  return sums;
}

void finish_sums(const CodebookMatrix& weight, const double* sums, float* gradient, const Context& context) {
  context.team.barrier();
  const int64_t size = int64_t{weight.k} * weight.d;
  const Range mine = context.team.share(size);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    double sum = 0;
    for (int64_t part = 0; part < kParts; ++part) sum += sums[part * size + i];
    gradient[i] = static_cast<float>(sum);
  }
  context.team.barrier();
}

}  // namespace

void linear_transposed(const CodebookMatrix& weight, const LinearTransposedArgs& args,
                       const Context& context) noexcept {
  const cpu::Ops& ops = cpu::ops_of(context.target);
  const cpu::CodebookView view = view_of(weight);
  const float* packed = pack(ops, args.g, args.tokens, weight.rows, context);
  // Weights are decoded [rows, wide] and turned into tiles [tile_rows, rows] of the transpose: the product is then that
  // of `linear`, summed over rows in order.
  const int64_t wide = 8 * ops.tile_rows;
  float* decoded = context.scratch.own(static_cast<size_t>(wide * (cpu::kBlockCols + cpu::kTileStride)), context.team);
  float* tiles = decoded + wide * cpu::kBlockCols;
  const Range mine = context.team.share(weight.cols, ops.tile_rows);
  for (int64_t col = mine.begin; col < mine.end; col += wide) {
    const int64_t cols = std::min(wide, mine.end - col);
    for (int64_t row = 0; row < weight.rows; row += cpu::kBlockCols) {
      const int64_t rows = std::min(cpu::kBlockCols, weight.rows - row);
      ops.decode_codebook(view, row, rows, col, cols, decoded, wide);
      for (int64_t c = 0; c < wide; ++c) {
        for (int64_t r = 0; r < rows; ++r) tiles[c * cpu::kTileStride + r] = c < cols ? decoded[r * wide + c] : 0.0f;
      }
      for (int64_t first = 0; first < args.tokens; first += ops.panel_tokens) {
        LinearArgs part{.y = args.dx + first * weight.cols, .y_stride = weight.cols};
        part.tokens = std::min(ops.panel_tokens, args.tokens - first);
        part.accumulate = row > 0;
        const float* panel = packed + first * weight.rows + row * ops.panel_width(part.tokens);
        for (int64_t c = 0; c < cols; c += ops.tile_rows) {
          ops.multiply_tile(tiles + c * cpu::kTileStride, panel, rows, part, col + c,
                            std::min(ops.tile_rows, cols - c));
        }
      }
    }
  }
  context.team.barrier();
  if (weight.low_rank.rank > 0) add_low_rank(weight.low_rank, weight.rows, weight.cols, args, context);
  if (!weight.channel_scales.empty()) divide_by_scales(weight.channel_scales, args, context);
}

void codebook_gradient(const CodebookMatrix& weight, const CodebookGradientArgs& args,
                       const Context& context) noexcept {
  const gradients::Ops& ops = gradients::ops_of(context.target);
  double* sums = clear_sums(weight, context);
  float* product = context.scratch.own(static_cast<size_t>(weight.cols), context.team);
  context.team.barrier();
  const Range mine = context.team.share(kParts);
  for (int64_t part = mine.begin; part < mine.end; ++part) {
    for (int64_t row = weight.rows * part / kParts; row < weight.rows * (part + 1) / kParts; ++row) {
      std::fill_n(product, weight.cols, 0.0f);
      for (int64_t t = 0; t < args.tokens; ++t) {
        ops.add_scaled(args.g[t * weight.rows + row], args.x + t * weight.cols, product, weight.cols);
      }
      for (size_t c = 0; c < weight.channel_scales.size(); ++c) product[c] /= weight.channel_scales[c];
      add_row(weight, row, product, sums + part * weight.k * weight.d);
    }
  }
  finish_sums(weight, sums, args.gradient, context);
}

void gather_codebook_gradient(const CodebookMatrix& weight, const GatherGradientArgs& args,
                              const Context& context) noexcept {
  double* sums = clear_sums(weight, context);
  float* scaled = context.scratch.own(static_cast<size_t>(weight.cols), context.team);
  context.team.barrier();
  const Range mine = context.team.share(kParts);
  for (int64_t part = mine.begin; part < mine.end; ++part) {
    for (int64_t i = args.count * part / kParts; i < args.count * (part + 1) / kParts; ++i) {
      const float* g = args.g + i * weight.cols;
      for (size_t c = 0; c < weight.channel_scales.size(); ++c) scaled[c] = g[c] / weight.channel_scales[c];
      add_row(weight, args.ids[i], weight.channel_scales.empty() ? g : scaled, sums + part * weight.k * weight.d);
    }
  }
  finish_sums(weight, sums, args.gradient, context);
}

}  // namespace hxq::kernels
