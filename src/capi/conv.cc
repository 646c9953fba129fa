#include <fmt/format.h>

#include <algorithm>

#include "capi/sequence_arguments.h"
#include "kernels/gradients/gradients.h"

using namespace hxq;
using namespace hxq::capi;

namespace {

/// The arguments' sizes and inputs, checked. Returns x.
FloatRows checked(const hxq_context* context, const hxq_conv_args* args) {
  require_pointers({{"context", context}, {"args", args}});
  require_sizes(
      {{"batch", args->batch}, {"tokens", args->tokens}, {"channels", args->channels}, {"width", args->width}});
  require_pointers({{"weight", args->weight}});
  require_aligned({{"bias", args->bias}, {"state", args->state}});
  return float_rows("x", args->x, args->batch * args->tokens, args->channels);
}

int64_t work_of(const hxq_conv_args& args) { return 8 * args.tokens * args.channels * args.width; }

}  // namespace

hxq_status hxq_causal_conv1d(hxq_context* context, const hxq_conv_args* given) {
  return guard("computing a convolution", [&] {
    const FloatRows x = checked(context, given);
    const hxq_conv_args& args = *given;
    const int64_t rows = args.state == nullptr ? args.width - 1 : args.state_rows;
    if (rows != args.width - 1 && rows != args.width) {
      throw InvalidArgument(fmt::format("state_rows is {}, expected {} or {}", rows, args.width - 1, args.width));
    }
    require_pointers({{"y", args.y}});
    const float* filter = filter_of(*context, args.weight, args.channels, args.width);
    float* kept = states_or_zeros(*context, args.state, args.batch, rows * args.channels);
    const kernels::UniformBatch batch = batch_of(args.batch, args.tokens);
    const std::vector<void*> states = batch.states(kept, rows * args.channels);
    run(*context, args.batch * work_of(args), [&](const kernels::CpuContext& c) {
      kernels::causal_conv1d_silu({.x = x.data,
                                   .x_stride = x.stride,
                                   .y = args.y,
                                   .batch = batch.view(),
                                   .channels = args.channels,
                                   .width = args.width,
                                   .weight = filter,
                                   .bias = args.bias,
                                   .state = states.data(),
                                   .state_rows = rows},
                                  c);
    });
  });
}

hxq_status hxq_causal_conv1d_gradient(hxq_context* context, const hxq_conv_args* given, const hxq_conv_gradients* out) {
  return guard("computing a convolution's gradient", [&] {
    const FloatRows x = checked(context, given);
    const hxq_conv_args& args = *given;
    const hxq_conv_gradients& gradients = not_null(out, "gradients");
    require_no_results(args.state, args.y);
    require_pointers(
        {{"g", gradients.g}, {"dx", gradients.dx}, {"dweight", gradients.dweight}, {"dbias", gradients.dbias}});
    const float* filter = filter_of(*context, args.weight, args.channels, args.width);
    float* dweight = reserve(context->output, args.channels * args.width, "the filter's gradient");
    std::fill_n(dweight, args.channels * args.width, 0.0f);
    std::fill_n(gradients.dbias, args.channels, 0.0f);
    for (int64_t s = 0; s < args.batch; ++s) {
      const int64_t at = s * args.tokens * args.channels;
      run(*context, work_of(args), [&](const kernels::CpuContext& c) {
        kernels::causal_conv1d_silu_gradient({.x = x.row(s * args.tokens),
                                              .x_stride = x.stride,
                                              .g = gradients.g + at,
                                              .tokens = args.tokens,
                                              .channels = args.channels,
                                              .width = args.width,
                                              .weight = filter,
                                              .bias = args.bias,
                                              .dx = gradients.dx + at,
                                              .dweight = dweight,
                                              .dbias = gradients.dbias},
                                             c);
      });
    }
    transpose(dweight, args.width, args.channels, gradients.dweight);
  });
}
