#pragma once

#include <memory>
#include <vector>

#include "kernels/device.h"
#include "kernels/kv_cache_view.h"

namespace hxq::kernels {

/// Keys and values of one attention layer for one sequence. Memory is taken as the sequence grows.
class KvCache {
 public:
  /// `dtype`: F32 or F16.
  KvCache(const Device& device, int64_t heads, int64_t head_dim, DType dtype);

  /// Makes room for positions [0, positions); what is stored stays where it is. Throws `OutOfMemory`.
  void reserve(int64_t positions);

  /// Lets go of tiles that other caches have too: what is stored anew must not change theirs.
  void reset() noexcept;

  /// Keeps what `other`, of the same shape and device, has of positions [0, positions), and nothing else. Whole tiles
  /// are shared: nothing is stored in them any more. Throws `OutOfMemory`; it is as it was then.
  void copy_from(const KvCache& other, int64_t positions);

  /// Of its tiles, shared ones included.
  int64_t bytes() const noexcept { return std::ssize(tiles_) * 2 * shape_.tile_bytes(); }

  /// The shape of a cache; its `tiles` are for the caller to fill in with those of a batch's sequences.
  static KvCacheView shape(int64_t heads, int64_t head_dim, DType dtype) noexcept;

  int64_t heads() const noexcept { return shape_.heads; }
  int64_t head_dim() const noexcept { return shape_.head_dim; }

  enum class Part : uint8_t { keys, values };
  /// The keys or the values [heads, positions, head_dim] of positions [0, positions), for which there was made room, on
  /// the host.
  std::vector<float> read(Part part, int64_t positions) const;

  /// Device memory: a pointer to each tile. Valid until the next `reserve`.
  void* tiles() const noexcept { return table_.data(); }

 private:
  const Device* device_;
  KvCacheView shape_;
  DeviceArray<std::byte> new_tile() const;

  std::vector<std::shared_ptr<DeviceArray<std::byte>>> tiles_;
  DeviceArray<std::byte*> table_;  // may have room for more
  int64_t listed_ = 0;             // tiles that the table has
};

}  // namespace hxq::kernels
