#include "text/string_finder.h"

namespace hxq::text {

void StringFinder::add(std::string_view text, int32_t value) {
  starts_[static_cast<unsigned char>(text[0])] = true;
  uint32_t node = 0;
  for (const char c : text) {
    const uint64_t edge = pair_key(node, static_cast<unsigned char>(c));
    if (const uint32_t* next = edges_.find(edge)) {
      node = *next;
    } else {
      node = static_cast<uint32_t>(nodes_.size());
      edges_.insert_or_assign(edge, node);
      nodes_.push_back(-1);
    }
  }
  nodes_[node] = value;
}

std::optional<StringFinder::Match> StringFinder::find(std::string_view text, size_t from) const {
  if (empty()) return std::nullopt;
  for (size_t begin = from; begin < text.size(); ++begin) {
    if (!starts_[static_cast<unsigned char>(text[begin])]) continue;
    Match longest;
    uint32_t node = 0;
    for (size_t at = begin; at < text.size(); ++at) {
      const uint32_t* next = edges_.find(pair_key(node, static_cast<unsigned char>(text[at])));
      if (!next) break;
      node = *next;
      if (nodes_[node] >= 0) longest = {begin, at + 1, nodes_[node]};
    }
    if (longest.value >= 0) return longest;
  }
  return std::nullopt;
}

}  // namespace hxq::text
