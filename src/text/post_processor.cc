#include "text/post_processor.h"

#include <array>

#include "text/token_table.h"

namespace hxq::text {

namespace {

constexpr std::array<std::string_view, 5> kKnown = {"BertProcessing", "ByteLevel", "RobertaProcessing", "Sequence",
                                                    "TemplateProcessing"};

int32_t id_at(const nlohmann::json& value, const JsonPart& part) {
  const bool fits = value.is_number_unsigned() && value.get<uint64_t>() <= uint64_t{kMaxTokenId};
  if (!fits) part.fail(fmt::format("found {} as a token id, expected one from 0 to {}", value.dump(), kMaxTokenId));
  return static_cast<int32_t>(value.get<uint64_t>());
}

// A member ["token", id].
int32_t pair_id(const JsonPart& part, std::string_view key) {
  const JsonPart pair = part.child(key);
  if (!pair.value().is_array() || pair.value().size() != 2) pair.fail("expected a token and its id");
  return id_at(pair.value()[1], pair);
}

}  // namespace

PostProcessor::PostProcessor(const JsonPart& part) { add(part); }

void PostProcessor::add(const JsonPart& part) {
  const std::string type = part.string("type");
  if (type == "Sequence") {
    for (const JsonPart& item : part.items("processors")) add(item);
  } else if (type == "TemplateProcessing") {
    add_template(part);
  } else if (type == "BertProcessing" || type == "RobertaProcessing") {
    wrap({pair_id(part, "cls")}, {pair_id(part, "sep")});
  } else if (type != "ByteLevel") {
    part.fail_unknown(type, kKnown);
  }
}

void PostProcessor::add_template(const JsonPart& part) {
  std::vector<int32_t> before, after;
  int sequences = 0;
  for (const JsonPart& item : part.items("single")) {
    if (item.has("Sequence")) {
      ++sequences;
      continue;
    }
    const std::string token = item.child("SpecialToken").string("id");
    const JsonPart special = part.child("special_tokens").child(token);
    for (const JsonPart& id : special.items("ids")) {
      (sequences == 0 ? before : after).push_back(id_at(id.value(), id));
    }
  }
  if (sequences != 1) part.child("single").fail(fmt::format("found {} Sequence, expected one", sequences));
  wrap(before, after);
}

void PostProcessor::wrap(const std::vector<int32_t>& before, const std::vector<int32_t>& after) {
  before_.insert(before_.begin(), before.begin(), before.end());
  after_.insert(after_.end(), after.begin(), after.end());
}

}  // namespace hxq::text
