#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "text/flat_map.h"

namespace hxq::text {

/// Strings to find in a text: at each place the longest, from left to right, without overlap.
class StringFinder {
 public:
  struct Match {
    size_t begin = 0, end = 0;
    int32_t value = -1;  ///< of the string found
  };

  /// The last value counts of a string added twice. `text` must not be empty.
  void add(std::string_view text, int32_t value);
  bool empty() const { return nodes_.size() == 1; }

  /// The first match at or after `from`.
  std::optional<Match> find(std::string_view text, size_t from) const;

 private:
  std::array<bool, 256> starts_ = {};  // the first bytes of the strings
  std::vector<int32_t> nodes_ = {-1};  // by node of the trie: the value of the string that ends there, or -1
  FlatMap64<uint32_t> edges_;          // by (node, byte): node
};

}  // namespace hxq::text
