#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace hxq::text {

/// Strings one after the other in one buffer.
class StringList {
 public:
  void reserve(size_t strings, size_t bytes);
  void push_back(std::string_view text);
  size_t size() const { return ends_.size(); }
  std::string_view operator[](size_t i) const {
    const size_t begin = i == 0 ? 0 : ends_[i - 1];
    return std::string_view(bytes_).substr(begin, ends_[i] - begin);
  }

 private:
  std::string bytes_;
  std::vector<size_t> ends_;
};

/// The highest id that a file may give a token: keeps tables indexed by id small whatever the file says.
inline constexpr int32_t kMaxTokenId = (1 << 24) - 1;

/// Token strings to ids and back. Each string has one id.
class TokenTable {
 public:
  TokenTable() = default;

  /// `ids[i]`, from 0 to `kMaxTokenId`, is the id of `tokens[i]`; of equal strings the last one counts.
  TokenTable(StringList tokens, std::vector<int32_t> ids);

  /// The number of different strings.
  size_t size() const { return size_; }
  std::optional<int32_t> id_of(std::string_view token) const;
  std::optional<std::string_view> token_of(int32_t id) const;

  /// Calls `visit(token, id)` for each string.
  template <class Visit>
  void for_each(Visit&& visit) const {
    for (size_t i = 0; i < tokens_.size(); ++i) {
      if (ids_[i] != kOverridden) visit(tokens_[i], ids_[i]);
    }
  }

 private:
  static constexpr uint32_t kNone = ~uint32_t{0};
  static constexpr int32_t kOverridden = -1;
  struct Slot {
    uint32_t index = kNone;  // into tokens_
    uint32_t tag = 0;        // of the hash, to pass over other strings without reading them
  };

  static uint32_t tag_of(size_t hash) { return static_cast<uint32_t>(hash >> 32); }
  size_t slot_of(std::string_view token, size_t hash) const;

  StringList tokens_;
  std::vector<int32_t> ids_;        // of tokens_[i], or kOverridden
  std::vector<Slot> slots_;         // open addressing
  std::vector<uint32_t> index_of_;  // by id: index into tokens_, or kNone
  size_t size_ = 0;
};

}  // namespace hxq::text
