// Products with decode rows, however many there are. A token's sums never depend on the others: columns go in order,
// vector by vector, into two sums in turn, which are added at the end of a row.

#pragma once

#include "kernels/cpu/ops.h"
#include "kernels/cpu/outliers-inl.h"
#include "kernels/cpu/vec-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// Weight rows that are multiplied with all tokens before the next are read.
constexpr int64_t kGemvRows = 4;
/// Tokens that are multiplied with them at once.
constexpr int kGemvTokens = HXQ_GEMV_TOKENS;

/// Gemv::pack_x of kernels that pack each token by itself.
template <class View, void (*kPack)(const View& weight, const float* x, float* packed_x)>
void pack_token(const View& weight, const LinearArgs& args, int64_t first, Piece, float* packed_x) {
  kPack(weight, args.x + first * args.x_stride, packed_x);
}

inline int64_t rows_left(int64_t row, int64_t end) { return end - row < kGemvRows ? end - row : kGemvRows; }

/// Adds what `args` asks for to finished sums of rows [row, row + rows), rows <= kGemvRows.
inline Vec4 finished(const LinearArgs& args, int64_t t, int64_t row, int64_t rows, Vec4 sums) {
  const float* y = args.y + t * args.y_stride + row;
  if (rows == kGemvRows) {
    if (args.bias) sums += load4(args.bias + row);
    return args.accumulate ? load4(y) + sums : sums;
  }
  for (int64_t i = 0; i < rows; ++i) {
    if (args.bias) sums[i] += args.bias[row + i];
    if (args.accumulate) sums[i] += y[i];
  }
  return sums;
}

inline void store_rows(const LinearArgs& args, int64_t t, int64_t row, int64_t rows, Vec4 value) {
  __builtin_memcpy(args.y + t * args.y_stride + row, &value, static_cast<size_t>(rows) * sizeof(float));
}

/// What the outliers of up to kGemvRows rows change, for every token: the sum of change * x, then added to y. Rows are
/// opened in order, without a gap.
struct OutlierSums {
  float* sum;  // [kGemvRows, width]
  int64_t width;
  int64_t next;  // outlier

  static int64_t floats(int64_t tokens) { return kGemvRows * x_columns_width(tokens); }

  /// One loop over the entries of all rows: loops over the few entries of each would mispredict most of the time.
  void open(const CodebookView& weight, const float* x_columns, int64_t row, int64_t rows) {
    __builtin_memset(sum, 0, static_cast<size_t>(kGemvRows * width) * sizeof(float));
    for (; is_outlier_before(weight, next, row + rows); ++next) {
      float* to = sum + (weight.outlier_row[next] - row) * width;
      const float* x = x_columns + weight.outlier_col[next] * width;
      const VecF change = splat(weight.outlier_change[next]);
      for (int64_t t = 0; t < width; t += kLanes) store(to + t, load(to + t) + change * load(x + t));
    }
  }

  Vec4 at(int64_t t) const { return Vec4{sum[t], sum[width + t], sum[2 * width + t], sum[3 * width + t]}; }
};

/// The same for a single token, if there are outliers: added to y of rows [begin, end).
inline void add_outliers(const CodebookView& weight, const LinearArgs& args, int64_t begin, int64_t end) {
  if (weight.outliers == 0) return;
  constexpr int64_t kRows = 512;
  float sum[kRows];
  int64_t i = first_outlier(weight, begin);
  for (int64_t row = begin; row < end; row += kRows) {
    const int64_t rows = end - row < kRows ? end - row : kRows;
    __builtin_memset(sum, 0, static_cast<size_t>(rows) * sizeof(float));
    for (; is_outlier_before(weight, i, row + rows); ++i) {
      sum[weight.outlier_row[i] - row] += weight.outlier_change[i] * args.x[weight.outlier_col[i]];
    }
    for (int64_t r = 0; r < rows; ++r) args.y[row + r] += sum[r];
  }
}

