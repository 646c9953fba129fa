// The operations of an NVIDIA GPU: what layers ask for, said to the launchers of libhxq_cuda.so.

#include "kernels/cuda_device/cuda_context.h"
#include "kernels/cuda_device/cuda_matrix.h"
#include "kernels/cuda_device/launchers.h"
#include "kernels/operations.h"

namespace hxq::kernels {
namespace {

const CudaContext& on_cuda(const Context& context) noexcept { return static_cast<const CudaContext&>(context); }

cuda::Input input(const float* data, int64_t stride) noexcept {
  return {.data = data, .stride = stride, .dtype = DType::f32};
}
cuda::Output output(float* data, int64_t stride) noexcept {
  return {.data = data, .stride = stride, .dtype = DType::f32};
}

cuda::Precision precision_of(const CudaContext& on) noexcept {
  return on.precision == Precision::exact ? cuda::Precision::exact : cuda::Precision::fast;
}

/// No segment is empty, which bounds the longest.
cuda::Batch ragged(const Batch& batch) noexcept {
  return {.segments = batch.segment,
          .positions = batch.position,
          .count = static_cast<int32_t>(batch.segments),
          .max_rows = static_cast<int32_t>(batch.rows - batch.segments + 1),
          .total_rows = static_cast<int32_t>(batch.rows)};
}

cuda::RmsNormArgs there(const RmsNormArgs& args) noexcept {
  return {.x = input(args.x, args.dim),
          .weight = args.weight,
          .y = output(args.y, args.dim),
          .tokens = args.tokens,
          .dim = args.dim,
          .groups = args.groups,
          .eps = args.eps};
}

cuda::GatedActivationArgs there(const GatedActivationArgs& args) noexcept {
  return {.gate = input(args.gate, args.x_stride),
          .up = input(args.up, args.x_stride),
          .y = output(args.y, args.y_stride),
          .tokens = args.tokens,
          .dim = args.dim,
          .activation = args.activation};
}

cuda::ConvArgs there(const ConvArgs& args) noexcept {
  return {.batch = ragged(args.batch),
          .x = input(args.x, args.x_stride),
          .y = output(args.y, args.channels),
          .channels = args.channels,
          .width = args.width,
          .weight = args.weight,
          .bias = args.bias,
          .states = args.state,
          .state_rows = args.state_rows};
}

cuda::ScanArgs there(const ScanArgs& args) noexcept {
  return {.batch = ragged(args.batch),
          .u = input(args.u, args.channels),
          .dt = input(args.dt, args.channels),
          .dt_bias = args.dt_bias,
          .b = input(args.b, args.bc_stride),
          .c = input(args.c, args.bc_stride),
          .z = input(args.z, args.z_stride),
          .a = args.a,
          .d = args.d,
          .states = args.state,
          .y = output(args.y, args.channels),
          .channels = args.channels,
          .state_size = args.state_size};
}

cuda::AttentionStepArgs there(const AttentionStepArgs& args) noexcept {
  const ExtendCacheArgs& extend = args.extend;
  const AttentionArgs& attend = args.attend;
  return {.batch = ragged(attend.batch),
          .q = input(attend.q, attend.q_stride),
          .k = input(extend.k, extend.kv_stride),
          .v = input(extend.v, extend.kv_stride),
          .y = output(attend.y, attend.y_stride),
          .query_heads = attend.query_heads,
          .scale = attend.scale,
          .window = attend.window,
          .inverse_frequency = args.rotary ? args.rotary->inverse_frequency : nullptr,
          .cache = attend.cache};
}

const CudaMatrix::View& view_of(const PreparedMatrix& weight) noexcept {
  return static_cast<const CudaMatrix&>(weight).view();
}

/// The entries of the table below, named as those are.
struct Cuda {
  static void linear(const PreparedMatrix& weight, const LinearArgs& args, const Context& context) noexcept {
    const CudaContext& on = on_cuda(context);
    const cuda::LinearArgs there{.x = input(args.x, args.x_stride),
                                 .y = output(args.y, args.y_stride),
                                 .tokens = args.tokens,
                                 .bias = args.bias,
                                 .accumulate = args.accumulate,
                                 .precision = precision_of(on),
                                 .workspace = on.workspace};
    if (const auto* codebook = std::get_if<cuda::CodebookWeight>(&view_of(weight)); codebook && args.tokens == 1) {
      cuda::StepProducts one{.input = {.x = there.x}, .count = 1};
      one.products[0] = {.weight = *codebook, .y = there.y, .bias = args.bias, .accumulate = args.accumulate};
      if (on.kernels.supports_fused_linear(one.input, *codebook) && on.collect(one)) return;
    }
    std::visit(
        [&](const auto& matrix) {
          on.run(
              "a product", [&] { return multiply(on.kernels, matrix, there, on.stream); },
              on.measures ? workspace_of(on.kernels, matrix, args.tokens) : 0);
        },
        view_of(weight));
  }

