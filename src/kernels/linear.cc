#include <algorithm>

#include "kernels/codebook_view.h"
#include "kernels/cpu/grouped_prepared.h"
#include "kernels/cpu/ops.h"
#include "kernels/cpu_matrix.h"
#include "kernels/input_transform.h"

namespace hxq::kernels {
namespace {

using cpu::CodebookView;
using cpu::GroupedView;
using cpu::Ops;
using cpu::PreparedCodebook;
using cpu::PreparedGrouped;

void decode(const Ops& ops, const CodebookView& weight, int64_t row, int64_t rows, int64_t col, int64_t cols,
            float* out, int64_t stride) {
  ops.decode_codebook(weight, row, rows, col, cols, out, stride);
}

void decode(const Ops& ops, const GroupedView& weight, int64_t row, int64_t rows, int64_t col, int64_t cols, float* out,
            int64_t stride) {
  ops.decode_grouped(weight, row, rows, col, cols, out, stride);
}

void decode(const Ops& ops, const DenseMatrix& weight, int64_t row, int64_t rows, int64_t col, int64_t cols, float* out,
            int64_t stride) {
  ops.decode_dense(weight, row, rows, col, cols, out, stride);
}

const cpu::Gemv<CodebookView>& gemv_of(const Ops& ops, const CodebookView& weight) { return ops.codebook_gemv(weight); }
const cpu::Gemv<GroupedView>& gemv_of(const Ops& ops, const GroupedView& weight) { return ops.grouped_gemv(weight); }

const cpu::IntegerGemm<CodebookView>* gemm_of(const Ops& ops, const CodebookView& w) { return ops.codebook_gemm(w); }
const cpu::IntegerGemm<GroupedView>* gemm_of(const Ops& ops, const GroupedView& w) { return ops.grouped_gemm(w); }

DenseMatrix view_of(const TensorView& factor) {
  return {.rows = factor.shape[0], .cols = factor.shape[1], .dtype = factor.dtype, .data = factor.bytes.data()};
}

bool has_outliers(const CodebookView& weight) { return weight.outliers > 0; }
bool has_outliers(const GroupedView&) { return false; }

int64_t panels_of(int64_t tokens, int64_t panel_tokens) { return (tokens + panel_tokens - 1) / panel_tokens; }

/// Packs all panels of x in shared scratch, panel_floats apart: `pack(first, panel)` does one.
template <class Pack>
const float* pack_input(const LinearArgs& args, int64_t panel_tokens, int64_t panel_floats, const CpuContext& context,
                        Pack pack) {
  float* packed = context.shared(Scratch::kPackedInput, panels_of(args.tokens, panel_tokens) * panel_floats);
  if (context.measures) return packed;
  const Range mine = context.team.share(panels_of(args.tokens, panel_tokens));
  for (int64_t p = mine.begin; p < mine.end; ++p) pack(p * panel_tokens, packed + p * panel_floats);
  context.team.barrier();
  return packed;
}

/// The product with prefill rows, complete for the rows that it returns: those of this thread. Tiles of weights are
/// decoded once, into a buffer that stays in the second-level cache, and multiplied with all panels of tokens. A sum
/// runs over cols in order, block by block, whatever the team.
template <class Matrix>
Range gemm(const Matrix& weight, const LinearArgs& args, const CpuContext& context) {
  const Ops& ops = cpu::ops_of(context.target);
  const float* packed =
      pack_input(args, ops.panel_tokens, ops.panel_tokens * weight.cols, context, [&](int64_t first, float* panel) {
        const int64_t tokens = std::min(ops.panel_tokens, args.tokens - first);
        ops.pack_panel(args.x + first * args.x_stride, args.x_stride, tokens, weight.cols, panel);
      });
  constexpr int64_t kTilesAtOnce = 6;
  const int64_t rows_at_once = kTilesAtOnce * ops.tile_rows;
  float* tiles = context.own(rows_at_once * cpu::kTileStride);
  if (context.measures) return {};

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
  return mine;
}

/// The same in integers.
template <class View>
Range integer_gemm(const cpu::IntegerGemm<View>& kernel, const View& weight, const LinearArgs& args,
                   const CpuContext& context) {
  const float* packed = pack_input(args, kernel.panel_tokens, kernel.panel_floats(weight), context,
                                   [&](int64_t first, float* panel) { kernel.pack_panel(weight, args, first, panel); });
  float* memory = context.own(kernel.memory_floats(weight, args.tokens));
  if (context.measures) return {};
  const Range mine = context.team.share(weight.rows, kernel.tile_rows);
  kernel.multiply(weight, args, packed, mine.begin, mine.end, memory);
  return mine;
}

/// Prefill rows: the kernel that is best for the matrix.
template <class View>
Range choose_gemm(const View& weight, const LinearArgs& args, const CpuContext& context) {
  const bool rounds = context.precision == Precision::fast;
  const cpu::IntegerGemm<View>* kernel = rounds ? gemm_of(cpu::ops_of(context.target), weight) : nullptr;
  return kernel ? integer_gemm(*kernel, weight, args, context) : gemm(weight, args, context);
}

/// Packs x of decode rows, complete for the whole team.
template <class View>
void pack_decode_rows(const cpu::Gemv<View>& kernel, const View& weight, const LinearArgs& args, int64_t x_floats,
                      float* packed_x, int64_t width, float* x_columns, const cpu::Ops& ops, const Team& team) {
  const int64_t panels = x_floats > 0 ? panels_of(args.tokens, kernel.panel_tokens) : 0;
  const int64_t pieces = kernel.panel_tokens > 1 && panels < team.size() ? team.size() : 1;
  const Range mine = team.share(panels * pieces);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    const int64_t panel = i / pieces;
    kernel.pack_x(weight, args, panel * kernel.panel_tokens, {i % pieces, pieces}, packed_x + panel * x_floats);
  }
  const Range cols = team.share(width > 0 ? weight.cols : 0, 16);
  ops.pack_columns(args.x + cols.begin, args.x_stride, args.tokens, cols.end - cols.begin, width,
                   x_columns + cols.begin * width);
  team.barrier();
}

/// Tokens of a panel that a thread packs in less time than a barrier and reading what others packed take.
constexpr int64_t kFewTokens = 8;

/// Decode rows: weights are read once, straight from where they are. x is packed by the whole team, or by each thread
/// for itself if it is of a single token or a few, unless the caller needs a barrier. Complete for the rows that it
/// returns.
template <class View>
Range gemv(const View& weight, const LinearArgs& args, bool needs_barrier, const CpuContext& context) {
  const cpu::Ops& ops = cpu::ops_of(context.target);
  const cpu::Gemv<View>& kernel = gemv_of(ops, weight);
  const int64_t x_floats = kernel.packed_x_floats ? kernel.packed_x_floats(weight) : 0;
  const int64_t memory_floats = kernel.memory_floats(weight, args.tokens);
  const int64_t width = args.tokens == 1 || !has_outliers(weight) ? 0 : cpu::x_columns_width(args.tokens);
  const int64_t packed_floats = panels_of(args.tokens, kernel.panel_tokens) * x_floats;
  const int64_t input_floats = packed_floats + weight.cols * width;
  const bool by_team = needs_barrier || args.tokens > (kernel.panel_tokens > 1 ? kFewTokens : 1);
  float* memory = context.own(memory_floats + (by_team ? 0 : input_floats));
  float* shared = by_team ? context.shared(Scratch::kPackedInput, input_floats) : nullptr;
  if (context.measures) return {};
  float* packed_x = by_team ? shared : memory + memory_floats;
  float* x_columns = packed_x + packed_floats;
  pack_decode_rows(kernel, weight, args, x_floats, packed_x, width, x_columns, ops,
                   by_team ? context.team : Team(0, 1));
  const Range mine = context.team.share(weight.rows);
  kernel.multiply(weight, args, {.packed_x = packed_x, .x_columns = x_columns, .memory = memory}, mine.begin, mine.end);
  return mine;
}

/// product[t, n] = Vt x of tokens [tokens.begin, tokens.end); the same for a token whatever the others.
void multiply_vt(const LowRankView& term, const LinearArgs& args, Range tokens, float* product,
                 const CpuContext& context) {
  if (tokens.begin == tokens.end) return;
  cpu::ops_of(context.target)
      .dense_gemv(view_of(term.vt),
                  {.x = args.x + tokens.begin * args.x_stride,
                   .x_stride = args.x_stride,
                   .y = product + tokens.begin * term.rank,
                   .y_stride = term.rank,
                   .tokens = tokens.end - tokens.begin},
                  0, term.rank);
}

/// Numbers of a low-rank factor that are widened at once.
constexpr int64_t kWidened = 256;

/// y += U diag(s) product for some rows of all tokens.
void add_low_rank(const LowRankView& term, const LinearArgs& args, Range rows, const float* product, const Ops& ops) {
  const int64_t rank = term.rank, end = rows.end * rank;
  const DenseMatrix flat = {.rows = 1, .cols = end, .dtype = term.u.dtype, .data = term.u.bytes.data()};
  const float* s = term.s.data();
  float u[kWidened];
  for (int64_t begin = rows.begin * rank; begin < end; begin += kWidened) {
    const int64_t count = std::min(kWidened, end - begin);
    ops.decode_dense(flat, 0, 1, begin, count, u, count);
    for (int64_t t = 0; t < args.tokens; ++t) {
      const float* factor = product + t * rank;
      float* y = args.y + t * args.y_stride + begin / rank;
      for (int64_t i = 0; i < count && rank == 1; ++i) y[i] += u[i] * s[0] * factor[0];
      for (int64_t i = 0, n = begin % rank; i < count && rank > 1; ++i) {
        *y += u[i] * s[n] * factor[n];
        if (++n == rank) n = 0, ++y;
      }
    }
  }
}

/// The product with a matrix and its low-rank term.
template <class View>
void multiply(const View& weight, const LowRankView& term, const LinearArgs& args, const CpuContext& context) {
  const bool decode = args.phase == Phase::decode;
  // Each thread multiplies Vt with a single token by itself, and with its share of several before x is packed, which
  // ends with a barrier: the term takes none of its own.
  const bool alone = decode && args.tokens == 1;
  const bool shares = term.rank > 0 && !alone;
  float* product = shares ? context.shared(Scratch::kLowRankProduct, args.tokens * term.rank) : nullptr;
  if (product) multiply_vt(term, args, context.team.share(args.tokens), product, context);
  const Range mine = decode ? gemv(weight, args, shares, context) : choose_gemm(weight, args, context);
  if (term.rank > 0 && alone) product = context.own(term.rank);
  if (context.measures) return;
  if (term.rank > 0) {
    if (alone) multiply_vt(term, args, {0, 1}, product, context);
    add_low_rank(term, args, mine, product, cpu::ops_of(context.target));
  }
  context.team.barrier();
}

/// Adds the term's row to that of a matrix.
void add_row(const LowRankView& term, int64_t row, int64_t width, float* out, const Ops& ops) {
  float vt[kWidened];
  for (int64_t n = 0; n < term.rank; ++n) {
    const float u = term.scaled_u(row, n);
    for (int64_t begin = 0; begin < width; begin += kWidened) {
      const int64_t cols = std::min(kWidened, width - begin);
      ops.decode_dense(view_of(term.vt), n, 1, begin, cols, vt, cols);
      for (int64_t c = 0; c < cols; ++c) out[begin + c] += u * vt[c];
    }
  }
}

/// Rows with the low-rank term, before a transform is undone.
template <class View>
void gather(const View& weight, const LowRankView& term, const int32_t* ids, Range mine, float* out,
            const CpuContext& context) {
  const Ops& ops = cpu::ops_of(context.target);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    float* row = out + i * weight.cols;
    decode(ops, weight, ids[i], 1, 0, weight.cols, row, weight.cols);
    add_row(term, ids[i], weight.cols, row, ops);
  }
}

}  // namespace

