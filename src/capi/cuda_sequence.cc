#include "capi/cuda_call.h"
#include "capi/sequence_arguments.h"

using namespace hxq;
using namespace hxq::capi;

namespace {

cuda::Input floats(const float* data, int64_t stride) { return {.data = data, .stride = stride, .dtype = DType::f32}; }
cuda::Input floats(const FloatRows& rows) { return floats(rows.data, rows.stride); }
cuda::Output output(float* data, int64_t stride) { return {.data = data, .stride = stride, .dtype = DType::f32}; }

/// Batch and tokens as kernels count rows.
struct Sizes {
  int32_t batch, tokens;
  int64_t rows;
};

Sizes sizes_of(int64_t batch, int64_t tokens) {
  batch_size_fits(batch, tokens);
  return {.batch = static_cast<int32_t>(batch), .tokens = static_cast<int32_t>(tokens), .rows = batch * tokens};
}

/// Makes the batch that an operation reads and runs it: `launch(made, workspace)` with what is left of the workspace,
/// of which `more(batch)` is needed.
template <class More, class Launch>
void run_batch(CudaCall& on, cuda::UniformBatchArgs args, const char* what, const More& more, const Launch& launch) {
  const size_t own = on.kernels().uniform_batch_workspace(args);
  const cuda::Batch sizes{.count = args.count, .max_rows = args.tokens, .total_rows = args.count * args.tokens};
  if (!on.begins(own + more(sizes))) return;
  args.workspace = on.workspace();
  cuda::UniformBatch made;
  on.check(on.kernels().make_uniform_batch(args, made, on.stream()), what);
  on.check(launch(made, on.workspace(own)), what);
}

size_t nothing(const cuda::Batch&) { return 0; }

Sizes checked(const hxq_conv_args* args) {
  require_pointers({{"args", args}});
  require_sizes(
      {{"batch", args->batch}, {"tokens", args->tokens}, {"channels", args->channels}, {"width", args->width}});
  if (args->width > cuda::kMaxConvWidth) {
    throw InvalidArgument(
        fmt::format("a filter of {} taps: kernels for GPUs have up to {}", args->width, cuda::kMaxConvWidth));
  }
  require_pointers({{"weight", args->weight}});
  return sizes_of(args->batch, args->tokens);
}

Sizes checked(const hxq_scan_args* args) {
  require_pointers({{"args", args}});
  require_sizes({{"batch", args->batch},
                 {"tokens", args->tokens},
                 {"channels", args->channels},
                 {"state_size", args->state_size}});
  if (args->state_size > cuda::kMaxScanState) {
    throw InvalidArgument(
        fmt::format("{} states a channel: kernels for GPUs have up to {}", args->state_size, cuda::kMaxScanState));
  }
  require_pointers({{"u", args->u}, {"dt", args->dt}, {"a", args->a}, {"d", args->d}});
  return sizes_of(args->batch, args->tokens);
}

Sizes checked(const hxq_ssd_args* args) {
  require_pointers({{"args", args}});
  require_sizes({{"batch", args->batch},
                 {"tokens", args->tokens},
                 {"heads", args->heads},
                 {"head_dim", args->head_dim},
                 {"state_size", args->state_size}});
  require_sizes({{"groups", args->groups}});
  if (args->heads % args->groups != 0) {
    throw InvalidArgument(fmt::format("{} heads are not a multiple of {} groups", args->heads, args->groups));
  }
  if (args->state_size > cuda::kMaxSsdState) {
    throw InvalidArgument(
        fmt::format("{} states a head: kernels for GPUs have up to {}", args->state_size, cuda::kMaxSsdState));
  }
  require_pointers({{"dt_bias", args->dt_bias}, {"a_log", args->a_log}, {"d", args->d}});
  return sizes_of(args->batch, args->tokens);
}

}  // namespace

hxq_status hxq_cuda_causal_conv1d(hxq_cuda_call* call, const hxq_conv_args* given) {
  return guard("computing a convolution", [&] {
    const Sizes sizes = checked(given);
    CudaCall on(call);
    const hxq_conv_args& args = *given;
    const int64_t state_rows = args.state == nullptr ? args.width - 1 : args.state_rows;
    if (state_rows != args.width - 1 && state_rows != args.width) {
      throw InvalidArgument(fmt::format("state_rows is {}, expected {} or {}", state_rows, args.width - 1, args.width));
    }
    run_batch(on,
              {.count = sizes.batch,
               .tokens = sizes.tokens,
               .states = args.state,
               .state_size = state_rows * args.channels,
               .matrix = args.weight,
               .matrix_rows = args.channels,
               .matrix_cols = args.width},
              "a convolution", nothing, [&](const cuda::UniformBatch& made, const cuda::Workspace&) {
                require_pointers({{"y", args.y}});
                return on.kernels().causal_conv1d_silu({.batch = made.batch,
                                                        .x = floats(float_rows("x", args.x, sizes.rows, args.channels)),
                                                        .y = output(args.y, args.channels),
                                                        .channels = args.channels,
                                                        .width = args.width,
                                                        .weight = made.matrix,
                                                        .bias = args.bias,
                                                        .states = made.states,
                                                        .state_rows = state_rows},
                                                       on.stream());
              });
  });
}

