#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "hxq/generate.h"

namespace hxq::serve {

/// A token of a text, where log probabilities were asked for.
struct TokenUpdate {
  int32_t token = 0;
  size_t text_offset = 0;  ///< bytes of the text before it
  TokenLogprobs logprobs = {};
};

/// How a generation, or an embedding, ended.
struct Ending {
  StopReason reason = StopReason::length;
  std::string fault = {};     ///< not empty: why it could not be completed
  bool is_temporary = false;  ///< the fault: another time it may be
  int64_t prompt_tokens = 0;
  int64_t reused_tokens = 0;  ///< of the prompt
  int64_t new_tokens = 0;
};

/// What came of a generation since the last update, or a text's embedding.
struct Update {
  std::string text = {};
  std::vector<float> embedding = {};  ///< [hidden_size]
  std::vector<TokenUpdate> tokens = {};
  std::optional<Ending> ending = {};  ///< of the last update
};

}  // namespace hxq::serve
