#include "capi/sequence_arguments.h"

#include <fmt/format.h>

#include <algorithm>
#include <limits>

namespace hxq::capi {

FloatRows float_rows(const char* name, const hxq_float_rows& rows, int64_t count, int64_t cols) {
  require_pointers({{name, rows.data}});
  return {rows.data, stride_of(name, rows.stride, count, cols)};
}

void transpose(const float* from, int64_t rows, int64_t cols, float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) to[c * rows + r] = from[r * cols + c];
  }
}

const float* filter_of(hxq_context& context, const float* weight, int64_t channels, int64_t width) {
  float* filter = reserve(context.filter, channels * width, "the filter");
  transpose(weight, channels, width, filter);
  return filter;
}

void batch_size_fits(int64_t sequences, int64_t tokens) {
  if (sequences * tokens > std::numeric_limits<int32_t>::max()) {
    throw InvalidArgument(fmt::format("{} sequences of {} tokens: too many rows for one call", sequences, tokens));
  }
}

kernels::UniformBatch batch_of(int64_t sequences, int64_t tokens) {
  batch_size_fits(sequences, tokens);
  return {sequences, tokens};
}

float* states_or_zeros(hxq_context& context, float* states, int64_t sequences, int64_t size) {
  if (states != nullptr) return states;
  float* zeros = reserve(context.state, sequences * size, "states");
  std::fill_n(zeros, sequences * size, 0.0f);
  return zeros;
}

void require_no_results(const float* state, const float* y) {
  require(state == nullptr && y == nullptr, "state and y must be null for a gradient");
}

void require_outputs(const hxq_scan_gradients& g) {
  require_pointers({{"g", g.g},
                    {"du", g.du},
                    {"ddt", g.ddt},
                    {"dz", g.dz},
                    {"db", g.db},
                    {"dc", g.dc},
                    {"da_log", g.da_log},
                    {"dd", g.dd},
                    {"ddt_bias", g.ddt_bias}});
}

void require_outputs(const hxq_ssd_gradients& g) {
  require_pointers({{"g", g.g},
                    {"dxbc", g.dxbc},
                    {"ddt", g.ddt},
                    {"dz", g.dz},
                    {"da_log", g.da_log},
                    {"dd", g.dd},
                    {"ddt_bias", g.ddt_bias}});
}

void through_log(const float* a, float* da, int64_t count) {
  for (int64_t i = 0; i < count; ++i) da[i] *= a[i];
}

}  // namespace hxq::capi
