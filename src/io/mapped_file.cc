#include "io/mapped_file.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <utility>

#include "io/mapped_file_guard.h"
#include "io/system_error.h"

namespace hxq {
namespace {

struct Descriptor {
  int fd;
  ~Descriptor() { ::close(fd); }
};

}  // namespace

MappedFile MappedFile::open(const std::filesystem::path& path) {
  // O_NONBLOCK: a FIFO must be refused below, not waited for.
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (fd < 0) throw_system_error(path, "open");
  const Descriptor file{fd};
  struct stat status {};
  if (::fstat(fd, &status) != 0) throw_system_error(path, "read the size");
  if (!S_ISREG(status.st_mode)) throw Error("is not a regular file", {.file = path.string()});
  if (status.st_size == 0) return MappedFile(path, {});
  const auto size = static_cast<size_t>(status.st_size);
  void* data = ::mmap(nullptr, size, PROT_READ, MAP_SHARED, fd, 0);
  if (data == MAP_FAILED) throw_system_error(path, "map");
  MappedFile mapped(path, {static_cast<const std::byte*>(data), size});
  note_mapping(mapped.bytes_, path);
  return mapped;
}

MappedFile::MappedFile(MappedFile&& other) noexcept
    : path_(std::move(other.path_)), bytes_(std::exchange(other.bytes_, {})) {}

MappedFile& MappedFile::operator=(MappedFile&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(bytes_, other.bytes_);
  return *this;
}

MappedFile::~MappedFile() {
  if (bytes_.empty()) return;
  forget_mapping(bytes_);
  ::munmap(const_cast<std::byte*>(bytes_.data()), bytes_.size());
}

bool MappedFile::contains(std::span<const std::byte> range) const noexcept {
  return !range.empty() && range.data() >= bytes_.data() &&
         range.data() + range.size() <= bytes_.data() + bytes_.size();
}

void MappedFile::fetch(std::span<const std::byte> range) const noexcept { advise(range, MADV_WILLNEED); }

void MappedFile::drop(std::span<const std::byte> range) const noexcept { advise(range, MADV_DONTNEED); }

void MappedFile::advise(std::span<const std::byte> range, int advice) const noexcept {
  if (!contains(range)) return;
  // The pages at both ends may be shared with neighbours; dropping them too is harmless, the mapping is read-only.
  static const auto page = static_cast<uintptr_t>(::sysconf(_SC_PAGESIZE));
  const uintptr_t begin = reinterpret_cast<uintptr_t>(range.data()) / page * page;
  const uintptr_t end = reinterpret_cast<uintptr_t>(range.data()) + range.size();
  ::madvise(reinterpret_cast<void*>(begin), end - begin, advice);
}

}  // namespace hxq
