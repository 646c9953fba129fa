#include "kernels/cuda/table.h"

namespace hxq::cuda {
namespace {

/// The one of an overloaded function's versions that has this type.
template <class Function>
constexpr Function* overload(Function* function) {
  return function;
}

template <class Weight>
using LinearWorkspace = size_t(const Weight&, int64_t) noexcept;
template <class Weight>
using Linear = Status(const Weight&, const LinearArgs&, Stream) noexcept;
template <class Weight>
using Gather = Status(const Weight&, const GatherArgs&, Stream) noexcept;
template <class Weight>
using LinearTransposed = Status(const Weight&, const LinearTransposedArgs&, Stream) noexcept;
template <class Weight>
using Decode = Status(const Weight&, const DecodeArgs&, Stream) noexcept;
using FusedLinear = Status(const FusedInput&, const FusedProduct*, int64_t, Stream) noexcept;
using SupportsFusedLinear = bool(const FusedInput&, const CodebookWeight&) noexcept;
using GroupedFusedLinear = Status(const FusedInput&, const GroupedProduct*, int64_t, Stream) noexcept;
using SupportsGroupedFusedLinear = bool(const FusedInput&, const GroupedProduct*, int64_t) noexcept;

constexpr Kernels kKernels = {
    .describe = describe,
    .count_devices = count_devices,
    .describe_device = describe_device,
    .use_device = use_device,
    .create_stream = create_stream,
    .destroy_stream = destroy_stream,
    .wait_for = wait_for,
    .allocate = allocate,
    .deallocate = deallocate,
    .allocate_on_host = allocate_on_host,
    .deallocate_on_host = deallocate_on_host,
    .upload = upload,
    .download = download,
    .clear = clear,
    .begin_recording = begin_recording,
    .end_recording = end_recording,
    .launch_graph = launch_graph,
    .destroy_graph = destroy_graph,
    .open_cublas = open_cublas,
    .codebook_linear_workspace = overload<LinearWorkspace<CodebookWeight>>(linear_workspace),
    .codebook_linear = overload<Linear<CodebookWeight>>(linear),
    .supports_fused_linear = overload<SupportsFusedLinear>(supports_fused_linear),
    .fused_linear = overload<FusedLinear>(fused_linear),
    .joint_linear = joint_linear,
    .grouped_linear_workspace = overload<LinearWorkspace<GroupedWeight>>(linear_workspace),
    .grouped_linear = overload<Linear<GroupedWeight>>(linear),
    .supports_grouped_fused_linear = overload<SupportsGroupedFusedLinear>(supports_fused_linear),
    .grouped_fused_linear = overload<GroupedFusedLinear>(fused_linear),
    .dense_linear_workspace = overload<LinearWorkspace<DenseWeight>>(linear_workspace),
    .dense_linear = overload<Linear<DenseWeight>>(linear),
    .codebook_gather_rows = overload<Gather<CodebookWeight>>(gather_rows),
    .grouped_gather_rows = overload<Gather<GroupedWeight>>(gather_rows),
    .dense_gather_rows = overload<Gather<DenseWeight>>(gather_rows),
    .copy_rows = copy_rows,
    .rms_norm = rms_norm,
    .causal_conv1d_silu = causal_conv1d_silu,
    .selective_scan = selective_scan,
    .supports_mamba_step = supports_mamba_step,
    .mamba_step = mamba_step,
    .supports_mamba_layers = supports_mamba_layers,
    .mamba_layers = mamba_layers,
    .ssd_workspace = ssd_workspace,
    .ssd = ssd,
    .extend_cache = extend_cache,
    .attention_workspace = attention_workspace,
    .attention = attention,
    .supports_attention_step = supports_attention_step,
    .attention_step = attention_step,
    .supports_transformer_layers = supports_transformer_layers,
    .transformer_layers = transformer_layers,
    .supports_step = supports_step,
    .step_size = step_size,
    .write_step = write_step,
    .lay_out_step = lay_out_step,
    .run_step = run_step,
    .gated_activation = gated_activation,
    .most_likely = most_likely,
    .linear_transposed = overload<LinearTransposed<CodebookWeight>>(linear_transposed),
    .grouped_linear_transposed = overload<LinearTransposed<GroupedWeight>>(linear_transposed),
    .codebook_gradient = codebook_gradient,
    .gather_gradient = gather_gradient,
    .decode_rows = overload<Decode<CodebookWeight>>(decode_rows),
    .decode_grouped_rows = overload<Decode<GroupedWeight>>(decode_rows),
    .uniform_batch_workspace = uniform_batch_workspace,
    .make_uniform_batch = make_uniform_batch,
    .causal_conv1d_silu_gradient = causal_conv1d_silu_gradient,
    .scan_gradient_workspace = scan_gradient_workspace,
    .selective_scan_gradient = selective_scan_gradient,
    .ssd_gradient_workspace = ssd_gradient_workspace,
    .ssd_gradient = ssd_gradient,
};

}  // namespace
}  // namespace hxq::cuda

extern "C" __attribute__((visibility("default"))) const hxq::cuda::Kernels* hxq_cuda_kernels() noexcept {
  return &hxq::cuda::kKernels;
}
