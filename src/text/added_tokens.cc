#include "text/added_tokens.h"

#include <algorithm>

#include "io/utf8.h"

namespace hxq::text {

namespace {

// One \w of Rust's regular expressions.
constexpr std::string_view kWordCharacter = R"(\A[\w\x{200c}\x{200d}]\z)";

size_t begin_of_trailing_space(std::string_view text) {
  while (!text.empty()) {
    const CodePoint c = last_code_point(text);
    if (!is_white_space(c.value)) break;
    text.remove_suffix(c.size);
  }
  return text.size();
}

size_t size_of_leading_space(std::string_view text) {
  size_t at = 0;
  while (at < text.size()) {
    const CodePoint c = first_code_point(text.substr(at));
    if (!is_white_space(c.value)) break;
    at += c.size;
  }
  return at;
}

}  // namespace

AddedTokens::AddedTokens(const JsonPart& root, const TokenTable& vocab, const Normalizer& normalizer)
    : word_(kWordCharacter, Regex::Syntax::oniguruma) {
  if (!root.has("added_tokens")) return;
  StringList contents;
  std::vector<int32_t> ids;
  std::unordered_map<std::string, int32_t> known;
  auto next_id = static_cast<int32_t>(vocab.size());
  for (const JsonPart& item : root.items("added_tokens")) {
    const std::string content = item.string("content");
    item.integer("id", 0, kMaxTokenId);
    if (content.empty()) continue;
    const auto in_vocab = vocab.id_of(content);
    const auto [entry, is_new] = known.try_emplace(content, in_vocab.value_or(next_id));
    const int32_t id = entry->second;
    if (is_new && !in_vocab) ++next_id;
    contents.push_back(content);
    ids.push_back(id);
    tokens_[id] = {item.boolean("single_word"), item.boolean("lstrip"), item.boolean("rstrip")};
    if (item.boolean("special")) special_[id] = true;
    if (item.boolean("normalized")) {
      const std::string pattern = normalizer.apply(content);
      if (!pattern.empty()) normalized_.add(pattern, id);
    } else {
      raw_.add(content, id);
    }
  }
  table_ = TokenTable(std::move(contents), std::move(ids));
}

bool AddedTokens::is_single_word(std::string_view text, size_t begin, size_t end) const {
  RegexScan scan(word_);
  const std::string_view before = text.substr(0, begin), after = text.substr(end);
  if (!before.empty() && scan.matches(before.substr(before.size() - last_code_point(before).size))) return false;
  return after.empty() || !scan.matches(after.substr(0, first_code_point(after).size));
}

std::vector<AddedTokens::Piece> AddedTokens::cut(std::string_view text, const StringFinder& finder,
                                                 std::span<const TextRange> plain) const {
  std::vector<Piece> pieces;
  size_t done = 0, from = 0;
  while (const auto match = finder.find(text, from)) {
    from = match->end;
    const auto reaches = [&](const TextRange& range) { return match->begin < range.end && range.begin < match->end; };
    if (is_special(match->value) && std::ranges::any_of(plain, reaches)) {
      from = match->begin + 1;
      continue;
    }
    const Token& token = tokens_.at(match->value);
    auto [begin, end, id] = *match;
    if (token.single_word && !is_single_word(text, begin, end)) continue;
    if (token.lstrip) begin = std::max(begin_of_trailing_space(text.substr(0, begin)), done);
    if (token.rstrip) end += size_of_leading_space(text.substr(end));
    if (done < begin) pieces.push_back({done, begin, std::nullopt});
    // Space that the token before took can hold this whole match: it counts all the same.
    pieces.push_back({begin, std::max(begin, end), id});
    done = end;
  }
  if (done < text.size()) pieces.push_back({done, text.size(), std::nullopt});
  return pieces;
}

}  // namespace hxq::text
