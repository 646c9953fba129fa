#include <algorithm>
#include <cmath>
#include <cstring>

#include "capi/handles.h"
#include "kernels/cpu/ops.h"
#include "kernels/gradients/gradients.h"

using namespace hxq;
using namespace hxq::capi;

namespace {

void check_sizes(std::initializer_list<int64_t> sizes) {
  for (const int64_t size : sizes) require(size >= 1, "a size is less than 1");
}

/// to [cols, rows] = from [rows, cols] transposed.
void transpose(const float* from, int64_t rows, int64_t cols, float* to) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = 0; c < cols; ++c) to[c * rows + r] = from[r * cols + c];
  }
}

/// The filter [channels, width] as kernels want it.
const float* filter_of(hxq_context& context, const float* weight, int64_t channels, int64_t width) {
  context.filter.resize(static_cast<size_t>(channels * width));
  transpose(weight, channels, width, context.filter.data());
  return context.filter.data();
}

/// The state that a sequence starts from: the caller's, or zeros that nobody looks at afterwards.
float* state_or_zeros(hxq_context& context, float* state, int64_t sequence, int64_t size) {
  if (state != nullptr) return state + sequence * size;
  context.state.assign(static_cast<size_t>(size), 0.0f);
  return context.state.data();
}

/// The row that will be the oldest of `width` kept inputs once `tokens` more have been seen.
void keep_oldest(const float* x, int64_t x_stride, int64_t tokens, int64_t channels, int64_t width, float* state) {
  const float* oldest = tokens < width ? state + tokens * channels : x + (tokens - width) * x_stride;
  std::memmove(state, oldest, static_cast<size_t>(channels) * sizeof(float));
}

/// gradient with respect to A_log, a = -exp(A_log): da * a, added up over sequences before.
void through_log(const float* a, float* da, int64_t count) {
  for (int64_t i = 0; i < count; ++i) da[i] *= a[i];
}

}  // namespace

hxq_status hxq_causal_conv1d(hxq_context* context, int64_t batch, int64_t tokens, int64_t channels, int64_t width,
                             const float* x, int64_t x_stride, const float* weight, const float* bias, float* state,
                             int64_t state_rows, float* y) {
  return guard([&] {
    check_sizes({batch, tokens, channels, width});
    require(state == nullptr || state_rows == width - 1 || state_rows == width, "state_rows is not width - 1 or width");
    const float* filter = filter_of(*context, weight, channels, width);
    for (int64_t s = 0; s < batch; ++s) {
      const float* sequence = x + s * tokens * x_stride;
      float* kept = state_or_zeros(*context, state, s, (state == nullptr ? width - 1 : state_rows) * channels);
      if (state != nullptr && state_rows == width) {
        keep_oldest(sequence, x_stride, tokens, channels, width, kept);
        kept += channels;
      }
      run(*context, 8 * tokens * channels * width, [&](const kernels::CpuContext& c) {
        kernels::causal_conv1d_silu({.x = sequence,
                                     .x_stride = x_stride,
                                     .y = y + s * tokens * channels,
                                     .batch = one.view(),
                                     .channels = channels,
                                     .width = width,
                                     .weight = filter,
                                     .bias = bias,
                                     .state = &state_address},
                                    c);
      });
    }
  });
}

hxq_status hxq_causal_conv1d_gradient(hxq_context* context, int64_t batch, int64_t tokens, int64_t channels,
                                      int64_t width, const float* x, int64_t x_stride, const float* weight,
                                      const float* bias, const float* g, float* dx, float* dweight, float* dbias) {
  return guard([&] {
    check_sizes({batch, tokens, channels, width});
    const float* filter = filter_of(*context, weight, channels, width);
    context->output.assign(static_cast<size_t>(channels * width), 0.0f);
    std::fill_n(dbias, channels, 0.0f);
    for (int64_t s = 0; s < batch; ++s) {
      const int64_t at = s * tokens * channels;
      run(*context, 8 * tokens * channels * width, [&](const kernels::CpuContext& c) {
        kernels::causal_conv1d_silu_gradient({.x = x + s * tokens * x_stride,
                                              .x_stride = x_stride,
                                              .g = g + at,
                                              .tokens = tokens,
                                              .channels = channels,
                                              .width = width,
                                              .weight = filter,
                                              .bias = bias,
                                              .dx = dx + at,
                                              .dweight = context->output.data(),
                                              .dbias = dbias},
                                             c);
      });
    }
    transpose(context->output.data(), width, channels, dweight);
  });
}

