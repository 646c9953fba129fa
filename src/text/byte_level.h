#pragma once

#include <cstdint>
#include <string>
#include <string_view>

namespace hxq::text {

/// Appends each byte of `bytes` as the printable character that stands for it in byte-level vocabularies (Radford et
/// al. 2019, GPT-2: printable Latin-1 stands for itself, the rest for U+0100 and on, in order).
void append_byte_level(std::string_view bytes, std::string& out);

/// Appends the bytes that `token`, valid UTF-8, stands for; `token` itself if one of its characters stands for none.
void append_from_byte_level(std::string_view token, std::string& out);

}  // namespace hxq::text
