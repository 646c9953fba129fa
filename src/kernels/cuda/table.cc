#include "kernels/cuda/table.h"

namespace hxq::cuda {
namespace {

/// The one of an overloaded function's versions that has this type.
template <class Function>
constexpr Function* overload(Function* function) {
  return function;
}

using CodebookLinear = Status(const CodebookWeight&, const LinearArgs&, Stream) noexcept;
using DenseLinear = Status(const DenseWeight&, const LinearArgs&, Stream) noexcept;
using CodebookGather = Status(const CodebookWeight&, const GatherArgs&, Stream) noexcept;
using DenseGather = Status(const DenseWeight&, const GatherArgs&, Stream) noexcept;

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
    .codebook_linear_workspace = overload<size_t(const CodebookWeight&, int64_t) noexcept>(linear_workspace),
    .codebook_linear = overload<CodebookLinear>(linear),
    .supports_fused_linear = supports_fused_linear,
    .fused_linear = fused_linear,
    .joint_linear = joint_linear,
    .dense_linear_workspace = overload<size_t(const DenseWeight&, int64_t) noexcept>(linear_workspace),
    .dense_linear = overload<DenseLinear>(linear),
    .codebook_gather_rows = overload<CodebookGather>(gather_rows),
    .dense_gather_rows = overload<DenseGather>(gather_rows),
    .copy_rows = copy_rows,
    .rms_norm = rms_norm,
    .causal_conv1d_silu = causal_conv1d_silu,
    .scan_workspace = scan_workspace,
    .selective_scan = selective_scan,
    .supports_mamba_step = supports_mamba_step,
    .mamba_step = mamba_step,
    .ssd_workspace = ssd_workspace,
    .ssd = ssd,
    .extend_cache = extend_cache,
    .attention_workspace = attention_workspace,
    .attention = attention,
    .supports_attention_step = supports_attention_step,
    .attention_step = attention_step,
    .supports_step = supports_step,
    .step_size = step_size,
    .write_step = write_step,
    .lay_out_step = lay_out_step,
    .run_step = run_step,
    .gated_activation = gated_activation,
    .top_k = top_k,
    .linear_transposed = linear_transposed,
    .codebook_gradient = codebook_gradient,
    .gather_gradient = gather_gradient,
    .decode_rows = decode_rows,
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