hxq_status hxq_decay_rates(hxq_context* context, const float* a_log, int64_t channels, int64_t state_size, float* a) {
  return guard([&] {
    check_sizes({channels, state_size});
    transpose(a_log, channels, state_size, a);
    kernels::cpu::ops_of(context->target).exp(a, a, channels * state_size);
    for (int64_t i = 0; i < channels * state_size; ++i) a[i] = -a[i];
  });
}

hxq_status hxq_selective_scan(hxq_context* context, int64_t batch, int64_t tokens, int64_t channels, int64_t state_size,
                              const float* u, const float* dt, const float* dt_bias, const float* b, const float* c,
                              int64_t bc_stride, const float* z, int64_t z_stride, const float* a, const float* d,
                              float* state, float* y) {
  return guard([&] {
    check_sizes({batch, tokens, channels, state_size});
    for (int64_t s = 0; s < batch; ++s) {
      const int64_t first = s * tokens;
      const kernels::ScanArgs args{.u = u + first * channels,
                                   .dt = dt + first * channels,
                                   .dt_bias = dt_bias,
                                   .b = b + first * bc_stride,
                                   .c = c + first * bc_stride,
                                   .bc_stride = bc_stride,
                                   .z = z + first * z_stride,
                                   .z_stride = z_stride,
                                   .a = a,
                                   .d = d,
                                   .state = state_or_zeros(*context, state, s, state_size * channels),
                                   .y = y + first * channels,
                                   .tokens = tokens,
                                   .channels = channels,
                                   .state_size = state_size};
      run(*context, 8 * tokens * channels * state_size,
          [&](const kernels::CpuContext& team) { kernels::selective_scan(args, team); });
    }
  });
}

hxq_status hxq_selective_scan_gradient(hxq_context* context, int64_t batch, int64_t tokens, int64_t channels,
                                       int64_t state_size, const float* u, const float* dt, const float* dt_bias,
                                       const float* b, const float* c, int64_t bc_stride, const float* z,
                                       int64_t z_stride, const float* a, const float* d, const float* g, float* du,
                                       float* ddt, float* dz, float* db, float* dc, float* da_log, float* dd,
                                       float* ddt_bias) {
  return guard([&] {
    check_sizes({batch, tokens, channels, state_size});
    context->output.assign(static_cast<size_t>(channels * state_size), 0.0f);  // da
    std::fill_n(dd, channels, 0.0f);
    std::fill_n(ddt_bias, channels, 0.0f);
    for (int64_t s = 0; s < batch; ++s) {
      const int64_t first = s * tokens;
      const int64_t at = first * channels;
      const kernels::ScanGradientArgs args{.forward = {.u = u + at,
                                                       .dt = dt + at,
                                                       .dt_bias = dt_bias,
                                                       .b = b + first * bc_stride,
                                                       .c = c + first * bc_stride,
                                                       .bc_stride = bc_stride,
                                                       .z = z + first * z_stride,
                                                       .z_stride = z_stride,
                                                       .a = a,
                                                       .d = d,
                                                       .tokens = tokens,
                                                       .channels = channels,
                                                       .state_size = state_size},
                                           .g = g + at,
                                           .du = du + at,
                                           .ddt = ddt + at,
                                           .dz = dz + at,
                                           .db = db + first * state_size,
                                           .dc = dc + first * state_size,
                                           .da = context->output.data(),
                                           .dd = dd,
                                           .ddt_bias = ddt_bias};
      run(*context, 16 * tokens * channels * state_size,
          [&](const kernels::CpuContext& team) { kernels::selective_scan_gradient(args, team); });
    }
    through_log(a, context->output.data(), channels * state_size);
    transpose(context->output.data(), state_size, channels, da_log);
  });
}

