#pragma once

#include <memory>
#include <string>

#include "text/decoder.h"

namespace hxq::text {

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
