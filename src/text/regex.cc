#include "text/regex.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <fmt/format.h>
#include <pcre2.h>

#include "hxq/error.h"
#include "io/utf8.h"

namespace hxq::text {

namespace {

std::string message_of(int code) {
  PCRE2_UCHAR buffer[256];
  const int length = pcre2_get_error_message(code, buffer, sizeof buffer);
  return length < 0 ? fmt::format("error {}", code) : std::string(reinterpret_cast<const char*>(buffer));
}

struct FreeContext {
  void operator()(pcre2_compile_context* context) const noexcept { pcre2_compile_context_free(context); }
};

}  // namespace

void Regex::Free::operator()(pcre2_real_code_8* code) const noexcept { pcre2_code_free(code); }
void RegexScan::Free::operator()(pcre2_real_match_data_8* data) const noexcept { pcre2_match_data_free(data); }

Regex::Regex(std::string_view pattern, Syntax syntax) : pattern_(pattern) {
  const bool literal = syntax == Syntax::literal;
  const std::string source = literal ? pattern_ : oniguruma_to_pcre2(pattern);
  // Oniguruma's ^ and $ always match at lines, and only LF ends one.
  const uint32_t options = PCRE2_UTF | (literal ? PCRE2_LITERAL : PCRE2_UCP | PCRE2_MULTILINE);
  const std::unique_ptr<pcre2_compile_context, FreeContext> context(pcre2_compile_context_create(nullptr));
  if (!context) throw Error("out of memory for a regular expression");
  pcre2_set_newline(context.get(), PCRE2_NEWLINE_LF);
  int code = 0;
  size_t offset = 0;
  code_.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(source.data()), source.size(), options, &code, &offset,
                            context.get()));
  if (!code_) {
    throw Error(fmt::format("regular expression '{}': {} at {} of '{}'", pattern_, message_of(code), offset, source));
  }
  pcre2_jit_compile(code_.get(), PCRE2_JIT_COMPLETE);  // where there is no JIT, the interpreter gives the same matches
}

Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;
Regex::~Regex() = default;

RegexScan::RegexScan(const Regex& regex)
    : regex_(regex), data_(pcre2_match_data_create_from_pattern(regex.code_.get(), nullptr)) {
  if (!data_) throw Error("out of memory for a regular expression");
}
RegexScan::~RegexScan() = default;

bool RegexScan::search(std::string_view subject, size_t from) {
  const auto run = [&](uint32_t options) {
    return pcre2_match(regex_.code_.get(), reinterpret_cast<PCRE2_SPTR>(subject.data()), subject.size(), from,
                       options | PCRE2_NO_UTF_CHECK, data_.get(), nullptr);
  };
  int code = run(0);
  if (code == PCRE2_ERROR_JIT_STACKLIMIT) code = run(PCRE2_NO_JIT);
  if (code == PCRE2_ERROR_NOMATCH) return false;
  if (code < 0) throw Error(fmt::format("regular expression '{}': {}", regex_.pattern_, message_of(code)));
  const size_t* bounds = pcre2_get_ovector_pointer(data_.get());
  begin_ = bounds[0];
  end_ = bounds[1];
  return true;
}

size_t RegexScan::next_character(std::string_view subject, size_t from) {
  return from < subject.size() ? from + first_code_point(subject.substr(from)).size : from + 1;
}

}  // namespace hxq::text
