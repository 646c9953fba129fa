#pragma once

#include "kernels/cuda/attention.h"

namespace hxq::cuda {

/// Attention of one token of each sequence: what `extend_cache` and then `attention` do, in one kernel. Queries stay as
/// they are.
struct AttentionStepArgs {
  Batch batch;              ///< segments have one row or none
  Input q;                  // [total_rows, query_heads * head_dim]
  Input k;                  // [total_rows, cache.heads * head_dim]
  Input v;                  // the same
  Output y;                 // [total_rows, query_heads * head_dim]; not q, k or v
  int64_t query_heads = 0;  ///< a multiple of cache.heads
  float scale = 0;
  int64_t window = 0;                        ///< positions a row sees, its own included; 0: all before it
  void* const* inverse_frequency = nullptr;  // [batch.count]: float [head_dim / 2] of each, or null: nothing is rotated
  KvCacheView cache;
};

/// Whether `attention_step` takes these arguments on the current device.
bool supports_attention_step(const AttentionStepArgs& args) noexcept;
Status attention_step(const AttentionStepArgs& args, Stream stream) noexcept;

}  // namespace hxq::cuda
