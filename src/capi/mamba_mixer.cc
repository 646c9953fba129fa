#include <fmt/format.h>

#include "capi/sequence_arguments.h"

using namespace hxq;
using namespace hxq::capi;

namespace {

void check_shape(const char* name, const hxq_matrix* matrix, int64_t rows, int64_t cols) {
  const kernels::PreparedMatrix& found = *matrix->value;
  if (found.rows() == rows && found.cols() == cols) return;
  throw InvalidArgument(
      fmt::format("{} is [{}, {}], the others ask for [{}, {}]", name, found.rows(), found.cols(), rows, cols));
}

void check(const hxq_mamba_mixer& mixer, const hxq_mamba_mixer_args& args) {
  require_pointers({{"in_proj", mixer.in_proj},
                    {"x_proj", mixer.x_proj},
                    {"dt_proj", mixer.dt_proj},
                    {"out_proj", mixer.out_proj},
                    {"conv_weight", mixer.conv_weight},
                    {"a", mixer.a},
                    {"d", mixer.d},
                    {"x", args.x},
                    {"conv_state", args.conv_state},
                    {"ssm_state", args.ssm_state},
                    {"y", args.y}});
  require_sizes({{"batch", args.batch}, {"tokens", args.tokens}});
  require_sizes({{"width", mixer.width}, {"state_size", mixer.state_size}});
  require_phase(args.phase);
  require_precision(args.precision);
  const int64_t inner = mixer.out_proj->value->cols();
  const int64_t hidden = mixer.in_proj->value->cols();
  const int64_t rank = mixer.dt_proj->value->cols();
  check_shape("in_proj", mixer.in_proj, 2 * inner, hidden);
  check_shape("out_proj", mixer.out_proj, hidden, inner);
  check_shape("x_proj", mixer.x_proj, rank + 2 * mixer.state_size, inner);
  check_shape("dt_proj", mixer.dt_proj, inner, rank);
}

/// One sequence through the mixer, all operations in one parallel region.
struct MixerPass {
  const hxq_mamba_mixer& mixer;
  int64_t tokens;
  const float* x;     // [tokens, hidden]
  float* y;           // [tokens, hidden]
  const float* conv;  // [width, inner]: the filter
  float* conv_state;  // [width, inner]: the last inputs, oldest first
  float* ssm_state;   // [state_size, inner]
  float* work;        // work_size(tokens) floats

  int64_t hidden() const { return mixer.in_proj->value->cols(); }
  int64_t inner() const { return mixer.out_proj->value->cols(); }
  int64_t rank() const { return mixer.dt_proj->value->cols(); }
  int64_t dbc_size() const { return rank() + 2 * mixer.state_size; }
  int64_t work_size() const { return tokens * (4 * inner() + dbc_size()); }

  void operator()(const kernels::Context& context) const noexcept {
    const int64_t n = inner();
    float* xz = work;                // [tokens, 2 * inner]: x, gate z
    float* u = xz + tokens * 2 * n;  // [tokens, inner], later the scan's output
    float* dt = u + tokens * n;      // [tokens, inner]
    float* dbc = dt + tokens * n;    // [tokens, rank + 2 * state_size]: dt, B, C
    mixer.in_proj->value->linear(
        {.x = x, .x_stride = hidden(), .y = xz, .y_stride = 2 * n, .tokens = tokens, .bias = mixer.in_proj_bias},
        context);
    if (context.team.rank() == 0) keep_oldest({xz, 2 * n}, tokens, n, mixer.width, conv_state);
    context.team.barrier();
    kernels::causal_conv1d_silu({.x = xz,
                                 .x_stride = 2 * n,
                                 .y = u,
                                 .tokens = tokens,
                                 .channels = n,
                                 .width = mixer.width,
                                 .weight = conv,
                                 .bias = mixer.conv_bias,
                                 .state = conv_state + n},
                                context);
    mixer.x_proj->value->linear({.x = u, .x_stride = n, .y = dbc, .y_stride = dbc_size(), .tokens = tokens}, context);
    mixer.dt_proj->value->linear({.x = dbc, .x_stride = dbc_size(), .y = dt, .y_stride = n, .tokens = tokens}, context);
    kernels::selective_scan({.u = u,
                             .dt = dt,
                             .dt_bias = mixer.dt_bias,
                             .b = dbc + rank(),
                             .c = dbc + rank() + mixer.state_size,
                             .bc_stride = dbc_size(),
                             .z = xz + n,
                             .z_stride = 2 * n,
                             .a = mixer.a,
                             .d = mixer.d,
                             .state = ssm_state,
                             .y = u,
                             .tokens = tokens,
                             .channels = n,
                             .state_size = mixer.state_size},
                            context);
    mixer.out_proj->value->linear(
        {.x = u, .x_stride = n, .y = y, .y_stride = hidden(), .tokens = tokens, .bias = mixer.out_proj_bias}, context);
  }
};

}  // namespace

hxq_status hxq_mamba_mixer_forward(hxq_context* context, const hxq_mamba_mixer* mixer,
                                   const hxq_mamba_mixer_args* given) {
  return guard("running a Mamba mixer", [&] {
    require_pointers({{"context", context}, {"mixer", mixer}, {"args", given}});
    const hxq_mamba_mixer_args& args = *given;
    check(*mixer, args);
    MixerPass pass{.mixer = *mixer,
                   .tokens = args.tokens,
                   .x = args.x,
                   .y = args.y,
                   .conv = nullptr,
                   .conv_state = args.conv_state,
                   .ssm_state = args.ssm_state,
                   .work = nullptr};
    const int64_t inner = pass.inner();
    const int64_t hidden = pass.hidden();
    require_sizes({{"batch", args.batch}, {"tokens", args.tokens}, {"the work", 4 * inner + pass.dbc_size()}});
    pass.conv = filter_of(*context, mixer->conv_weight, inner, mixer->width);
    pass.work = reserve(context->output, pass.work_size(), "the mixer's activations");
    const kernels::Target target = target_for(context->target, args.precision);
    for (int64_t s = 0; s < args.batch; ++s) {
      run(*context, target, args.tokens * 3 * inner * hidden, pass);
      pass.x += args.tokens * hidden;
      pass.y += args.tokens * hidden;
      pass.conv_state += mixer->width * inner;
      pass.ssm_state += mixer->state_size * inner;
    }
  });
}
