#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

struct pcre2_real_code_8;
struct pcre2_real_match_data_8;

namespace hxq::text {

/// A pattern as tokenizer.json files hold it: a literal string, or a regular expression in Oniguruma's syntax, run by
/// PCRE2 with Oniguruma's (Unicode 16) meaning of the character classes.
class Regex {
 public:
  enum class Syntax { literal, oniguruma };

  /// Throws `Error` for a pattern that cannot be compiled or uses what is not supported.
  Regex(std::string_view pattern, Syntax syntax);
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;
  ~Regex();

 private:
  friend class RegexScan;
  std::string pattern_;
  struct Free {
    void operator()(pcre2_real_code_8* code) const noexcept;
  };
  std::unique_ptr<pcre2_real_code_8, Free> code_;
};

/// The working memory to search with one `Regex`, which must outlive it. For one thread at a time.
class RegexScan {
 public:
  explicit RegexScan(const Regex& regex);
  ~RegexScan();

  /// Calls `visit(begin, end)` for each match in `subject`, valid UTF-8, from left to right. An empty match right after
  /// the previous match does not count (as in Oniguruma's `find_iter`), nor does one in an empty subject.
  template <class Visit>
  void for_each_match(std::string_view subject, Visit&& visit) {
    size_t from = 0, previous_end = std::string_view::npos;
    while (!subject.empty() && from <= subject.size() && search(subject, from)) {
      if (begin_ == end_ && end_ == previous_end) {
        from = next_character(subject, from);
        continue;
      }
      visit(begin_, end_);
      from = previous_end = end_;
    }
  }

  bool matches(std::string_view subject) { return search(subject, 0); }

 private:
  bool search(std::string_view subject, size_t from);
  static size_t next_character(std::string_view subject, size_t from);

  const Regex& regex_;
  struct Free {
    void operator()(pcre2_real_match_data_8* data) const noexcept;
  };
  std::unique_ptr<pcre2_real_match_data_8, Free> data_;
  size_t begin_ = 0, end_ = 0;
};

/// `pattern`, in Oniguruma's syntax, rewritten for PCRE2 (options UTF, UCP, MULTILINE). Throws `Error` for constructs
/// that have no equal there.
std::string oniguruma_to_pcre2(std::string_view pattern);

}  // namespace hxq::text
