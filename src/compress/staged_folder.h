#pragma once

#include <filesystem>
#include <functional>
#include <string_view>

namespace hxq {

/// A folder written beside its destination and moved into place when it is complete. Until `commit` returns, the
/// destination is as it was; without `commit` nothing stays behind.
class StagedFolder {
 public:
  /// Throws `Error` unless what is at the destination may be replaced.
  using Check = std::function<void(const std::filesystem::path& destination)>;

  /// Throws `Error` if the destination exists and `check_replaceable` (empty: nothing may be replaced) does not let it
  /// be replaced, now or when committing, or if it cannot be written.
  explicit StagedFolder(const std::filesystem::path& destination, Check check_replaceable = {});
  StagedFolder(const StagedFolder&) = delete;
  StagedFolder& operator=(const StagedFolder&) = delete;
  ~StagedFolder();

  /// Where to write.
  const std::filesystem::path& path() const noexcept { return staging_; }

  /// Writes a small file of that name and syncs it.
  void write(std::string_view name, std::string_view text) const;

  /// Copies a file under its own name and syncs it.
  void copy(const std::filesystem::path& file) const;

  /// Syncs the folder and puts it in place of the destination, in one step where the file system can.
  void commit();

 private:
  void check_destination() const;

  std::filesystem::path destination_;
  Check check_replaceable_;
  std::filesystem::path staging_;
};

/// Whether the file is one of those that `copy_side_files` copies.
bool is_side_file(std::string_view name);

/// Copies what a model folder holds beside weights and config.json: tokenizer, generation settings, chat template,
/// processor settings, model code and licence.
void copy_side_files(const std::filesystem::path& source, const StagedFolder& target);

}  // namespace hxq
