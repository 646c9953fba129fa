// Which kernels attend for many rows. On Hopper, and where many queries see a cache of floats, a kernel before brings
// it into the form that is multiplied, and another one attends for the segments that there was room for; a third one
// attends for the others.

#include "kernels/cuda/attention_hopper.cuh"
#include "kernels/cuda/attention_prefill.cuh"

namespace hxq::cuda {
namespace {

/// What is brought into another form beforehand.
struct Beforehand {
  bool on_warpgroups;
  int64_t slots = 0;
  size_t bytes = 0;  ///< of all slots
  int parts = 1;     ///< that positions are cut into, on warpgroups

  explicit Beforehand(const AttentionArgs& args) : on_warpgroups(supports_attention_hopper(args)) {
    const bool rounds = args.cache.dtype == DType::f32 && queries_of_head(args) >= kFewestRoundedQueries &&
                        fits_prefill_kernel(args, true);
    if (!on_warpgroups && !rounds) return;
    const size_t slot_bytes = on_warpgroups ? placed_slot_bytes(args) : rounded_slot_bytes(args);
    slots = rounded_slots(args, slot_bytes);
    bytes = static_cast<size_t>(slots) * slot_bytes;
    if (on_warpgroups) parts = hopper_parts(args);
  }
};

/// `attention` of the segments that there is room for.
Status attend(const AttentionArgs& args, const Beforehand& beforehand, const RoundedTiles& to, Stream stream) {
  const bool on_warpgroups = beforehand.on_warpgroups;
  const Status status = on_warpgroups ? place_cache(args, to, stream) : round_cache(args, to, stream);
  if (status != Status::ok) return status;
  if (!on_warpgroups) return start_prefill_kernel(args, to, true, stream);
  auto* const partial = static_cast<unsigned char*>(args.workspace.data) + beforehand.bytes;
  return attention_hopper(args, to, {.data = reinterpret_cast<float*>(partial), .count = beforehand.parts}, stream);
}

}  // namespace

bool supports_attention_prefill(const AttentionArgs& args) noexcept {
  return is_attention_prefill(args) && fits_prefill_kernel(args, false);
}

size_t attention_prefill_workspace(const AttentionArgs& args) noexcept {
  const Beforehand beforehand(args);
  return beforehand.bytes + AttentionParts::bytes(args, beforehand.parts);
}

Status attention_prefill(const AttentionArgs& args, Stream stream) noexcept {
  const Beforehand beforehand(args);
  const auto group = static_cast<int>(args.query_heads / args.cache.heads);
  const RoundedTiles rounded{.data = args.workspace.data,
                             .slots = static_cast<int>(beforehand.slots),
                             .fewest_rows = ceil_div(static_cast<int>(kFewestPrefillQueries), group)};
  if (rounded.slots > 0) {
    const Status status = attend(args, beforehand, rounded, stream);
    if (status != Status::ok) return status;
  }
  return start_prefill_kernel(args, rounded, false, stream);
}

}  // namespace hxq::cuda
