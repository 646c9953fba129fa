#pragma once

#include "kernels/cuda/types.h"

namespace hxq::cuda {

/// The token with the largest of each row of logits, of equal ones the first: greedy sampling. -1 for a row that has a
/// NaN or whose largest is infinite.
struct MostLikelyArgs {
  Input logits;  // [rows, vocabulary]
  int64_t rows = 0;
  int64_t vocabulary = 0;    ///< 1 or more
  int32_t* token = nullptr;  // [rows], in device memory or that of `allocate_on_host`
};
Status most_likely(const MostLikelyArgs& args, Stream stream) noexcept;

}  // namespace hxq::cuda
