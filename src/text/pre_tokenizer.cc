#include "text/pre_tokenizer.h"

#include <algorithm>
#include <array>

#include "io/utf8.h"
#include "text/byte_level.h"
#include "text/pattern.h"

namespace hxq::text {

namespace {

constexpr std::array<std::string_view, 5> kKnown = {"ByteLevel", "Digits", "Metaspace", "Sequence", "Split"};

// The pattern of GPT-2 (Radford et al. 2019).
constexpr std::string_view kByteLevelPattern =
    R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

struct MaybeMatch {
  Span span;
  bool match;
};

// Cuts `text` into matches and what lies between.
void cut(std::string_view text, RegexScan& scan, bool invert, std::vector<MaybeMatch>& out) {
  out.clear();
  size_t previous = 0;
  scan.for_each_match(text, [&](size_t begin, size_t end) {
    if (previous != begin) out.push_back({{previous, begin}, invert});
    out.push_back({{begin, end}, !invert});
    previous = end;
  });
  if (previous != text.size()) out.push_back({{previous, text.size()}, invert});
}

// Applies the behavior to the pieces of one word and appends the words it becomes, moved by `offset`.
void append_words(std::vector<MaybeMatch>& pieces, SplitBehavior behavior, size_t offset, std::vector<Span>& out) {
  const auto append = [&](Span span) {
    if (span.begin != span.end) out.push_back({span.begin + offset, span.end + offset});
  };
  if (behavior == SplitBehavior::isolated || behavior == SplitBehavior::removed) {
    for (const MaybeMatch& piece : pieces) {
      if (behavior == SplitBehavior::isolated || !piece.match) append(piece.span);
    }
    return;
  }
  const bool from_end = behavior == SplitBehavior::merged_with_next;
  if (from_end) std::reverse(pieces.begin(), pieces.end());
  std::vector<Span> merged;
  bool previous_match = false;
  for (const MaybeMatch& piece : pieces) {
    const bool joins =
        behavior == SplitBehavior::contiguous ? piece.match == previous_match : piece.match && !previous_match;
    previous_match = piece.match;
    if (!joins || merged.empty()) {
      merged.push_back(piece.span);
    } else if (from_end) {
      merged.back().begin = piece.span.begin;
    } else {
      merged.back().end = piece.span.end;
    }
  }
  if (from_end) std::reverse(merged.begin(), merged.end());
  for (const Span& span : merged) append(span);
}

std::string_view part_of(std::string_view text, Span span) { return text.substr(span.begin, span.end - span.begin); }

}  // namespace

PreTokenizer::PreTokenizer(const JsonPart& part) { add(part); }

void PreTokenizer::add(const JsonPart& part) {
  const std::string type = part.string("type");
  if (type == "Sequence") {
    for (const JsonPart& item : part.items("pretokenizers")) add(item);
  } else if (type == "Split") {
    steps_.emplace_back(split_of(part));
  } else if (type == "Digits") {
    const bool each = part.boolean("individual_digits");
    steps_.emplace_back(Split{Regex("\\p{N}", Regex::Syntax::oniguruma),
                              each ? SplitBehavior::isolated : SplitBehavior::contiguous, false});
  } else if (type == "ByteLevel") {
    steps_.emplace_back(byte_level_of(part));
  } else if (type == "Metaspace") {
    steps_.emplace_back(metaspace_of(part));
  } else {
    part.fail_unknown(type, kKnown);
  }
}

PreTokenizer::Split PreTokenizer::split_of(const JsonPart& part) {
  constexpr std::array<std::string_view, 5> kBehaviors = {"Removed", "Isolated", "MergedWithPrevious", "MergedWithNext",
                                                          "Contiguous"};
  const std::string name = part.string("behavior");
  const auto behavior = std::find(kBehaviors.begin(), kBehaviors.end(), name);
  if (behavior == kBehaviors.end()) part.child("behavior").fail_unknown(name, kBehaviors);
  return {pattern_of(part), static_cast<SplitBehavior>(behavior - kBehaviors.begin()), part.boolean("invert")};
}

PreTokenizer::ByteLevel PreTokenizer::byte_level_of(const JsonPart& part) {
  ByteLevel step = {part.boolean("add_prefix_space"), std::nullopt};
  if (part.boolean_or("use_regex", true)) step.pattern = Regex(kByteLevelPattern, Regex::Syntax::oniguruma);
  return step;
}

PreTokenizer::Metaspace PreTokenizer::metaspace_of(const JsonPart& part) {
  constexpr std::array<std::string_view, 3> kSchemes = {"always", "first", "never"};
  const std::string name = part.string_or("prepend_scheme", "always");
  const auto scheme = std::find(kSchemes.begin(), kSchemes.end(), name);
  if (scheme == kSchemes.end()) part.child("prepend_scheme").fail_unknown(name, kSchemes);
  Metaspace step = {to_utf8(part.character("replacement")), static_cast<Metaspace::Prepend>(scheme - kSchemes.begin()),
                    std::nullopt};
  if (!part.boolean_or("add_prefix_space", true)) step.prepend = Metaspace::Prepend::never;
  if (part.boolean_or("split", true)) step.splitter = Regex(step.replacement, Regex::Syntax::literal);
  return step;
}

void PreTokenizer::apply(Words& words) const {
  for (const Step& step : steps_) {
    std::visit([&](const auto& s) { apply_step(s, words); }, step);
  }
}

void PreTokenizer::apply_step(const Split& step, Words& words) {
  RegexScan scan(step.pattern);
  std::vector<MaybeMatch> pieces;
  std::vector<Span> spans;
  for (const Span& word : words.spans) {
    cut(part_of(words.text, word), scan, step.invert, pieces);
    append_words(pieces, step.behavior, word.begin, spans);
  }
  words.spans = std::move(spans);
}

void PreTokenizer::apply_step(const ByteLevel& step, Words& words) {
  std::optional<RegexScan> scan;
  if (step.pattern) scan.emplace(*step.pattern);
  Words out = {.text = {}, .spans = {}, .at_start = words.at_start};
  out.text.reserve(words.text.size() + words.text.size() / 4);
  std::vector<MaybeMatch> pieces;
  std::string prefixed;
  for (const Span& span : words.spans) {
    std::string_view word = part_of(words.text, span);
    if (step.add_prefix_space && !word.starts_with(' ')) {
      prefixed.assign(1, ' ');
      prefixed += word;
      word = prefixed;
    }
    if (scan) {
      cut(word, *scan, false, pieces);
    } else {
      pieces.assign(1, {{0, word.size()}, false});
    }
    for (const MaybeMatch& piece : pieces) {
      const size_t begin = out.text.size();
      append_byte_level(part_of(word, piece.span), out.text);
      if (begin != out.text.size()) out.spans.push_back({begin, out.text.size()});
    }
  }
  words = std::move(out);
}

void PreTokenizer::apply_step(const Metaspace& step, Words& words) {
  std::optional<RegexScan> scan;
  if (step.splitter) scan.emplace(*step.splitter);
  Words out = {.text = {}, .spans = {}, .at_start = words.at_start};
  std::vector<MaybeMatch> pieces;
  for (const Span& span : words.spans) {
    const std::string_view word = part_of(words.text, span);
    const bool starts = word.starts_with(' ') || word.starts_with(step.replacement);
    const bool prepends = step.prepend == Metaspace::Prepend::always ||
                          (step.prepend == Metaspace::Prepend::first && words.at_start && span.begin == 0);
    const size_t begin = out.text.size();
    if (!starts && prepends) out.text += step.replacement;
    for (const char c : word) {
      if (c == ' ') {
        out.text += step.replacement;
      } else {
        out.text += c;
      }
    }
    if (scan) {
      cut(std::string_view(out.text).substr(begin), *scan, false, pieces);
      append_words(pieces, SplitBehavior::merged_with_next, begin, out.spans);
    } else {
      out.spans.push_back({begin, out.text.size()});
    }
  }
  words = std::move(out);
}

}  // namespace hxq::text
