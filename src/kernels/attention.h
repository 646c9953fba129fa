#pragma once

#include <cstdint>

#include "desc/activation.h"
#include "kernels/kernels.h"
#include "kernels/kv_cache_view.h"

/// Operations of transformer blocks, under the same rules as those of kernels.h.
namespace hxq::kernels {

/// cos and sin of position * inverse_frequency of each row. Angles are computed in double.
struct RotaryTableArgs {
  void* const* inverse_frequency = nullptr;  // [segments]: float [half] of each
  int64_t half = 0;                          ///< half of the head's dimension
  Batch batch = {};
  float* table = nullptr;  // [rows, 2, half]: cos, then sin
};
void rotary_table(const RotaryTableArgs& args, const Context& context) noexcept;

/// Rotates the queries in place and the keys on their way into the cache; values go there as they are
/// (RoFormer, Su et al. 2021, arXiv 2104.09864, in the half-split layout of transformers:
///     y[i] = x[i] cos[i] - x[i + half] sin[i],   y[i + half] = x[i + half] cos[i] + x[i] sin[i]).
/// The cache must have room for every position.
struct ExtendCacheArgs {
  float* q = nullptr;        // [rows, query_heads, head_dim], rows q_stride apart
  const float* k = nullptr;  // [rows, cache.heads, head_dim], rows kv_stride apart
  const float* v = nullptr;  // the same as k
  int64_t q_stride = 0;
  int64_t kv_stride = 0;
  int64_t query_heads = 0;
  const float* rotary_table = nullptr;  ///< of `rotary_table` with half = head_dim / 2, or null: nothing is rotated
  Batch batch = {};
  KvCacheView cache;
};
void extend_cache(const ExtendCacheArgs& args, const Context& context) noexcept;

/// Causal attention of queries over their sequence's cache, which holds their keys already:
///     y[t, h] = softmax_s(scale * q[t, h] . k[s, h / group]) v[s, h / group],   s in (p - window, p], p = position[t]
/// with group = query_heads / cache.heads. The softmax is computed tile by tile with a running maximum (Milakov &
/// Gimelshein 2018, arXiv 1805.02867), so that scores never leave the cache (Dao et al. 2022, arXiv 2205.14135).
/// A query's result does not depend on which others are computed with it.
struct AttentionArgs {
  const float* q = nullptr;  // [rows, query_heads, head_dim], rows q_stride apart
  int64_t q_stride = 0;
  float* y = nullptr;  // [rows, query_heads, head_dim], rows y_stride apart; not q
  int64_t y_stride = 0;
  int64_t query_heads = 0;  ///< a multiple of cache.heads
  float scale = 0;
  int64_t window = 0;  ///< positions a query sees, its own included; 0: all before it
  Batch batch = {};
  KvCacheView cache;
};
void attention(const AttentionArgs& args, const Context& context) noexcept;

/// y = activation(gate) * up, elementwise (Shazeer 2020, arXiv 2002.05202).
struct GatedActivationArgs {
  const float* gate = nullptr;  // [tokens, dim], rows x_stride apart
  const float* up = nullptr;    // [tokens, dim], rows x_stride apart
  int64_t x_stride = 0;
  float* y = nullptr;  // [tokens, dim], rows y_stride apart; may be gate with y_stride = x_stride
  int64_t y_stride = 0;
  int64_t tokens = 0;
  int64_t dim = 0;
  Activation activation = Activation::silu;
};
void gated_activation(const GatedActivationArgs& args, const Context& context) noexcept;

}  // namespace hxq::kernels
