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

std::string bytes_text(uint64_t bytes) {
  if (bytes < 10'000) return fmt::format("{} bytes", bytes);
  const auto amount = static_cast<double>(bytes);
  return bytes < 1'000'000'000 ? fmt::format("{:.1f} MB", amount / 1e6) : fmt::format("{:.1f} GB", amount / 1e9);
}

}  // namespace

Error::Error(const std::string& message, ErrorPlace place)
    : std::runtime_error(describe(message, place)), message_(message), place_(std::move(place)) {}

std::string Error::without_file() const {
  return describe(message_, {.tensor = place_.tensor, .offset = place_.offset});
}

OutOfMemory::OutOfMemory(std::string_view what, uint64_t bytes)
    : Error(fmt::format("out of memory: {} takes {}", what, bytes_text(bytes))) {}

}  // namespace hxq
