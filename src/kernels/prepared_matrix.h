#pragma once

#include <cstdint>

#include "codec/codec.h"
#include "kernels/kernels.h"

namespace hxq::kernels {

/// A stored matrix made ready for a device, once, when a model is opened. Immutable; any number of teams may use it.
///
/// What the device works out for itself (tables in another form, differences, uploaded bytes) lives in the classes that
/// implement this, never in the codec. Operations are those of kernels.h: called by all threads of a team with the same
/// arguments, and complete for all of them on return.
class PreparedMatrix {
 public:
  virtual ~PreparedMatrix() = default;
  PreparedMatrix(const PreparedMatrix&) = delete;
  PreparedMatrix& operator=(const PreparedMatrix&) = delete;

  int64_t rows() const noexcept { return rows_; }
  int64_t cols() const noexcept { return cols_; }
  /// Null: stored exactly.
  const Codec* codec() const noexcept { return codec_; }

  /// What `linear` does to x first, and `decode_rows` leaves out.
  virtual InputTransform transform() const noexcept { return {}; }

  /// Bytes that one product with a vector reads.
  virtual int64_t bytes_read() const noexcept = 0;

  /// y = W transform(x) (+ bias) (+ y).
  virtual void linear(const LinearArgs& args, const Context& context) const noexcept = 0;

  /// out[i, :] = row ids[i] of the dense matrix: decoded to float, the transform undone. ids are in range.
  virtual void gather_rows(const int32_t* ids, int64_t count, float* out, const Context& context) const noexcept = 0;

  /// Rows [begin, end) of W to out [end - begin, cols]: what transform(x) is multiplied with.
  virtual void decode_rows(int64_t begin, int64_t end, float* out, const Context& context) const noexcept = 0;

 protected:
  explicit PreparedMatrix(const StoredMatrix& stored) noexcept
      : rows_(stored.rows), cols_(stored.cols), codec_(stored.codec) {}

 private:
  int64_t rows_;
  int64_t cols_;
  const Codec* codec_;
};

}  // namespace hxq::kernels
