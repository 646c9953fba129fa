#include "kernels/ssd.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "capi/sequence_arguments.h"
#include "kernels/gradients/gradients.h"

using namespace hxq;
using namespace hxq::capi;

namespace {

/// The call as the kernel takes it, for the first sequence and without state and y; everything checked. a is memory of
/// the context's.
kernels::SsdArgs checked(hxq_context* context, const hxq_ssd_args* given) {
  require_pointers({{"context", context}, {"args", given}});
  const hxq_ssd_args& args = *given;
  require_sizes({{"batch", args.batch},
                 {"tokens", args.tokens},
                 {"heads", args.heads},
                 {"head_dim", args.head_dim},
                 {"state_size", args.state_size}});
  require_sizes({{"groups", args.groups}});
  if (args.heads % args.groups != 0) {
    throw InvalidArgument(fmt::format("{} heads are not a multiple of {} groups", args.heads, args.groups));
  }
  require_pointers({{"dt_bias", args.dt_bias}, {"a_log", args.a_log}, {"d", args.d}});
  require_aligned({{"state", args.state}});
  if (!(args.dt_min <= args.dt_max)) {
    throw InvalidArgument(fmt::format("dt_min is {}, expected no more than dt_max, {}", args.dt_min, args.dt_max));
  }
  const int64_t rows = args.batch * args.tokens;
  const int64_t inner = args.heads * args.head_dim;
  const FloatRows xbc = float_rows("xbc", args.xbc, rows, inner + 2 * args.groups * args.state_size);
  const FloatRows dt = float_rows("dt", args.dt, rows, args.heads);
  const FloatRows z = float_rows("z", args.z, rows, inner);
  float* a = reserve(context->filter, args.heads, "decay rates");
  for (int64_t h = 0; h < args.heads; ++h) a[h] = -std::exp(args.a_log[h]);
  return {.x = xbc.data,
          .b = xbc.data + inner,
          .c = xbc.data + inner + args.groups * args.state_size,
          .xbc_stride = xbc.stride,
          .dt = dt.data,
          .dt_stride = dt.stride,
          .dt_bias = args.dt_bias,
          .dt_min = args.dt_min,
          .dt_max = args.dt_max,
          .a = a,
          .d = args.d,
          .z = z.data,
          .z_stride = z.stride,
          .batch = {.rows = args.tokens},
          .heads = args.heads,
          .head_dim = args.head_dim,
          .groups = args.groups,
          .state_size = args.state_size};
}

/// Moves the inputs on by one sequence.
void next_sequence(kernels::SsdArgs& args) {
  args.x += args.batch.rows * args.xbc_stride;
  args.b += args.batch.rows * args.xbc_stride;
  args.c += args.batch.rows * args.xbc_stride;
  args.dt += args.batch.rows * args.dt_stride;
  args.z += args.batch.rows * args.z_stride;
}

int64_t work_of(const hxq_ssd_args& args) { return 4 * args.tokens * args.heads * args.head_dim * args.state_size; }

}  // namespace

hxq_status hxq_ssd(hxq_context* context, const hxq_ssd_args* given) {
  return guard("computing a state-space recurrence", [&] {
    kernels::SsdArgs args = checked(context, given);
    require_pointers({{"y", given->y}});
    const int64_t inner = args.heads * args.head_dim;
    const int64_t size = inner * args.state_size;
    const kernels::UniformBatch batch = batch_of(given->batch, given->tokens);
    const std::vector<void*> states = batch.states(states_or_zeros(*context, given->state, given->batch, size), size);
    args.batch = batch.view();
    args.state = states.data();
    args.y = given->y;
    run(*context, given->batch * work_of(*given), [&](const kernels::CpuContext& team) { kernels::ssd(args, team); });
  });
}

hxq_status hxq_ssd_gradient(hxq_context* context, const hxq_ssd_args* given, const hxq_ssd_gradients* out) {
  return guard("computing a state-space recurrence's gradient", [&] {
    kernels::SsdGradientArgs args{.forward = checked(context, given)};
    const hxq_ssd_gradients& gradients = not_null(out, "gradients");
    require_no_results(given->state, given->y);
    require_outputs(gradients);
    const int64_t tokens = given->tokens;
    const int64_t inner = given->heads * given->head_dim;
    const int64_t bc = given->groups * given->state_size;
    args.dx = reserve(context->output, tokens * (inner + 2 * bc), "gradients of x, B and C");
    args.db = args.dx + tokens * inner;
    args.dc = args.db + tokens * bc;
    args.da = gradients.da_log;
    args.dd = gradients.dd;
    args.ddt_bias = gradients.ddt_bias;
    for (float* sum : {args.da, args.dd, args.ddt_bias}) std::fill_n(sum, given->heads, 0.0f);
    for (int64_t s = 0; s < given->batch; ++s, next_sequence(args.forward)) {
      args.g = gradients.g + s * tokens * inner;
      args.dz = gradients.dz + s * tokens * inner;
      args.ddt = gradients.ddt + s * tokens * given->heads;
      run(*context, 2 * work_of(*given), [&](const kernels::CpuContext& team) { kernels::ssd_gradient(args, team); });
      for (int64_t t = 0; t < tokens; ++t) {
        float* row = gradients.dxbc + (s * tokens + t) * (inner + 2 * bc);
        std::copy_n(args.dx + t * inner, inner, row);
        std::copy_n(args.db + t * bc, bc, row + inner);
        std::copy_n(args.dc + t * bc, bc, row + inner + bc);
      }
    }
    through_log(args.forward.a, args.da, given->heads);
  });
}