/// Asks for the indices of the next kGemvRows rows a little at a time, in all loops over these rows, so that they
/// come from memory meanwhile: asked for all at once they would hold up the core.
class Ahead {
 public:
  /// The loop that looks rows up, and one for every kGemvTokens tokens: each asks for an equal part.
  explicit Ahead(int64_t tokens, int64_t index_bits = 8)
      : bytes_(16 * index_bits / (1 + (tokens + kGemvTokens - 1) / kGemvTokens)) {}

  void start(const uint8_t* at) { at_ = at; }

  /// After 32 columns of kGemvRows rows, or a part of that.
  HXQ_ALWAYS_INLINE void step(int64_t parts = 1) {
    __builtin_prefetch(at_);
    at_ += bytes_ / parts;
  }

 private:
  const uint8_t* at_ = nullptr;
  int64_t bytes_;
};

/// Sums of the lanes of products of kGemvRows rows with some tokens.
template <int kTokens>
using RowSums = VecF[kTokens][kGemvRows];

/// Rows [row, row + rows), at most kGemvRows, for tokens first to first + kTokens - 1. outliers: null if there are
/// none.
template <int kTokens, class Kernel>
__attribute__((noinline)) void multiply_tokens(Kernel& kernel, const OutlierSums* outliers, const LinearArgs& args,
                                               int64_t first, int64_t row, int64_t rows) {
  RowSums<kTokens> sums;
  kernel.template sum<kTokens>(first, sums);
#pragma GCC unroll 3
  for (int t = 0; t < kTokens; ++t) {
    const Vec4 lanes = sum_lanes_of_4(sums[t][0], sums[t][1], sums[t][2], sums[t][3]);
    Vec4 y = finished(args, first + t, row, rows, kernel.finish(first + t, lanes));
    if (outliers) y += outliers->at(first + t);
    store_rows(args, first + t, row, rows, y);
  }
}

/// Rows [row, row + rows), at most kGemvRows, for all tokens. `Kernel`:
///     open(row, rows)       makes these rows ready to be multiplied
///     sum<kTokens>(t, sums) their sums (any numbers past `rows`) with tokens t to t + kTokens - 1
///     finish(t, v)          y from sums of lanes
template <class Kernel>
void multiply_rows(Kernel& kernel, const OutlierSums* outliers, const LinearArgs& args, int64_t row, int64_t rows) {
  kernel.open(row, rows);
  int64_t t = 0;
  for (; t + kGemvTokens <= args.tokens; t += kGemvTokens) {
    multiply_tokens<kGemvTokens>(kernel, outliers, args, t, row, rows);
  }
  if (args.tokens - t == 2) multiply_tokens<2>(kernel, outliers, args, t, row, rows);
  if (args.tokens - t == 1) multiply_tokens<1>(kernel, outliers, args, t, row, rows);
}

/// y of rows [begin, end) of a dense matrix.
template <class Kernel>
void joint_gemv(Kernel kernel, const LinearArgs& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; row += kGemvRows) {
    multiply_rows(kernel, nullptr, args, row, rows_left(row, end));
  }
}

/// The same of a codebook matrix. `outlier_memory`: OutlierSums::floats(args.tokens) floats.
template <class Kernel>
void joint_gemv(Kernel kernel, const CodebookView& weight, const LinearArgs& args, const float* x_columns,
                int64_t begin, int64_t end, float* outlier_memory) {
  if (weight.outliers == 0 || args.tokens == 1) {
    joint_gemv(kernel, args, begin, end);
    return add_outliers(weight, args, begin, end);
  }
  OutlierSums outliers{outlier_memory, x_columns_width(args.tokens), first_outlier(weight, begin)};
  for (int64_t row = begin; row < end; row += kGemvRows) {
    const int64_t rows = rows_left(row, end);
    outliers.open(weight, x_columns, row, rows);
    multiply_rows(kernel, &outliers, args, row, rows);
  }
}

}  // namespace
}  // namespace hxq::kernels::cpu
