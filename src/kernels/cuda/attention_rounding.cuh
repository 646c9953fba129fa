// Keys and values of a cache, brought into the form that is multiplied once for all blocks. The tiles that segments
// with many queries see lie in the workspace, segment after segment, as far as there is room for all of a segment.

#pragma once

#include "kernels/cuda/attention_prefill_plan.h"
#include "kernels/cuda/device.cuh"

namespace hxq::cuda {

/// A head's part of a tile of the cache, as numbers of kParts binary16 each; strips of 8 columns are divided by powers
/// of two.
template <int kDim, int kParts>
struct RoundedTile {
  static constexpr int kTile = static_cast<int>(KvCacheView::kTile);
  alignas(16) __half keys[kParts][kDim][kTile];
  alignas(16) __half values[kParts][kTile][kDim];
  float key_scale[kTile / 8];
  float value_scale[kDim / 8];  ///< divided by kWeightScale
};

/// Room for rounded tiles: [slots, heads].
struct RoundedTiles {
  void* data = nullptr;
  int slots = 0;        ///< 0: nothing is rounded
  int fewest_rows = 1;  ///< of segments that have tiles here
};

/// The tiles of its cache that a segment with many queries sees.
struct SeenTiles {
  int first = 0, count = 0;
  int known = 0;  ///< positions that the cache holds

  __device__ SeenTiles(const AttentionArgs& args, const RoundedTiles& room, int sequence) {
    if (sequence >= args.batch.count) return;
    const RowRange segment = args.batch.segments[sequence];
    if (segment.end - segment.begin < room.fewest_rows) return;
    const SeenPositions seen(args.batch.positions[segment.begin], args.batch.positions[segment.end - 1], args.window);
    first = seen.begin / static_cast<int>(KvCacheView::kTile);
    count = ceil_div(seen.end, static_cast<int>(KvCacheView::kTile)) - first;
    known = seen.end;
  }
};

/// Where a segment's rounded tiles are, or that it has none.
struct RoundedSegment {
  int first_slot = 0;
  bool exists = false;

  /// For all lanes of a warp.
  __device__ RoundedSegment(const AttentionArgs& args, const RoundedTiles& room, int sequence) {
    if (room.slots == 0) return;
    for (int s = static_cast<int>(threadIdx.x % 32); s < sequence; s += 32)
      first_slot += SeenTiles(args, room, s).count;
    first_slot = __reduce_add_sync(kAllLanes, first_slot);
    const int count = SeenTiles(args, room, sequence).count;
    exists = count > 0 && first_slot + count <= room.slots;
  }
};

/// The sequence whose tile is in a slot, for all lanes of a warp.
struct RoundedSlot {
  int sequence = 0, first_slot = 0;
  bool exists = false;

  __device__ RoundedSlot(const AttentionArgs& args, const RoundedTiles& room, int slot) {
    const int lane = static_cast<int>(threadIdx.x % 32);
    for (int begin = 0, before = 0; begin < args.batch.count; begin += 32) {
      const int own = SeenTiles(args, room, begin + lane).count;
      int end = before + own;
#pragma unroll
      for (int step = 1; step < 32; step *= 2) {
        const int other = __shfl_up_sync(kAllLanes, end - before, step);
        if (lane >= step) end += other;
      }
      const unsigned later = __ballot_sync(kAllLanes, slot < end);
      if (later != 0) {
        const int holder = __ffs(static_cast<int>(later)) - 1;
        sequence = begin + holder;
        first_slot = __shfl_sync(kAllLanes, end - own, holder);
        exists = __shfl_sync(kAllLanes, end, holder) <= room.slots;
        return;
      }
      before = __shfl_sync(kAllLanes, end, 31);
    }
  }
};

/// Rounds what the segments of the batch see, of a cache that `is_attention_prefill` takes.
Status round_cache(const AttentionArgs& args, const RoundedTiles& to, Stream stream) noexcept;

/// Bytes of a slot of a cache of floats.
size_t rounded_slot_bytes(const AttentionArgs& args) noexcept;

/// The kernel of attention_prefill.cu for segments that are rounded, or for the others: whether a block has the shared
/// memory, and its launch.
bool fits_prefill_kernel(const AttentionArgs& args, bool is_rounded) noexcept;
Status start_prefill_kernel(const AttentionArgs& args, const RoundedTiles& rounded, bool is_rounded,
                            Stream stream) noexcept;

}  // namespace hxq::cuda
