// Codebook matrices of every layout, the codebook in memory.

#pragma once

#include "kernels/cpu/dense-inl.h"
#include "kernels/cpu/outliers-inl.h"

namespace hxq::kernels::cpu {
namespace {

inline uint32_t index_at(const CodebookView& weight, int64_t flat) {
  if (weight.index_bits == 8) return weight.indices[flat];
  if (weight.index_bits == 16) return weight.indices[2 * flat] | weight.indices[2 * flat + 1] << 8;
  const uint8_t* pair = weight.indices + flat / 2 * 3;  // two indices in three bytes
  return flat % 2 == 0 ? pair[0] | (pair[1] & 0x0f) << 8 : pair[1] >> 4 | pair[2] << 4;
}

/// Replaces the outliers in W[row .. row + rows, col .. col + cols) of decoded rows, `stride` floats apart.
inline void assign_outliers(const CodebookView& weight, int64_t row, int64_t rows, int64_t col, int64_t cols,
                            float* out, int64_t stride) {
  for (int64_t i = first_outlier(weight, row); is_outlier_before(weight, i, row + rows); ++i) {
    const int64_t at = weight.outlier_col[i] - col;
    if (at >= 0 && at < cols) out[(weight.outlier_row[i] - row) * stride + at] = weight.outlier_value[i];
  }
}

/// Codebook weights of W[row, col .. col + cols), without outliers.
inline void lookup_row(const CodebookView& weight, int64_t row, int64_t col, int64_t cols, float* out) {
  if (weight.index_bits == 8 && weight.d == 1) {
    const uint8_t* index = weight.indices + row * weight.cols + col;
    int64_t j = 0;
    for (; j + kLanes <= cols; j += kLanes) store(out + j, look_up_lanes(weight.codebook, index + j));
    for (; j < cols; ++j) out[j] = weight.codebook[index[j]];
    return;
  }
  const int64_t flat = row * weight.cols + col;  // weights before this one; cols is a multiple of d
  int64_t code = flat / weight.d;
  int64_t part = flat % weight.d;
  for (int64_t j = 0; j < cols; ++code, part = 0) {
    const float* word = weight.codebook + static_cast<int64_t>(index_at(weight, code)) * weight.d;
    for (; part < weight.d && j < cols; ++part, ++j) out[j] = word[part];
  }
}

/// Any matrix.
void decode_codebook_by_lookup(const CodebookView& weight, int64_t row, int64_t rows, int64_t col, int64_t cols,
                               float* out, int64_t stride) {
  for (int64_t i = 0; i < rows; ++i) lookup_row(weight, row + i, col, cols, out + i * stride);
  assign_outliers(weight, row, rows, col, cols, out, stride);
}

/// Bytes ahead of its reading that a stream of indices is asked for; hardware prefetch alone reached half the rate.
constexpr int64_t kPrefetch = 2048;

/// Looks rows up once, into memory, for any number of tokens.
struct LookedUpRows : RowsInMemory<F32> {
  const CodebookView& weight;
  float* memory;

  static int64_t stride(int64_t columns) { return columns + 16; }  // no multiple of 4 KB, or rows share cache sets

  void open(int64_t first, int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) lookup_row(weight, first + i, 0, cols, memory + i * stride(cols));
    set_rows(reinterpret_cast<const std::byte*>(memory), stride(cols) * 4, rows);
  }
};

/// Byte indices and one token: vectors of weights are looked up in memory and multiplied at once.
void lookup_gemv_of_1(const CodebookView& weight, const LinearArgs& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    const uint8_t* index = weight.indices + row * weight.cols;
    VecF sum[2] = {};
    int64_t col = 0;
    for (; col + 2 * kLanes <= weight.cols; col += 2 * kLanes) {
      __builtin_prefetch(index + col + kPrefetch);
      sum[0] += look_up_lanes(weight.codebook, index + col) * load(args.x + col);
      sum[1] += look_up_lanes(weight.codebook, index + col + kLanes) * load(args.x + col + kLanes);
    }
    for (int turn = 0; col < weight.cols; col += kLanes, ++turn) {
      const int64_t n = weight.cols - col < kLanes ? weight.cols - col : kLanes;
      float found[HXQ_LANES] = {};
      for (int64_t i = 0; i < n; ++i) found[i] = weight.codebook[index[col + i]];
      sum[turn] += load(found) * load_first(args.x + col, n);
    }
    store_rows(args, 0, row, 1, finished(args, 0, row, 1, Vec4{sum_lanes(sum[0] + sum[1])}));
  }
}

inline bool looks_up_at_once(const CodebookView& weight, int64_t tokens) {
  return tokens == 1 && weight.index_bits == 8 && weight.d == 1;
}

/// Any matrix.
void lookup_gemv(const CodebookView& weight, const LinearArgs& args, const GemvWork& work, int64_t begin, int64_t end) {
  if (looks_up_at_once(weight, args.tokens)) {
    lookup_gemv_of_1(weight, args, begin, end);
    return add_outliers(weight, args, begin, end);
  }
  float* rows = work.memory + OutlierSums::floats(args.tokens);
  joint_gemv(LookedUpRows{{args.x, args.x_stride, weight.cols}, weight, rows}, weight, args, work.x_columns, begin, end,
             work.memory);
}

int64_t lookup_memory_floats(const CodebookView& weight, int64_t tokens) {
  if (looks_up_at_once(weight, tokens)) return 0;
  return OutlierSums::floats(tokens) + kGemvRows * LookedUpRows::stride(weight.cols);
}

constexpr Gemv<CodebookView> kLookupGemv{.panel_tokens = 1,
                                         .packed_x_floats = nullptr,
                                         .pack_x = nullptr,
                                         .memory_floats = lookup_memory_floats,
                                         .multiply = lookup_gemv};

const Gemv<CodebookView>& lookup_gemv_for(const CodebookView&) { return kLookupGemv; }

}  // namespace
}  // namespace hxq::kernels::cpu
