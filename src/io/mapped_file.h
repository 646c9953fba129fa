#pragma once

#include <cstddef>
#include <filesystem>
#include <span>

namespace hxq {

/// A regular file mapped read-only. Move-only; views of `bytes()` stay valid when the object is moved.
/// The file must not be truncated while it is mapped: see hxq/mapped_files.h.
class MappedFile {
 public:
  /// Throws `Error` if the file cannot be opened or is not a regular file. An empty file gives empty bytes.
  static MappedFile open(const std::filesystem::path& path);

  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&& other) noexcept;
  ~MappedFile();

  const std::filesystem::path& path() const noexcept { return path_; }
  std::span<const std::byte> bytes() const noexcept { return bytes_; }

  /// True if `range` lies inside this mapping.
  bool contains(std::span<const std::byte> range) const noexcept;

  /// Begins to read a part of `bytes()` that is needed soon.
  void fetch(std::span<const std::byte> range) const noexcept;

  /// Gives the pages of a finished part of `bytes()` back, so that resident memory stays bounded.
  /// The bytes may still be read; they then come from the file again.
  void drop(std::span<const std::byte> range) const noexcept;

 private:
  void advise(std::span<const std::byte> range, int advice) const noexcept;

  MappedFile(std::filesystem::path path, std::span<const std::byte> bytes) : path_(std::move(path)), bytes_(bytes) {}

  std::filesystem::path path_;
  std::span<const std::byte> bytes_;
};

}  // namespace hxq
