// Runs of tokens that long segments are cut into, and where what is kept of each lies.

#pragma once

#include <cstdint>

#include "kernels/cuda/types.h"

namespace hxq::cuda {

/// Where the state of a run of `length` tokens is kept: no two runs of a batch have the same slot.
__device__ inline int64_t slot_of_run(const RowRange& segment, int sequence, int run, int length) {
  return segment.begin / length + sequence + run;
}
/// As many as there may be: segments follow each other, so the last run of one has slot (end - 1) / length + sequence
/// at most.
inline int64_t slots_of_runs(const Batch& batch, int length) { return batch.total_rows / length + batch.count; }

}  // namespace hxq::cuda
