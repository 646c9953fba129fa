#include "text/bpe.h"

#include <algorithm>
#include <functional>

#include "hxq/error.h"
#include "io/utf8.h"

namespace hxq::text {

namespace {

constexpr size_t kLowCharacters = 0x3000;

int32_t id_or_fail(const TokenTable& tokens, std::string_view token, size_t merge, const JsonPart& model) {
  const auto id = tokens.id_of(token);
  if (!id) model.fail(fmt::format("merges[{}] needs the token '{}', expected it in the vocab", merge, token));
  return *id;
}

}  // namespace

Bpe::Bpe(TokenizerFile& file, const JsonPart& model) {
  if (!file.fault.empty()) throw Error(file.fault, {.file = file.name});
  if (!model.child("vocab").value().is_object()) model.child("vocab").fail("expected an object of tokens and ids");
  if (!model.child("merges").value().is_array()) model.child("merges").fail("expected an array of pairs of tokens");
  if (model.has("dropout") && (!model.value()["dropout"].is_number() || model.value()["dropout"].get<double>() != 0)) {
    model.child("dropout").fail(
        fmt::format("found {}, expected null or 0: encoding is not random here", model.value()["dropout"].dump()));
  }
  if (model.has("unk_token")) unknown_token_ = model.string("unk_token");
  prefix_ = model.string_or("continuing_subword_prefix", "");
  suffix_ = model.string_or("end_of_word_suffix", "");
  fuse_unknown_ = model.boolean_or("fuse_unk", false);
  ignore_merges_ = model.boolean_or("ignore_merges", false);
  tokens_ = TokenTable(std::move(file.tokens), std::move(file.ids));
  add_merges(file, model);
  for (size_t i = 0; i < file.whole_tokens.size(); ++i) {
    whole_.add(file.whole_tokens[i], tokens_.id_of(file.whole_tokens[i]).value());
  }
  add_characters();
  if (model.boolean_or("byte_fallback", false)) find_byte_tokens();
}

void Bpe::add_merges(const TokenizerFile& file, const JsonPart& model) {
  const StringList& halves = file.merge_halves;
  merges_ = FlatMap64<Merge>(halves.size() / 2);
  std::string merged;
  for (size_t i = 0; i + 1 < halves.size(); i += 2) {
    const std::string_view left = halves[i], right = halves[i + 1];
    const size_t rank = i / 2;
    const int32_t left_id = id_or_fail(tokens_, left, rank, model);
    const int32_t right_id = id_or_fail(tokens_, right, rank, model);
    merged = left;
    merged += right.substr(std::min(prefix_.size(), right.size()));
    merges_.insert_or_assign(pair_key(static_cast<uint32_t>(left_id), static_cast<uint32_t>(right_id)),
                             {file.merge_ranks.empty() ? static_cast<uint32_t>(rank) : file.merge_ranks[rank],
                              id_or_fail(tokens_, merged, rank, model)});
    if (left.empty() || right.empty()) model.fail(fmt::format("merges[{}]: found an empty token", rank));
    joints_.insert_or_assign(pair_key(last_code_point(left).value, first_code_point(right).value), 1);
  }
}

void Bpe::add_characters() {
  low_characters_.assign(kLowCharacters, -1);
  tokens_.for_each([this](std::string_view token, int32_t id) {
    if (token.empty()) return;
    const CodePoint c = first_code_point(token);
    if (c.size != token.size()) return;
    if (c.value < kLowCharacters) {
      low_characters_[c.value] = id;
    } else {
      characters_.insert_or_assign(c.value, id);
    }
  });
}

void Bpe::find_byte_tokens() {
  for (int byte = 0; byte < 256; ++byte) {
    byte_tokens_.push_back(tokens_.id_of(fmt::format("<0x{:02X}>", byte)).value_or(-1));
  }
}

std::optional<int32_t> Bpe::character_id(char32_t c) const {
  if (c < kLowCharacters) return low_characters_[c] < 0 ? std::nullopt : std::optional(low_characters_[c]);
  const int32_t* id = characters_.find(c);
  return id ? std::optional(*id) : std::nullopt;
}

int32_t Bpe::unknown_id() const {
  const auto id = tokens_.id_of(*unknown_token_);
  if (!id) throw Error(fmt::format("the tokenizer's unk_token '{}' is needed but not in its vocab", *unknown_token_));
  return *id;
}

void Bpe::encode(std::string_view word, Scratch& scratch, std::vector<int32_t>& out) const {
  size_t done = 0;
  while (const auto whole = whole_.find(word, done)) {
    encode_mergeable(word.substr(done, whole->begin - done), scratch, out);
    out.push_back(whole->value);
    done = whole->end;
  }
  encode_mergeable(word.substr(done), scratch, out);
}

// No merge can reach across a place where no merge has the two characters at its joint, so the parts on both sides are
// encoded by themselves: short enough to be found again, and a text without words needs no heap of its whole length.
// A character without a token could become part of a run of unknowns, so it stays with its neighbours.
void Bpe::encode_mergeable(std::string_view word, Scratch& scratch, std::vector<int32_t>& out) const {
  if (word.empty()) return;
  if (ignore_merges_) {
    if (const auto id = tokens_.id_of(word)) {
      out.push_back(*id);
      return;
    }
  }
  if (!prefix_.empty() || !suffix_.empty()) return encode_chunk(word, scratch, out);
  size_t begin = 0;
  CodePoint left = first_code_point(word);
  bool left_known = character_id(left.value).has_value();
  for (size_t at = left.size; at < word.size(); at += left.size) {
    const CodePoint right = first_code_point(word.substr(at));
    const bool right_known = character_id(right.value).has_value();
    if (left_known && right_known && !may_join(left.value, right.value)) {
      encode_chunk(word.substr(begin, at - begin), scratch, out);
      begin = at;
    }
    left = right;
    left_known = right_known;
  }
  encode_chunk(word.substr(begin), scratch, out);
}

void Bpe::encode_chunk(std::string_view chunk, Scratch& scratch, std::vector<int32_t>& out) const {
  const bool cacheable = chunk.size() <= Scratch::kMaxCachedBytes;
  const uint64_t hash = cacheable ? std::hash<std::string_view>{}(chunk) : 0;
  if (cacheable) {
    if (const uint32_t entry = scratch.slots_[scratch.slot_of(chunk, hash)]) {
      const Scratch::Cached& cached = scratch.cached_[entry - 1];
      const auto ids = scratch.ids_.begin() + cached.ids;
      out.insert(out.end(), ids, ids + cached.ids_size);
      return;
    }
  }
  add_symbols(chunk, scratch);
  merge_symbols(scratch);
  const size_t before = out.size();
  for (const Scratch::Symbol& symbol : scratch.symbols_) {
    if (!symbol.removed) out.push_back(symbol.id);
  }
  if (cacheable) scratch.remember(chunk, hash, out.data() + before, out.size() - before);
}

// One symbol a character; for one without a token its bytes' tokens if all exist, else the unknown token, else nothing.
// A pending unknown is placed when the next known character comes, so after any byte tokens between (as Hugging Face).
void Bpe::add_symbols(std::string_view chunk, Scratch& scratch) const {
  auto& symbols = scratch.symbols_;
  symbols.clear();
  const auto add = [&](int32_t id) {
    const auto index = static_cast<int32_t>(symbols.size());
    if (index > 0) symbols.back().next = index;
    symbols.push_back({id, index - 1, -1, false});
  };
  int32_t pending = -1;
  for (size_t at = 0; at < chunk.size();) {
    const CodePoint c = first_code_point(chunk.substr(at));
    const bool first = at == 0, last = at + c.size == chunk.size();
    std::string& spelling = scratch.character_;
    spelling.assign(first ? "" : prefix_);
    spelling += chunk.substr(at, c.size);
    if (last) spelling += suffix_;
    at += c.size;
    const auto id = spelling.size() == c.size ? character_id(c.value) : tokens_.id_of(spelling);
    if (id) {
      if (pending >= 0) add(pending);
      pending = -1;
      add(*id);
      continue;
    }
    const auto byte_token = [&](char byte) { return byte_tokens_[static_cast<unsigned char>(byte)]; };
    if (!byte_tokens_.empty() &&
        std::none_of(spelling.begin(), spelling.end(), [&](char byte) { return byte_token(byte) < 0; })) {
      for (const char byte : spelling) add(byte_token(byte));
      continue;
    }
    if (!unknown_token_) continue;
    if (pending >= 0 && !fuse_unknown_) add(pending);
    pending = unknown_id();
  }
  if (pending >= 0) add(pending);
}

// A heap of candidates over a linked list of symbols. A candidate whose symbols have changed is dropped when it comes
// up, unless the pair now there makes the same token.
void Bpe::merge_symbols(Scratch& scratch) const {
  auto& symbols = scratch.symbols_;
  auto& heap = scratch.heap_;
  heap.clear();
  const auto merge_at = [&](int32_t left) -> const Merge* {
    const Scratch::Symbol& symbol = symbols[static_cast<size_t>(left)];
    if (symbol.next < 0) return nullptr;
    return merges_.find(pair_key(static_cast<uint32_t>(symbol.id),
                                 static_cast<uint32_t>(symbols[static_cast<size_t>(symbol.next)].id)));
  };
  const auto candidate = [](const Merge& merge, int32_t at) {
    return Scratch::Candidate{merge.rank, static_cast<uint32_t>(at), merge.id};
  };
  for (int32_t at = 0; at < static_cast<int32_t>(symbols.size()); ++at) {
    if (const Merge* merge = merge_at(at)) heap.push_back(candidate(*merge, at));
  }
  std::make_heap(heap.begin(), heap.end(), std::greater<>());
  const auto push = [&](int32_t at) {
    if (at < 0) return;
    const Merge* merge = merge_at(at);
    if (!merge) return;
    heap.push_back(candidate(*merge, at));
    std::push_heap(heap.begin(), heap.end(), std::greater<>());
  };
  while (!heap.empty()) {
    const Scratch::Candidate top = heap.front();
    std::pop_heap(heap.begin(), heap.end(), std::greater<>());
    heap.pop_back();
    Scratch::Symbol& left = symbols[top.at];
    if (left.removed) continue;
    const Merge* merge = merge_at(static_cast<int32_t>(top.at));
    if (!merge || merge->id != top.id) continue;
    Scratch::Symbol& right = symbols[static_cast<size_t>(left.next)];
    left.id = top.id;
    left.next = right.next;
    right.removed = true;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = static_cast<int32_t>(top.at);
    push(left.previous);
    push(static_cast<int32_t>(top.at));
  }
}

size_t Bpe::Scratch::slot_of(std::string_view chunk, uint64_t hash) const {
  const size_t mask = slots_.size() - 1;
  for (size_t at = hash & mask;; at = (at + 1) & mask) {
    if (slots_[at] == 0) return at;
    const Cached& cached = cached_[slots_[at] - 1];
    if (cached.hash == hash && std::string_view(texts_).substr(cached.text, cached.text_size) == chunk) return at;
  }
}

void Bpe::Scratch::remember(std::string_view chunk, uint64_t hash, const int32_t* ids, size_t count) {
  if (cached_.size() >= kMaxCachedWords) return;
  cached_.push_back({hash, static_cast<uint32_t>(texts_.size()), static_cast<uint32_t>(chunk.size()),
                     static_cast<uint32_t>(ids_.size()), static_cast<uint32_t>(count)});
  texts_ += chunk;
  ids_.insert(ids_.end(), ids, ids + count);
  slots_[slot_of(chunk, hash)] = static_cast<uint32_t>(cached_.size());
  if (cached_.size() * 2 < slots_.size()) return;
  const size_t mask = slots_.size() * 2 - 1;
  slots_.assign(mask + 1, 0);
  for (uint32_t i = 0; i < cached_.size(); ++i) {
    size_t at = cached_[i].hash & mask;
    while (slots_[at] != 0) at = (at + 1) & mask;
    slots_[at] = i + 1;
  }
}

}  // namespace hxq::text
