// Which kernels attend for many rows. Where many queries see a cache, a kernel before brings it into the form that is
// multiplied, and another one attends for the segments that there was room for; a third one attends for the others.

#include "kernels/cuda/attention_hopper.cuh"
#include "kernels/cuda/attention_prefill.cuh"

namespace hxq::cuda {
namespace {

/// What is brought into another form beforehand.
struct Beforehand {
  bool on_warpgroups;
  size_t slot_bytes = 0;
  int64_t slots = 0;

  explicit Beforehand(const AttentionArgs& args) : on_warpgroups(supports_attention_hopper(args)) {
    if (!on_warpgroups && (args.cache.dtype != DType::f32 || !fits_prefill_kernel(args, true))) return;
    slot_bytes = on_warpgroups ? placed_slot_bytes(args) : rounded_slot_bytes(args);
    slots = rounded_slots(args);
  }
};

Status attend_beforehand(const AttentionArgs& args, const RoundedTiles& to, bool on_warpgroups, Stream stream) {
  const Status status = on_warpgroups ? place_cache(args, to, stream) : round_cache(args, to, stream);
  if (status != Status::ok) return status;
  return on_warpgroups ? attention_hopper(args, to, stream) : start_prefill_kernel(args, to, true, stream);
}

}  // namespace

bool supports_attention_prefill(const AttentionArgs& args) noexcept {
  return is_attention_prefill(args) && fits_prefill_kernel(args, false);
}

size_t attention_prefill_workspace(const AttentionArgs& args) noexcept {
  const Beforehand beforehand(args);
  return static_cast<size_t>(beforehand.slots) * beforehand.slot_bytes;
}

Status attention_prefill(const AttentionArgs& args, Stream stream) noexcept {
  const Beforehand beforehand(args);
  const auto group = static_cast<int>(args.query_heads / args.cache.heads);
  const RoundedTiles rounded{.data = args.workspace.data,
                             .slots = static_cast<int>(beforehand.slots),
                             .fewest_rows = ceil_div(static_cast<int>(kFewestPrefillQueries), group)};
  if (rounded.slots > 0) {
    const Status status = attend_beforehand(args, rounded, beforehand.on_warpgroups, stream);
    if (status != Status::ok) return status;
  }
  return start_prefill_kernel(args, rounded, false, stream);
}

}  // namespace hxq::cuda
