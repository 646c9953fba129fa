#pragma once

#include <cuda_runtime.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "io/half.h"
#include "kernels/cuda/types.h"

/// What tests of the CUDA kernels share: arrays in device memory, activations of any type, reasons to skip.
namespace hxq::cuda::testing {

/// Why nothing can run here, or an empty string.
inline std::string no_gpu_reason() {
  int count = 0;
  const cudaError_t error = cudaGetDeviceCount(&count);
  if (error != cudaSuccess) return std::string("no GPU: ") + cudaGetErrorString(error);
  return count > 0 ? "" : "no GPU";
}

/// 90 for 9.0.
inline int current_capability() {
  int device = 0, major = 0, minor = 0;
  EXPECT_EQ(cudaGetDevice(&device), cudaSuccess);
  EXPECT_EQ(cudaDeviceGetAttribute(&major, cudaDevAttrComputeCapabilityMajor, device), cudaSuccess);
  EXPECT_EQ(cudaDeviceGetAttribute(&minor, cudaDevAttrComputeCapabilityMinor, device), cudaSuccess);
  return 10 * major + minor;
}

#define HXQ_NEEDS_GPU()                                                                      \
  do {                                                                                       \
    if (const std::string reason = no_gpu_reason(); !reason.empty()) GTEST_SKIP() << reason; \
  } while (false)

#define HXQ_NEEDS_HOPPER()                                                \
  do {                                                                    \
    HXQ_NEEDS_GPU();                                                      \
    if (current_capability() != 90) GTEST_SKIP() << "needs a GPU of 9.0"; \
  } while (false)

#define HXQ_EXPECT_OK(expression)                                                \
  do {                                                                           \
    const ::hxq::cuda::Status status = (expression);                             \
    EXPECT_EQ(status, ::hxq::cuda::Status::ok) << ::hxq::cuda::describe(status); \
  } while (false)

/// Waits for all work and expects that none failed.
inline void expect_finished() {
  const cudaError_t error = cudaDeviceSynchronize();
  EXPECT_EQ(error, cudaSuccess) << cudaGetErrorString(error);
}

/// An array in device memory; its bytes are 0xff, NaN for every float type, until something is written.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t count) : count_(count) {
    // Arrays of matrices may be read up to the next multiple of 16 bytes.
    const size_t bytes = std::max<size_t>((count * sizeof(T) + 15) / 16 * 16, 16);
    EXPECT_EQ(cudaMalloc(&data_, bytes), cudaSuccess);
    EXPECT_EQ(cudaMemset(data_, 0xff, bytes), cudaSuccess);
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    if (!values.empty()) {
      EXPECT_EQ(cudaMemcpy(data_, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), cudaSuccess);
    }
  }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;
  DeviceArray(DeviceArray&& other) noexcept : data_(std::exchange(other.data_, nullptr)), count_(other.count_) {}
  ~DeviceArray() { cudaFree(data_); }

  T* data() const { return static_cast<T*>(data_); }
  size_t size() const { return count_; }
  std::vector<T> values() const {
    std::vector<T> host(count_);
    EXPECT_EQ(cudaMemcpy(host.data(), data_, count_ * sizeof(T), cudaMemcpyDeviceToHost), cudaSuccess);
    return host;
  }

 private:
  void* data_ = nullptr;
  size_t count_;
};

