#include "compress/staged_folder.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <fnmatch.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <fstream>
#include <random>
#include <utility>
#include <vector>

#include "hxq/error.h"
#include "io/system_error.h"

namespace hxq {
namespace fs = std::filesystem;
namespace {

constexpr std::array kSideFiles = {
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "generation_config.json",
    "chat_template.*",
    "*processor_config.json",
    "*.py",
    "LICENSE*",
};

void sync(const fs::path& path) {
  const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (file < 0) throw_system_error(path, "open");
  const int result = fsync(file);
  close(file);
  // Some file systems cannot sync a folder; their files were synced one by one.
  if (result != 0 && errno != EINVAL) throw_system_error(path, "write to disk");
}

/// The path without a trailing slash, so that it has a name.
fs::path named(const fs::path& path) {
  if (path.empty()) throw Error("the destination is an empty path");
  const fs::path absolute = fs::absolute(path).lexically_normal();
  return absolute.has_filename() ? absolute : absolute.parent_path();
}

/// A new folder of a name that nobody else has, with the rights that any new folder gets.
fs::path make_folder_beside(const fs::path& destination) {
  std::random_device random;
  for (int attempt = 0; attempt < 100; ++attempt) {
    const std::string name = fmt::format("{}.partial-{:08x}", destination.filename().string(), random());
    const fs::path path = destination.parent_path() / name;
    if (mkdir(path.c_str(), 0777) == 0) return path;
    if (errno != EEXIST) break;
  }
  throw_system_error(destination.parent_path(), "create a folder in it");
}

}  // namespace

StagedFolder::StagedFolder(const fs::path& destination, Check check_replaceable)
    : destination_(named(destination)), check_replaceable_(std::move(check_replaceable)) {
  check_destination();
  std::error_code error;
  fs::create_directories(destination_.parent_path(), error);
  if (error) throw_system_error(destination_.parent_path(), "create a folder in it", error.value());
  staging_ = make_folder_beside(destination_);
}

void StagedFolder::check_destination() const {
  if (!fs::exists(fs::symlink_status(destination_))) return;
  if (!check_replaceable_) throw Error("exists already, and is left as it is", {.file = destination_.string()});
  check_replaceable_(destination_);
}

StagedFolder::~StagedFolder() {
  std::error_code ignored;
  if (!staging_.empty()) fs::remove_all(staging_, ignored);
}

void StagedFolder::write(std::string_view name, std::string_view text) const {
  const fs::path path = staging_ / name;
  std::ofstream file(path, std::ios::binary);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  file.close();
  if (!file) throw_system_error(path, "write");
  sync(path);
}

void StagedFolder::copy(const fs::path& file) const {
  const fs::path target = staging_ / file.filename();
  std::error_code error;
  fs::copy_file(file, target, error);
  if (error) throw Error("cannot copy: " + error.message(), {.file = file.string()});
  // Model hubs keep files read-only; the copy belongs to the user.
  fs::permissions(target, fs::perms::owner_write, fs::perm_options::add, error);
  sync(target);
}

void StagedFolder::commit() {
  check_destination();  // another process may have made it since
  sync(staging_);
  if (rename(staging_.c_str(), destination_.c_str()) == 0) {
    staging_.clear();
  } else if (errno != ENOTEMPTY && errno != EEXIST) {
    throw_system_error(destination_, "move the finished folder there");
  } else if (!check_replaceable_) {
    throw Error("exists already, and is left as it is", {.file = destination_.string()});
  } else if (renameat2(AT_FDCWD, staging_.c_str(), AT_FDCWD, destination_.c_str(), RENAME_EXCHANGE) != 0) {
    throw_system_error(destination_, "exchange it with the finished folder");
  }
  sync(destination_.parent_path());
}

bool is_side_file(std::string_view name) {
  const std::string text(name);
  return std::ranges::any_of(kSideFiles,
                             [&](const char* pattern) { return fnmatch(pattern, text.c_str(), FNM_PERIOD) == 0; });
}

void copy_side_files(const fs::path& source, const StagedFolder& target) {
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(source)) {
    if (is_side_file(entry.path().filename().string()) && entry.is_regular_file()) files.push_back(entry.path());
  }
  std::ranges::sort(files);
  for (const fs::path& file : files) target.copy(file);
}

}  // namespace hxq
