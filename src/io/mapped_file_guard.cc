#include "io/mapped_file_guard.h"

#include <sys/mman.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <mutex>

#include "hxq/error.h"

namespace hxq {
namespace {

/// A mapping, as the signal handler can read it: `begin` is 0 while the slot is free. Mappings beyond the slots are
/// not guarded.
struct Slot {
  std::atomic<uintptr_t> begin = 0, end = 0;
  std::array<char, 512> name = {};  // of the file, cut off
};

std::array<Slot, 2048> slots;
std::mutex slots_mutex;
std::atomic<Slot*> broken = nullptr;
struct sigaction earlier_action {};
uintptr_t page_bytes = 4096;

Slot* slot_at(uintptr_t address) noexcept {
  for (Slot& slot : slots) {
    const uintptr_t begin = slot.begin.load(std::memory_order_acquire);
    if (begin != 0 && address >= begin && address < slot.end.load(std::memory_order_relaxed)) return &slot;
  }
  return nullptr;
}

/// Puts a page of zeros where the file has none. Uses nothing but what a signal handler may.
void note_bus_error(int, siginfo_t* info, void*) {
  const auto address = reinterpret_cast<uintptr_t>(info->si_addr);
  Slot* slot = slot_at(address);
  void* const page = reinterpret_cast<void*>(address / page_bytes * page_bytes);
  if (slot && mmap(page, page_bytes, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0) != MAP_FAILED) {
    broken.store(slot, std::memory_order_release);
    return;
  }
  sigaction(SIGBUS, &earlier_action, nullptr);  // the access is repeated, and meets that one
}

}  // namespace

void guard_mapped_files() {
  page_bytes = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  struct sigaction action {};
  action.sa_sigaction = note_bus_error;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, &earlier_action);
}

bool mapped_files_are_whole() noexcept { return broken.load(std::memory_order_acquire) == nullptr; }

void check_mapped_files() {
  if (const Slot* slot = broken.load(std::memory_order_acquire)) {
    throw Error("has got shorter, or cannot be read any more, since it was opened", {.file = slot->name.data()});
  }
}

void note_mapping(std::span<const std::byte> bytes, const std::filesystem::path& path) {
  const std::lock_guard lock(slots_mutex);
  for (Slot& slot : slots) {
    if (slot.begin.load(std::memory_order_relaxed) != 0 || &slot == broken.load(std::memory_order_relaxed)) continue;
    std::strncpy(slot.name.data(), path.c_str(), slot.name.size() - 1);
    const auto begin = reinterpret_cast<uintptr_t>(bytes.data());
    slot.end.store(begin + bytes.size(), std::memory_order_relaxed);
    slot.begin.store(begin, std::memory_order_release);
    return;
  }
}

void forget_mapping(std::span<const std::byte> bytes) noexcept {
  const std::lock_guard lock(slots_mutex);
  for (Slot& slot : slots) {
    if (slot.begin.load(std::memory_order_relaxed) != reinterpret_cast<uintptr_t>(bytes.data())) continue;
    slot.begin.store(0, std::memory_order_relaxed);
    return;
  }
}

}  // namespace hxq
