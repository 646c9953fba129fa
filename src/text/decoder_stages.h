#pragma once

#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "text/decoder.h"

namespace hxq::text {

/// The byte of a token like <0xE5>.
std::optional<char> fallback_byte(std::string_view token);

/// The token with `space` in place of what stands for spaces.
std::string from_metaspace(const Decoder::Metaspace& step, std::string_view token, std::string_view space = " ");

using DecoderStage = std::unique_ptr<Decoder::Stage>;

/// The stage that does a step. `pieces`: it receives the pieces of one token rather than whole tokens.
DecoderStage make_stage(const Decoder::Join& step, bool pieces);
DecoderStage make_stage(const Decoder::ByteLevel& step, bool pieces);
DecoderStage make_stage(const Decoder::ByteFallback& step, bool pieces);
DecoderStage make_stage(const Decoder::Fuse& step, bool pieces);
DecoderStage make_stage(const Decoder::Replace& step, bool pieces);
DecoderStage make_stage(const Decoder::Strip& step, bool pieces);
DecoderStage make_stage(const Decoder::Metaspace& step, bool pieces);

/// Puts the pieces of one token together, for steps that need it whole.
DecoderStage make_gather_stage();

/// The last stage.
DecoderStage make_collect_stage();

struct CollectStage : Decoder::Stage {
  std::string text;

  void push(std::string token) override { text += token; }
  void finish() override {}
};

}  // namespace hxq::text