  /// products [args.count]; false where a matrix is stored in another way.
  template <class Weight>
  static bool describe(const FusedLinearArgs& args, cuda::ProductWith<Weight>* products) noexcept {
    for (size_t i = 0; i < args.count; ++i) {
      const auto& [weight, one] = args.products[i];
      const auto* view = std::get_if<Weight>(&view_of(*weight));
      if (view == nullptr) return false;
      products[i] = {.weight = *view, .y = output(one.y, one.y_stride), .bias = one.bias, .accumulate = one.accumulate};
    }
    return true;
  }

  /// x of one token, or x before its norm; false of an activation, and of a norm of groups.
  static bool describe(const FusedLinearArgs& args, cuda::FusedInput& fused) noexcept {
    if (args.activation) return false;
    fused = {.x = input(args.products[0].args.x, 0)};
    if (const auto& norm = args.norm) {
      if (norm->groups != 1) return false;
      fused = {.x = input(norm->x, 0), .norm_weight = norm->weight, .eps = norm->eps};
    }
    return true;
  }

  static bool fused_linear(const FusedLinearArgs& args, const Context& context) noexcept {
    const CudaContext& on = on_cuda(context);
    cuda::StepProducts step{.count = static_cast<int64_t>(args.count)};
    if (step.count > cuda::kMaxFusedProducts) return false;
    if (!describe(args, step.products)) return grouped_fused_linear(args, on);
    if (args.products[0].args.tokens != 1) {
      joint_linear(args, step.products, context);
      return true;
    }
    if (!describe(args, step.input)) return false;
    for (int64_t i = 0; i < step.count; ++i) {
      if (!on.kernels.supports_fused_linear(step.input, step.products[i].weight)) return false;
    }
    if (on.collect(step)) return true;
    on.run("products", [&] { return on.kernels.fused_linear(step.input, step.products, step.count, on.stream); });
    return true;
  }

  static bool grouped_fused_linear(const FusedLinearArgs& args, const CudaContext& on) noexcept {
    cuda::FusedInput fused;
    cuda::GroupedProduct products[cuda::kMaxFusedProducts];
    const auto count = static_cast<int64_t>(args.count);
    if (args.products[0].args.tokens != 1 || !describe(args, products) || !describe(args, fused) ||
        !on.kernels.supports_grouped_fused_linear(fused, products, count)) {
      return false;
    }
    on.run("products", [&] { return on.kernels.grouped_fused_linear(fused, products, count, on.stream); });
    return true;
  }

  /// Of codebooks, for several tokens.
  static void joint_linear(const FusedLinearArgs& args, const cuda::FusedProduct* products,
                           const Context& context) noexcept {
    const CudaContext& on = on_cuda(context);
    const LinearArgs& first = args.products[0].args;
    const auto count = static_cast<int64_t>(args.count);
    size_t workspace = 0;
    for (int64_t i = 0; on.measures && i < count; ++i) {
      workspace = std::max(workspace, workspace_of(on.kernels, products[i].weight, first.tokens));
    }
    const cuda::LinearArgs joint{.x = input(first.x, first.x_stride),
                                 .tokens = first.tokens,
                                 .precision = precision_of(on),
                                 .workspace = on.workspace};
    const auto norm = args.norm ? std::optional(there(*args.norm)) : std::nullopt;
    const auto activation = args.activation ? std::optional(there(*args.activation)) : std::nullopt;
    const cuda::XSource source{.norm = norm ? &*norm : nullptr, .activation = activation ? &*activation : nullptr};
    on.run(
        "products", [&] { return on.kernels.joint_linear(joint, source, products, count, on.stream); }, workspace);
  }

  static void gather_rows(const PreparedMatrix& weight, const int32_t* ids, int64_t count, float* out,
                          const Context& context) noexcept {
    const CudaContext& on = on_cuda(context);
    const cuda::GatherArgs there{.ids = ids, .count = count, .out = output(out, weight.cols())};
    on.run("looking up rows", [&] {
      return std::visit([&](const auto& matrix) { return gather(on.kernels, matrix, there, on.stream); },
                        view_of(weight));
    });
  }

  static void copy_rows(const CopyRowsArgs& args, const Context& context) noexcept {
    const CudaContext& on = on_cuda(context);
    on.run("copying rows", [&] {
      return on.kernels.copy_rows({.from = input(args.from, args.from_stride),
                                   .row = args.row,
                                   .to = output(args.to, args.to_stride),
                                   .rows = args.rows,
                                   .cols = args.cols},
                                  on.stream);
    });
  }

