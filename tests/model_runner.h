#pragma once

#include <span>

#include "hxq/model.h"

namespace hxq::testing {

/// A model with one sequence and what that is computed in.
class ModelRunner {
 public:
  explicit ModelRunner(const Model& model)
      : model_(model), sequence_(model.new_sequence()), workspace_(model.new_workspace()) {}

  void prefill(std::span<const int32_t> tokens, Logits wanted, std::span<float> logits) {
    model_.forward(tokens, sequence_, Phase::prefill, wanted, workspace_, logits);
  }
  void decode(int32_t token, std::span<float> logits) {
    model_.forward({&token, 1}, sequence_, Phase::decode, Logits::last, workspace_, logits);
  }
  void reset() { sequence_.reset(); }
  int64_t position() const { return sequence_.position(); }

 private:
  const Model& model_;
  Sequence sequence_;
  Workspace workspace_;
};

}  // namespace hxq::testing
