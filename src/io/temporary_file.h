#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <span>
#include <string_view>

namespace hxq {

/// A file open for writing that is removed when it goes out of scope, unless it was moved into place. Every function
/// throws `Error` where the system refuses.
class TemporaryFile {
 public:
  /// Creates `<target>.tmp-<process>-<suffix>`, with a suffix that no file has yet.
  explicit TemporaryFile(const std::filesystem::path& target);
  /// Opens `<target><suffix>`, with what a killed process has left in it.
  TemporaryFile(const std::filesystem::path& target, std::string_view suffix);
  TemporaryFile(const TemporaryFile&) = delete;
  TemporaryFile& operator=(const TemporaryFile&) = delete;
  ~TemporaryFile();

  /// Removes the name; the file stays until it goes out of scope.
  void unlink();

  /// `target` is the name that messages use: the user knows that file, not the temporary one.
  void write(std::span<const std::byte> bytes, uint64_t offset, const std::filesystem::path& target);

  void read(std::span<std::byte> bytes, uint64_t offset, const std::filesystem::path& target) const;

  /// Whether `is_right` says yes to that part of the file.
  bool check(uint64_t offset, uint64_t size, const std::function<bool(std::span<const std::byte>)>& is_right) const;

  void truncate(uint64_t size, const std::filesystem::path& target);

  void sync_and_rename(const std::filesystem::path& target);

 private:
  std::filesystem::path path_;
  int fd_ = -1;
};

}  // namespace hxq
