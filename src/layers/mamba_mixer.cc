#include "layers/mamba_mixer.h"

#include "kernels/mamba_layer.h"
#include "layers/projection.h"

namespace hxq {

void MambaMixer::operator()(const Args& args, WorkMemory work, const kernels::Context& context) const noexcept {
  const kernels::Batch& batch = args.batch;
  const int64_t hidden = in_proj->cols();
  const int64_t inner = out_proj->cols();
  const int64_t dt_rank = dt_proj->cols();
  const int64_t dbc_size = x_proj->rows();
  float* xz = work.take<float>(batch.rows * 2 * inner);  // [rows, 2 * inner]: x, gate z
  float* u = work.take<float>(batch.rows * inner);       // [rows, inner], later the scan's output
  float* dbc = work.take<float>(batch.rows * dbc_size);  // [rows, dt_rank + 2 * state_size]: dt, B, C
  float* dt = work.take<float>(batch.rows * inner);      // [rows, inner]

  const kernels::ConvArgs conv{.x = xz,
                               .x_stride = 2 * inner,
                               .y = u,
                               .batch = batch,
                               .channels = inner,
                               .width = conv_width,
                               .weight = conv_weight,
                               .bias = conv_bias,
                               .state = args.conv_state,
                               .state_rows = args.conv_state_rows};
  const kernels::ScanArgs scan{.u = u,
                               .dt = dt,
                               .dt_bias = dt_bias,
                               .b = dbc + dt_rank,
                               .c = dbc + dt_rank + state_size,
                               .bc_stride = dbc_size,
                               .z = xz + inner,
                               .z_stride = 2 * inner,
                               .a = a,
                               .d = d,
                               .state = args.ssm_state,
                               .y = u,
                               .batch = batch,
                               .channels = inner,
                               .state_size = state_size};
  const kernels::MambaStepArgs step{.conv = conv, .x_proj = x_proj, .dt_proj = dt_proj, .scan = scan};
  const kernels::LinearProduct in_product{.weight = in_proj,
                                          .args = {.y = xz, .y_stride = 2 * inner, .bias = in_proj_bias}};
  const kernels::LinearArgs out{
      .x = u, .x_stride = inner, .y = args.y, .y_stride = hidden, .bias = out_proj_bias, .accumulate = args.accumulate};
  const bool decodes = batch.has_one_token_each();
  if (decodes && args.norm && args.norm->x == args.y && args.accumulate &&
      kernels::mamba_layer(
          {.norm = *args.norm, .in_proj = in_product, .step = step, .out_proj = {.weight = out_proj, .args = out}},
          context)) {
    return;
  }

  JointProjections in(args.norm, args.x, hidden);
  in.add(in_product);
  in.run(batch, context);
  if (!decodes || !kernels::mamba_step(step, context)) {
    kernels::causal_conv1d_silu(conv, context);
    linear(*x_proj, {.x = u, .x_stride = inner, .y = dbc, .y_stride = dbc_size}, batch, context);
    linear(*dt_proj, {.x = dbc, .x_stride = dbc_size, .y = dt, .y_stride = inner}, batch, context);
    kernels::selective_scan(scan, context);
  }
  linear(*out_proj, out, batch, context);
}

}  // namespace hxq
