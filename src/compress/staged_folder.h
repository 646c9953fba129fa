#pragma once

#include <filesystem>
#include <string>
#include <string_view>

namespace hxq {

/// A folder written beside its destination and moved into place when it is complete. Until `commit` returns, the
/// destination is as it was; without `commit` nothing stays behind.
class StagedFolder {
 public:
  /// `replaceable_marker`: the destination may exist if it is a folder that has this file; empty: it must not exist.
  /// Throws `Error` if it exists otherwise, or cannot be written.
  StagedFolder(const std::filesystem::path& destination, std::string_view replaceable_marker);
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
  std::string replaceable_marker_;
  std::filesystem::path staging_;
};

/// Copies what a model folder holds beside weights and config.json: tokenizer, generation settings, chat template,
/// processor settings, model code and licence.
void copy_side_files(const std::filesystem::path& source, const StagedFolder& target);

}  // namespace hxq
