#include "hxq/error.h"

#include <fmt/format.h>

namespace hxq {
namespace {

std::string describe(const std::string& message, const ErrorPlace& place) {
  std::string line;
  if (!place.file.empty()) line += place.file + ": ";
  if (!place.tensor.empty()) line += fmt::format("tensor '{}': ", place.tensor);
  line += message;
  if (place.offset) line += fmt::format(" (at byte {})", *place.offset);
  return line;
}

}  // namespace

Error::Error(const std::string& message, ErrorPlace place)
    : std::runtime_error(describe(message, place)), place_(std::move(place)) {}

}  // namespace hxq
