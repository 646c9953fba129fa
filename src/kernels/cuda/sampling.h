#pragma once

#include "kernels/cuda/types.h"

namespace hxq::cuda {

/// The `count` largest of each row of logits, largest first, of equal ones the lower index first. NaN counts as the
/// smallest. With count 1: greedy sampling.
struct TopKArgs {
  Input logits;  // [rows, vocabulary]
  int64_t rows = 0;
  int64_t vocabulary = 0;
  int32_t count = 1;           ///< 1 to min(kMaxTopK, vocabulary)
  int32_t* indices = nullptr;  // [rows, count]
  float* values = nullptr;     // [rows, count], or null
};
inline constexpr int32_t kMaxTopK = 256;
Status top_k(const TopKArgs& args, Stream stream) noexcept;

}  // namespace hxq::cuda
