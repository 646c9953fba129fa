#pragma once

#include "capi/arguments.h"
#include "capi/handles.h"

/// What the operations along a sequence share.
namespace hxq::capi {

/// Rows of floats with their stride filled in.
struct FloatRows {
  const float* data;
  int64_t stride;

  const float* row(int64_t i) const { return data + i * stride; }
};

/// The rows [count, cols] that the caller gives, checked.
FloatRows float_rows(const char* name, const hxq_float_rows& rows, int64_t count, int64_t cols);

/// to [cols, rows] = from [rows, cols] transposed.
void transpose(const float* from, int64_t rows, int64_t cols, float* to);

/// The filter [channels, width] as kernels want it, in memory of the context.
const float* filter_of(hxq_context& context, const float* weight, int64_t channels, int64_t width);

/// The state that a sequence starts from: the caller's, or zeros that nobody looks at afterwards.
float* state_or_zeros(hxq_context& context, float* state, int64_t sequence, int64_t size);

/// Puts into the first row of a convolution's state of `width` rows the one that will be the oldest once `tokens` more
/// have been seen; kernels keep one row less.
void keep_oldest(const FloatRows& x, int64_t tokens, int64_t channels, int64_t width, float* state);

/// Turns a gradient with respect to a = -exp(a_log) into one with respect to a_log: da * a.
void through_log(const float* a, float* da, int64_t count);

}  // namespace hxq::capi
