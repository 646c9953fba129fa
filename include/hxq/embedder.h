#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "hxq/model.h"

namespace hxq {

/// How a text's hidden states become one vector.
enum class Pooling : uint8_t {
  mean,  ///< the mean of all tokens'
  last,  ///< that of the last token, which depends on all others
};

/// Makes vectors of texts: the hidden states of their tokens after the final norm, pooled and scaled to length 1. Texts
/// are run a step at a time; each vector is that of its text alone, bit for bit (on a GPU, the last bits may differ).
/// One thread of control at a time.
class Embedder {
 public:
  using Id = uint64_t;

  /// `model` must outlive it. sequences: texts that a step runs at once, at most. Throws `Error` for less than 1.
  Embedder(const Model& model, Pooling pooling, int64_t sequences);
  Embedder(Embedder&&) noexcept;
  Embedder& operator=(Embedder&&) noexcept;
  ~Embedder();

  /// Throws `Error` for no tokens, `ContextError` for more than the context holds.
  Id add(std::vector<int32_t> tokens);

  /// How many tokens a text that is not forgotten has.
  int64_t tokens(Id id) const noexcept;

  /// How far a text is.
  struct Progress {
    Id id = 0;
    int64_t tokens = 0;
    int64_t run_tokens = 0;  ///< of these
  };
  /// Those that have begun and are not done, in the order in which they came.
  std::vector<Progress> running() const;

  /// Runs at most so many tokens of the texts that came first; false if there is nothing to run. Throws what
  /// `Model::hidden_states` throws: nothing has changed then.
  bool step(int64_t tokens, Workspace& workspace);

  /// The vector, [hidden_size], of a text that was run, which is then forgotten; empty if it was not run to its end.
  /// Throws `Error` where hidden states have no direction, such as those that are not finite.
  std::optional<std::vector<float>> take(Id id);

  /// Forgets a text, done or not.
  void cancel(Id id);

 private:
  struct Impl;
  std::unique_ptr<Impl> impl_;
};

}  // namespace hxq
