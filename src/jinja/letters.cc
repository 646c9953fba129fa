#include "jinja/letters.h"

#include <fmt/format.h>
#include <utf8proc.h>

#include "io/utf8.h"
#include "jinja/value.h"

namespace hxq::jinja {
namespace {

enum class Case : uint8_t { upper, lower, title };

/// The one character whose capital is two.
constexpr char32_t kSharpS = 0xDF;

void append(char32_t c, Case to, std::string& out) {
  if (c == kSharpS && to != Case::lower) {
    out += to == Case::upper ? "SS" : "Ss";
    return;
  }
  const auto value = static_cast<utf8proc_int32_t>(c);
  const utf8proc_int32_t changed = to == Case::upper   ? utf8proc_toupper(value)
                                   : to == Case::lower ? utf8proc_tolower(value)
                                                       : utf8proc_totitle(value);
  append_code_point(out, static_cast<char32_t>(changed));
}

bool is_letter(char32_t c) {
  const auto category = utf8proc_category(static_cast<utf8proc_int32_t>(c));
  return category == UTF8PROC_CATEGORY_LU || category == UTF8PROC_CATEGORY_LL || category == UTF8PROC_CATEGORY_LT;
}

std::string changed(std::string_view text, Case to) {
  std::string out;
  for (const std::string_view c : characters_of(text)) append(first_code_point(c).value, to, out);
  return out;
}

}  // namespace

std::string upper(std::string_view text) { return changed(text, Case::upper); }
std::string lower(std::string_view text) { return changed(text, Case::lower); }

std::string title(std::string_view text, bool filter) {
  std::string out;
  bool begins = true;
  for (const std::string_view c : characters_of(text)) {
    const char32_t value = first_code_point(c).value;
    append(value, !begins ? Case::lower : filter ? Case::upper : Case::title, out);
    begins = filter ? is_space(value) || (value < 0x80 && std::string_view("-({[<").find(static_cast<char>(value)) !=
                                                              std::string_view::npos)
                    : !is_letter(value);
  }
  return out;
}

std::string capitalize(std::string_view text) {
  if (text.empty()) return {};
  const CodePoint first = first_code_point(text);
  std::string out;
  append(first.value, Case::title, out);
  return out + lower(text.substr(first.size));
}

std::string replace_all(std::string_view text, std::string_view old, std::string_view with, int64_t most) {
  std::string out;
  size_t at = 0;
  const auto check = [&] {
    if (out.size() > kMaxTextBytes) throw Fault(fmt::format("a text longer than {} MiB", kMaxTextBytes >> 20));
  };
  for (int64_t done = 0; most < 0 || done < most; ++done) {
    check();
    if (old.empty()) {
      // Python puts the text before every character and at the end.
      charge(1);
      out += with;
      if (at == text.size()) return out;
      const size_t size = first_code_point(text.substr(at)).size;
      out += text.substr(at, size);
      at += size;
      continue;
    }
    const size_t found = find_text(text, old, at);
    if (found == text.npos) break;
    out += text.substr(at, found - at);
    out += with;
    at = found + old.size();
  }
  out += text.substr(at);
  check();
  return out;
}

}  // namespace hxq::jinja
