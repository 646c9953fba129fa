#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/attention.h"
#include "kernels/cpu/codebook_lookup_planes.h"
#include "kernels/dense_matrix.h"
#include "kernels/kernels.h"
#include "kernels/ssd.h"

/// The seam between the operations of kernels.h and the code compiled once per target. Functions of a target work on
/// one thread's share and know nothing of teams. Its translation unit is compiled with the target's own flags and must
/// not emit inline functions of other headers (the linker could pick them for the whole program): hence plain pointers
/// here, and everything of a target in an anonymous namespace.
namespace hxq::kernels::cpu {

/// Rows whose outliers a kernel may have at once.
inline constexpr int64_t kOutlierRows = 64;

/// A CodebookMatrix as raw pointers, without low-rank term and channel scales.
struct CodebookView {
  int64_t rows;
  int64_t cols;
  int32_t k;
  int32_t d;
  int32_t index_bits;      ///< 8, 16 or 12
  const uint8_t* indices;  ///< nothing may be read outside of the matrix
  const float* codebook;   // [k, d]
  LookupPlanes::Kind planes_kind;
  bool integer_levels;
  float planes_scale;
  const uint8_t* planes;          // LookupPlanes::bytes; null: none
  const uint8_t* segment_planes;  // [3, 32], 32-byte aligned, see LookupPlanes; null: none
  int32_t segment_shift;
  int64_t outliers;
  int64_t most_outliers;        ///< of kOutlierRows rows in sequence
  const uint32_t* outlier_row;  // [outliers], ascending
  const uint32_t* outlier_col;  // the same, ascending within a row
  const float* outlier_value;   // the same
  const float* outlier_change;  // the same: the value less the codebook's weight
};

/// What makes weights of the integers that stand for them in one row of a grouped matrix.
struct GroupedRow {
  const uint32_t* scale_words;  ///< [256], M of every scale level that the row has, twice in 32 bits
  float unit;                   ///< integers times this and GroupedView::planes_scale are weights
};

/// A GroupedMatrix as raw pointers, with what PreparedGrouped works out.
///
/// With decode rows, levels that are whole numbers of a byte (on AVX-512: up to 64 whole numbers up to 32767) are
/// multiplied as they are, and their sums within a group by the group's scale. Otherwise levels that are whole numbers
/// up to 32767 have whole numbers for weights:
/// weight[r, c] is nearly planes_scale * row[r].unit * L * M / 2^15, where L is the level times the largest whole
/// number that keeps it up to 32767 (256 if levels are -128 to 127), M the scale of the group in 32767ths of the power
/// of two above the row's largest, and L * M / 2^15 is rounded. That is off by at most planes_scale * row[r].unit. What
/// is no such level is decoded to floats.
struct GroupedView {
  int64_t rows;
  int64_t cols;
  int64_t group;          ///< columns of a group, a multiple of 8
  int64_t groups;         ///< of a row
  int64_t row_bytes;      ///< of a row's indices
  int32_t bits;           ///< of an index, 3 to 8
  const uint8_t* packed;  ///< [rows, row_bytes]; nothing may be read outside of the matrix
  const uint8_t* scales;  // [rows, groups]
  const float* levels;    // [2^bits]
  const float* scale_levels;
  float planes_scale;           ///< a power of two
  const uint8_t* level_planes;  // [2, 256], the bytes of L, 64-byte aligned; repeated past the last level
  const int16_t* level_words;   // [256], L, the same; null: there are none
  const int16_t* whole_levels;  // [64], the first levels themselves, the same
  /// [256], levels plus 128, the same: up to 16 whole numbers from -127 to 127, or -128 to 127 in order, which are the
  /// indices themselves; null for others.
  const uint8_t* level_bytes;
  float scale_unit;              ///< a power of two
  const float* scale_multiples;  // [256], the scale levels / scale_unit
  const uint8_t* scale_planes;   // [4, 256], the bytes of these, 64-byte aligned
  const GroupedRow* row;         // [rows]
};

/// Weights of one tile of the matrix product, decoded: rows kTileStride floats apart.
inline constexpr int64_t kBlockCols = 768;
inline constexpr int64_t kTileStride = kBlockCols + 16;  // no multiple of 4 KB, or rows would share cache sets

/// What a product with decode rows works on besides its arguments; all 64-byte aligned.
struct GemvWork {
  const float* packed_x;  // [panels, packed_x_floats], null if x is taken as it is
  /// [cols, x_columns_width(tokens)], zero past the last token: for outliers, of more than one token.
  const float* x_columns;
  float* memory;  // memory_floats, the thread's own
};

/// Floats of a column of x, in vectors of every target.
constexpr int64_t x_columns_width(int64_t tokens) { return (tokens + 15) / 16 * 16; }

/// Piece `index` of `count`.
struct Piece {
  int64_t index, count;
};

/// A way to multiply a matrix with decode rows. What a token's product is does not depend on the others.
template <class View>
struct Gemv {
  int64_t panel_tokens;  ///< whose x is packed together
  /// Floats of a panel of packed x, a multiple of 16; null: x is taken as it is.
  int64_t (*packed_x_floats)(const View& weight);
  /// Packs the panel that begins with token `first`, or one of its pieces; panels of one token have one.
  void (*pack_x)(const View& weight, const LinearArgs& args, int64_t first, Piece piece, float* packed_x);
  int64_t (*memory_floats)(const View& weight, int64_t tokens);
  /// y for weight rows [begin, end).
  void (*multiply)(const View& weight, const LinearArgs& args, const GemvWork& work, int64_t begin, int64_t end);
};

/// A way to multiply a matrix with prefill rows in integers.
template <class View>
struct IntegerGemm {
  int64_t panel_tokens;  ///< whose x is packed together
  /// Floats of a panel.
  int64_t (*panel_floats)(const View& weight);
  /// Packs the panel that begins with token `first`.
  void (*pack_panel)(const View& weight, const LinearArgs& args, int64_t first, float* panel);
  int64_t tile_rows;
  /// y of rows [begin, end), begin a multiple of tile_rows; `memory`: memory_floats floats of the thread's own.
  int64_t (*memory_floats)(const View& weight, int64_t tokens);
  void (*multiply)(const View& weight, const LinearArgs& args, const float* packed, int64_t begin, int64_t end,
                   float* memory);
};

struct Ops {
  Target target;
  int64_t lanes;  ///< floats in a vector of this target

