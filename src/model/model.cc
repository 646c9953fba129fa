#include "hxq/model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>
#include <optional>

#include "desc/config_reader.h"
#include "folder/described_tensors.h"
#include "folder/shared_copies.h"
#include "hxq/error.h"
#include "io/checkpoint.h"
#include "io/json.h"
#include "kernels/scratch.h"
#include "layers/block.h"
#include "model/step_threads.h"

namespace hxq {
namespace {

/// Tokens run through all layers at a time: enough to amortise decoding a tile of weights, while activations stay
/// small.
constexpr int64_t kChunk = 512;

/// The tokens that end a sequence: those of the settings to generate with, or else of the model.
std::vector<int32_t> eos_tokens(const std::filesystem::path& dir, const ModelDesc& desc) {
  const std::filesystem::path path = dir / "generation_config.json";
  std::error_code fault;
  if (!std::filesystem::exists(path, fault)) return desc.eos_tokens;
  const nlohmann::json json = load_json(path);
  const ConfigReader config(json, path.string());
  return config.has("eos_token_id") ? config.token_ids("eos_token_id") : desc.eos_tokens;
}

kernels::Target choose_target(const std::string& name) {
  const std::vector<kernels::Target> targets = kernels::supported_targets();
  if (name.empty()) return targets.back();
  std::vector<std::string_view> names;
  for (const kernels::Target target : targets) {
    if (name == kernels::name_of(target)) return target;
    names.push_back(kernels::name_of(target));
  }
  throw Error(
      fmt::format("instruction set '{}' is not available; this processor runs {}", name, fmt::join(names, ", ")));
}

DType kv_cache_type(const std::string& name) {
  if (name == "f32") return DType::f32;
  if (name == "f16") return DType::f16;
  throw Error(fmt::format("key-value cache in '{}': expected f32 or f16", name));
}

}  // namespace

struct State::Parts {
  Parts(const Model::Parts* made_by, int threads) : owner(made_by), scratch(threads), step_threads(threads) {}

