#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "hxq/tensor.h"

namespace hxq {

/// Views a whole .npy file (format 1.0 to 3.0, little-endian, C order); `file` is for messages.
/// The data must be as long as dtype and shape say. Throws `Error` otherwise.
TensorView parse_npy(std::span<const std::byte> bytes, const std::string& file);

/// The inflated bytes of a member of an .npz archive (itself a .npy file), checked against its CRC; empty if there is
/// no such member. `max_bytes` bounds what a member may inflate to. Throws `Error` if the archive is malformed.
std::optional<std::vector<std::byte>> read_npz_member(std::span<const std::byte> archive, const std::string& member,
                                                      size_t max_bytes, const std::string& file);

}  // namespace hxq
