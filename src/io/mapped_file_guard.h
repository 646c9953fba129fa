#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

#include "hxq/mapped_files.h"

namespace hxq {

/// Of `MappedFile`: where it lies.
void note_mapping(std::span<const std::byte> bytes, const std::filesystem::path& path);
void forget_mapping(std::span<const std::byte> bytes) noexcept;

}  // namespace hxq
