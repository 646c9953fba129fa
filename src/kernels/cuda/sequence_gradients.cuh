// What gradients along sequences share.

#pragma once

#include "kernels/cuda/device.cuh"

namespace hxq::cuda {

__device__ inline float sigmoid(float x) { return 1.0f / (1.0f + __expf(-x)); }

/// Sums over the lanes of a warp of values of 32 places: each lane gets that of place `place_of_lane()`.
__device__ inline float sum_places(float (&of_places)[4][8]) {
  const auto lane = static_cast<int>(threadIdx.x % 32);
  float sum = 0;  // four lanes have the sums of the same eight places
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    const float found = sum_lanes_each<8>(of_places[i]);
    sum = lane % 4 == i ? found : sum;
  }
  return sum;
}
__device__ inline int place_of_lane() { return static_cast<int>(threadIdx.x % 4 * 8 + threadIdx.x % 32 / 4); }

inline Status clear_floats(float* memory, int64_t count, Stream stream) {
  return status_of(
      cudaMemsetAsync(memory, 0, static_cast<size_t>(count) * sizeof(float), static_cast<cudaStream_t>(stream)));
}

}  // namespace hxq::cuda