  static void rms_norm(const RmsNormArgs& args, const Context& context) noexcept {
    const CudaContext& on = on_cuda(context);
    on.run("a norm", [&] { return on.kernels.rms_norm(there(args), on.stream); });
  }

  static void causal_conv1d_silu(const ConvArgs& args, const Context& context) noexcept {
    const CudaContext& on = on_cuda(context);
    on.run("a convolution", [&] { return on.kernels.causal_conv1d_silu(there(args), on.stream); });
  }

  static void selective_scan(const ScanArgs& args, const Context& context) noexcept {
    const CudaContext& on = on_cuda(context);
    on.run("a scan", [&] { return on.kernels.selective_scan(there(args), on.stream); });
  }

  /// False where a matrix is stored in another way.
  static bool describe(const MambaStepArgs& args, cuda::MambaStepArgs& step) noexcept {
    const auto* x_proj = std::get_if<cuda::CodebookWeight>(&view_of(*args.x_proj));
    const auto* dt_proj = std::get_if<cuda::CodebookWeight>(&view_of(*args.dt_proj));
    if (x_proj == nullptr || dt_proj == nullptr) return false;
    step = {.batch = ragged(args.scan.batch),
            .conv = there(args.conv),
            .x_proj = *x_proj,
            .dt_proj = *dt_proj,
            .scan = there(args.scan)};
    return true;
  }

  static bool mamba_step(const MambaStepArgs& args, const Context& context) noexcept {
    const CudaContext& on = on_cuda(context);
    cuda::MambaStepArgs step;
    if (!describe(args, step)) return false;
    if (on.collect(step)) return true;
    if (!on.kernels.supports_mamba_step(step)) return false;
    on.run("a step of Mamba", [&] { return on.kernels.mamba_step(step, on.stream); });
    return true;
  }

  static bool mamba_layer(const MambaLayerArgs& args, const Context& context) noexcept {
    const CudaContext& on = on_cuda(context);
    const auto* in_proj = std::get_if<cuda::CodebookWeight>(&view_of(*args.in_proj.weight));
    const auto* out_proj = std::get_if<cuda::CodebookWeight>(&view_of(*args.out_proj.weight));
    cuda::MambaLayer layer{
        .norm_weight = args.norm.weight, .in_bias = args.in_proj.args.bias, .out_bias = args.out_proj.args.bias};
    if (args.norm.groups != 1 || in_proj == nullptr || out_proj == nullptr || !describe(args.step, layer.step)) {
      return false;
    }
    layer.in_proj = *in_proj;
    layer.out_proj = *out_proj;
    const LinearArgs& out = args.out_proj.args;
    return on.collect(layer, {.batch = layer.step.batch,
                              .h = output(out.y, out.y_stride),
                              .eps = args.norm.eps,
                              .precision = precision_of(on)});
  }

  static bool transformer_layer(const TransformerLayerArgs& args, const Context& context) noexcept {
    const CudaContext& on = on_cuda(context);
    const RmsNormArgs &norm = *args.qkv.norm, &mlp_norm = *args.gate_up.norm;
    // After many positions `attention_step` is faster: it reads keys and values once for all heads of a group.
    if (!args.step.attend.batch.few_positions) return false;
    if (args.gate_up.count != 2 || norm.groups != 1 || mlp_norm.groups != 1 || norm.eps != mlp_norm.eps) return false;
    cuda::TransformerLayer layer{.norm_weight = norm.weight,
                                 .mlp_norm_weight = mlp_norm.weight,
                                 .attention = there(args.step),
                                 .activation = args.activation.activation};
    const auto &qkv = args.qkv.products, &gate_up = args.gate_up.products;
    const LinearProduct* const products[] = {&qkv[0], &qkv[1], &qkv[2], &args.o, &gate_up[0], &gate_up[1], &args.down};
    for (size_t i = 0; i < cuda::kTransformerProducts; ++i) {
      const auto* view = std::get_if<cuda::CodebookWeight>(&view_of(*products[i]->weight));
      if (view == nullptr) return false;
      layer.weight[i] = *view;
      layer.bias[i] = products[i]->args.bias;
    }
    const LinearArgs& down = args.down.args;
    return on.collect(layer, {.batch = layer.attention.batch, .h = output(down.y, down.y_stride), .eps = norm.eps});
  }

