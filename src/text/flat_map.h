#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace hxq::text {

/// A hash table from 64-bit keys to small values: open addressing with linear probing, at most 5/8 full. Keys cannot be
/// removed; the key ~0 is reserved.
template <class Value>
class FlatMap64 {
 public:
  explicit FlatMap64(size_t expected = 0) { resize_for(expected); }

  size_t size() const { return size_; }

  const Value* find(uint64_t key) const {
    for (size_t i = slot_of(key);; i = (i + 1) & mask_) {
      if (slots_[i].key == key) return &slots_[i].value;
      if (slots_[i].key == kEmpty) return nullptr;
    }
  }

  void insert_or_assign(uint64_t key, const Value& value) {
    if ((size_ + 1) * 8 > slots_.size() * 5) grow();
    Slot& slot = free_slot(key);
    size_ += slot.key == kEmpty;
    slot = {key, value};
  }

 private:
  static constexpr uint64_t kEmpty = ~uint64_t{0};
  struct Slot {
    uint64_t key = kEmpty;
    Value value = {};
  };

  // Fibonacci hashing: the high bits of the product depend on all bits of the key.
  size_t slot_of(uint64_t key) const { return static_cast<size_t>((key * 0x9E3779B97F4A7C15u) >> shift_); }

  Slot& free_slot(uint64_t key) {
    size_t i = slot_of(key);
    while (slots_[i].key != kEmpty && slots_[i].key != key) i = (i + 1) & mask_;
    return slots_[i];
  }

  void resize_for(size_t expected) {
    const size_t count = std::bit_ceil(expected * 8 / 5 + 16);
    slots_.assign(count, Slot{});
    mask_ = count - 1;
    shift_ = 64 - std::countr_zero(count);
  }

  void grow() {
    std::vector<Slot> old = std::move(slots_);
    resize_for(old.size());
    for (const Slot& slot : old) {
      if (slot.key != kEmpty) free_slot(slot.key) = slot;
    }
  }

  std::vector<Slot> slots_;
  size_t mask_ = 0;
  int shift_ = 0;
  size_t size_ = 0;
};

inline uint64_t pair_key(uint32_t first, uint32_t second) { return uint64_t{first} << 32 | second; }

}  // namespace hxq::text
