#include "text/token_table.h"

#include <algorithm>
#include <bit>
#include <functional>

namespace hxq::text {

void StringList::reserve(size_t strings, size_t bytes) {
  ends_.reserve(strings);
  bytes_.reserve(bytes);
}

void StringList::push_back(std::string_view text) {
  bytes_ += text;
  ends_.push_back(bytes_.size());
}

TokenTable::TokenTable(StringList tokens, std::vector<int32_t> ids)
    : tokens_(std::move(tokens)), ids_(std::move(ids)), slots_(std::bit_ceil(tokens_.size() * 2 + 2)) {
  int32_t highest = -1;
  for (uint32_t i = 0; i < tokens_.size(); ++i) {
    const size_t hash = std::hash<std::string_view>{}(tokens_[i]);
    Slot& slot = slots_[slot_of(tokens_[i], hash)];
    if (slot.index != kNone) ids_[slot.index] = kOverridden;
    size_ += slot.index == kNone;
    slot = {i, tag_of(hash)};
    highest = std::max(highest, ids_[i]);
  }
  index_of_.assign(static_cast<size_t>(highest + 1), kNone);
  for (uint32_t i = 0; i < tokens_.size(); ++i) {
    if (ids_[i] != kOverridden) index_of_[static_cast<size_t>(ids_[i])] = i;
  }
}

// Where `token` is, or the empty slot where it would go.
size_t TokenTable::slot_of(std::string_view token, size_t hash) const {
  const size_t mask = slots_.size() - 1;
  const uint32_t tag = tag_of(hash);
  size_t at = hash & mask;
  while (slots_[at].index != kNone && (slots_[at].tag != tag || tokens_[slots_[at].index] != token)) {
    at = (at + 1) & mask;
  }
  return at;
}

std::optional<int32_t> TokenTable::id_of(std::string_view token) const {
  if (slots_.empty()) return std::nullopt;
  const uint32_t index = slots_[slot_of(token, std::hash<std::string_view>{}(token))].index;
  if (index == kNone) return std::nullopt;
  return ids_[index];
}

std::optional<std::string_view> TokenTable::token_of(int32_t id) const {
  if (id < 0 || static_cast<size_t>(id) >= index_of_.size()) return std::nullopt;
  const uint32_t index = index_of_[static_cast<size_t>(id)];
  if (index == kNone) return std::nullopt;
  return tokens_[index];
}

}  // namespace hxq::text
