#pragma once

#include <algorithm>

#include "kernels/cuda/test_device.h"

/// Ragged batches for tests of the CUDA kernels, and what is expected of their rows.
namespace hxq::cuda::testing {

inline double silu_of(double x) { return x / (1 + std::exp(-x)); }
inline double softplus_of(double x) { return x > 40 ? x : std::log1p(std::exp(x)); }

/// Segments with gaps between them, and the states of their sequences.
struct TestBatch {
  std::vector<RowRange> segments;
  int64_t rows = 0;
  std::vector<std::vector<float>> start;
  std::vector<DeviceArray<float>> state;
  DeviceArray<void*> pointers{0};
  DeviceArray<RowRange> device_segments{0};

  TestBatch(const std::vector<int>& lengths, size_t state_size, Random& random)
      : pointers(lengths.size()), device_segments(lengths.size()) {
    std::vector<void*> host;
    state.reserve(lengths.size());
    for (const int length : lengths) {
      segments.push_back({static_cast<int32_t>(rows), static_cast<int32_t>(rows) + length});
      rows += length + 1;
      start.push_back(random.normals(state_size));
      host.push_back(state.emplace_back(start.back()).data());
    }
    EXPECT_EQ(cudaMemcpy(pointers.data(), host.data(), host.size() * sizeof(void*), cudaMemcpyHostToDevice),
              cudaSuccess);
    EXPECT_EQ(
        cudaMemcpy(device_segments.data(), segments.data(), segments.size() * sizeof(RowRange), cudaMemcpyHostToDevice),
        cudaSuccess);
  }
  Batch batch() const {
    int32_t longest = 0;
    for (const RowRange& s : segments) longest = std::max(longest, s.end - s.begin);
    return {.segments = device_segments.data(),
            .count = static_cast<int32_t>(segments.size()),
            .max_rows = longest,
            .total_rows = static_cast<int32_t>(rows)};
  }
};

/// Values, sizes for the bound, and which rows of the batch have them.
struct Expected {
  std::vector<double> y, size;
};

inline void expect_rows(const DeviceRows& y, int64_t cols, const TestBatch& batch, const Expected& expected,
                        double bound, DType dtype, const std::string& what) {
  const std::vector<float> all = y.values();
  std::vector<float> got;
  for (const RowRange& s : batch.segments) {
    const auto end = all.begin() + static_cast<int64_t>(s.end) * cols;
    got.insert(got.end(), all.begin() + static_cast<int64_t>(s.begin) * cols, end);
    for (int64_t c = 0; c < cols; ++c)
      EXPECT_TRUE(std::isnan(*(end + c))) << what << ": a row between segments was written";
  }
  expect_close(got, expected.y, expected.size, bound, dtype, what);
}

}  // namespace hxq::cuda::testing