  const Model::Parts* owner;  ///< the only one that can use the states of blocks
  std::vector<std::unique_ptr<BlockState>> blocks;
  int64_t position = 0;
  std::vector<float> x;          // [chunk, hidden]
  std::vector<float> embedding;  // [chunk, hidden]: x before the first block, where blocks read it
  std::vector<float> work;       // shared by the blocks, one after the other
  kernels::Scratch scratch;
  StepThreads step_threads;
};

State::State(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
State::State(State&&) noexcept = default;
State& State::operator=(State&&) noexcept = default;
State::~State() = default;

int64_t State::position() const noexcept { return parts_->position; }

void State::reset() {
  for (const auto& block : parts_->blocks) block->reset();
  parts_->position = 0;
}

struct Model::Parts {
  explicit Parts(Checkpoint opened) : checkpoint(std::move(opened)) {}

  Checkpoint checkpoint;
  ModelDesc desc;
  ModelInfo info;
  kernels::Target target = kernels::Target::scalar;
  bool adapt_threads = false;    // of decode steps; the user did not say how many
  std::vector<Weight> matrices;  // by WeightId; null for what is not a matrix
  StateOptions state_options;
  std::vector<std::unique_ptr<Block>> blocks;
  std::vector<float> final_norm;  // [hidden]
  WeightId head = kNoWeight;

  const Weight& matrix(WeightId id) const { return matrices[static_cast<size_t>(id)]; }
  void load();
  void run_chunk(std::span<const int32_t> tokens, int64_t end, State::Parts& state, Logits logits, float* out) const;
};

void Model::Parts::load() {
  check_shared_copies(checkpoint, desc);
  check_layer_count(checkpoint, desc);
  matrices.resize(desc.weights.size());
  for (size_t id = 0; id < desc.weights.size(); ++id) {
    const WeightDesc& weight = desc.weights[id];
    if (!find_described(checkpoint, weight)) continue;
    info.parameters += element_count(weight.shape);
    if (!is_matrix(weight.role)) continue;
    matrices[id] = load_matrix(checkpoint, weight);
    (matrices[id]->codec() ? info.compressed_matrices : info.dense_matrices) += 1;
  }
  const bool own_head = find_tensor(checkpoint, desc.weights[static_cast<size_t>(desc.head)].name).has_value();
  head = own_head ? desc.head : desc.embedding;

  const WeightSource source{checkpoint, desc, matrices};
  for (const BlockDesc& block : desc.blocks) blocks.push_back(make_block(block, source));
  final_norm = source.vector(desc.final_norm);

  for (size_t id = 0; id < matrices.size(); ++id) {
    if (!matrices[id]) continue;
    const bool read_whole = static_cast<WeightId>(id) != desc.embedding;
    if (read_whole || static_cast<WeightId>(id) == head) {
      info.bytes_per_token += desc.weights[id].uses * matrices[id]->bytes_read();
    }
  }
}

void Model::Parts::run_chunk(std::span<const int32_t> tokens, int64_t end, State::Parts& state, Logits logits,
                             float* out) const {
  const auto count = static_cast<int64_t>(tokens.size());
  int64_t work_size = count * desc.hidden_size;  // of the final norm
  for (const auto& block : blocks) work_size = std::max(work_size, block->work_size(count));
  const auto x_size = static_cast<size_t>(count * desc.hidden_size);
  if (state.x.size() < x_size) state.x.resize(x_size);
  if (desc.blocks_read_embedding && state.embedding.size() < x_size) state.embedding.resize(x_size);
  if (state.work.size() < static_cast<size_t>(work_size)) state.work.resize(static_cast<size_t>(work_size));
  for (const auto& block : state.blocks) block->prepare({.position = state.position, .tokens = count, .end = end});
  float* x = state.x.data();
  float* work = state.work.data();
  float* embedding = desc.blocks_read_embedding ? state.embedding.data() : nullptr;

  const bool adapts = count == 1 && adapt_threads;
  const auto start = std::chrono::steady_clock::now();
  run_team(adapts ? state.step_threads.threads() : info.threads, [&](const Team& team) {
    const kernels::Context context{team, target, state.scratch};
    matrix(desc.embedding)->gather_rows(tokens.data(), count, x, context);
    if (embedding) matrix(desc.embedding)->gather_rows(tokens.data(), count, embedding, context);
    const BlockArgs args{.x = x, .embedding = embedding, .tokens = count, .position = state.position, .work = work};
    for (size_t i = 0; i < blocks.size(); ++i) blocks[i]->forward(args, *state.blocks[i], context);
    if (logits == Logits::none) return;
    const int64_t first = logits == Logits::last ? count - 1 : 0;
    kernels::rms_norm({.x = x + first * desc.hidden_size,
                       .weight = final_norm.data(),
                       .y = work,
                       .tokens = count - first,
                       .dim = desc.hidden_size,
                       .eps = desc.norm_eps},
                      context);
    linear(matrix(head),
           {.x = work, .x_stride = desc.hidden_size, .y = out, .y_stride = desc.vocab_size, .tokens = count - first},
           context);
  });
  if (adapts) {
    state.step_threads.took(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  state.position += count;
}

Model::Model(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

Model Model::open(const std::filesystem::path& dir, const ModelOptions& options) {
  auto parts = std::make_unique<Parts>(Checkpoint::open(dir));
  const std::string config_file = (dir / "config.json").string();
  if (parts->checkpoint.config().is_null()) {
    throw Error("not found; a model needs it to be run", {.file = config_file});
  }
  parts->desc = describe(parts->checkpoint.config(), config_file);
  parts->target = choose_target(options.target);
  parts->state_options.kv_cache = kv_cache_type(options.kv_cache);
  if (options.threads < 0 || options.threads > kMaxThreads) {
    throw Error(fmt::format("{} threads: expected 0 (all cores) to {}", options.threads, kMaxThreads));
  }

  ModelInfo& info = parts->info;
  info.model_type = parts->desc.model_type;
  info.vocab_size = parts->desc.vocab_size;
  info.hidden_size = parts->desc.hidden_size;
  info.blocks = static_cast<int64_t>(parts->desc.blocks.size());
  info.context_length = parts->desc.max_positions;
  info.threads = options.threads == 0 ? default_thread_count() : options.threads;
  parts->adapt_threads = options.threads == 0;
  info.target = kernels::name_of(parts->target);
  info.eos_tokens = eos_tokens(dir, parts->desc);
  info.bos_token = parts->desc.bos_token;
  parts->load();
  return Model(std::move(parts));
}

const ModelInfo& Model::info() const noexcept { return parts_->info; }

State Model::new_state() const {
  auto state = std::make_unique<State::Parts>(parts_.get(), info().threads);
  for (const auto& block : parts_->blocks) state->blocks.push_back(block->new_state(parts_->state_options));
  return State(std::move(state));
}

void Model::forward(std::span<const int32_t> tokens, State& state, Logits logits, std::span<float> out) const {
  if (!state.parts_ || state.parts_->owner != parts_.get()) throw Error("the state is not one of this model's");
  const int64_t vocab = info().vocab_size;
  for (const int32_t token : tokens) {
    if (token < 0 || token >= vocab) throw Error(fmt::format("token {} is outside the vocabulary of {}", token, vocab));
  }
  const auto count = static_cast<int64_t>(tokens.size());
  const int64_t rows = logits == Logits::none ? 0 : logits == Logits::last ? std::min<int64_t>(count, 1) : count;
  if (static_cast<int64_t>(out.size()) != rows * vocab) {
    throw Error(fmt::format("room for {} logits, expected {} x {}", out.size(), rows, vocab));
  }
  const int64_t end = state.position() + count;
  if (info().context_length > 0 && end > info().context_length) {
    throw Error(fmt::format("{} tokens after {}: the model's context holds {}", count, state.position(),
                            info().context_length));
  }
  for (int64_t begin = 0; begin < count; begin += kChunk) {
    const int64_t size = std::min(kChunk, count - begin);
    const bool last_chunk = begin + size == count;
    const Logits wanted = logits == Logits::last && !last_chunk ? Logits::none : logits;
    float* chunk_out = wanted == Logits::all ? out.data() + begin * vocab : out.data();
    parts_->run_chunk(tokens.subspan(static_cast<size_t>(begin), static_cast<size_t>(size)), end, *state.parts_, wanted,
                      chunk_out);
  }
}

}  // namespace hxq
