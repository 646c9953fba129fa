#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <mutex>
#include <span>

#include "hxq/error.h"

namespace hxq {

/// A table of rows that are known when the library is built and of rows that are added while a program runs. Rows stay
/// for ever; reading takes no lock, and a reader sees a row entirely or not at all.
template <class Row>
class RowTable {
 public:
  explicit RowTable(std::span<const Row* const> built_in) {
    for (const Row* row : built_in) rows_[count_++] = row;
  }

  std::span<const Row* const> rows() const noexcept { return {rows_.data(), count_.load(std::memory_order_acquire)}; }

  /// `check(rows)` throws for a row that must not be added.
  template <class Check>
  void add(const Row& row, Check&& check) {
    const std::scoped_lock lock(adding_);
    check(rows());
    const size_t count = count_.load(std::memory_order_relaxed);
    if (count == rows_.size()) throw Error("there is no room for another row of the table");
    rows_[count] = &row;
    count_.store(count + 1, std::memory_order_release);
  }

 private:
  std::array<const Row*, 64> rows_ = {};
  std::atomic<size_t> count_ = 0;
  std::mutex adding_;
};

}  // namespace hxq
