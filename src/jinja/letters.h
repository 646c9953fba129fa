#pragma once

#include <cstdint>
#include <string>
#include <string_view>

// Python's str methods that change letters, on valid UTF-8.
namespace hxq::jinja {

std::string upper(std::string_view text);
std::string lower(std::string_view text);
/// The first letter of each word large, the others small. `filter`: words begin as Jinja's filter has it, after white
/// space, hyphens and opening brackets; otherwise after anything that is not a letter.
std::string title(std::string_view text, bool filter = false);
std::string capitalize(std::string_view text);

/// With the first `most` occurrences replaced; < 0: all.
std::string replace_all(std::string_view text, std::string_view old, std::string_view with, int64_t most = -1);

}  // namespace hxq::jinja
