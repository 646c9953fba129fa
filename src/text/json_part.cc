#include "text/json_part.h"

#include <fmt/ranges.h>

#include "hxq/error.h"
#include "io/utf8.h"

namespace hxq::text {

void JsonPart::fail(std::string_view what) const {
  throw Error(path_.empty() ? std::string(what) : fmt::format("{}: {}", path_, what), {.file = file_});
}

void JsonPart::fail_unknown(std::string_view type, std::span<const std::string_view> known) const {
  fail(fmt::format("found the type '{}', expected one of {}", type, fmt::join(known, ", ")));
}

bool JsonPart::has(std::string_view key) const {
  if (!value_->is_object()) return false;
  const auto member = value_->find(key);
  return member != value_->end() && !member->is_null();
}

JsonPart JsonPart::child(std::string_view key) const {
  if (!value_->is_object()) fail(fmt::format("found {}, expected an object", value_->type_name()));
  const auto member = value_->find(key);
  if (member == value_->end()) fail(fmt::format("expected a member '{}', found none", key));
  return {*member, file_, path_.empty() ? std::string(key) : fmt::format("{}.{}", path_, key)};
}

std::vector<JsonPart> JsonPart::items(std::string_view key) const {
  const JsonPart list = child(key);
  if (!list.value_->is_array()) list.fail(fmt::format("found {}, expected an array", list.value_->type_name()));
  std::vector<JsonPart> out;
  for (const auto& item : *list.value_) out.emplace_back(item, file_, fmt::format("{}[{}]", list.path_, out.size()));
  return out;
}

std::string JsonPart::string(std::string_view key) const {
  const JsonPart member = child(key);
  if (!member.value_->is_string()) member.fail(fmt::format("found {}, expected a string", member.value_->type_name()));
  return member.value_->get<std::string>();
}

bool JsonPart::boolean(std::string_view key) const {
  const JsonPart member = child(key);
  if (!member.value_->is_boolean()) {
    member.fail(fmt::format("found {}, expected true or false", member.value_->type_name()));
  }
  return member.value_->get<bool>();
}

int64_t JsonPart::integer(std::string_view key, int64_t lowest, int64_t highest) const {
  const JsonPart member = child(key);
  const bool fits = member.value_->is_number_integer() &&
                    (!member.value_->is_number_unsigned() || member.value_->get<uint64_t>() <= uint64_t{INT64_MAX}) &&
                    member.value_->get<int64_t>() >= lowest && member.value_->get<int64_t>() <= highest;
  if (!fits) {
    member.fail(fmt::format("found {}, expected an integer from {} to {}",
                            member.value_->is_number() ? member.value_->dump() : member.value_->type_name(), lowest,
                            highest));
  }
  return member.value_->get<int64_t>();
}

std::string JsonPart::string_or(std::string_view key, std::string_view otherwise) const {
  return has(key) ? string(key) : std::string(otherwise);
}

bool JsonPart::boolean_or(std::string_view key, bool otherwise) const { return has(key) ? boolean(key) : otherwise; }

char32_t JsonPart::character(std::string_view key) const {
  const std::string text = string(key);
  if (text.empty() || first_code_point(text).size != text.size()) {
    child(key).fail(fmt::format("found '{}', expected one character", text));
  }
  return first_code_point(text).value;
}

}  // namespace hxq::text
