#include "jinja/lexer.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cctype>
#include <charconv>

#include "io/utf8.h"
#include "jinja/value.h"

namespace hxq::jinja {
namespace {

using Kind = Token::Kind;

// Longer ones first.
constexpr std::array<std::string_view, 28> kSigns = {"**", "//", "==", "!=", "<=", ">=", "+", "-", "*", "/",
                                                     "%",  "~",  "<",  ">",  "=",  "(",  ")", "[", "]", "{",
                                                     "}",  ".",  ",",  ":",  "|",  ";",  "!", "&"};

bool starts_name(char c) {
  return std::isalpha(static_cast<unsigned char>(c)) || c == '_' || static_cast<unsigned char>(c) >= 0x80;
}
bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool continues_name(char c) { return starts_name(c) || is_digit(c); }

/// All line ends as \n, and without the last one.
std::string normal_lines(std::string_view source) {
  std::string out;
  for (size_t i = 0; i < source.size(); ++i) {
    if (source[i] == '\r') {
      out += '\n';
      if (source.substr(i + 1).starts_with('\n')) ++i;
    } else {
      out += source[i];
    }
  }
  if (out.ends_with('\n')) out.pop_back();
  return out;
}

class Lexer {
 public:
  explicit Lexer(std::string_view source) : source_(normal_lines(source)), rest_(source_) {}

  std::vector<Token> run() {
    while (!rest_.empty()) {
      const size_t tag = find_tag();
      add_data(rest_.substr(0, tag), rest_.substr(tag));
      if (rest_.empty()) break;
      const char kind = rest_[1];
      if (kind == '#') {
        skip_comment();
      } else if (kind == '%' && !raw_block()) {
        add(Kind::block_begin, "");
        advance(2 + has_sign());
        tag_body(Kind::block_end);
      } else if (kind == '{') {
        add(Kind::print_begin, "");
        advance(2 + (has_sign() && rest_[2] == '-'));
        tag_body(Kind::print_end);
      }
    }
    add(Kind::end, "");
    return std::move(tokens_);
  }

 private:
  [[noreturn]] void fail(std::string what) const { throw SyntaxFault{line_, std::move(what)}; }

  void add(Kind kind, std::string text) { tokens_.push_back({kind, std::move(text), line_}); }

  void advance(size_t bytes) {
    const std::string_view passed = rest_.substr(0, bytes);
    line_ += static_cast<int>(std::ranges::count(passed, '\n'));
    if (!passed.empty()) at_line_start_ = passed.back() == '\n';
    rest_.remove_prefix(bytes);
  }

  size_t find_tag() const {
    for (size_t at = rest_.find('{'); at != rest_.npos; at = rest_.find('{', at + 1)) {
      const std::string_view next = rest_.substr(at + 1, 1);
      if (next == "{" || next == "%" || next == "#") return at;
    }
    return rest_.size();
  }

  // "{%-" and "{%+".
  bool has_sign() const { return rest_.size() > 2 && (rest_[2] == '-' || rest_[2] == '+'); }

  /// The text before a tag, as the beginning of the tag wants it.
  void add_data(std::string_view data, std::string_view tag) {
    std::string_view kept = data;
    const char sign = tag.size() > 2 ? tag[2] : ' ';
    if (!tag.empty() && sign == '-') {
      kept = strip(data, Side::right);
    } else if (!tag.empty() && tag[1] != '{' && sign != '+') {
      const size_t newline = data.rfind('\n');
      const size_t line = newline == data.npos ? 0 : newline + 1;
      if ((line > 0 || at_line_start_) && strip(data.substr(line)).empty()) kept = data.substr(0, line);
    }
    if (!kept.empty()) add(Kind::data, std::string(kept));
    advance(data.size());
  }

  /// Skips the end of a tag, and the white space after it that goes with it. `close`: "%}", "#}" or "}}".
  bool skip_close(std::string_view close) {
    const bool strips = rest_.starts_with('-') && rest_.substr(1).starts_with(close);
    const bool keeps = close != "}}" && rest_.starts_with('+') && rest_.substr(1).starts_with(close);
    if (!strips && !keeps && !rest_.starts_with(close)) return false;
    advance(close.size() + (strips || keeps));
    if (strips) {
      advance(rest_.size() - strip(rest_, Side::left).size());
    } else if (!keeps && close != "}}" && rest_.starts_with('\n')) {
      advance(1);
    }
    return true;
  }

  void skip_comment() {
    size_t end = rest_.find("#}", 2);
    if (end == rest_.npos) fail("a comment is not closed");
    if (end > 2 && (rest_[end - 1] == '-' || rest_[end - 1] == '+')) --end;
    advance(end);
    skip_close("#}");
  }

  /// {% raw %}...{% endraw %}
  bool raw_block() {
    const auto tag_end = [](std::string_view text, std::string_view word) -> size_t {
      size_t at = 2 + (text.size() > 2 && (text[2] == '-' || text[2] == '+'));
      if (at > text.size()) return 0;
      const std::string_view inner = strip(text.substr(at), Side::left);
      if (!inner.starts_with(word)) return 0;
      const std::string_view close = strip(inner.substr(word.size()), Side::left);
      const bool ends =
          close.starts_with("%}") || close.starts_with("-%}") || (word == "endraw" && close.starts_with("+%}"));
      return ends ? text.size() - close.size() : 0;
    };
    const size_t begin = tag_end(rest_, "raw");
    if (begin == 0) return false;
    advance(begin);
    const bool strips = rest_.starts_with('-');
    advance(strips ? 3 : 2);
    if (strips) advance(rest_.size() - strip(rest_, Side::left).size());
    for (size_t at = rest_.find("{%"); at != rest_.npos; at = rest_.find("{%", at + 2)) {
      const size_t end = tag_end(rest_.substr(at), "endraw");
      if (end == 0) continue;
      add_data(rest_.substr(0, at), rest_.substr(at));
      advance(end);
      skip_close("%}");
      return true;
    }
    fail("a raw block is not closed");
  }

