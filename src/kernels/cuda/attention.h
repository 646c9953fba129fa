#pragma once

#include "desc/activation.h"
#include "kernels/cuda/types.h"
#include "kernels/kv_cache_view.h"

/// Operations of transformer blocks.
namespace hxq::cuda {

using kernels::KvCacheView;
inline constexpr int64_t kMaxHeadDim = 256;  ///< even, and at least 2

/// Rotates the queries in place and the keys on their way into the cache; values go there as they are (RoFormer, Su et
/// al. 2021, arXiv 2104.09864, half-split: y[i] = x[i] cos - x[i + half] sin, y[i + half] = x[i + half] cos + x[i]
/// sin). Angles are positions (of `batch`) times frequencies, reduced in double. `cache.tiles` is [batch.count], in
/// device memory, and has room for every position.
struct ExtendCacheArgs {
  Batch batch;
  Output q;  // [total_rows, query_heads * head_dim]
  Input k;   // [total_rows, cache.heads * head_dim]
  Input v;   // the same
  int64_t query_heads = 0;
  void* const* inverse_frequency = nullptr;  // [batch.count]: float [head_dim / 2] of each, or null: nothing is rotated
  KvCacheView cache;
};
Status extend_cache(const ExtendCacheArgs& args, Stream stream) noexcept;

/// Causal attention of every row over its sequence's cache, which holds the row's own position already:
///     y[t, h] = softmax_s(scale * q[t, h] . k[s, h / group]) v[s, h / group],   s in (p - window, p]
/// with group = query_heads / cache.heads. The softmax runs tile by tile with a running maximum (Milakov & Gimelshein
/// 2018, arXiv 1805.02867; Dao et al. 2022, arXiv 2205.14135). Few rows with many positions before them are split along
/// the positions, and another kernel joins the parts. Fewer are computed in float. Many rows (attention_prefill.cuh) go
/// through tensor cores: errors are those of scores that are off by 2^-20 (`exact`) or 2^-10 (`fast`) of the sum of
/// their products' absolute values, then 2^-20 or 2^-10 of the sum of the absolute values of weighted v, and never less
/// than 2^-38 of the largest v, and of the largest k times that of q, of a step (up to 128 positions) for each
/// position. A v that is not finite also spoils tokens of its sequence up to 256 positions before it, and with a window
/// as many behind the last that sees it; a k that is not finite makes others of its tile inexact.
struct AttentionArgs {
  Batch batch;
  Input q;                  // [total_rows, query_heads * head_dim]
  Output y;                 // [total_rows, query_heads * head_dim]; not q
  int64_t query_heads = 0;  ///< a multiple of cache.heads
  float scale = 0;
  int64_t window = 0;          ///< positions a row sees, its own included; 0: all before it
  int64_t seen_positions = 0;  ///< that segments of many rows see, all together; where they see more, some are slower
  KvCacheView cache;           ///< tiles are aligned to 16 bytes
  Precision precision = Precision::exact;
  Workspace workspace = {};  ///< `attention_workspace`
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