inline size_t element_bytes(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

inline float read_element(const std::byte* at, DType dtype) {
  if (dtype == DType::f32) {
    float value;
    std::memcpy(&value, at, 4);
    return value;
  }
  uint16_t bits;
  std::memcpy(&bits, at, 2);
  return dtype == DType::bf16 ? float_from_bf16(bits) : float_from_f16(bits);
}

inline void write_element(std::byte* at, DType dtype, float value) {
  if (dtype == DType::f32) {
    std::memcpy(at, &value, 4);
    return;
  }
  const uint16_t bits = dtype == DType::bf16 ? bf16_from_float(value) : f16_from_float(value);
  std::memcpy(at, &bits, 2);
}

/// The value after a round trip through `dtype`.
inline float rounded(float value, DType dtype) {
  std::byte memory[4];
  write_element(memory, dtype, value);
  return read_element(memory, dtype);
}

/// Half a unit in the last place of `dtype`, relative.
inline double rounding_of(DType dtype) {
  return dtype == DType::f32 ? 0x1p-24 : dtype == DType::bf16 ? 0x1p-8 : 0x1p-11;
}

/// Activations [rows, cols] with `gap` elements between rows, on the device.
class DeviceRows {
  template <class Bytes>
  auto* at(Bytes& host, int64_t r, int64_t c) const {
    return host.data() + static_cast<size_t>(r * stride_ + c) * element_bytes(dtype_);
  }

 public:
  DeviceRows(int64_t rows, int64_t cols, int64_t gap, DType dtype)
      : rows_(rows),
        cols_(cols),
        stride_(cols + gap),
        dtype_(dtype),
        bytes_(static_cast<size_t>(rows * stride_) * element_bytes(dtype)) {}
  DeviceRows(const std::vector<float>& values, int64_t rows, int64_t cols, int64_t gap, DType dtype)
      : DeviceRows(rows, cols, gap, dtype) {
    set(values);
  }

  void set(const std::vector<float>& values) {
    std::vector<std::byte> host(bytes_.size(), std::byte{0xff});
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < cols_; ++c)
        write_element(at(host, r, c), dtype_, values[static_cast<size_t>(r * cols_ + c)]);
    }
    EXPECT_EQ(cudaMemcpy(bytes_.data(), host.data(), host.size(), cudaMemcpyHostToDevice), cudaSuccess);
  }

  Input input() const { return {.data = bytes_.data(), .stride = stride_, .dtype = dtype_}; }
  Output output() const { return {.data = bytes_.data(), .stride = stride_, .dtype = dtype_}; }

  /// The rows without the gaps, which must be as they were.
  std::vector<float> values() const {
    std::vector<std::byte> host = bytes_.values();
    std::vector<float> values;
    for (int64_t r = 0; r < rows_; ++r) {
      for (int64_t c = 0; c < stride_; ++c) {
        const float value = read_element(at(host, r, c), dtype_);
        if (c < cols_) {
          values.push_back(value);
        } else {
          EXPECT_TRUE(std::isnan(value)) << "row " << r << ": an element between rows was written";
        }
      }
    }
    return values;
  }

 private:
  int64_t rows_, cols_, stride_;
  DType dtype_;
  DeviceArray<std::byte> bytes_;
};

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  float normal() { return normal_(engine_); }
  int64_t below(int64_t n) { return std::uniform_int_distribution<int64_t>(0, n - 1)(engine_); }
  /// Values that are exact in `dtype`.
  std::vector<float> normals(size_t count, DType dtype = DType::f32, float scale = 1) {
    std::vector<float> values(count);
    for (float& value : values) value = rounded(scale * normal(), dtype);
    return values;
  }

 private:
  std::mt19937 engine_;
  std::normal_distribution<float> normal_;
};

/// Expects every value within `bound` times its `size` (and rounding to `dtype`) of the reference.
inline void expect_close(const std::vector<float>& values, const std::vector<double>& reference,
                         const std::vector<double>& size, double bound, DType dtype, const std::string& what) {
  ASSERT_EQ(values.size(), reference.size()) << what;
  double worst = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    const double smallest = dtype == DType::f16 ? 0x1p-25 : 1e-30;  // subnormal numbers of binary16 are far apart
    const double allowed = bound * size[i] + 1.01 * rounding_of(dtype) * std::fabs(reference[i]) + smallest;
    const double error = std::fabs(values[i] - reference[i]);
    if (!(error <= allowed)) {
      ADD_FAILURE() << what << ": element " << i << " is " << values[i] << ", not " << reference[i] << " (allowed "
                    << allowed << ")";
      return;
    }
    if (size[i] > 0) worst = std::max(worst, error / size[i]);
  }
  ::testing::Test::RecordProperty("worst", std::to_string(worst));
}

}  // namespace hxq::cuda::testing