  /// The tokens of a tag, to its end, which does not count within brackets.
  void tag_body(Kind end) {
    const std::string_view close = end == Kind::block_end ? "%}" : "}}";
    const int begin_line = line_;
    std::string open;
    while (true) {
      advance(rest_.size() - strip(rest_, Side::left).size());
      if (rest_.empty()) throw SyntaxFault{begin_line, fmt::format("a tag is not closed with {}", close)};
      if (open.empty()) {
        const int line = line_;
        if (skip_close(close)) {
          tokens_.push_back({end, "", line});
          return;
        }
      }
      if (starts_name(rest_[0])) {
        const auto stop = std::ranges::find_if_not(rest_, continues_name);
        add_and_advance(Kind::name, static_cast<size_t>(stop - rest_.begin()));
      } else if (is_digit(rest_[0])) {
        number();
      } else if (rest_[0] == '"' || rest_[0] == '\'') {
        string_literal();
      } else {
        sign(open);
      }
    }
  }

  void add_and_advance(Kind kind, size_t bytes) {
    add(kind, std::string(rest_.substr(0, bytes)));
    advance(bytes);
  }

  void number() {
    size_t size = 0;
    const auto skip_digits = [&] {
      while (size < rest_.size() && (is_digit(rest_[size]) || rest_[size] == '_')) ++size;
    };
    skip_digits();
    Kind kind = Kind::integer;
    const auto digit_at = [&](size_t at) { return at < rest_.size() && is_digit(rest_[at]); };
    if (size < rest_.size() && rest_[size] == '.' && digit_at(size + 1)) {
      kind = Kind::real;
      ++size;
      skip_digits();
    }
    if (size < rest_.size() && (rest_[size] == 'e' || rest_[size] == 'E')) {
      const bool has_sign = size + 1 < rest_.size() && (rest_[size + 1] == '+' || rest_[size + 1] == '-');
      if (digit_at(size + 1 + has_sign)) {
        kind = Kind::real;
        size += 1 + has_sign;
        skip_digits();
      }
    }
    std::string digits(rest_.substr(0, size));
    std::erase(digits, '_');
    add(kind, std::move(digits));
    advance(size);
  }

  void sign(std::string& open) {
    const auto found = std::ranges::find_if(kSigns, [&](std::string_view s) { return rest_.starts_with(s); });
    if (found == kSigns.end() || *found == "!" || *found == "&") {
      fail(fmt::format("unexpected character '{}'", rest_.substr(0, first_code_point(rest_).size)));
    }
    const char c = found->front();
    if (c == '(' || c == '[' || c == '{') open += c == '(' ? ')' : c == '[' ? ']' : '}';
    if (c == ')' || c == ']' || c == '}') {
      if (!open.ends_with(c)) fail(fmt::format("unexpected '{}'", c));
      open.pop_back();
    }
    add_and_advance(Kind::sign, found->size());
  }

  void string_literal() {
    const char quote = rest_[0];
    size_t end = 1;
    while (end < rest_.size() && rest_[end] != quote) end += rest_[end] == '\\' ? 2 : 1;
    if (end >= rest_.size()) fail("a string is not closed");
    add(Kind::text, unescape(rest_.substr(1, end - 1)));
    advance(end + 1);
  }

  /// As Python's string literals.
  std::string unescape(std::string_view text) const {
    constexpr std::string_view kLetters = "abfnrtv\\'\"";
    constexpr std::string_view kMeanings = "\a\b\f\n\r\t\v\\'\"";
    std::string out;
    for (size_t i = 0; i < text.size(); ++i) {
      if (text[i] != '\\') {
        out += text[i];
        continue;
      }
      const char c = text[++i];
      if (const size_t letter = kLetters.find(c); letter != kLetters.npos) {
        out += kMeanings[letter];
      } else if (c == 'x' || c == 'u' || c == 'U') {
        const size_t digits = c == 'x' ? 2 : c == 'u' ? 4 : 8;
        append_number(text.substr(i + 1, digits), digits, 16, out);
        i += digits;
      } else if (c >= '0' && c <= '7') {
        size_t digits = 1;
        while (digits < 3 && i + digits < text.size() && text[i + digits] >= '0' && text[i + digits] <= '7') ++digits;
        append_number(text.substr(i, digits), digits, 8, out);
        i += digits - 1;
      } else if (c != '\n') {
        out += '\\';
        out += c;
      }
    }
    return out;
  }

  void append_number(std::string_view digits, size_t expected, int base, std::string& out) const {
    uint32_t value = 0;
    const auto [end, fault] = std::from_chars(digits.data(), digits.data() + digits.size(), value, base);
    const bool whole = digits.size() == expected && end == digits.data() + digits.size() && fault == std::errc();
    if (!whole || value > 0x10FFFF || (value >= 0xD800 && value < 0xE000)) {
      fail(fmt::format("'{}' is not the number of a character", digits));
    }
    append_code_point(out, value);
  }

  const std::string source_;
  std::string_view rest_;
  int line_ = 1;
  bool at_line_start_ = true;  // what was passed last ends a line
  std::vector<Token> tokens_;
};

}  // namespace

std::vector<Token> tokenize(std::string_view source) { return Lexer(source).run(); }

}  // namespace hxq::jinja
