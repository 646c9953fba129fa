#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "hxq/utf8.h"

namespace hxq {

inline constexpr std::string_view kReplacementCharacter = "\xEF\xBF\xBD";

struct CodePoint {
  char32_t value = 0;
  size_t size = 0;  ///< bytes of its UTF-8 form
};

/// The code point at the start of `utf8`, which must be valid and not empty.
inline CodePoint first_code_point(std::string_view utf8) {
  const auto byte = [&](size_t i) { return static_cast<char32_t>(static_cast<unsigned char>(utf8[i])); };
  const char32_t lead = byte(0);
  if (lead < 0x80) return {lead, 1};
  if (lead < 0xE0) return {(lead & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (lead < 0xF0) return {(lead & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  return {(lead & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F), 4};
}

/// The code point that ends `utf8`, which must be valid and not empty.
CodePoint last_code_point(std::string_view utf8);

/// `code_point` is at most U+10FFFF.
void append_code_point(std::string& out, char32_t code_point);
std::string to_utf8(char32_t code_point);

/// What a string of bytes, not empty, begins with: a character, or a maximal ill-formed subsequence (Unicode 15, 3.9,
/// "U+FFFD Substitution of Maximal Subparts").
struct Utf8Step {
  enum class Kind : uint8_t { character, ill_formed, unfinished };  ///< unfinished: more bytes could complete it
  Kind kind = Kind::character;
  size_t size = 0;
};
Utf8Step first_utf8_step(std::string_view bytes);

inline bool is_valid_utf8(std::string_view bytes) { return !first_invalid_utf8(bytes); }

/// `bytes` with U+FFFD in place of each maximal ill-formed subsequence, the one that the end cuts short included.
std::string to_valid_utf8(std::string_view bytes);

/// Moves the complete characters at the front of `bytes` to `out`, U+FFFD for ill-formed ones; keeps an unfinished end.
void take_complete_utf8(std::string& bytes, std::string& out);

/// The property White_Space, which is `\s` in Oniguruma and in Rust (PCRE2 has U+180E too).
bool is_white_space(char32_t code_point);

}  // namespace hxq
