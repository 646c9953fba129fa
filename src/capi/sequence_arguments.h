#pragma once

#include "capi/arguments.h"
#include "capi/handles.h"
#include "kernels/uniform_batch.h"

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

/// `sequences` sequences of `tokens` rows each: more than rows are counted with is an invalid argument.
void batch_size_fits(int64_t sequences, int64_t tokens);
/// The rows of such sequences.
kernels::UniformBatch batch_of(int64_t sequences, int64_t tokens);

/// The states that sequences start from, `size` floats each: the caller's, or zeros that nobody looks at afterwards.
float* states_or_zeros(hxq_context& context, float* states, int64_t sequences, int64_t size);

/// What a gradient is asked for with: an operation that starts from zeros and gives no results, and memory for all
/// that is found.
void require_no_results(const float* state, const float* y);
void require_outputs(const hxq_scan_gradients& g);
void require_outputs(const hxq_ssd_gradients& g);

/// Turns a gradient with respect to a = -exp(a_log) into one with respect to a_log: da * a.
void through_log(const float* a, float* da, int64_t count);

}  // namespace hxq::capi
