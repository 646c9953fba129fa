#pragma once

#include <cstdint>

namespace hxq::kernels {

/// Rows [begin, end) of a batch, all of one sequence and in its order.
struct RowRange {
  int32_t begin = 0;
  int32_t end = 0;
};

/// The rows of one step, of one sequence or of many. The arrays are in device memory: what a device records once can
/// run again on other sequences and positions.
struct Batch {
  /// Of a sequence; what is fastest for a token may be another thing after more.
  static constexpr int64_t kFewPositions = 2048;

  int64_t rows = 0;
  int64_t decode_rows = 0;  ///< these come first and are of phase `decode`; all others are of `prefill`
  int64_t segments = 0;
  const RowRange* segment = nullptr;  // [segments]: cover all rows, in order; none is empty
  const int32_t* position = nullptr;  // [rows]: of each row in its sequence; null where nothing asks for it
  bool few_positions = false;         ///< every row's is below kFewPositions
  /// The positions that segments of phase `prefill` see, their own included, are no more all together.
  int64_t prefill_positions = 0;

  /// To decode a token of each sequence.
  bool has_one_token_each() const noexcept { return decode_rows == rows && segments == rows; }
};

}  // namespace hxq::kernels
