#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <span>
#include <string>
#include <vector>

namespace hxq {

/// More than any machine's cores; tens of thousands exhaust what the system gives a process.
inline constexpr int kMaxThreads = 1024;

struct ModelOptions {
  int threads = 0;               ///< 0: the cores this process may run on, fewer while other programs hold them up
  std::string target = {};       ///< instruction set: "scalar", "avx2", "avx512"; empty: the best this processor has
  std::string kv_cache = "f32";  ///< how attention keeps keys and values: "f32", or "f16" at half the memory
};

/// Facts about an opened model.
struct ModelInfo {
  std::string model_type;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t blocks = 0;
  int64_t context_length = 0;       ///< tokens a sequence may have; 0: no limit
  int64_t parameters = 0;           ///< distinct stored parameters
  int64_t compressed_matrices = 0;  ///< matrices that run in compressed form
  int64_t dense_matrices = 0;
  int64_t bytes_per_token = 0;  ///< weight bytes that one decode step reads
  int threads = 0;              ///< at most
  std::string target;
  std::vector<int32_t> eos_tokens;  ///< of generation_config.json, or else of config.json
  int32_t bos_token = -1;           ///< -1: none
};

/// What a model remembers of the tokens it has seen (convolution inputs, SSM states, keys and values) and the memory it
/// computes in. Belongs to one sequence; a Model can serve many states, one thread of control per state.
class State {
 public:
  State(State&&) noexcept;
  State& operator=(State&&) noexcept;
  ~State();

  /// Tokens seen so far.
  int64_t position() const noexcept;
  /// Forgets everything: the next token is the first.
  void reset();

  struct Parts;

 private:
  friend class Model;
  explicit State(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

/// Which logits a forward pass is to compute.
enum class Logits : uint8_t { none, last, all };

/// A language model, dense or compressed, whose weights stay mapped from its folder. Immutable after `open`.
class Model {
 public:
  /// Opens a model folder: config.json with safetensors (one file or shards), dense or HXQ, or a .cdnav3 tree.
  /// Compressed matrices are run as they are; nothing dense is built from them.
  /// Throws `Error` for anything missing, malformed or unknown.
  static Model open(const std::filesystem::path& dir, const ModelOptions& options = {});

  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  const ModelInfo& info() const noexcept;

  State new_state() const;

  /// Runs `tokens` (each in [0, vocab_size)) and advances `state`. Writes logits to `out`: nothing, [vocab_size] of the
  /// last token, or [tokens.size(), vocab_size]. Throws `Error` for a token out of range, `out` of the wrong
  /// size, more tokens than the context holds, or a state that this model did not make.
  void forward(std::span<const int32_t> tokens, State& state, Logits logits, std::span<float> out) const;

  struct Parts;

 private:
  explicit Model(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace hxq
