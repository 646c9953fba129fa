#include <algorithm>
#include <cstring>

#include "capi/handles.h"

using namespace hxq;
using namespace hxq::capi;

namespace {

void check_shape(const hxq_matrix* matrix, int64_t rows, int64_t cols, const char* message) {
  require(matrix->value->rows() == rows && matrix->value->cols() == cols, message);
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
    // The kernel keeps one input less: the oldest is moved on here.
    if (context.team.rank() == 0) {
      const float* oldest = tokens < mixer.width ? conv_state + tokens * n : xz + (tokens - mixer.width) * 2 * n;
      std::memmove(conv_state, oldest, static_cast<size_t>(n) * sizeof(float));
    }
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

hxq_status hxq_mamba_mixer_forward(hxq_context* context, const hxq_mamba_mixer* mixer, int64_t batch, int64_t tokens,
                                   const float* x, float* conv_state, float* ssm_state, float* y) {
  return guard([&] {
    require(batch >= 1 && tokens >= 1 && mixer->width >= 1 && mixer->state_size >= 1, "a size is less than 1");
    MixerPass pass{.mixer = *mixer,
                   .tokens = tokens,
                   .x = x,
                   .y = y,
                   .conv = nullptr,
                   .conv_state = conv_state,
                   .ssm_state = ssm_state,
                   .work = nullptr};
    const int64_t inner = pass.inner();
    const int64_t hidden = pass.hidden();
    check_shape(mixer->in_proj, 2 * inner, hidden, "in_proj does not fit out_proj");
    check_shape(mixer->out_proj, hidden, inner, "out_proj does not fit in_proj");
    check_shape(mixer->x_proj, pass.dbc_size(), inner, "x_proj does not fit out_proj and dt_proj");
    check_shape(mixer->dt_proj, inner, pass.rank(), "dt_proj does not fit out_proj");

    context->filter.resize(static_cast<size_t>(mixer->width * inner));
    for (int64_t c = 0; c < inner; ++c) {
      for (int64_t j = 0; j < mixer->width; ++j) {
        context->filter[static_cast<size_t>(j * inner + c)] = mixer->conv_weight[c * mixer->width + j];
      }
    }
    pass.conv = context->filter.data();
    context->output.resize(static_cast<size_t>(pass.work_size()));
    pass.work = context->output.data();
    for (int64_t s = 0; s < batch; ++s) {
      run(*context, tokens * 3 * inner * hidden, pass);
      pass.x += tokens * hidden;
      pass.y += tokens * hidden;
      pass.conv_state += mixer->width * inner;
      pass.ssm_state += mixer->state_size * inner;
    }
  });
}
