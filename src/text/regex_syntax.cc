#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include <algorithm>
#include <array>

#include "hxq/error.h"
#include "text/regex.h"
#include "text/unicode_categories.h"

namespace hxq::text {

namespace {

constexpr std::string_view kSpace =
    R"(\t-\r\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";
constexpr std::string_view kNotSpace =
    R"(\x{0}-\x{8}\x{e}-\x{1f}\x{21}-\x{84}\x{86}-\x{9f}\x{a1}-\x{167f}\x{1681}-\x{1fff}\x{200b}-\x{2027})"
    R"(\x{202a}-\x{202e}\x{2030}-\x{205e}\x{2060}-\x{2fff}\x{3001}-\x{10ffff})";
// Assigned to the script Han in Unicode 15.0 and 15.1.
constexpr std::string_view kNewHan = R"(\x{2b739}\x{2ebf0}-\x{2ee5d}\x{31350}-\x{323af})";

struct CategoryName {
  std::string_view name, code;
};
constexpr std::array kCategoryNames = {
    CategoryName{"letter", "L"}, CategoryName{"mark", "M"},        CategoryName{"number", "N"},
    CategoryName{"symbol", "S"}, CategoryName{"punctuation", "P"}, CategoryName{"separator", "Z"},
};
constexpr std::string_view kCategories =
    " L Lu Ll Lt Lm Lo M Mn Mc Me N Nd Nl No P Pc Pd Ps Pe Pi Pf Po S Sm Sc Sk So Z Zs Zl Zp C Cc Cf Co Cs Cn ";

// The code points of `category` ("L" or "Lu") that PCRE2 may be too old to know, as items of a class.
std::string newer_members(std::string_view category) {
  std::string out;
  for (const CategoryRange& range : categories_since_unicode_15()) {
    if (!std::string_view(range.category).starts_with(category)) continue;
    out += fmt::format("\\x{{{:x}}}", static_cast<uint32_t>(range.first));
    if (range.last != range.first) out += fmt::format("-\\x{{{:x}}}", static_cast<uint32_t>(range.last));
  }
  return out;
}

bool pcre2_knows(const std::string& pattern) {
  int code = 0;
  size_t offset = 0;
  pcre2_code* compiled =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(), PCRE2_UTF, &code, &offset, nullptr);
  pcre2_code_free(compiled);
  return compiled != nullptr;
}

// The property `name` as items of a class.
std::string property_items(std::string_view name) {
  std::string lower(name);
  std::transform(lower.begin(), lower.end(), lower.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c - 'A' + 'a') : c; });
  for (const auto& [long_name, code] : kCategoryNames) {
    if (lower == long_name) name = code;
  }
  if (kCategories.find(fmt::format(" {} ", name)) != std::string_view::npos) {
    return fmt::format("\\p{{{}}}", name) + newer_members(name);
  }
  // For PCRE2 the bare name of a script means its Script_Extensions; Oniguruma means Script.
  const std::string script = fmt::format("\\p{{sc:{}}}", name);
  if (!pcre2_knows(script)) return fmt::format("\\p{{{}}}", name);
  return lower == "han" ? script + std::string(kNewHan) : script;
}

// \w. Outside [...] Oniguruma also counts the superscripts and fractions of Latin-1.
std::string word_items(bool in_class) {
  std::string out = R"(\p{Alphabetic}\p{M}\p{Nd}\p{Nl}\p{Pc})";
  if (!in_class) out += R"(\x{b2}\x{b3}\x{b9}\x{bc}-\x{be})";
  for (const std::string_view category : {"L", "M", "Nd", "Nl", "Pc"}) out += newer_members(category);
  return out;
}

class Translator {
 public:
  explicit Translator(std::string_view pattern) : pattern_(pattern) {}

  std::string run() {
    while (!at_end()) {
      const char c = peek();
      if (c == '\\') {
        escape(false);
      } else if (c == '[') {
        char_class();
      } else if (starts("(?")) {
        group();
      } else if (c == '{') {
        interval();
      } else {
        out_ += take();
      }
    }
    return std::move(out_);
  }

 private:
  bool at_end() const { return at_ >= pattern_.size(); }
  char peek() const { return pattern_[at_]; }
  bool starts(std::string_view what) const { return pattern_.substr(at_).starts_with(what); }
  char take() {
    if (at_end()) fail("it ends too early");
    return pattern_[at_++];
  }
  [[noreturn]] void fail(std::string_view what) const {
    throw Error(fmt::format("regular expression '{}', at {}: {}", pattern_, at_, what));
  }

  // Items of a class: as they are within one, in brackets of their own elsewhere.
  void items(std::string_view members, bool negated, bool in_class) {
    if (in_class && negated) fail("a negated property or \\W, \\D, \\H within [...] is not supported");
    if (in_class) {
      out_ += members;
    } else {
      out_ += fmt::format("[{}{}]", negated ? "^" : "", members);
    }
  }