  /// The best for a matrix, the same for any number of tokens.
  const Gemv<CodebookView>& (*codebook_gemv)(const CodebookView& weight);
  const Gemv<GroupedView>& (*grouped_gemv)(const GroupedView& weight);
  /// x as [cols, width], width a multiple of `lanes`; lanes past `tokens` are zero.
  void (*pack_columns)(const float* x, int64_t x_stride, int64_t tokens, int64_t cols, int64_t width, float* columns);
  /// y for weight rows [begin, end).
  void (*dense_gemv)(const DenseMatrix& weight, const LinearArgs& args, int64_t begin, int64_t end);

  /// out[i, j] = W[row + i, col + j] for i < rows, j < cols; rows of `out` are `stride` floats apart.
  void (*decode_codebook)(const CodebookView& weight, int64_t row, int64_t rows, int64_t col, int64_t cols, float* out,
                          int64_t stride);
  void (*decode_grouped)(const GroupedView& weight, int64_t row, int64_t rows, int64_t col, int64_t cols, float* out,
                         int64_t stride);
  void (*decode_dense)(const DenseMatrix& weight, int64_t row, int64_t rows, int64_t col, int64_t cols, float* out,
                       int64_t stride);

  /// Matrix product: `tile_rows` weight rows against panels of at most `panel_tokens` tokens.
  int64_t tile_rows;
  int64_t panel_tokens;
  /// x of one panel as [cols, width], width = panel_width(tokens) >= tokens; lanes past `tokens` are zero.
  int64_t (*panel_width)(int64_t tokens);
  void (*pack_panel)(const float* x, int64_t x_stride, int64_t tokens, int64_t cols, float* panel);
  /// y[t, row + i] (+)= sum over `cols` of tile[i, c] * panel[c, t], for i < rows <= tile_rows and t < tokens. The tile
  /// has tile_rows rows. Bias is added when args.bias is set; args.y is that of the panel's first token.
  void (*multiply_tile)(const float* tile, const float* panel, int64_t cols, const LinearArgs& args, int64_t row,
                        int64_t rows);

  /// The best for a matrix; null: none.
  const IntegerGemm<CodebookView>* (*codebook_gemm)(const CodebookView& weight);
  const IntegerGemm<GroupedView>* (*grouped_gemm)(const GroupedView& weight);

  /// Groups [begin, end) of all tokens' groups.
  void (*rms_norm)(const RmsNormArgs& args, int64_t begin, int64_t end);
  /// Of one segment, as all that follow along the sequence.
  void (*conv)(const ConvArgs& args, int64_t segment, int64_t channel_begin, int64_t channel_end);
  void (*scan)(const ScanArgs& args, int64_t segment, int64_t channel_begin, int64_t channel_end);
  void (*ssd)(const SsdArgs& args, int64_t segment, int64_t head_begin, int64_t head_end);

  /// Reads memory, a multiple of 4096 bytes, and returns something that depends on it all.
  int32_t (*read_bytes)(const std::byte* data, int64_t bytes);

  /// Rows [begin, end) of the batch, all of the segment.
  void (*extend_cache)(const ExtendCacheArgs& args, int64_t segment, int64_t begin, int64_t end);
  /// Attention of queries [begin, end) of one key-value head; query r is its head r % group of the segment's row
  /// r / group. `memory`: attention_floats floats of the thread's own.
  int64_t (*attention_floats)(const KvCacheView& cache, int64_t queries);
  void (*attend)(const AttentionArgs& args, int64_t segment, int64_t kv_head, int64_t begin, int64_t end,
                 float* memory);
  void (*gated_activation)(const GatedActivationArgs& args, int64_t begin, int64_t end);

  /// Elementwise, for tests of accuracy.
  void (*exp)(const float* x, float* y, int64_t n);
  void (*softplus)(const float* x, float* y, int64_t n);
  void (*silu)(const float* x, float* y, int64_t n);
  void (*gelu)(const float* x, float* y, int64_t n);
};

/// The functions of a supported target.
const Ops& ops_of(Target target) noexcept;

extern const Ops kScalarOps;
extern const Ops kAvx2Ops;
extern const Ops kAvx512Ops;
extern const Ops kAmxOps;

}  // namespace hxq::kernels::cpu
