#include "io/utf8.h"

namespace hxq {

namespace {

using Kind = Utf8Step::Kind;

// Continuation bytes after `lead` and the range of the first of them (Unicode 15, table 3-7); 0 for a byte that cannot
// lead.
struct Lead {
  size_t continuations;
  unsigned char low, high;
};

Lead lead_of(unsigned char lead) {
  if (lead >= 0xC2 && lead <= 0xDF) return {1, 0x80, 0xBF};
  if (lead == 0xE0) return {2, 0xA0, 0xBF};
  if (lead == 0xED) return {2, 0x80, 0x9F};
  if (lead >= 0xE1 && lead <= 0xEF) return {2, 0x80, 0xBF};
  if (lead == 0xF0) return {3, 0x90, 0xBF};
  if (lead >= 0xF1 && lead <= 0xF3) return {3, 0x80, 0xBF};
  if (lead == 0xF4) return {3, 0x80, 0x8F};
  return {0, 0, 0};
}

}  // namespace

CodePoint last_code_point(std::string_view utf8) {
  size_t at = utf8.size() - 1;
  while ((static_cast<unsigned char>(utf8[at]) & 0xC0) == 0x80) --at;
  return first_code_point(utf8.substr(at));
}

void append_code_point(std::string& out, char32_t code_point) {
  const auto put = [&](char32_t byte) { out += static_cast<char>(static_cast<unsigned char>(byte)); };
  const auto continuation = [&](int shift) { put(0x80 | (code_point >> shift & 0x3F)); };
  if (code_point < 0x80) return put(code_point);
  if (code_point < 0x800) {
    put(0xC0 | code_point >> 6);
  } else if (code_point < 0x10000) {
    put(0xE0 | code_point >> 12);
    continuation(6);
  } else {
    put(0xF0 | code_point >> 18);
    continuation(12);
    continuation(6);
  }
  continuation(0);
}

std::string to_utf8(char32_t code_point) {
  std::string out;
  append_code_point(out, code_point);
  return out;
}

Utf8Step first_utf8_step(std::string_view bytes) {
  const auto first = static_cast<unsigned char>(bytes[0]);
  if (first < 0x80) return {Kind::character, 1};
  const Lead lead = lead_of(first);
  if (lead.continuations == 0) return {Kind::ill_formed, 1};
  for (size_t i = 1; i <= lead.continuations; ++i) {
    if (i == bytes.size()) return {Kind::unfinished, i};
    const auto byte = static_cast<unsigned char>(bytes[i]);
    const bool fits = i == 1 ? byte >= lead.low && byte <= lead.high : (byte & 0xC0) == 0x80;
    if (!fits) return {Kind::ill_formed, i};
  }
  return {Kind::character, lead.continuations + 1};
}

std::optional<size_t> first_invalid_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Utf8Step step = first_utf8_step(text.substr(at));
    if (step.kind != Kind::character) return at;
    at += step.size;
  }
  return std::nullopt;
}

void take_complete_utf8(std::string& bytes, std::string& out) {
  const std::string_view view = bytes;
  size_t at = 0;
  while (at < view.size()) {
    const Utf8Step step = first_utf8_step(view.substr(at));
    if (step.kind == Kind::unfinished) break;
    out += step.kind == Kind::character ? view.substr(at, step.size) : kReplacementCharacter;
    at += step.size;
  }
  bytes.erase(0, at);
}

std::string to_valid_utf8(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size());
  std::string rest(bytes);
  take_complete_utf8(rest, out);
  if (!rest.empty()) out += kReplacementCharacter;
  return out;
}

bool is_white_space(char32_t code_point) {
  return (code_point >= 0x09 && code_point <= 0x0D) || code_point == 0x20 || code_point == 0x85 || code_point == 0xA0 ||
         code_point == 0x1680 || (code_point >= 0x2000 && code_point <= 0x200A) || code_point == 0x2028 ||
         code_point == 0x2029 || code_point == 0x202F || code_point == 0x205F || code_point == 0x3000;
}

}  // namespace hxq
