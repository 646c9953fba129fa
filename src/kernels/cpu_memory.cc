#include "kernels/cpu_memory.h"

#include <sys/mman.h>

#include <cstdint>
#include <map>
#include <mutex>
#include <new>

namespace hxq::kernels {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kPage = size_t{2} << 20;
constexpr size_t kLeastShared = size_t{16} << 10;
constexpr size_t kMostShared = kPage / 4;

#if defined(__SANITIZE_ADDRESS__)
constexpr bool kShares = false;  // or it would not see what is written past the end of an array
#elif defined(__has_feature)
constexpr bool kShares = !__has_feature(address_sanitizer);
#else
constexpr bool kShares = true;
#endif

std::byte* allocate_aligned(size_t bytes, size_t alignment) noexcept {
  return static_cast<std::byte*>(::operator new (bytes, std::align_val_t{alignment}, std::nothrow));
}

/// The whole pages of a large array or of one page; nullptr if there is no memory.
std::byte* allocate_pages(size_t bytes) noexcept {
  std::byte* memory = allocate_aligned(bytes, kPage);
  // A system without such pages refuses, and nothing is lost.
  if (memory) madvise(memory, bytes / kPage * kPage, MADV_HUGEPAGE);
  return memory;
}

/// Pages that arrays share.
class SharedPages {
 public:
  /// `bytes`: a multiple of kAlignment.
  std::byte* allocate(size_t bytes) noexcept {
    const std::lock_guard lock(mutex_);
    FreeArray** freed = nullptr;
    try {
      freed = &freed_[bytes];
    } catch (const std::bad_alloc&) {
      return nullptr;
    }
    if (FreeArray* array = *freed) {
      *freed = array->next;
      ++page_of(array)->arrays;
      return reinterpret_cast<std::byte*>(array);
    }
    if (!last_ || last_->used + bytes > kPage) {
      std::byte* memory = allocate_pages(kPage);
      if (!memory) return nullptr;
      last_ = new (memory) Page;
      ++pages_;
    }
    std::byte* array = reinterpret_cast<std::byte*>(last_) + last_->used;
    last_->used += bytes;
    ++last_->arrays;
    return array;
  }

  void free(std::byte* memory, size_t bytes) noexcept {
    const std::lock_guard lock(mutex_);
    Page* const page = page_of(memory);
    FreeArray*& freed = freed_.find(bytes)->second;
    freed = new (memory) FreeArray{freed};
    if (--page->arrays == 0) give_back(page);
  }

  size_t bytes() noexcept {
    const std::lock_guard lock(mutex_);
    return pages_ * kPage;
  }

 private:
  /// At the beginning of each.
  struct alignas(kAlignment) Page {
    size_t used = sizeof(Page);
    size_t arrays = 0;
  };
  /// In the place of an array that was freed.
  struct FreeArray {
    FreeArray* next;
  };

  static Page* page_of(void* array) noexcept {
    return reinterpret_cast<Page*>(reinterpret_cast<uintptr_t>(array) / kPage * kPage);
  }

  void give_back(Page* page) noexcept {
    for (auto& [bytes, first] : freed_) {
      for (FreeArray** at = &first; *at;) {
        if (page_of(*at) == page) {
          *at = (*at)->next;
        } else {
          at = &(*at)->next;
        }
      }
    }
    if (last_ == page) last_ = nullptr;
    ::operator delete (page, std::align_val_t{kPage});
    --pages_;
  }

  std::mutex mutex_;
  Page* last_ = nullptr;  ///< what new arrays are taken of
  size_t pages_ = 0;
  std::map<size_t, FreeArray*> freed_;  ///< by bytes, of all sizes that there have been
};

/// Never destroyed: arrays may outlive what ends with the process.
SharedPages& shared_pages() {
  static SharedPages* const pages = new SharedPages;
  return *pages;
}

size_t rounded(size_t bytes) noexcept { return (bytes + kAlignment - 1) / kAlignment * kAlignment; }
bool is_shared(size_t bytes) noexcept { return kShares && bytes >= kLeastShared && bytes <= kMostShared; }
bool is_large(size_t bytes) noexcept { return bytes >= kPage; }

}  // namespace

std::byte* allocate_cpu_memory(size_t bytes) noexcept {
  if (is_shared(bytes)) return shared_pages().allocate(rounded(bytes));
  return is_large(bytes) ? allocate_pages(bytes) : allocate_aligned(bytes, kAlignment);
}

void free_cpu_memory(std::byte* memory, size_t bytes) noexcept {
  if (is_shared(bytes)) return shared_pages().free(memory, rounded(bytes));
  ::operator delete (memory, std::align_val_t{is_large(bytes) ? kPage : kAlignment});
}

size_t shared_page_bytes() noexcept { return shared_pages().bytes(); }

}  // namespace hxq::kernels
