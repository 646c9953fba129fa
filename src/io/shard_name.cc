#include "io/shard_name.h"

namespace hxq {
namespace {

bool take_end(std::string_view& text, std::string_view end) {
  if (!text.ends_with(end)) return false;
  text.remove_suffix(end.size());
  return true;
}

std::string_view take_last_digits(std::string_view& text) {
  const std::string_view digits = text.substr(text.find_last_not_of("0123456789") + 1);
  text.remove_suffix(digits.size());
  return digits;
}

}  // namespace

std::optional<ShardName> read_shard_name(std::string_view name) {
  if (!take_end(name, ".safetensors")) return std::nullopt;
  const std::string_view count = take_last_digits(name);
  if (count.empty() || !take_end(name, "-of-")) return std::nullopt;
  const std::string_view number = take_last_digits(name);
  if (number.empty() || !take_end(name, "-")) return std::nullopt;
  return ShardName{name, number, count};
}

}  // namespace hxq
