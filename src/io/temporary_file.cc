#include "io/temporary_file.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <utility>

#include "io/system_error.h"

namespace hxq {

TemporaryFile::TemporaryFile(const std::filesystem::path& target) {
  for (int suffix = 0;; ++suffix) {
    path_ = target;
    path_ += fmt::format(".tmp-{}-{}", ::getpid(), suffix);
    fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
    if (fd_ >= 0) return;
    if (errno != EEXIST) throw_system_error(path_, "create");
  }
}

TemporaryFile::TemporaryFile(const std::filesystem::path& target, std::string_view suffix) : path_(target) {
  path_ += suffix;
  fd_ = ::open(path_.c_str(), O_RDWR | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0666);
  if (fd_ < 0) throw_system_error(path_, "create");
}

TemporaryFile::~TemporaryFile() {
  if (fd_ >= 0) ::close(fd_);
  if (!path_.empty()) ::unlink(path_.c_str());
}

void TemporaryFile::unlink() {
  ::unlink(path_.c_str());
  path_.clear();
}

void TemporaryFile::write(std::span<const std::byte> bytes, uint64_t offset, const std::filesystem::path& target) {
  const uint64_t begin = offset, size = bytes.size();
  while (!bytes.empty()) {
    const ssize_t written = ::pwrite(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (written < 0 && errno == EINTR) continue;
    if (written < 0) throw_system_error(target, "write");
    bytes = bytes.subspan(static_cast<size_t>(written));
    offset += static_cast<uint64_t>(written);
  }
  // The disk begins at once, so that `sync_and_rename` has little to wait for.
  ::sync_file_range(fd_, static_cast<off_t>(begin), static_cast<off_t>(size), SYNC_FILE_RANGE_WRITE);
}

void TemporaryFile::read(std::span<std::byte> bytes, uint64_t offset, const std::filesystem::path& target) const {
  while (!bytes.empty()) {
    const ssize_t got = ::pread(fd_, bytes.data(), bytes.size(), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got <= 0) throw_system_error(target, "read back what waits to be written", got == 0 ? EIO : errno);
    bytes = bytes.subspan(static_cast<size_t>(got));
    offset += static_cast<uint64_t>(got);
  }
}

bool TemporaryFile::check(uint64_t offset, uint64_t size,
                          const std::function<bool(std::span<const std::byte>)>& is_right) const {
  if (size == 0) return is_right({});
  struct stat status {};
  if (::fstat(fd_, &status) != 0 || static_cast<uint64_t>(status.st_size) < offset + size) return false;
  const uint64_t page = static_cast<uint64_t>(::sysconf(_SC_PAGESIZE));
  const uint64_t begin = offset / page * page;
  const uint64_t length = offset + size - begin;
  void* data = ::mmap(nullptr, length, PROT_READ, MAP_SHARED, fd_, static_cast<off_t>(begin));
  if (data == MAP_FAILED) return false;
  const bool right = is_right({static_cast<const std::byte*>(data) + (offset - begin), size});
  ::munmap(data, length);
  return right;
}

void TemporaryFile::truncate(uint64_t size, const std::filesystem::path& target) {
  if (::ftruncate(fd_, static_cast<off_t>(size)) != 0) throw_system_error(target, "write");
}

void TemporaryFile::sync_and_rename(const std::filesystem::path& target) {
  if (::fsync(fd_) != 0) throw_system_error(target, "write");
  const int closed = ::close(std::exchange(fd_, -1));
  if (closed != 0) throw_system_error(target, "write");
  if (::rename(path_.c_str(), target.c_str()) != 0) throw_system_error(target, "create");
  path_.clear();
}

}  // namespace hxq
