#pragma once

#include <optional>

#include "kernels/attention.h"

namespace hxq::kernels {

/// `rotary_table`, `extend_cache` and then `attention`, where every segment of the batch has one row.
struct AttentionStepArgs {
  std::optional<RotaryTableArgs> rotary = {};  ///< of extend's table; none: nothing is rotated
  ExtendCacheArgs extend;
  AttentionArgs attend;  ///< of the same batch, cache and queries
};

/// Whether the device did it, as one operation; if not, nothing is done.
bool attention_step(const AttentionStepArgs& args, const Context& context) noexcept;

}  // namespace hxq::kernels
