#pragma once

#include <cstdint>
#include <filesystem>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "hxq/arithmetic.h"
#include "hxq/tensor.h"

namespace hxq {

/// More than any machine's cores; tens of thousands exhaust what the system gives a process.
inline constexpr int kMaxThreads = 1024;

/// The names of devices, for people.
inline constexpr std::string_view kDeviceNames = "cpu, cuda or cuda:N";

struct ModelOptions {
  int threads = 0;  ///< 1 to kMaxThreads; 0: the cores this process may run on, fewer while other programs hold them up
  std::optional<Target> target = {};  ///< empty: the best instruction set this processor has
  Precision precision = Precision::fast;
  DType kv_cache = DType::f32;  ///< how attention keeps keys and values: F32, or F16 at half the memory
  std::string device = "cpu";   ///< or "cuda", "cuda:N": an NVIDIA GPU, where libhxq_cuda.so is found
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
  Target target = Target::scalar;
  Precision precision = Precision::fast;
  std::string device;
  bool on_host = true;              ///< the device's memory is the host's
  int64_t step_tokens = 0;          ///< that the device computes at once
  std::vector<int32_t> eos_tokens;  ///< of generation_config.json, or else of config.json
  int32_t bos_token = -1;           ///< -1: none
  bool has_attention = false;       ///< in some block: sequences have a key-value cache
  bool positions_scale = false;     ///< with the length of a prompt: its beginning is not that of a longer one
};

/// What a block of a model can remember of a sequence.
enum class StateKind : uint8_t {
  conv,    ///< a convolution's last inputs [width - 1, channels], oldest first
  ssm,     ///< Mamba: [state_size, channels]; Mamba-2: [heads, state_size, head_dim]
  keys,    ///< [kv_heads, positions, head_dim], turned by their rotary positions
  values,  ///< [kv_heads, positions, head_dim]
};

/// One such array, copied to the host.
struct StateValues {
  Shape shape = {};  ///< empty where a block remembers nothing of that kind
  std::vector<float> values = {};
};

/// What a model remembers of one sequence of tokens: convolution inputs, SSM states, keys and values. A model can serve
/// any number of them, and must outlive them.
class Sequence {
 public:
  Sequence(Sequence&&) noexcept;
  Sequence& operator=(Sequence&&) noexcept;
  ~Sequence();

  /// Tokens seen so far.
  int64_t position() const noexcept;
  /// Forgets everything: the next token is the first.
  void reset();
  /// Remembers what `other`, another sequence of the same model, does: both go on from there, each by itself. Memory
  /// that does not change any more is shared. Throws `Error` for one of another model, `OutOfMemory`: it then remembers
  /// nothing.
  void copy_from(const Sequence& other);
  /// Memory that it has on the model's device, shared memory included.
  int64_t bytes() const noexcept;
  /// What the model's block of that number, from 0, remembers. Throws `Error` for another number.
  StateValues read(int64_t block, StateKind kind) const;

  struct Parts;

 private:
  friend class Model;
  explicit Sequence(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

/// The threads and the memory that a model, which must outlive it, computes in. Remembers nothing; one thread of
/// control at a time.
class Workspace {
 public:
  Workspace(Workspace&&) noexcept;
  Workspace& operator=(Workspace&&) noexcept;
  ~Workspace();

  /// Memory for `count` logits of a call, which may be any other memory too: a GPU copies fastest to this. Contents are
  /// undefined; valid until the next call of this function. Throws `OutOfMemory`.
  std::span<float> logits(size_t count);

  struct Parts;

 private:
  friend class Model;
  explicit Workspace(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

/// Which logits (or hidden states) of a segment a forward pass is to give.
enum class Logits : uint8_t {
  none,
  last,         ///< of its last token
  all,          ///< of every token
  most_likely,  ///< none, but which token has the largest of its last token's: a GPU then has nothing else to copy
};

/// Consecutive tokens of one sequence. In C hxq_segment, where `tokens` is called count and `logits` wanted.
struct Segment {
  Sequence* sequence = nullptr;
  int64_t tokens = 0;
  Phase phase = Phase::prefill;
  Logits logits = Logits::none;
  /// Length that the sequence will have after the whole of its prompt, where that comes in several calls; 0: after this
  /// segment.
  int64_t end = 0;
};

/// A tensor in the caller's memory, under the name that safetensors files use.
struct NamedTensor {
  std::string name;
  TensorView tensor;
};

/// A language model, dense or compressed, whose weights stay where they are, mapped from its folder or in the caller's
/// memory, or are copied once, as they are stored, to another device. Immutable once it is made.
class Model {
 public:
  /// Opens a model folder: config.json with safetensors (one file or shards), dense or HXQ, or a .cdnav3 tree.
  /// Compressed matrices are run as they are; nothing dense is built from them.
  /// Throws `Error` for anything missing, malformed or unknown, and for a device that is not there.
  static Model open(const std::filesystem::path& dir, const ModelOptions& options = {});

  /// The model that `config`, the text of a config.json, describes, over tensors in memory. Matrices are run where they
  /// lie: their memory must outlive the model and stay as it is. Everything else is copied. Throws as `open` does.
  static Model over(std::string_view config, std::span<const NamedTensor> tensors, const ModelOptions& options = {});

  Model(Model&&) noexcept;
  Model& operator=(Model&&) noexcept;
  ~Model();

  const ModelInfo& info() const noexcept;

  /// Throw `OutOfMemory`.
  Sequence new_sequence() const;
  Workspace new_workspace() const;

  /// Runs tokens (each in [0, vocab_size)) of any number of sequences and advances these. `tokens` are those of the
  /// segments, one after the other; so are the `logits`: for each segment nothing, [vocab_size] of its last token, or
  /// [segment.tokens, vocab_size]. `most_likely` gets a token for each segment with tokens that asks for it,
  /// in their order: of those with equal logits the lowest; -1 where a logit is NaN or the largest is infinite.
  ///
  /// What a token gives depends on its sequence and its phase alone: it is the same, bit for bit, whatever other
  /// sequences are computed with it, in however many calls its prompt comes (with the same `end`, where rotary
  /// positions scale with the length), and on any number of threads. On a GPU the last bits may depend on how many
  /// tokens are computed together.
  ///
  /// Throws `Error`, with every sequence as it was, for a token out of range, sizes that do not fit, a sequence that
  /// comes twice or is another model's, and more tokens than the context holds; `OutOfMemory` likewise: what a call
  /// needs is taken before it begins. Where a GPU fails in the middle, `Error` says so, and the sequences of the call
  /// hold nothing of use.
  void forward(std::span<const int32_t> tokens, std::span<const Segment> segments, Workspace& workspace,
               std::span<float> logits, std::span<int32_t> most_likely = {}) const;

  /// The same for one sequence, for logits (not `most_likely`).
  void forward(std::span<const int32_t> tokens, Sequence& sequence, Phase phase, Logits wanted, Workspace& workspace,
               std::span<float> logits) const;

  /// The same, but what is computed of the tokens that `Segment::logits` names (not `most_likely`) are their hidden
  /// states after the final norm, [hidden_size] each, of which logits are products with the head.
  void hidden_states(std::span<const int32_t> tokens, std::span<const Segment> segments, Workspace& workspace,
                     std::span<float> states) const;

  struct Parts;

 private:
  void run(std::span<const int32_t> tokens, std::span<const Segment> segments, Workspace& workspace,
           std::span<float> outputs, std::span<int32_t> most_likely, bool hidden) const;

  explicit Model(std::unique_ptr<Parts> parts);
  std::unique_ptr<Parts> parts_;
};

}  // namespace hxq
