#pragma once

#include <array>

#include "kernels/cuda/attention_step.h"
#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// The products of a layer: what a head asks, knows and says, what comes of all heads, and the gated MLP.
enum TransformerProduct : uint8_t {
  kQuery,   // [query_heads * head_dim, hidden]
  kKey,     // [cache.heads * head_dim, hidden]
  kValue,   // the same
  kOutput,  // [hidden, query_heads * head_dim]
  kGate,    // [inner, hidden]
  kUp,      // the same
  kDown,    // [hidden, inner]
  kTransformerProducts
};

/// A layer of a transformer for one token of a sequence:
///     q, k, v = products with rms_norm(h)
///     h      += output y, y what `attention_step` makes of q, k and v
///     h      += down (activation(gate x) * up x), x = rms_norm(h)
struct TransformerLayer {
  const float* norm_weight = nullptr;      // [hidden]
  const float* mlp_norm_weight = nullptr;  // [hidden]
  std::array<CodebookWeight, kTransformerProducts> weight = {};
  std::array<const float*, kTransformerProducts> bias = {};  // [rows] of each, or null
  /// batch, q, k, v and y are not looked at; tiles of the cache are aligned to 16 bytes.
  AttentionStepArgs attention = {};
  Activation activation = Activation::silu;
};

/// Adjacent layers of one shape.
struct TransformerLayersArgs {
  Batch batch;  ///< one segment of one row, or none
  Output h;     // [total_rows, hidden]
  float eps = 0;
  const TransformerLayer* layers = nullptr;  // [count]
  int64_t count = 0;
  /// kTransformerExchangeBytes of device memory, aligned to 16 bytes, zeros before its first use, which one stream
  /// alone uses.
  void* exchange = nullptr;
};

/// Whether `transformer_layers` takes these arguments on the current device.
bool supports_transformer_layers(const TransformerLayersArgs& args) noexcept;
/// As one kernel for up to kMostTransformerLayers of them, which takes the whole device: it begins when every
/// multiprocessor is free. Everything is float.
Status transformer_layers(const TransformerLayersArgs& args, Stream stream) noexcept;
inline constexpr int kMostTransformerLayers = 48;
inline constexpr size_t kTransformerExchangeBytes = size_t{1} << 20;

}  // namespace hxq::cuda
