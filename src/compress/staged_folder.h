#pragma once

#include <filesystem>
#include <functional>
#include <string>
#include <string_view>

namespace hxq {

/// A folder written beside its destination, `<destination>.partial`, and moved into place when it is complete. Until
/// `commit` returns, the destination is as it was; without `commit` nothing stays behind. While one process writes it,
/// another cannot; what a killed process left is cleared or taken up by the next.
class StagedFolder {
 public:
  /// Throws `Error` unless what is at the destination may be replaced.
  using Check = std::function<void(const std::filesystem::path& destination)>;

  enum class Leftovers { clear, take_up };

  /// Marks a folder that is being written; removed when it is complete.
  static constexpr const char* kMark = ".hxq-partial";

  /// Throws `Error` if the destination exists and `check_replaceable` (empty: nothing may be replaced) does not let it
  /// be replaced, now or when committing, if another process is writing it, or if it cannot be written.
  explicit StagedFolder(const std::filesystem::path& destination, Check check_replaceable = {},
                        Leftovers leftovers = Leftovers::clear);
  StagedFolder(const StagedFolder&) = delete;
  StagedFolder& operator=(const StagedFolder&) = delete;
  ~StagedFolder();

  /// Where to write.
  const std::filesystem::path& path() const noexcept { return staging_; }

  /// Whether the folder holds what an earlier run left.
  bool taken_up() const noexcept { return taken_up_; }

  /// Removes what the folder holds, but for what is to be kept.
  void clear(const std::function<bool(const std::string& name)>& is_kept = {}) const;

  /// Writes a small file of that name and syncs it.
  void write(std::string_view name, std::string_view text) const;

  /// Makes a folder within it, and those above that one.
  void make_folder(const std::filesystem::path& name) const;

  /// Copies a file under that name and syncs it.
  void copy(const std::filesystem::path& file, const std::filesystem::path& name) const;

  /// Syncs the folder and puts it in place of the destination, in one step where the file system can.
  void commit();

 private:
  void check_destination() const;
  void claim(Leftovers leftovers);
  bool try_to_claim();
  void check_is_ours() const;
  void exchange();
  void remove() const noexcept;

  std::filesystem::path destination_;
  Check check_replaceable_;
  std::filesystem::path staging_;  // empty: nothing to remove
  int lock_ = -1;                  // the open folder at staging_, locked while it is ours
  bool taken_up_ = false;
};

}  // namespace hxq
