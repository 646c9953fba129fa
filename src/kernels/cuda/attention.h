#pragma once

#include "desc/activation.h"
#include "kernels/cuda/types.h"

/// Operations of transformer blocks.
namespace hxq::cuda {

/// Keys and values of one attention layer, in pages of kPage positions that sequences take as they grow: the page of
/// position p is pages[sequence * max_pages + p / kPage], and holds [heads, kPage, head_dim] of `dtype`, for keys and
/// values alike. Everything in device memory.
struct KvCacheView {
  static constexpr int kPage = 64;

  void* keys = nullptr;            // [pages, heads, kPage, head_dim]
  void* values = nullptr;          // the same
  const int32_t* pages = nullptr;  // [sequences, max_pages]
  int64_t max_pages = 0;
  int64_t heads = 0;
  int64_t head_dim = 0;  ///< 2 to kMaxHeadDim
  DType dtype = DType::f32;
};
inline constexpr int64_t kMaxHeadDim = 256;

/// Rotates the queries in place and the keys on their way into the cache; values go there as they are (RoFormer, Su et
/// al. 2021, arXiv 2104.09864, half-split: y[i] = x[i] cos - x[i + half] sin, y[i + half] = x[i + half] cos + x[i]
/// sin). Angles are positions times frequencies, reduced in double.
struct ExtendCacheArgs {
  Batch batch;
  Output q;  // [total_rows, query_heads * head_dim]
  Input k;   // [total_rows, cache.heads * head_dim]
  Input v;   // the same
  int64_t query_heads = 0;
  const float* inverse_frequency = nullptr;  // [head_dim / 2], or null: nothing is rotated
  const int32_t* positions = nullptr;        // [batch.count] of the first row of each segment, in device memory
  KvCacheView cache;
};
Status extend_cache(const ExtendCacheArgs& args, Stream stream) noexcept;

/// Causal attention of every row over its sequence's cache, which holds the row's own position already:
///     y[t, h] = softmax_s(scale * q[t, h] . k[s, h / group]) v[s, h / group],   s in (p - window, p]
/// with group = query_heads / cache.heads. The softmax runs tile by tile with a running maximum (Milakov & Gimelshein
/// 2018, arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135). Few rows with many positions before them are split along
/// the positions, and a second kernel joins the parts.
struct AttentionArgs {
  Batch batch;
  Input q;                  // [total_rows, query_heads * head_dim]
  Output y;                 // [total_rows, query_heads * head_dim]; not q
  int64_t query_heads = 0;  ///< a multiple of cache.heads
  float scale = 0;
  int64_t window = 0;                  ///< positions a row sees, its own included; 0: all before it
  const int32_t* positions = nullptr;  // [batch.count], in device memory
  int64_t max_position = 0;            ///< no row's position is larger: sizes the launch
  KvCacheView cache;
  Workspace workspace;  ///< `attention_workspace`
};
size_t attention_workspace(const AttentionArgs& args) noexcept;
Status attention(const AttentionArgs& args, Stream stream) noexcept;

/// y = activation(gate) * up, elementwise (Shazeer 2020, arXiv 2002.05202).
struct GatedActivationArgs {
  Input gate;  // [tokens, dim]
  Input up;    // [tokens, dim]
  Output y;    // [tokens, dim]; may be gate or up
  int64_t tokens = 0;
  int64_t dim = 0;
  Activation activation = Activation::silu;
};
Status gated_activation(const GatedActivationArgs& args, Stream stream) noexcept;

}  // namespace hxq::cuda
