#pragma once

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
  std::vector<DeviceArray<std::byte>> tiles_;
  DeviceArray<std::byte*> table_;  // may have room for more
  int64_t listed_ = 0;             // tiles that the table has
};

}  // namespace hxq::kernels
