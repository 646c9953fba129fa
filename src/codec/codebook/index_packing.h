#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "codec/codebook/matrix.h"

namespace hxq {

/// 12-bit packing, flat over the whole matrix: the indices a, b of a pair lie in three bytes as
///     byte 0 = a & 0xFF     byte 1 = (a >> 8) | ((b & 0xF) << 4)     byte 2 = b >> 4
/// so 0xABC, 0x123 is stored as BC 3A 12.

/// Bytes that `count` indices occupy. `count` must be even for packed12.
int64_t index_bytes(IndexLayout layout, int64_t count) noexcept;

/// The index at flat position `i`. `indices` need not be aligned.
uint32_t index_at(IndexLayout layout, std::span<const std::byte> indices, int64_t i) noexcept;

/// Indices [first, first + out.size()) of the flat stream, which may begin and end inside a pair.
void unpack_indices(IndexLayout layout, std::span<const std::byte> indices, int64_t first,
                    std::span<uint16_t> out) noexcept;

/// The largest of the first `count` indices; 0 if there are none.
uint32_t largest_index(IndexLayout layout, std::span<const std::byte> indices, int64_t count) noexcept;

}  // namespace hxq
