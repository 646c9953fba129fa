#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace hxq {

/// From now on, reading a part of a mapped file that is no longer there (the file was truncated, a disk has failed)
/// gives zeros and is noted, where otherwise the signal SIGBUS would end the process. For programs that can install a
/// signal handler; faults elsewhere are left to the handler that was there before.
void guard_mapped_files();

/// Whether all that was read of mapped files was there.
bool mapped_files_are_whole() noexcept;

/// Throws `Error` naming the file, if one was not.
void check_mapped_files();

/// Of `MappedFile`: where it lies.
void note_mapping(std::span<const std::byte> bytes, const std::filesystem::path& path);
void forget_mapping(std::span<const std::byte> bytes) noexcept;

}  // namespace hxq
