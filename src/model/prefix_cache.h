#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <vector>

#include "hxq/model.h"

namespace hxq {

/// What a model remembers after beginnings of prompts, so that prompts with the same beginning need not run it again.
/// States of SSMs cannot be cut back: a beginning is found only where its state was kept. All was run as prompts are,
/// so that what goes on from there has the bits it has otherwise.
class PrefixCache {
 public:
  struct Entry {
    std::vector<int32_t> tokens;
    int64_t prompt_length;           ///< of the prompt that it is the beginning of
    Sequence sequence;               ///< has seen the tokens
    std::vector<float> logits = {};  ///< [vocab], of the last token; empty where they were not computed
    int64_t bytes = 0;
  };

  /// `model` must outlive it. bytes: of memory that all entries may have together; 0: nothing is kept.
  PrefixCache(const Model& model, int64_t bytes) : model_(model), most_bytes_(bytes) {}

  bool is_enabled() const noexcept { return most_bytes_ > 0; }

  /// The longest entry that `prompt` begins with and can go on from: all of the prompt only where it has logits. Null
  /// if there is none. Valid until the next call of `keep`.
  const Entry* find(std::span<const int32_t> prompt);

  /// Keeps what `sequence` remembers, which has seen the first of the prompt's tokens; the entries that were not used
  /// for longest go. Where memory does not reach, all of them do.
  void keep(std::span<const int32_t> prompt, const Sequence& sequence, std::span<const float> logits);

 private:
  Entry* find_same(std::span<const int32_t> tokens, int64_t prompt_length);
  void make_room(int64_t bytes);

  const Model& model_;
  int64_t most_bytes_;
  int64_t bytes_ = 0;
  std::list<Entry> entries_;  // the last used first
};

}  // namespace hxq
