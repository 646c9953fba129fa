#pragma once

#include "codec/stored_matrix.h"

namespace hxq::kernels {

/// A stored matrix in the form that one device multiplies with, made once, when a model is opened (`Device::prepare`).
/// Only that device's operations know more of it. Immutable; any number of teams may use it.
///
/// What the device works out for itself (tables in another form, differences, uploaded bytes) lives in the classes that
/// implement this, never in the codec.
class PreparedMatrix {
 public:
  virtual ~PreparedMatrix() = default;
  PreparedMatrix(const PreparedMatrix&) = delete;
  PreparedMatrix& operator=(const PreparedMatrix&) = delete;

  int64_t rows() const noexcept { return rows_; }  ///< out_features
  int64_t cols() const noexcept { return cols_; }  ///< in_features
  /// Null: stored exactly.
  const Codec* codec() const noexcept { return codec_; }

  /// Bytes that one product with a vector reads.
  virtual int64_t bytes_read() const noexcept = 0;

  /// Works out what opening a model should not wait for. Called at least once before the first product, from any
  /// thread. Throws `OutOfMemory`.
  virtual void finish() const {}

 protected:
  explicit PreparedMatrix(const StoredMatrix& stored) noexcept
      : rows_(stored.rows), cols_(stored.cols), codec_(stored.codec) {}

 private:
  int64_t rows_;
  int64_t cols_;
  const Codec* codec_;
};

}  // namespace hxq::kernels
