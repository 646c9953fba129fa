#include "text/byte_level.h"

#include <array>

#include "io/utf8.h"

namespace hxq::text {

namespace {

constexpr char32_t kCharacters = 0x100 + 68;  // 68 bytes are not printable Latin-1

struct Tables {
  std::array<std::string, 256> character;
  std::array<int16_t, kCharacters> byte;  // -1 for a character that stands for none
};

bool stands_for_itself(char32_t byte) {
  return (byte >= 0x21 && byte <= 0x7E) || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
}

Tables make_tables() {
  Tables tables;
  tables.byte.fill(-1);
  char32_t next = 0x100;
  for (char32_t byte = 0; byte < 256; ++byte) {
    const char32_t character = stands_for_itself(byte) ? byte : next++;
    tables.character[byte] = to_utf8(character);
    tables.byte[character] = static_cast<int16_t>(byte);
  }
  return tables;
}

const Tables& tables() {
  static const Tables kTables = make_tables();
  return kTables;
}

}  // namespace

void append_byte_level(std::string_view bytes, std::string& out) {
  const auto& character = tables().character;
  for (const char byte : bytes) out += character[static_cast<unsigned char>(byte)];
}

void append_from_byte_level(std::string_view token, std::string& out) {
  const size_t before = out.size();
  for (size_t at = 0; at < token.size();) {
    const CodePoint c = first_code_point(token.substr(at));
    const int16_t byte = c.value < kCharacters ? tables().byte[c.value] : int16_t{-1};
    if (byte < 0) {
      out.resize(before);
      out += token;
      return;
    }
    out += static_cast<char>(byte);
    at += c.size;
  }
}

}  // namespace hxq::text