  static void ssd(const SsdArgs& args, const Context& context) noexcept {
    const CudaContext& on = on_cuda(context);
    const cuda::SsdArgs there{.batch = ragged(args.batch),
                              .x = input(args.x, args.xbc_stride),
                              .b = input(args.b, args.xbc_stride),
                              .c = input(args.c, args.xbc_stride),
                              .dt = input(args.dt, args.dt_stride),
                              .dt_bias = args.dt_bias,
                              .dt_min = args.dt_min,
                              .dt_max = args.dt_max,
                              .a = args.a,
                              .d = args.d,
                              .z = input(args.z, args.z_stride),
                              .states = args.state,
                              .y = output(args.y, args.heads * args.head_dim),
                              .heads = args.heads,
                              .head_dim = args.head_dim,
                              .groups = args.groups,
                              .state_size = args.state_size,
                              .workspace = on.workspace};
    on.run(
        "Mamba-2's recurrence", [&] { return on.kernels.ssd(there, on.stream); }, on.kernels.ssd_workspace(there));
  }

  /// The table is not made: `extend_cache`, which alone reads it, works the angles out as it rotates.
  static void rotary_table(const RotaryTableArgs& args, const Context& context) noexcept {
    on_cuda(context).launches.rotary = args;
  }

  static void extend_cache(const ExtendCacheArgs& args, const Context& context) noexcept {
    const CudaContext& on = on_cuda(context);
    const RotaryTableArgs& rotary = on.launches.rotary;
    on.run("extending the cache", [&] {
      if (args.rotary_table != nullptr && args.rotary_table != rotary.table) return cuda::Status::invalid_value;
      return on.kernels.extend_cache({.batch = ragged(args.batch),
                                      .q = output(args.q, args.q_stride),
                                      .k = input(args.k, args.kv_stride),
                                      .v = input(args.v, args.kv_stride),
                                      .query_heads = args.query_heads,
                                      .inverse_frequency = args.rotary_table ? rotary.inverse_frequency : nullptr,
                                      .cache = args.cache},
                                     on.stream);
    });
  }

  static void attention(const AttentionArgs& args, const Context& context) noexcept {
    const CudaContext& on = on_cuda(context);
    const cuda::AttentionArgs there{.batch = ragged(args.batch),
                                    .q = input(args.q, args.q_stride),
                                    .y = output(args.y, args.y_stride),
                                    .query_heads = args.query_heads,
                                    .scale = args.scale,
                                    .window = args.window,
                                    .seen_positions = args.batch.prefill_positions,
                                    .cache = args.cache,
                                    .precision = precision_of(on),
                                    .workspace = on.workspace};
    on.run(
        "attention", [&] { return on.kernels.attention(there, on.stream); }, on.kernels.attention_workspace(there));
  }

  static bool attention_step(const AttentionStepArgs& args, const Context& context) noexcept {
    const CudaContext& on = on_cuda(context);
    const cuda::AttentionStepArgs step = there(args);
    if (!on.kernels.supports_attention_step(step)) return false;
    on.run("a step of attention", [&] { return on.kernels.attention_step(step, on.stream); });
    return true;
  }

  static void gated_activation(const GatedActivationArgs& args, const Context& context) noexcept {
    const CudaContext& on = on_cuda(context);
    on.run("an activation", [&] { return on.kernels.gated_activation(there(args), on.stream); });
  }

  static void most_likely(const MostLikelyArgs& args, const Context& context) noexcept {
    const CudaContext& on = on_cuda(context);
    on.run("choosing tokens", [&] {
      return on.kernels.most_likely({.logits = input(args.logits, args.vocabulary),
                                     .rows = args.rows,
                                     .vocabulary = args.vocabulary,
                                     .token = args.token},
                                    on.stream);
    });
  }
};

}  // namespace

const Operations& cuda_operations() noexcept {
  static constexpr Operations kOperations = {.linear = Cuda::linear,
                                             .gather_rows = Cuda::gather_rows,
                                             .copy_rows = Cuda::copy_rows,
                                             .rms_norm = Cuda::rms_norm,
                                             .causal_conv1d_silu = Cuda::causal_conv1d_silu,
                                             .selective_scan = Cuda::selective_scan,
                                             .ssd = Cuda::ssd,
                                             .rotary_table = Cuda::rotary_table,
                                             .extend_cache = Cuda::extend_cache,
                                             .attention = Cuda::attention,
                                             .gated_activation = Cuda::gated_activation,
                                             .most_likely = Cuda::most_likely,
                                             .attention_step = Cuda::attention_step,
                                             .mamba_step = Cuda::mamba_step,
                                             .mamba_layer = Cuda::mamba_layer,
                                             .transformer_layer = Cuda::transformer_layer,
                                             .fused_linear = Cuda::fused_linear};
  return kOperations;
}

}  // namespace hxq::kernels