  void property(bool negated, bool in_class) {
    if (take() != '{') fail("expected '{' after \\p");
    if (!at_end() && peek() == '^') {
      negated = !negated;
      ++at_;
    }
    const size_t close = pattern_.find('}', at_);
    if (close == std::string_view::npos) fail("\\p{ without '}'");
    items(property_items(pattern_.substr(at_, close - at_)), negated, in_class);
    at_ = close + 1;
  }

  void escape(bool in_class) {
    ++at_;
    const char c = take();
    switch (c) {
      case 'p':
        return property(false, in_class);
      case 'P':
        return property(true, in_class);
      case 's':
        return items(kSpace, false, in_class);
      case 'S':
        return in_class ? items(kNotSpace, false, true) : items(kSpace, true, false);
      case 'd':
        return items(property_items("Nd"), false, in_class);
      case 'D':
        return items(property_items("Nd"), true, in_class);
      case 'w':
        return items(word_items(in_class), false, in_class);
      case 'W':
        return items(word_items(in_class), true, in_class);
      case 'h':
        return items("0-9A-Fa-f", false, in_class);
      case 'H':
        return items("0-9A-Fa-f", true, in_class);
      case 'v':
        out_ += "\\x0b";
        return;
      case 'u':
        return unicode_escape();
      case 'b':
        return word_boundary(true, in_class);
      case 'B':
        return word_boundary(false, in_class);
      default:
        break;
    }
    constexpr std::string_view kSame = "rntfaex";
    constexpr std::string_view kSameOutside = "AzZ123456789";
    const bool letter = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
    if (letter && kSame.find(c) == std::string_view::npos &&
        (in_class || kSameOutside.find(c) == std::string_view::npos)) {
      fail(fmt::format("the escape \\{} is not supported", c));
    }
    out_ += '\\';
    out_ += c;
  }

  // In terms of \w as it is here.
  void word_boundary(bool at_boundary, bool in_class) {
    if (in_class) fail("\\b and \\B within [...] are not supported");
    const std::string word = word_items(false);
    out_ += at_boundary ? fmt::format("(?:(?<=[{0}])(?![{0}])|(?<![{0}])(?=[{0}]))", word)
                        : fmt::format("(?:(?<=[{0}])(?=[{0}])|(?<![{0}])(?![{0}]))", word);
  }

  void unicode_escape() {
    if (pattern_.size() - at_ < 4) fail("expected four hexadecimal digits after \\u");
    out_ += fmt::format("\\x{{{}}}", pattern_.substr(at_, 4));
    at_ += 4;
  }

  // Brackets within brackets are a union for Oniguruma; for PCRE2 the inner ones are characters.
  void char_class() {
    out_ += take();
    if (!at_end() && peek() == '^') out_ += take();
    if (!at_end() && peek() == ']') {
      out_ += "\\]";
      ++at_;
    }
    for (int depth = 1; depth > 0;) {
      if (at_end()) fail("[ without ]");
      if (starts("&&") || starts("[:") || starts("[^")) fail("&&, [: and [^ within [...] are not supported");
      if (peek() == '\\') {
        escape(true);
      } else if (peek() == '[') {
        ++depth;
        ++at_;
      } else if (peek() == ']') {
        if (--depth == 0) out_ += ']';
        ++at_;
      } else {
        out_ += take();
      }
    }
  }

  // (?m) is "dot matches newline" for Oniguruma, (?s) for PCRE2; other (? are the same.
  void group() {
    out_ += "(?";
    at_ += 2;
    size_t end = at_;
    while (end < pattern_.size() && ((pattern_[end] >= 'a' && pattern_[end] <= 'z') || pattern_[end] == '-')) ++end;
    if (end == pattern_.size() || (pattern_[end] != ':' && pattern_[end] != ')')) return;
    for (; at_ < end; ++at_) {
      if (std::string_view("imx-").find(peek()) == std::string_view::npos) fail("expected options of i, m and x");
      out_ += peek() == 'm' ? 's' : peek();
    }
  }

  // {,n} is {0,n} for Oniguruma and literal for PCRE2; {n}+ repeats for Oniguruma and is possessive for PCRE2.
  void interval() {
    const size_t close = pattern_.find('}', at_);
    const auto body = close == std::string_view::npos ? std::string_view() : pattern_.substr(at_ + 1, close - at_ - 1);
    const bool counts = !body.empty() && body != "," && body.find_first_not_of("0123456789,") == std::string_view::npos;
    if (!counts) {
      out_ += take();
      return;
    }
    out_ += fmt::format("{{{}{}}}", body.front() == ',' ? "0" : "", body);
    at_ = close + 1;
    if (!at_end() && peek() == '+') fail("'+' after {n,m} is not supported");
  }

  std::string_view pattern_;
  std::string out_;
  size_t at_ = 0;
};

}  // namespace

std::string oniguruma_to_pcre2(std::string_view pattern) { return Translator(pattern).run(); }

}  // namespace hxq::text