hxq_status hxq_cuda_causal_conv1d_gradient(hxq_cuda_call* call, const hxq_conv_args* given,
                                           const hxq_conv_gradients* out) {
  return guard("computing a convolution's gradient", [&] {
    const Sizes sizes = checked(given);
    CudaCall on(call);
    const hxq_conv_args& args = *given;
    const hxq_conv_gradients& gradients = not_null(out, "gradients");
    require_no_results(args.state, args.y);
    if (!on.begins(0)) return;
    require_pointers(
        {{"g", gradients.g}, {"dx", gradients.dx}, {"dweight", gradients.dweight}, {"dbias", gradients.dbias}});
    const FloatRows x = float_rows("x", args.x, sizes.rows, args.channels);
    on.check(on.kernels().causal_conv1d_silu_gradient({.batch = sizes.batch,
                                                       .tokens = sizes.tokens,
                                                       .channels = args.channels,
                                                       .width = args.width,
                                                       .x = x.data,
                                                       .x_stride = x.stride,
                                                       .weight = args.weight,
                                                       .bias = args.bias,
                                                       .g = gradients.g,
                                                       .dx = gradients.dx,
                                                       .dweight = gradients.dweight,
                                                       .dbias = gradients.dbias},
                                                      on.stream()),
             "a convolution's gradient");
  });
}

hxq_status hxq_cuda_selective_scan(hxq_cuda_call* call, const hxq_scan_args* given) {
  return guard("computing a selective scan", [&] {
    const Sizes sizes = checked(given);
    CudaCall on(call);
    const hxq_scan_args& args = *given;
    run_batch(on,
              {.count = sizes.batch,
               .tokens = sizes.tokens,
               .states = args.state,
               .state_size = args.state_size * args.channels},
              "a scan", nothing, [&](const cuda::UniformBatch& made, const cuda::Workspace&) {
                require_pointers({{"y", args.y}});
                return on.kernels().selective_scan({.batch = made.batch,
                                                    .u = floats(args.u, args.channels),
                                                    .dt = floats(args.dt, args.channels),
                                                    .dt_bias = args.dt_bias,
                                                    .b = floats(float_rows("b", args.b, sizes.rows, args.state_size)),
                                                    .c = floats(float_rows("c", args.c, sizes.rows, args.state_size)),
                                                    .z = floats(float_rows("z", args.z, sizes.rows, args.channels)),
                                                    .a = args.a,
                                                    .d = args.d,
                                                    .states = made.states,
                                                    .y = output(args.y, args.channels),
                                                    .channels = args.channels,
                                                    .state_size = args.state_size},
                                                   on.stream());
              });
  });
}

hxq_status hxq_cuda_selective_scan_gradient(hxq_cuda_call* call, const hxq_scan_args* given,
                                            const hxq_scan_gradients* out) {
  return guard("computing a selective scan's gradient", [&] {
    const Sizes sizes = checked(given);
    CudaCall on(call);
    const hxq_scan_args& args = *given;
    const hxq_scan_gradients& g = not_null(out, "gradients");
    require_no_results(args.state, args.y);
    cuda::ScanGradientArgs there{
        .batch = sizes.batch, .tokens = sizes.tokens, .channels = args.channels, .state_size = args.state_size};
    if (!on.begins(on.kernels().scan_gradient_workspace(there))) return;
    require_outputs(g);
    const FloatRows b = float_rows("b", args.b, sizes.rows, args.state_size);
    const FloatRows c = float_rows("c", args.c, sizes.rows, args.state_size);
    const FloatRows z = float_rows("z", args.z, sizes.rows, args.channels);
    require(b.stride == c.stride, "b and c have different strides");
    there.u = args.u, there.dt = args.dt, there.dt_bias = args.dt_bias;
    there.b = b.data, there.c = c.data, there.bc_stride = b.stride;
    there.z = z.data, there.z_stride = z.stride;
    there.a = args.a, there.d = args.d, there.g = g.g;
    there.du = g.du, there.ddt = g.ddt, there.dz = g.dz, there.db = g.db, there.dc = g.dc;
    there.da_log = g.da_log, there.dd = g.dd, there.ddt_bias = g.ddt_bias;
    there.workspace = on.workspace();
    on.check(on.kernels().selective_scan_gradient(there, on.stream()), "a scan's gradient");
  });
}

