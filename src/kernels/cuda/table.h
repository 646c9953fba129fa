#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/attention_step.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/decode.h"
#include "kernels/cuda/gradients.h"
#include "kernels/cuda/grouped.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/mamba_layers.h"
#include "kernels/cuda/mamba_step.h"
#include "kernels/cuda/runtime.h"
#include "kernels/cuda/sampling.h"
#include "kernels/cuda/sequence.h"
#include "kernels/cuda/sequence_gradients.h"
#include "kernels/cuda/step.h"
#include "kernels/cuda/transformer_layers.h"
#include "kernels/cuda/uniform_batch.h"

namespace hxq::cuda {

/// Everything that libhxq_cuda.so offers, for a runtime that opens it while it runs.
struct Kernels {
  /// Of this struct; a library with another one is not used.
  static constexpr int kVersion = 15;

  int version = kVersion;
  const char* (*describe)(Status) noexcept;
  Status (*count_devices)(int&) noexcept;
  Status (*describe_device)(int, DeviceDescription&) noexcept;
  Status (*use_device)(int, int&) noexcept;
  Status (*create_stream)(Stream&) noexcept;
  void (*destroy_stream)(Stream) noexcept;
  Status (*wait_for)(Stream) noexcept;
  Status (*allocate)(void*&, size_t, Stream) noexcept;
  void (*deallocate)(void*, Stream) noexcept;
  Status (*allocate_on_host)(void*&, size_t) noexcept;
  void (*deallocate_on_host)(void*) noexcept;
  Status (*upload)(void*, const void*, size_t, Stream) noexcept;
  Status (*download)(void*, const void*, size_t, Stream) noexcept;
  Status (*clear)(void*, size_t, Stream) noexcept;
  Status (*begin_recording)(Stream) noexcept;
  Status (*end_recording)(Stream, Graph&) noexcept;
  Status (*launch_graph)(Graph, Stream) noexcept;
  void (*destroy_graph)(Graph) noexcept;
  bool (*open_cublas)() noexcept;
  size_t (*codebook_linear_workspace)(const CodebookWeight&, int64_t tokens) noexcept;
  Status (*codebook_linear)(const CodebookWeight&, const LinearArgs&, Stream) noexcept;
  bool (*supports_fused_linear)(const FusedInput&, const CodebookWeight&) noexcept;
  Status (*fused_linear)(const FusedInput&, const FusedProduct*, int64_t count, Stream) noexcept;
  Status (*joint_linear)(const LinearArgs&, const XSource&, const FusedProduct*, int64_t count, Stream) noexcept;
  size_t (*grouped_linear_workspace)(const GroupedWeight&, int64_t tokens) noexcept;
  Status (*grouped_linear)(const GroupedWeight&, const LinearArgs&, Stream) noexcept;
  bool (*supports_grouped_fused_linear)(const FusedInput&, const GroupedProduct*, int64_t count) noexcept;
  Status (*grouped_fused_linear)(const FusedInput&, const GroupedProduct*, int64_t count, Stream) noexcept;
  size_t (*dense_linear_workspace)(const DenseWeight&, int64_t tokens) noexcept;
  Status (*dense_linear)(const DenseWeight&, const LinearArgs&, Stream) noexcept;
  Status (*codebook_gather_rows)(const CodebookWeight&, const GatherArgs&, Stream) noexcept;
  Status (*grouped_gather_rows)(const GroupedWeight&, const GatherArgs&, Stream) noexcept;
  Status (*dense_gather_rows)(const DenseWeight&, const GatherArgs&, Stream) noexcept;
  Status (*copy_rows)(const CopyRowsArgs&, Stream) noexcept;
  Status (*rms_norm)(const RmsNormArgs&, Stream) noexcept;
  Status (*causal_conv1d_silu)(const ConvArgs&, Stream) noexcept;
  Status (*selective_scan)(const ScanArgs&, Stream) noexcept;
  bool (*supports_mamba_step)(const MambaStepArgs&) noexcept;
  Status (*mamba_step)(const MambaStepArgs&, Stream) noexcept;
  bool (*supports_mamba_layers)(const MambaLayersArgs&) noexcept;
  Status (*mamba_layers)(const MambaLayersArgs&, Stream) noexcept;
  size_t (*ssd_workspace)(const SsdArgs&) noexcept;
  Status (*ssd)(const SsdArgs&, Stream) noexcept;
  Status (*extend_cache)(const ExtendCacheArgs&, Stream) noexcept;
  size_t (*attention_workspace)(const AttentionArgs&) noexcept;
  Status (*attention)(const AttentionArgs&, Stream) noexcept;
  bool (*supports_attention_step)(const AttentionStepArgs&) noexcept;
  Status (*attention_step)(const AttentionStepArgs&, Stream) noexcept;
  bool (*supports_transformer_layers)(const TransformerLayersArgs&) noexcept;
  Status (*transformer_layers)(const TransformerLayersArgs&, Stream) noexcept;
  bool (*supports_step)(const StepOperation&) noexcept;
  StepSize (*step_size)(const StepOperation*, int64_t count) noexcept;
  Status (*write_step)(const StepOperation*, int64_t count, void* memory, void* image, Step&) noexcept;
  Status (*lay_out_step)(const Step&, Stream) noexcept;
  Status (*run_step)(const Step&, Stream) noexcept;
  Status (*gated_activation)(const GatedActivationArgs&, Stream) noexcept;
  Status (*most_likely)(const MostLikelyArgs&, Stream) noexcept;
  Status (*linear_transposed)(const CodebookWeight&, const LinearTransposedArgs&, Stream) noexcept;
  Status (*grouped_linear_transposed)(const GroupedWeight&, const LinearTransposedArgs&, Stream) noexcept;
  Status (*codebook_gradient)(const CodebookWeight&, const CodebookGradientArgs&, Stream) noexcept;
  Status (*gather_gradient)(const CodebookWeight&, const GatherGradientArgs&, Stream) noexcept;
  Status (*decode_rows)(const CodebookWeight&, const DecodeArgs&, Stream) noexcept;
  Status (*decode_grouped_rows)(const GroupedWeight&, const DecodeArgs&, Stream) noexcept;
  size_t (*uniform_batch_workspace)(const UniformBatchArgs&) noexcept;
  Status (*make_uniform_batch)(const UniformBatchArgs&, UniformBatch&, Stream) noexcept;
  Status (*causal_conv1d_silu_gradient)(const ConvGradientArgs&, Stream) noexcept;
  size_t (*scan_gradient_workspace)(const ScanGradientArgs&) noexcept;
  Status (*selective_scan_gradient)(const ScanGradientArgs&, Stream) noexcept;
  size_t (*ssd_gradient_workspace)(const SsdGradientArgs&) noexcept;
  Status (*ssd_gradient)(const SsdGradientArgs&, Stream) noexcept;
};

}  // namespace hxq::cuda

/// The library's only symbol.
extern "C" const hxq::cuda::Kernels* hxq_cuda_kernels() noexcept;
