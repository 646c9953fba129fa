#include <algorithm>

#include "capi/sequence_arguments.h"
#include "kernels/cpu/ops.h"
#include "kernels/gradients/gradients.h"

using namespace hxq;
using namespace hxq::capi;

namespace {

/// The call as the kernel takes it, for the first sequence and without state and y; everything checked.
kernels::ScanArgs checked(const hxq_context* context, const hxq_scan_args* given) {
  require_pointers({{"context", context}, {"args", given}});
  const hxq_scan_args& args = *given;
  require_sizes(
      {{"batch", args.batch}, {"tokens", args.tokens}, {"channels", args.channels}, {"state_size", args.state_size}});
  require_pointers({{"u", args.u}, {"dt", args.dt}, {"a", args.a}, {"d", args.d}});
  require_aligned({{"dt_bias", args.dt_bias}, {"state", args.state}});
  const int64_t rows = args.batch * args.tokens;
  const FloatRows b = float_rows("b", args.b, rows, args.state_size);
  const FloatRows c = float_rows("c", args.c, rows, args.state_size);
  const FloatRows z = float_rows("z", args.z, rows, args.channels);
  require(b.stride == c.stride, "b and c have different strides");
  return {.u = args.u,
          .dt = args.dt,
          .dt_bias = args.dt_bias,
          .b = b.data,
          .c = c.data,
          .bc_stride = b.stride,
          .z = z.data,
          .z_stride = z.stride,
          .a = args.a,
          .d = args.d,
          .batch = {.rows = args.tokens},
          .channels = args.channels,
          .state_size = args.state_size};
}

/// Moves the inputs on by one sequence.
void next_sequence(kernels::ScanArgs& args) {
  args.u += args.batch.rows * args.channels;
  args.dt += args.batch.rows * args.channels;
  args.b += args.batch.rows * args.bc_stride;
  args.c += args.batch.rows * args.bc_stride;
  args.z += args.batch.rows * args.z_stride;
}

int64_t work_of(const hxq_scan_args& args) { return 8 * args.tokens * args.channels * args.state_size; }

}  // namespace

hxq_status hxq_decay_rates(hxq_context* context, const float* a_log, int64_t channels, int64_t state_size, float* a) {
  return guard("computing decay rates", [&] {
    require_pointers({{"context", context}, {"a_log", a_log}, {"a", a}});
    require_sizes({{"channels", channels}, {"state_size", state_size}});
    transpose(a_log, channels, state_size, a);
    kernels::cpu::ops_of(context->target).exp(a, a, channels * state_size);
    for (int64_t i = 0; i < channels * state_size; ++i) a[i] = -a[i];
  });
}

hxq_status hxq_selective_scan(hxq_context* context, const hxq_scan_args* given) {
  return guard("computing a selective scan", [&] {
    kernels::ScanArgs args = checked(context, given);
    require_pointers({{"y", given->y}});
    const int64_t size = args.state_size * args.channels;
    const kernels::UniformBatch batch = batch_of(given->batch, given->tokens);
    const std::vector<void*> states = batch.states(states_or_zeros(*context, given->state, given->batch, size), size);
    args.batch = batch.view();
    args.state = states.data();
    args.y = given->y;
    run(*context, given->batch * work_of(*given),
        [&](const kernels::CpuContext& team) { kernels::selective_scan(args, team); });
  });
}

hxq_status hxq_selective_scan_gradient(hxq_context* context, const hxq_scan_args* given,
                                       const hxq_scan_gradients* out) {
  return guard("computing a selective scan's gradient", [&] {
    kernels::ScanGradientArgs args{.forward = checked(context, given)};
    const hxq_scan_gradients& gradients = not_null(out, "gradients");
    require_no_results(given->state, given->y);
    require_outputs(gradients);
    const int64_t channels = given->channels;
    const int64_t state_size = given->state_size;
    args.da = reserve(context->output, channels * state_size, "the gradient of the decay rates");
    args.dd = gradients.dd;
    args.ddt_bias = gradients.ddt_bias;
    std::fill_n(args.da, channels * state_size, 0.0f);
    std::fill_n(args.dd, channels, 0.0f);
    std::fill_n(args.ddt_bias, channels, 0.0f);
    for (int64_t s = 0; s < given->batch; ++s, next_sequence(args.forward)) {
      const int64_t at = s * given->tokens * channels;
      const int64_t bc_at = s * given->tokens * state_size;
      args.g = gradients.g + at;
      args.du = gradients.du + at;
      args.ddt = gradients.ddt + at;
      args.dz = gradients.dz + at;
      args.db = gradients.db + bc_at;
      args.dc = gradients.dc + bc_at;
      run(*context, 2 * work_of(*given),
          [&](const kernels::CpuContext& team) { kernels::selective_scan_gradient(args, team); });
    }
    through_log(given->a, args.da, channels * state_size);
    transpose(args.da, state_size, channels, gradients.da_log);
  });
}