void linear(const PreparedCodebook& weight, const LinearArgs& args, const CpuContext& context) noexcept {
  if (args.tokens == 0) return;
  const LinearArgs transformed = transform_input(weight.stored().transform(), args, context);
  multiply(view_of(weight), weight.stored().low_rank, transformed, context);
}

void linear(const PreparedGrouped& weight, const LinearArgs& args, const CpuContext& context) noexcept {
  if (args.tokens == 0) return;
  multiply(weight.view(), weight.stored().low_rank, args, context);
}

void linear(const DenseMatrix& weight, const LinearArgs& args, const CpuContext& context) noexcept {
  if (args.tokens == 0) return;
  if (args.phase == Phase::prefill) {
    gemm(weight, args, context);
  } else if (!context.measures) {
    const Range mine = context.team.share(weight.rows);
    cpu::ops_of(context.target).dense_gemv(weight, args, mine.begin, mine.end);
  }
  if (!context.measures) context.team.barrier();
}

void gather_rows(const PreparedCodebook& weight, const int32_t* ids, int64_t count, float* out,
                 const CpuContext& context) noexcept {
  if (context.measures) return;
  const Range mine = context.team.share(count);
  gather(view_of(weight), weight.stored().low_rank, ids, mine, out, context);
  const std::vector<float>& scales = weight.stored().channel_scales;
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    for (size_t c = 0; c < scales.size(); ++c) out[i * weight.cols() + static_cast<int64_t>(c)] /= scales[c];
  }
  context.team.barrier();
}

void gather_rows(const PreparedGrouped& weight, const int32_t* ids, int64_t count, float* out,
                 const CpuContext& context) noexcept {
  if (context.measures) return;
  gather(weight.view(), weight.stored().low_rank, ids, context.team.share(count), out, context);
  context.team.barrier();
}

void gather_rows(const DenseMatrix& weight, const int32_t* ids, int64_t count, float* out,
                 const CpuContext& context) noexcept {
  if (context.measures) return;
  gather(weight, {}, ids, context.team.share(count), out, context);
  context.team.barrier();
}

}  // namespace hxq::kernels
