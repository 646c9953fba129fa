#pragma once

#include "kernels/cuda/attention.h"

namespace hxq::cuda {

/// Whether `attention_prefill` takes it: many queries, and a cache and a GPU that fit.
bool supports_attention_prefill(const AttentionArgs& args) noexcept;

/// Bytes of workspace that it takes then.
size_t attention_prefill_workspace(const AttentionArgs& args) noexcept;

/// `attention` by tensor cores.
Status attention_prefill(const AttentionArgs& args, Stream stream) noexcept;

}  // namespace hxq::cuda
