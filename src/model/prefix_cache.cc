#include "model/prefix_cache.h"

#include <algorithm>

#include "model/memory_reaches.h"

namespace hxq {

const PrefixCache::Entry* PrefixCache::find(std::span<const int32_t> prompt) {
  auto best = entries_.end();
  for (auto entry = entries_.begin(); entry != entries_.end(); ++entry) {
    const size_t size = entry->tokens.size();
    if (size > prompt.size() || (size == prompt.size() && entry->logits.empty())) continue;
    if (best != entries_.end() && size <= best->tokens.size()) continue;
    if (model_.info().positions_scale && entry->prompt_length != std::ssize(prompt)) continue;
    if (std::ranges::equal(entry->tokens, prompt.first(size))) best = entry;
  }
  if (best == entries_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, best);
  return &entries_.front();
}

PrefixCache::Entry* PrefixCache::find_same(std::span<const int32_t> tokens, int64_t prompt_length) {
  const auto found = std::ranges::find_if(entries_, [&](const Entry& entry) {
    return std::ranges::equal(entry.tokens, tokens) &&
           (!model_.info().positions_scale || entry.prompt_length == prompt_length);
  });
  if (found == entries_.end()) return nullptr;
  entries_.splice(entries_.begin(), entries_, found);
  return &entries_.front();
}

void PrefixCache::make_room(int64_t bytes) {
  while (!entries_.empty() && bytes_ > most_bytes_ - bytes) {
    bytes_ -= entries_.back().bytes;
    entries_.pop_back();
  }
}

void PrefixCache::keep(std::span<const int32_t> prompt, const Sequence& sequence, std::span<const float> logits) {
  const std::span<const int32_t> tokens = prompt.first(static_cast<size_t>(sequence.position()));
  const bool reached = memory_reaches([&] {
    if (Entry* same = find_same(tokens, std::ssize(prompt))) {
      const auto more = static_cast<int64_t>(logits.size_bytes());
      if (!same->logits.empty() || logits.empty() || same->bytes + more > most_bytes_) return;
      make_room(more);  // not of this one, which is the last used and has room with its logits
      same->logits.assign(logits.begin(), logits.end());
      same->bytes += more;
      bytes_ += more;
      return;
    }
    Entry entry{.tokens = {tokens.begin(), tokens.end()},
                .prompt_length = std::ssize(prompt),
                .sequence = model_.new_sequence(),
                .logits = {logits.begin(), logits.end()}};
    entry.sequence.copy_from(sequence);  // has what it needs; a sequence that was used before may have more
    entry.bytes = entry.sequence.bytes() + static_cast<int64_t>(tokens.size_bytes() + logits.size_bytes());
    if (entry.bytes > most_bytes_) return;
    make_room(entry.bytes);
    entries_.push_front(std::move(entry));
    bytes_ += entries_.front().bytes;
  });
  if (!reached) make_room(most_bytes_);
}

}  // namespace hxq
