#pragma once

#include <cstddef>
#include <optional>
#include <string_view>

namespace hxq {

/// The byte from which on a text is not UTF-8; empty if it is. Tokenizers put U+FFFD in the place of such bytes.
std::optional<size_t> first_invalid_utf8(std::string_view text);

}  // namespace hxq
