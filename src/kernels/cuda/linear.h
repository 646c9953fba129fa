#pragma once

#include "kernels/cuda/types.h"

/// Products with weight matrices, and rows of them.
namespace hxq::cuda {

struct GatedActivationArgs;
struct RmsNormArgs;

/// With some room for what an outlier is more than its level.
inline constexpr float kLargestTileWeight = 65000.0f * 256;

/// A codebook matrix (codec/codebook.h) in device memory: its indices as they are on disk, everything else small. For
/// steps (step.h) the codebook and what belongs to outliers is readable up to the next multiple of 16 bytes.
struct CodebookWeight {
  int64_t rows = 0;
  int64_t cols = 0;
  int32_t k = 0;                                ///< codewords
  int32_t d = 1;                                ///< weights per codeword
  int32_t index_bits = 8;                       ///< 8, 16, or 12: two indices in three bytes, flat over the matrix
  const void* indices = nullptr;                ///< readable up to the next multiple of 4 bytes
  const float* codebook = nullptr;              // [k, d]
  const uint32_t* outlier_row_begin = nullptr;  // [rows + 1], or null: no outliers
  const uint32_t* outlier_col = nullptr;        // [n] ascending within a row
  const float* outlier_change = nullptr;        // [n] the exact weight - the codebook's
  const float* channel_scales = nullptr;        // [cols], or null: x is divided by them
  int32_t rank = 0;                             ///< of the low-rank term, 0: none
  const float* low_rank_u = nullptr;            // [rows, rank], scaled
  const float* low_rank_vt = nullptr;           // [rank, cols]
  float level_scale = 0;         ///< a power of two: every level / level_scale is below 2^15 in size; 0 unless d is 1
  bool levels_fit_half = false;  ///< every level / level_scale is a binary16 number
  /// Not all levels are 0, and no weight, outliers included, is larger than kLargestTileWeight * level_scale: tiles of
  /// binary16 hold the matrix.
  bool fits_tiles = false;
};

/// A row-major matrix of F32, F16 or BF16, aligned to its elements.
struct DenseWeight {
  int64_t rows = 0;
  int64_t cols = 0;
  DType dtype = DType::f32;
  const void* data = nullptr;
};

/// y = x W^T (+ bias) (+ y). Where tensor cores are used (more tokens than one), `exact` takes x as two numbers of 11
/// bits and levels in full; `fast` takes x and weights as one, for very many tokens both as BF16, where cuBLAS is at
/// hand.
struct LinearArgs {
  Input x;        // [tokens, cols]
  Output y = {};  // [tokens, rows]; not x
  int64_t tokens = 0;
  const float* bias = nullptr;  // [rows], or null
  bool accumulate = false;      ///< add to y
  Precision precision = Precision::exact;
  Workspace workspace = {};  ///< at least `linear_workspace`
};

/// Bytes of workspace for up to `tokens` tokens; more for a smaller number of tokens is never needed.
size_t linear_workspace(const CodebookWeight& weight, int64_t tokens) noexcept;
size_t linear_workspace(const DenseWeight& weight, int64_t tokens) noexcept;

/// One token is computed in float throughout, with its outliers; the sums are in an order that shapes alone decide.
Status linear(const CodebookWeight& weight, const LinearArgs& args, Stream stream) noexcept;
Status linear(const DenseWeight& weight, const LinearArgs& args, Stream stream) noexcept;

/// What one token's products are made with: x, or x after a norm.
struct FusedInput {
  Input x;                             // [cols]
  const float* norm_weight = nullptr;  // [cols], or null: x / sqrt(mean(x^2) + eps) * norm_weight
  float eps = 0;
};

/// y = W x (+ bias) (+ y)
template <class Weight>
struct ProductWith {
  Weight weight;
  Output y;                                 // [rows]
  const float* bias = nullptr;              // [rows], or null
  bool accumulate = false;                  ///< add to y
  const float* low_rank_product = nullptr;  // [rank]: Vt x, or null: it is worked out
};
using FusedProduct = ProductWith<CodebookWeight>;
inline constexpr int kMaxFusedProducts = 6;

/// Whether `fused_linear` takes the matrix.
bool supports_fused_linear(const FusedInput& input, const CodebookWeight& weight) noexcept;

/// Products of one token with 1 to kMaxFusedProducts matrices of as many columns, in one kernel. Everything is float.
Status fused_linear(const FusedInput& input, const FusedProduct* products, int64_t count, Stream stream) noexcept;

/// What makes the x of products, if anything: one of the two, with x as its y.
struct XSource {
  const RmsNormArgs* norm = nullptr;
  const GatedActivationArgs* activation = nullptr;
};

/// Products of any number of tokens with 1 to kMaxFusedProducts matrices of as many columns: as `linear` of each, in
/// fewer kernels where that can be. What makes x comes first; x itself may be left as it was then. Of `args`, y, bias
/// and accumulate mean nothing; the workspace is the largest that `linear` needs. `low_rank_product` must be null.
Status joint_linear(const LinearArgs& args, const XSource& source, const FusedProduct* products, int64_t count,
                    Stream stream) noexcept;

/// out[i, :] = row ids[i] of the matrix, outliers, low-rank term and channel scales applied.
/// ids in device memory, in [0, rows); a negative id gives a row of zeros.
struct GatherArgs {
  const int32_t* ids = nullptr;  // [count]
  int64_t count = 0;
  Output out;  // [count, cols]
};
Status gather_rows(const CodebookWeight& weight, const GatherArgs& args, Stream stream) noexcept;
Status gather_rows(const DenseWeight& weight, const GatherArgs& args, Stream stream) noexcept;

}  // namespace hxq::cuda