namespace {

/// Arguments of SSD for sequence 0, without state and output; a is [heads] floats of the context's.
kernels::SsdArgs ssd_args(hxq_context& context, int64_t tokens, int64_t heads, int64_t head_dim, int64_t groups,
                          int64_t state_size, const float* xbc, int64_t xbc_stride, const float* dt, int64_t dt_stride,
                          const float* dt_bias, float dt_min, float dt_max, const float* a_log, const float* d,
                          const float* z, int64_t z_stride) {
  check_sizes({tokens, heads, head_dim, groups, state_size});
  require(heads % groups == 0, "heads is not a multiple of groups");
  context.filter.resize(static_cast<size_t>(heads));
  for (int64_t h = 0; h < heads; ++h) context.filter[static_cast<size_t>(h)] = -std::exp(a_log[h]);
  const float* b = xbc + heads * head_dim;
  return {.x = xbc,
          .b = b,
          .c = b + groups * state_size,
          .xbc_stride = xbc_stride,
          .dt = dt,
          .dt_stride = dt_stride,
          .dt_bias = dt_bias,
          .dt_min = dt_min,
          .dt_max = dt_max,
          .a = context.filter.data(),
          .d = d,
          .z = z,
          .z_stride = z_stride,
          .tokens = tokens,
          .heads = heads,
          .head_dim = head_dim,
          .groups = groups,
          .state_size = state_size};
}

/// Moves the inputs on by one sequence.
void next_sequence(kernels::SsdArgs& args) {
  args.x += args.tokens * args.xbc_stride;
  args.b += args.tokens * args.xbc_stride;
  args.c += args.tokens * args.xbc_stride;
  args.dt += args.tokens * args.dt_stride;
  args.z += args.tokens * args.z_stride;
}

}  // namespace

hxq_status hxq_ssd(hxq_context* context, int64_t batch, int64_t tokens, int64_t heads, int64_t head_dim, int64_t groups,
                   int64_t state_size, const float* xbc, int64_t xbc_stride, const float* dt, int64_t dt_stride,
                   const float* dt_bias, float dt_min, float dt_max, const float* a_log, const float* d, const float* z,
                   int64_t z_stride, float* state, float* y) {
  return guard([&] {
    kernels::SsdArgs args = ssd_args(*context, tokens, heads, head_dim, groups, state_size, xbc, xbc_stride, dt,
                                     dt_stride, dt_bias, dt_min, dt_max, a_log, d, z, z_stride);
    for (int64_t s = 0; s < batch; ++s, next_sequence(args)) {
      args.state = state_or_zeros(*context, state, s, heads * head_dim * state_size);
      args.y = y + s * tokens * heads * head_dim;
      run(*context, 4 * tokens * heads * head_dim * state_size,
          [&](const kernels::CpuContext& team) { kernels::ssd(args, team); });
    }
  });
}

hxq_status hxq_ssd_gradient(hxq_context* context, int64_t batch, int64_t tokens, int64_t heads, int64_t head_dim,
                            int64_t groups, int64_t state_size, const float* xbc, int64_t xbc_stride, const float* dt,
                            int64_t dt_stride, const float* dt_bias, float dt_min, float dt_max, const float* a_log,
                            const float* d, const float* z, int64_t z_stride, const float* g, float* dxbc, float* ddt,
                            float* dz, float* da_log, float* dd, float* ddt_bias) {
  return guard([&] {
    kernels::SsdGradientArgs args{
        .forward = ssd_args(*context, tokens, heads, head_dim, groups, state_size, xbc, xbc_stride, dt, dt_stride,
                            dt_bias, dt_min, dt_max, a_log, d, z, z_stride),
        .g = g,
        .ddt = ddt,
        .dz = dz,
        .da = da_log,
        .dd = dd,
        .ddt_bias = ddt_bias};
    const int64_t inner = heads * head_dim;
    const int64_t bc = groups * state_size;
    context->output.resize(static_cast<size_t>(tokens * (inner + 2 * bc)));
    args.dx = context->output.data();
    args.db = args.dx + tokens * inner;
    args.dc = args.db + tokens * bc;
    for (float* sum : {da_log, dd, ddt_bias}) std::fill_n(sum, heads, 0.0f);
    for (int64_t s = 0; s < batch; ++s, next_sequence(args.forward)) {
      run(*context, 8 * tokens * inner * state_size,
          [&](const kernels::CpuContext& team) { kernels::ssd_gradient(args, team); });
      for (int64_t t = 0; t < tokens; ++t) {
        float* row = dxbc + (s * tokens + t) * (inner + 2 * bc);
        std::copy_n(args.dx + t * inner, inner, row);
        std::copy_n(args.db + t * bc, bc, row + inner);
        std::copy_n(args.dc + t * bc, bc, row + inner + bc);
      }
      args.g += tokens * inner;
      args.dz += tokens * inner;
      args.ddt += tokens * heads;
    }
    through_log(args.forward.a, da_log, heads);
  });
}
