#pragma once

#include <algorithm>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/tensor_core_places.h"

/// How attention of many rows is divided (attention_prefill.cu): blocks have rows of queries, go through positions in
/// steps, and their warps convert a step's keys and values in strips.
namespace hxq::cuda {

/// What a block has of heads of kDim elements.
template <int kDim>
struct PrefillShape {
  static_assert(kDim % 16 == 0);
  static constexpr int kWarps = 4;
  static constexpr int kRowTiles = kDim <= 128 ? 2 : 1;  ///< of 16 rows, a warp's
  static constexpr int kWarpRows = 16 * kRowTiles;
  static constexpr int kRows = kWarps * kWarpRows;    ///< of queries
  static constexpr int kKeys = kDim <= 96 ? 32 : 16;  ///< positions of a step
  static_assert(KvCacheView::kTile % kKeys == 0);
};

/// Rows with this many queries of a key-value head, at least, keep the tensor cores busy.
inline constexpr int64_t kFewestPrefillQueries = 64;

/// Queries that share a key-value head, of one segment at most.
constexpr int64_t queries_of_head(const AttentionArgs& args) {
  return args.batch.max_rows * (args.query_heads / args.cache.heads);
}

/// Whether tensor cores compute that attention, which must fit the launcher otherwise.
constexpr bool is_attention_prefill(const AttentionArgs& args) {
  const int64_t dim = args.cache.padded_dim;
  return (dim == 64 || dim == 80 || dim == 96 || dim == 128 || dim == 256) && args.cache.head_dim % 2 == 0 &&
         (args.cache.dtype == DType::f32 || args.cache.dtype == DType::f16) &&
         queries_of_head(args) >= kFewestPrefillQueries;
}

/// Calls with the elements of a head, padded, as a constant.
template <class Body>
auto with_prefill_dim(const AttentionArgs& args, const Body& body) {
  switch (args.cache.padded_dim) {
    case 64:
      return body(std::integral_constant<int, 64>());
    case 80:
      return body(std::integral_constant<int, 80>());
    case 96:
      return body(std::integral_constant<int, 96>());
    case 128:
      return body(std::integral_constant<int, 128>());
    default:
      return body(std::integral_constant<int, 256>());
  }
}

/// Where this many queries of a key-value head see keys and values of a cache of floats, they are rounded once, for all
/// blocks of attention_prefill.cu.
inline constexpr int64_t kFewestRoundedQueries = 512;
inline constexpr size_t kMostRoundedBytes = size_t{512} << 20;
inline constexpr int64_t kMostRoundedSlots = 65535;  ///< blocks of a launch

/// How many tiles of the cache there is room for, rounded: those that segments of many rows see, and what begins or
/// ends within a tile.
constexpr int64_t rounded_slots(const AttentionArgs& args, size_t slot_bytes) {
  const int64_t count = args.batch.count;
  int64_t seen = args.seen_positions;
  if (args.window > 0) seen = std::min(seen, args.batch.total_rows + count * args.window);
  const int64_t most = std::min(static_cast<int64_t>(kMostRoundedBytes / slot_bytes), kMostRoundedSlots);
  return seen == 0 ? 0 : std::min(seen / KvCacheView::kTile + 2 * count, most);
}

inline constexpr int kMostAttentionParts = 32;
inline constexpr int64_t kFewestPartPositions = 512;  ///< are worth a block of their own

/// How many parts positions are cut into where there are more multiprocessors than blocks with `block_rows` queries.
constexpr int warpgroup_parts(const AttentionArgs& args, int block_rows, int multiprocessors) {
  const int64_t blocks = (queries_of_head(args) + block_rows - 1) / block_rows * args.cache.heads * args.batch.count;
  const int64_t wanted = std::min(multiprocessors / blocks, args.seen_positions / kFewestPartPositions);
  return static_cast<int>(std::clamp<int64_t>(wanted, 1, kMostAttentionParts));
}

/// The queries of a segment that share a key-value head are one list: of each token, those of the group's heads.
struct PrefillQuery {
  int token, head_of_group;

  HXQ_HOST_DEVICE constexpr PrefillQuery(int place, int group) : token(place / group), head_of_group(place % group) {}
};

/// The positions that rows at `first` to `last` see between them: of each its own and those before, `window` in all
/// (0: all).
struct SeenPositions {
  int begin = 0, last_begin = 0, first = 0, end = 0;  // the first row [begin, first], the last one [last_begin, end)

  SeenPositions() = default;
  HXQ_HOST_DEVICE constexpr SeenPositions(int first_row, int last_row, int64_t window)
      : begin(begin_of(first_row, window)),
        last_begin(begin_of(last_row, window)),
        first(first_row),
        end(last_row + 1) {}

  /// Whether any row sees any of the positions [at, at + count).
  HXQ_HOST_DEVICE constexpr bool touch(int at, int count) const { return at < end && at + count > begin; }
  /// Whether every row sees all of them.
  HXQ_HOST_DEVICE constexpr bool all_hold(int at, int count) const {
    return at >= last_begin && at + count - 1 <= first;
  }

 private:
  HXQ_HOST_DEVICE static constexpr int begin_of(int row, int64_t window) {
    return window > 0 && row >= window ? static_cast<int>(row - window + 1) : 0;
  }
};

/// Which strips of 8 columns a warp converts: `first`, and every `step`-th after it. Strips of keys are long and few;
/// where there are fewer than warps, other warps take the values.
struct StripShare {
  int first, step;

  HXQ_HOST_DEVICE static constexpr StripShare of_keys(int warp, int warps) { return {warp, warps}; }
  HXQ_HOST_DEVICE static constexpr StripShare of_values(int warp, int warps, int key_strips) {
    if (key_strips >= warps) return {warp, warps};
    return {warp < key_strips ? INT32_MAX / 2 : warp - key_strips, warps - key_strips};
  }
};

}  // namespace hxq::cuda
