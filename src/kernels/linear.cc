#include <algorithm>

#include "kernels/codebook_view.h"
#include "kernels/cpu/ops.h"
#include "kernels/input_transform.h"
#include "kernels/scratch.h"

namespace hxq::kernels {
namespace {

using cpu::CodebookView;
using cpu::Ops;
using cpu::OutlierChange;
using cpu::PreparedCodebook;

void decode(const Ops& ops, const CodebookView& weight, int64_t row, int64_t rows, int64_t col, int64_t cols,
            float* out, int64_t stride) {
  ops.decode_codebook(weight, row, rows, col, cols, out, stride);
}

void decode(const Ops& ops, const DenseMatrix& weight, int64_t row, int64_t rows, int64_t col, int64_t cols, float* out,
            int64_t stride) {
  ops.decode_dense(weight, row, rows, col, cols, out, stride);
}

/// Packs all panels of x in shared scratch, panel_floats apart: `pack(x, tokens, panel)` does one.
template <class Pack>
const float* pack_input(const Ops& ops, const LinearArgs& args, int64_t panel_floats, const Context& context,
                        Pack pack) {
  const int64_t panels = (args.tokens + ops.panel_tokens - 1) / ops.panel_tokens;
  float* packed =
      context.scratch.shared(Scratch::kPackedInput, static_cast<size_t>(panels * panel_floats), context.team);
  const Range mine = context.team.share(panels);
  for (int64_t p = mine.begin; p < mine.end; ++p) {
    const int64_t first = p * ops.panel_tokens;
    pack(args.x + first * args.x_stride, std::min(ops.panel_tokens, args.tokens - first), packed + p * panel_floats);
  }
  context.team.barrier();
  return packed;
}

/// The product for many tokens. Tiles of weights are decoded once, into a buffer that stays in the second-level cache,
/// and multiplied with all panels of tokens. A sum runs over cols in order, block by block, whatever the team.
template <class Matrix>
void gemm(const Matrix& weight, const LinearArgs& args, const Context& context) {
  const Ops& ops = cpu::ops_of(context.target);
  const float* packed =
      pack_input(ops, args, ops.panel_tokens * weight.cols, context, [&](const float* x, int64_t tokens, float* panel) {
        ops.pack_panel(x, args.x_stride, tokens, weight.cols, panel);
      });
  constexpr int64_t kTilesAtOnce = 6;
  const int64_t rows_at_once = kTilesAtOnce * ops.tile_rows;
  float* tiles = context.scratch.own(static_cast<size_t>(rows_at_once * cpu::kTileStride), context.team);

  const Range mine = context.team.share(weight.rows, ops.tile_rows);
  for (int64_t row = mine.begin; row < mine.end; row += rows_at_once) {
    const int64_t rows = std::min(rows_at_once, mine.end - row);
    for (int64_t col = 0; col < weight.cols; col += cpu::kBlockCols) {
      const int64_t cols = std::min(cpu::kBlockCols, weight.cols - col);
      decode(ops, weight, row, rows, col, cols, tiles, cpu::kTileStride);
      for (int64_t i = rows; i % ops.tile_rows != 0; ++i) {
        std::fill_n(tiles + i * cpu::kTileStride, cols, 0.0f);
      }
      for (int64_t first = 0; first < args.tokens; first += ops.panel_tokens) {
        LinearArgs part = args;
        part.y += first * args.y_stride;
        part.tokens = std::min(ops.panel_tokens, args.tokens - first);
        part.bias = col == 0 ? args.bias : nullptr;
        part.accumulate = col > 0 || args.accumulate;
        const float* panel = packed + first * weight.cols + col * ops.panel_width(part.tokens);
        for (int64_t i = 0; i < rows; i += ops.tile_rows) {
          ops.multiply_tile(tiles + i * cpu::kTileStride, panel, cols, part, row + i,
                            std::min(ops.tile_rows, rows - i));
        }
      }
    }
  }
  context.team.barrier();
}

/// The same in integers.
void integer_gemm(const CodebookView& weight, const LinearArgs& args, const Context& context) {
  const Ops& ops = cpu::ops_of(context.target);
  const float* packed = pack_input(ops, args, ops.integer_gemm.panel_floats(weight.cols), context,
                                   [&](const float* x, int64_t tokens, float* panel) {
                                     ops.integer_gemm.pack_panel(weight, x, args.x_stride, tokens, panel);
                                   });
  const Range mine = context.team.share(weight.rows, ops.tile_rows);
  float* memory = context.scratch.own(static_cast<size_t>(ops.integer_gemm.memory_floats(weight, mine.begin, mine.end)),
                                      context.team);
  ops.integer_gemm.multiply(weight, args, packed, mine.begin, mine.end, memory);
  context.team.barrier();
}

/// Many tokens: the kernel that is best for the matrix.
void choose_gemm(const CodebookView& weight, const LinearArgs& args, const Context& context) {
  const Ops& ops = cpu::ops_of(context.target);
  const bool integers =
      args.tokens >= Ops::IntegerGemm::kFastTokens && ops.integer_gemm.supports && ops.integer_gemm.supports(weight);
  integers ? integer_gemm(weight, args, context) : gemm(weight, args, context);
}

/// Puts the outliers of the rows in `mine` in place of the codebook's weights. One loop over the entries of all rows:
/// loops over the few entries of each would mispredict most of the time.
void add_outliers(const PreparedCodebook& weight, const LinearArgs& args, Range mine) {
  const std::vector<uint32_t>& row_begin = weight.stored().sidecar.row_begin;
  if (row_begin.empty() || mine.begin == mine.end) return;
  const uint32_t first = row_begin[static_cast<size_t>(mine.begin)], last = row_begin[static_cast<size_t>(mine.end)];
  for (const OutlierChange& outlier : weight.outlier_changes().subspan(first, last - first)) {
    for (int64_t t = 0; t < args.tokens; ++t) {
      args.y[t * args.y_stride + outlier.row] += outlier.change * args.x[t * args.x_stride + outlier.col];
    }
  }
}

/// Few tokens: weights are read once, straight from where they are.
void gemv(const PreparedCodebook& weight, const LinearArgs& args, const Context& context) {
  const Ops& ops = cpu::ops_of(context.target);
  const CodebookView view = view_of(weight);
  const int64_t floats = ops.packed_x_floats(view, args.tokens);
  float* packed_x = nullptr;
  if (floats > 0) {
    packed_x = context.scratch.own(static_cast<size_t>(floats * args.tokens), context.team);
    for (int64_t t = 0; t < args.tokens; ++t) {
      ops.pack_x(view, args.x + t * args.x_stride, args.tokens, packed_x + t * floats);
    }
  }
  const Range mine = context.team.share(view.rows);
  ops.codebook_gemv(view, args, packed_x, mine.begin, mine.end);
  add_outliers(weight, args, mine);
  context.team.barrier();
}

/// y += U (Vt x).
void add_low_rank(const CodebookMatrix& weight, const LinearArgs& args, const Context& context) {
  const LowRank& term = weight.low_rank;
  const auto dense = [](const std::vector<float>& values, int64_t rows, int64_t cols) {
    return DenseMatrix{
        .rows = rows, .cols = cols, .dtype = DType::f32, .data = reinterpret_cast<const std::byte*>(values.data())};
  };
  float* product =
      context.scratch.shared(Scratch::kLowRankProduct, static_cast<size_t>(args.tokens * term.rank), context.team);
  linear(dense(term.vt, term.rank, weight.cols),
         {.x = args.x, .x_stride = args.x_stride, .y = product, .y_stride = term.rank, .tokens = args.tokens}, context);
  linear(dense(term.u_scaled, weight.rows, term.rank),
         {.x = product,
          .x_stride = term.rank,
          .y = args.y,
          .y_stride = args.y_stride,
          .tokens = args.tokens,
          .accumulate = true},
         context);
}

}  // namespace

void linear(const PreparedCodebook& weight, const LinearArgs& args, const Context& context) noexcept {
  if (args.tokens == 0) return;
  const LinearArgs transformed = transform_input(weight.stored().transform(), args, context);
  if (args.tokens <= Ops::kGemvTokens) {
    gemv(weight, transformed, context);
  } else {
    choose_gemm(view_of(weight), transformed, context);
  }
  if (weight.stored().low_rank.rank > 0) add_low_rank(weight.stored(), transformed, context);
}

void linear(const DenseMatrix& weight, const LinearArgs& args, const Context& context) noexcept {
  if (args.tokens > Ops::kGemvTokens) return gemm(weight, args, context);
  const Range mine = context.team.share(weight.rows);
  cpu::ops_of(context.target).dense_gemv(weight, args, mine.begin, mine.end);
  context.team.barrier();
}

void gather_rows(const PreparedCodebook& prepared, const int32_t* ids, int64_t count, float* out,
                 const Context& context) noexcept {
  const Ops& ops = cpu::ops_of(context.target);
  const CodebookView view = view_of(prepared);
  const CodebookMatrix& weight = prepared.stored();
  const LowRank& term = weight.low_rank;
  const Range mine = context.team.share(count);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    float* row = out + i * weight.cols;
    ops.decode_codebook(view, ids[i], 1, 0, weight.cols, row, weight.cols);
    for (int64_t n = 0; n < term.rank; ++n) {
      const float u = term.u_scaled[static_cast<size_t>(ids[i] * term.rank + n)];
      for (int64_t c = 0; c < weight.cols; ++c) row[c] += u * term.vt[static_cast<size_t>(n * weight.cols + c)];
    }
    for (size_t c = 0; c < weight.channel_scales.size(); ++c) row[c] /= weight.channel_scales[c];
  }
  context.team.barrier();
}

void gather_rows(const DenseMatrix& weight, const int32_t* ids, int64_t count, float* out,
                 const Context& context) noexcept {
  const Range mine = context.team.share(count);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    cpu::ops_of(context.target).decode_dense(weight, ids[i], 1, 0, weight.cols, out + i * weight.cols, weight.cols);
  }
  context.team.barrier();
}

}  // namespace hxq::kernels