hxq_status hxq_cuda_ssd(hxq_cuda_call* call, const hxq_ssd_args* given) {
  return guard("computing Mamba-2's recurrence", [&] {
    const Sizes sizes = checked(given);
    CudaCall on(call);
    const hxq_ssd_args& args = *given;
    const int64_t inner = args.heads * args.head_dim, coefficients = args.groups * args.state_size;
    run_batch(
        on,
        {.count = sizes.batch,
         .tokens = sizes.tokens,
         .states = args.state,
         .state_size = args.state_size * inner,
         .matrix = args.a_log,
         .matrix_rows = args.heads,
         .matrix_cols = 1,
         .matrix_is_log = true},
        "Mamba-2's recurrence",
        [&](const cuda::Batch& batch) {
          cuda::SsdArgs measured{};
          measured.batch = batch;
          measured.heads = args.heads;
          measured.head_dim = args.head_dim;
          measured.groups = args.groups;
          measured.state_size = args.state_size;
          return on.kernels().ssd_workspace(measured);
        },
        [&](const cuda::UniformBatch& made, const cuda::Workspace& workspace) {
          require_pointers({{"y", args.y}});
          const FloatRows xbc = float_rows("xbc", args.xbc, sizes.rows, inner + 2 * coefficients);
          return on.kernels().ssd({.batch = made.batch,
                                   .x = floats(xbc),
                                   .b = floats(xbc.data + inner, xbc.stride),
                                   .c = floats(xbc.data + inner + coefficients, xbc.stride),
                                   .dt = floats(float_rows("dt", args.dt, sizes.rows, args.heads)),
                                   .dt_bias = args.dt_bias,
                                   .dt_min = args.dt_min,
                                   .dt_max = args.dt_max,
                                   .a = made.matrix,
                                   .d = args.d,
                                   .z = floats(float_rows("z", args.z, sizes.rows, inner)),
                                   .states = made.states,
                                   .y = output(args.y, inner),
                                   .heads = args.heads,
                                   .head_dim = args.head_dim,
                                   .groups = args.groups,
                                   .state_size = args.state_size,
                                   .workspace = workspace},
                                  on.stream());
        });
  });
}

hxq_status hxq_cuda_ssd_gradient(hxq_cuda_call* call, const hxq_ssd_args* given, const hxq_ssd_gradients* out) {
  return guard("computing the gradient of Mamba-2's recurrence", [&] {
    const Sizes sizes = checked(given);
    CudaCall on(call);
    const hxq_ssd_args& args = *given;
    const hxq_ssd_gradients& g = not_null(out, "gradients");
    require_no_results(args.state, args.y);
    cuda::SsdGradientArgs there{.batch = sizes.batch,
                                .tokens = sizes.tokens,
                                .heads = args.heads,
                                .head_dim = args.head_dim,
                                .groups = args.groups,
                                .state_size = args.state_size};
    if (!on.begins(on.kernels().ssd_gradient_workspace(there))) return;
    require_outputs(g);
    const int64_t inner = args.heads * args.head_dim;
    const FloatRows xbc = float_rows("xbc", args.xbc, sizes.rows, inner + 2 * args.groups * args.state_size);
    const FloatRows dt = float_rows("dt", args.dt, sizes.rows, args.heads);
    const FloatRows z = float_rows("z", args.z, sizes.rows, inner);
    there.xbc = xbc.data, there.xbc_stride = xbc.stride;
    there.dt = dt.data, there.dt_stride = dt.stride;
    there.z = z.data, there.z_stride = z.stride;
    there.dt_bias = args.dt_bias, there.dt_min = args.dt_min, there.dt_max = args.dt_max;
    there.a_log = args.a_log, there.d = args.d, there.g = g.g;
    there.dxbc = g.dxbc, there.ddt = g.ddt, there.dz = g.dz;
    there.da_log = g.da_log, there.dd = g.dd, there.ddt_bias = g.ddt_bias;
    there.workspace = on.workspace();
    on.check(on.kernels().ssd_gradient(there, on.stream()), "the gradient of Mamba-2's recurrence");
  });
}
