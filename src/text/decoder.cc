#include "text/decoder.h"

#include <array>

#include "io/utf8.h"
#include "text/byte_level.h"
#include "text/decoder_stages.h"
#include "text/normalizer.h"
#include "text/pattern.h"

namespace hxq::text {

namespace {

constexpr std::array<std::string_view, 7> kKnown = {"ByteFallback", "ByteLevel", "Fuse", "Metaspace",
                                                    "Replace",      "Sequence",  "Strip"};

}  // namespace

Decoder::Decoder() { steps_.emplace_back(Join{}); }

Decoder::Decoder(const JsonPart& part) { add(part); }

void Decoder::add(const JsonPart& part) {
  const std::string type = part.string("type");
  if (type == "Sequence") {
    for (const JsonPart& item : part.items("decoders")) add(item);
  } else if (type == "ByteLevel") {
    steps_.emplace_back(ByteLevel{});
  } else if (type == "ByteFallback") {
    steps_.emplace_back(ByteFallback{});
  } else if (type == "Fuse") {
    steps_.emplace_back(Fuse{});
  } else if (type == "Replace") {
    steps_.emplace_back(Replace{pattern_of(part), part.string("content")});
  } else if (type == "Strip") {
    constexpr int64_t kMost = 1 << 20;
    steps_.emplace_back(Strip{to_utf8(part.character("content")), static_cast<size_t>(part.integer("start", 0, kMost)),
                              static_cast<size_t>(part.integer("stop", 0, kMost))});
  } else if (type == "Metaspace") {
    const bool never =
        part.string_or("prepend_scheme", "always") == "never" || !part.boolean_or("add_prefix_space", true);
    steps_.emplace_back(Metaspace{to_utf8(part.character("replacement")), !never});
  } else {
    part.fail_unknown(type, kKnown);
  }
}

std::string Decoder::bytes_of(std::string_view token) const {
  std::string bytes(token);
  for (const Step& step : steps_) {
    if (std::holds_alternative<Join>(step)) {
      bytes.insert(bytes.begin(), ' ');
    } else if (std::holds_alternative<ByteLevel>(step)) {
      bytes.clear();
      append_from_byte_level(token, bytes);
      return bytes;
    } else if (const auto byte = fallback_byte(bytes); byte && std::holds_alternative<ByteFallback>(step)) {
      return {*byte};
    } else if (const auto* replace = std::get_if<Replace>(&step)) {
      bytes = replace_matches(replace->pattern, bytes, replace->content);
    } else if (const auto* metaspace = std::get_if<Metaspace>(&step)) {
      bytes = from_metaspace(*metaspace, bytes);
    }
  }
  return bytes;
}

Decoder::Stream::Stream(const Decoder& decoder) {
  bool fused = false;
  for (const Step& step : decoder.steps_) {
    const bool takes_pieces = std::holds_alternative<Strip>(step) || std::holds_alternative<Fuse>(step);
    if (fused && !takes_pieces) stages_.push_back(make_gather_stage());
    stages_.push_back(std::visit([&](const auto& s) { return make_stage(s, fused && takes_pieces); }, step));
    fused = (fused && takes_pieces) || std::holds_alternative<Fuse>(step) || std::holds_alternative<ByteLevel>(step);
  }
  stages_.push_back(make_collect_stage());
  for (size_t i = 0; i + 1 < stages_.size(); ++i) stages_[i]->set_next(stages_[i + 1].get());
}

void Decoder::Stream::finish() {
  for (const auto& stage : stages_) stage->finish();
}

std::string Decoder::Stream::take() { return std::exchange(static_cast<CollectStage&>(*stages_.back()).text, {}); }

}  // namespace hxq::text
