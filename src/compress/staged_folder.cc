#include "compress/staged_folder.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include <fstream>
#include <utility>

#include "compress/replaceable.h"
#include "hxq/error.h"
#include "io/system_error.h"

namespace hxq {
namespace fs = std::filesystem;
namespace {

void sync(const fs::path& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw_system_error(path, "open");
  const int result = fsync(file);
  close(file);
  // Some file systems cannot sync a folder; their files were synced one by one.
  if (result != 0 && errno != EINVAL) throw_system_error(path, "write to disk");
}

void sync_folders(const fs::path& folder) {
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder)) {
    if (entry.is_directory() && !entry.is_symlink()) sync(entry.path());
  }
  sync(folder);
}

/// The path without a trailing slash, so that it has a name.
fs::path named(const fs::path& path) {
  if (path.empty()) throw Error("the destination is an empty path");
  const fs::path absolute = fs::absolute(path).lexically_normal();
  return absolute.has_filename() ? absolute : absolute.parent_path();
}

bool is_same_folder(int file, const fs::path& path) {
  struct stat opened {
  }, there{};
  return fstat(file, &opened) == 0 && lstat(path.c_str(), &there) == 0 && opened.st_ino == there.st_ino &&
         opened.st_dev == there.st_dev;
}

}  // namespace

StagedFolder::StagedFolder(const fs::path& destination, Check check_replaceable, Leftovers leftovers)
    : destination_(named(destination)), check_replaceable_(std::move(check_replaceable)) {
  check_destination();
  std::error_code error;
  fs::create_directories(destination_.parent_path(), error);
  if (error) throw_system_error(destination_.parent_path(), "create a folder in it", error.value());
  claim(leftovers);
}

void StagedFolder::check_destination() const {
  if (!fs::exists(fs::symlink_status(destination_))) return;
  if (!check_replaceable_) throw Error("exists already, and is left as it is", {.file = destination_.string()});
  check_replaceable_(destination_);
}

/// Makes and locks the folder. The lock belongs to the folder itself, so that a killed process leaves none behind.
void StagedFolder::claim(Leftovers leftovers) {
  fs::path staging = destination_;
  staging += ".partial";
  staging_ = staging;
  bool is_ours = false;
  try {
    while (!try_to_claim()) {
    }
    check_is_ours();
    is_ours = true;
    taken_up_ = leftovers == Leftovers::take_up && fs::exists(staging_ / kMark);
    if (!taken_up_) clear();
    write(kMark, "");
  } catch (...) {
    if (is_ours) remove();
    if (lock_ >= 0) close(lock_);
    throw;
  }
}

/// False if the folder was moved away meanwhile: another process has finished it.
bool StagedFolder::try_to_claim() {
  if (mkdir(staging_.c_str(), 0777) != 0 && errno != EEXIST) {
    throw_system_error(destination_.parent_path(), "create a folder in it");
  }
  lock_ = open(staging_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (lock_ < 0 && errno == ENOENT) return false;
  if (lock_ < 0) throw Error("is in the way: expected a folder to write to, or nothing", {.file = staging_.string()});
  // Some file systems have no locks: there, two processes at once are not noticed.
  if (flock(lock_, LOCK_EX | LOCK_NB) != 0 && errno == EWOULDBLOCK) {
    throw Error("another process is writing it", {.file = destination_.string()});
  }
  if (is_same_folder(lock_, staging_)) return true;
  close(std::exchange(lock_, -1));
  return false;
}

/// What lies there is only removed if it was being written, or is what an exchange of complete folders has left.
void StagedFolder::check_is_ours() const {
  if (fs::is_empty(staging_) || fs::exists(staging_ / kMark)) return;
  check_replaceable(staging_);
}

StagedFolder::~StagedFolder() {
  if (!staging_.empty()) remove();
  if (lock_ >= 0) close(lock_);
}

/// Its mark goes last: what a process that is killed meanwhile leaves behind, the next one knows to be its own.
void StagedFolder::remove() const noexcept {
  std::error_code ignored;
  for (fs::directory_iterator entry(staging_, ignored), end; !ignored && entry != end; entry.increment(ignored)) {
    std::error_code kept;
    if (entry->path().filename() != kMark) fs::remove_all(entry->path(), kept);
  }
  fs::remove(staging_ / kMark, ignored);
  fs::remove(staging_, ignored);
}

void StagedFolder::clear(const std::function<bool(const std::string& name)>& is_kept) const {
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(staging_)) {
    const std::string name = entry.path().filename().string();
    if (name == kMark || (is_kept && is_kept(name))) continue;
    fs::remove_all(entry.path(), error);
    if (error) throw_system_error(entry.path(), "remove", error.value());
  }
}

void StagedFolder::write(std::string_view name, std::string_view text) const {
  const fs::path path = staging_ / name;
  std::ofstream file(path, std::ios::binary);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  file.close();
  if (!file) throw_system_error(path, "write");
  sync(path);
}

void StagedFolder::make_folder(const fs::path& name) const {
  std::error_code error;
  fs::create_directories(staging_ / name, error);
  if (error) throw_system_error(staging_ / name, "create", error.value());
}

void StagedFolder::copy(const fs::path& file, const fs::path& name) const {
  const fs::path target = staging_ / name;
  std::error_code error;
  do {
    fs::remove(target, error);  // what an earlier run left may be read-only
    fs::copy_file(file, target, error);
  } while (error == std::errc::interrupted);  // by a signal, on which the program acts later
  if (error) throw Error("cannot copy: " + error.message(), {.file = file.string()});
  // Model hubs keep files read-only; the copy belongs to the user.
  fs::permissions(target, fs::perms::owner_write, fs::perm_options::add, error);
  sync(target);
}

/// The old folder is locked before it lies where others would take it up, and until it is removed.
void StagedFolder::exchange() {
  const int old = open(destination_.c_str(), O_RDONLY | O_DIRECTORY | O_NOFOLLOW | O_CLOEXEC);
  if (old < 0) throw_system_error(destination_, "open");
  // Whoever else holds it must not cost what is finished: then it is removed without a lock.
  const bool is_locked = flock(old, LOCK_EX | LOCK_NB) == 0;
  if (renameat2(AT_FDCWD, staging_.c_str(), AT_FDCWD, destination_.c_str(), RENAME_EXCHANGE) != 0) {
    const int reason = errno;
    close(old);
    throw_system_error(destination_, "exchange it with the finished folder", reason);
  }
  close(is_locked ? std::exchange(lock_, old) : old);
  std::ofstream(staging_ / kMark);  // what lies there now goes, even if not all at once
}

void StagedFolder::commit() {
  check_destination();  // another process may have made it since
  sync_folders(staging_);
  fs::remove(staging_ / kMark);
  if (rename(staging_.c_str(), destination_.c_str()) == 0) {
    staging_.clear();
  } else if (errno != ENOTEMPTY && errno != EEXIST) {
    throw_system_error(destination_, "move the finished folder there");
  } else if (!check_replaceable_) {
    throw Error("exists already, and is left as it is", {.file = destination_.string()});
  } else {
    exchange();
  }
  sync(destination_.parent_path());
}

}  // namespace hxq
