#include "hxq/model.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <type_traits>
#include <variant>

#include "desc/config_reader.h"
#include "folder/described_tensors.h"
#include "folder/shared_copies.h"
#include "hxq/error.h"
#include "io/json.h"
#include "io/system_error.h"
#include "kernels/cpu_context.h"
#include "model/model_parts.h"

namespace hxq {
namespace {

/// transformers applies an adapter that lies beside the weights: without it, these would be another model.
void check_no_adapter(const std::filesystem::path& dir) {
  const std::filesystem::path file = dir / "adapter_config.json";
  std::error_code ignored;  // where the folder cannot be looked into, opening it says so
  if (!std::filesystem::exists(file, ignored)) return;
  throw Error("is of an adapter, which is not applied here: merge it into the weights, or move it to another folder",
              {.file = file.string()});
}

/// The tokens that end a sequence: those of the settings to generate with, or else of the model.
std::vector<int32_t> eos_tokens(const std::filesystem::path& dir, const ModelDesc& desc) {
  const std::filesystem::path path = dir / "generation_config.json";
  if (!is_there(path)) return desc.eos_tokens;
  const nlohmann::json json = load_json(path);
  const ConfigReader config(json, path.string());
  return config.has("eos_token_id") ? config.token_ids("eos_token_id") : desc.eos_tokens;
}

Target choose_target(std::optional<Target> wanted) {
  const std::vector<Target> targets = kernels::supported_targets();
  if (!wanted) return targets.back();
  if (std::ranges::count(targets, *wanted) > 0) return *wanted;
  std::vector<std::string_view> names;
  for (const Target target : targets) names.push_back(name_of(target));
  throw Error(fmt::format("instruction set '{}' is not available; this processor runs {}", name_of(*wanted),
                          fmt::join(names, ", ")));
}

bool has_attention(const BlockDesc& block) {
  return std::holds_alternative<TransformerBlockDesc>(block) || std::holds_alternative<Zamba2BlockDesc>(block);
}

/// Whether rotary positions of the block depend on the length of the text.
bool scales_positions(const BlockDesc& block) {
  return std::visit(
      [](const auto& desc) {
        using Desc = std::decay_t<decltype(desc)>;
        if constexpr (std::is_same_v<Desc, TransformerBlockDesc>) {
          return desc.attention.rope.type == RopeDesc::Type::dynamic;
        } else if constexpr (std::is_same_v<Desc, Zamba2BlockDesc>) {
          return desc.rotary && desc.rope.type == RopeDesc::Type::dynamic;
        } else {
          return false;
        }
      },
      block);
}

}  // namespace

void Model::Parts::load_weights() {
  check_shared_copies(checkpoint, desc);
  check_layer_count(checkpoint, desc);
  matrices.resize(desc.weights.size());
  for (size_t id = 0; id < desc.weights.size(); ++id) {
    const WeightDesc& weight = desc.weights[id];
    if (!find_described(checkpoint, weight)) continue;
    info.parameters += element_count(weight.shape);
    if (!is_matrix(weight.role)) continue;
    matrices[id] = load_matrix(checkpoint, weight, *state_options.device);
    (matrices[id]->codec() ? info.compressed_matrices : info.dense_matrices) += 1;
  }
  const bool own_head = find_tensor(checkpoint, desc.weights[static_cast<size_t>(desc.head)].name).has_value();
  head = own_head ? desc.head : desc.embedding;

  const WeightSource source{checkpoint, desc, matrices, state_options};
  for (const BlockDesc& block : desc.blocks) {
    blocks.push_back(make_block(block, source));
    state_arrays += blocks.back()->state_arrays();
  }
  final_norm = std::make_unique<RmsNorm>(source, desc.final_norm, desc.norm_eps);

  for (size_t id = 0; id < matrices.size(); ++id) {
    if (!matrices[id]) continue;
    const bool every_row_is_read = static_cast<WeightId>(id) != desc.embedding;
    if (every_row_is_read || static_cast<WeightId>(id) == head) {
      info.bytes_per_token += desc.weights[id].uses * matrices[id]->bytes_read();
    }
  }
}

Model::Model(std::unique_ptr<Parts> parts) : parts_(std::move(parts)) {}
Model::Model(Model&&) noexcept = default;
Model& Model::operator=(Model&&) noexcept = default;
Model::~Model() = default;

Model Model::open(const std::filesystem::path& dir, const ModelOptions& options) {
  check_no_adapter(dir);
  auto parts = std::make_unique<Parts>(Checkpoint::open(dir));
  const std::string config_file = (dir / "config.json").string();
  if (parts->checkpoint.config().is_null()) {
    throw Error("not found; a model needs it to be run", {.file = config_file});
  }
  parts->load(config_file, options);
  parts->info.eos_tokens = eos_tokens(dir, parts->desc);
  return Model(std::move(parts));
}

Model Model::over(std::string_view config, std::span<const NamedTensor> tensors, const ModelOptions& options) {
  TensorMap map;
  for (const auto& [name, tensor] : tensors) {
    if (!map.emplace(name, tensor).second) throw Error("is given twice", {.tensor = name});
  }
  if (config.empty()) throw Error("a model needs the text of a config.json to be run");
  auto parts = std::make_unique<Parts>(Checkpoint::over(std::move(map), config));
  parts->load("config.json", options);
  return Model(std::move(parts));
}

void Model::Parts::load(const std::string& config_file, const ModelOptions& options) {
  if (options.kv_cache != DType::f32 && options.kv_cache != DType::f16) {
    throw Error(fmt::format("a key-value cache of {}: expected F32 or F16", name_of(options.kv_cache)));
  }
  if (options.threads < 0 || options.threads > kMaxThreads) {
    throw Error(fmt::format("{} threads: expected 0 (all cores) to {}", options.threads, kMaxThreads));
  }

  desc = describe(checkpoint.config(), config_file);
  state_options = {.device = &kernels::find_device(options.device), .kv_cache = options.kv_cache};

  info.model_type = desc.model_type;
  info.vocab_size = desc.vocab_size;
  info.hidden_size = desc.hidden_size;
  info.blocks = static_cast<int64_t>(desc.blocks.size());
  info.context_length = desc.max_positions;
  info.threads = options.threads == 0 ? default_thread_count() : options.threads;
  adapt_threads = options.threads == 0 && state_options.device->is_host();
  info.target = choose_target(options.target);
  info.precision = options.precision;
  info.device = state_options.device->name();
  info.on_host = state_options.device->is_host();
  info.step_tokens = state_options.device->step_rows();
  info.eos_tokens = desc.eos_tokens;
  info.bos_token = desc.bos_token;
  info.has_attention = std::ranges::any_of(desc.blocks, has_attention);
  info.positions_scale = std::ranges::any_of(desc.blocks, scales_positions);
  load_weights();
}

const ModelInfo& Model::info() const noexcept { return parts_->info; }

}  // namespace hxq
