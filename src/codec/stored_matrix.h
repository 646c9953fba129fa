#pragma once

#include <cstddef>
#include <cstdint>
#include <span>
#include <vector>

#include "hxq/tensor.h"

namespace hxq {

struct Codec;

/// What x goes through before a product: once for all matrices that share it.
struct InputTransform {
  std::span<const float> scales = {};  ///< [cols], x is divided by these; empty: x is used as it is
};

/// A weight matrix as a checkpoint stores it: read and checked, prepared for no device. It does not change; what is
/// large stays where it is, usually in a mapped file, which must outlive the object.
///
///     y = W transform(x)
struct StoredMatrix {
  const Codec* codec;  ///< null: stored exactly
  int64_t rows = 0;    ///< out_features
  int64_t cols = 0;    ///< in_features

  virtual ~StoredMatrix() = default;

  /// Rows [begin, end) of W, in `out` [end - begin, cols]. Scalar and obvious: it is the specification of the codec,
  /// which kernels are tested against. Allocates nothing; any number of threads may call.
  virtual void decode_rows(int64_t begin, int64_t end, std::span<float> out) const noexcept = 0;

  virtual InputTransform transform() const noexcept { return {}; }

  /// Weights that are stored exactly beside the others.
  virtual int64_t outliers() const noexcept { return 0; }

  /// The values that weights were rounded to, ascending, before a low-rank term is added; empty where there are none or
  /// every column has others. Those that groups scale are given at the median scale.
  virtual std::vector<float> weight_levels() const { return {}; }

  /// Bytes that one product with a vector reads.
  virtual int64_t bytes_read() const noexcept = 0;

 protected:
  explicit StoredMatrix(const Codec* stored_with) : codec(stored_with) {}
  StoredMatrix(const StoredMatrix&) = default;
  StoredMatrix& operator=(const StoredMatrix&) = default;
};

/// A matrix whose tensor is stored as it is: F32, F16 or BF16, possibly unaligned.
struct ExactMatrix final : StoredMatrix {
  /// `tensor`: [rows, cols].
  explicit ExactMatrix(const TensorView& tensor);

  DType dtype;
  std::span<const std::byte> bytes;

  void decode_rows(int64_t begin, int64_t end, std::span<float> out) const noexcept override;
  int64_t bytes_read() const noexcept override { return static_cast<int64_t>(bytes.size()); }
};

/// Rows [begin, end) of the dense matrix that y = W x multiplies with, which an embedding gives and a source is
/// compared with: decoded, and the transform of x undone. `out` is [end - begin, cols].
void decode_dense_rows(const StoredMatrix& matrix, int64_t begin, int64_t end, std::span<float> out) noexcept;

}  // namespace hxq
