#include "hxq/error.h"

#include <fmt/format.h>

#include <algorithm>

namespace hxq {
namespace {

std::string describe(const std::string& message, const ErrorPlace& place) {
  std::string line;
  if (!place.file.empty()) line += place.file + ": ";
  if (!place.tensor.empty()) line += fmt::format("tensor '{}': ", place.tensor);
  line += message;
  if (place.offset) line += fmt::format(" (at byte {})", *place.offset);
  // Names come from files: one must not be able to break the line or drive a terminal.
  std::ranges::replace_if(
      line, [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
  return line;
}

}  // namespace

Error::Error(const std::string& message, ErrorPlace place)
    : std::runtime_error(describe(message, place)), place_(std::move(place)) {}

}  // namespace hxq
