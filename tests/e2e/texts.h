#pragma once

#include <cstdlib>
#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "hxq/compress.h"
#include "hxq/model.h"
#include "temp_dir.h"

namespace hxq::testing {

/// A model folder of the tests as it is, or compressed into a temporary folder.
class TestFolder {
 public:
  TestFolder(const std::string& name, bool compressed, const std::string& profile = "")
      : path_(std::filesystem::path(HXQ_SOURCE_DIR) / name) {
    if (!compressed) return;
    compress(path_, made_.path() / "compressed", {.profile = profile});
    path_ = made_.path() / "compressed";
  }
  const std::filesystem::path& path() const { return path_; }

 private:
  TempDir made_;
  std::filesystem::path path_;
};

/// Tokens of a text: a prompt, and tokens that are then decoded one a step.
struct Text {
  std::vector<int32_t> prompt;
  std::vector<int32_t> decoded;
};

/// Texts of mixed lengths; the same number gives the same text.
inline Text text_of(int64_t number, int64_t vocab) {
  Text text;
  const auto token = [&](int64_t i) { return static_cast<int32_t>((number * 7919 + i * 104729 + i * i) % vocab); };
  for (int64_t i = 0; i <= number * 5 % 37; ++i) text.prompt.push_back(token(i));
  for (int64_t i = 0; i < 3 + number % 6; ++i) text.decoded.push_back(token(100 + i));
  return text;
}

/// The logits after the prompt and after each decoded token of a text that is run by itself, the prompt in one piece.
inline std::vector<std::vector<float>> alone(const Model& model, const Text& text, Sequence& sequence,
                                             Workspace& workspace) {
  std::vector<float> logits(static_cast<size_t>(model.info().vocab_size));
  sequence.reset();
  model.forward(text.prompt, sequence, Phase::prefill, Logits::last, workspace, logits);
  std::vector<std::vector<float>> all = {logits};
  for (const int32_t& token : text.decoded) {
    model.forward({&token, 1}, sequence, Phase::decode, Logits::last, workspace, logits);
    all.push_back(logits);
  }
  return all;
}

}  // namespace hxq::testing
