// A checkpoint laid out as the published zamba2-1.2b: all 38 layers and 136 modules, narrow.

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>

#include "hxq/error.h"
#include "hxq/model.h"
#include "io/safetensors_writer.h"
#include "temp_dir.h"
#include "test_checkpoint.h"

namespace hxq {
namespace {

constexpr int64_t kLayers = 38, kUses = 6, kVocab = 64, kHidden = 32, kStates = 16, kHeads = 8, kRank = 8, kMlp = 48;
constexpr int64_t kInner = 2 * kHidden, kConv = kInner + 2 * kStates;
constexpr int64_t kSidecar = 256, kLevels = 256;

bool is_hybrid(int64_t layer) { return layer % 6 == 5; }

nlohmann::json config() {
  std::vector<std::string> kinds;
  for (int64_t layer = 0; layer < kLayers; ++layer) kinds.push_back(is_hybrid(layer) ? "hybrid" : "mamba");
  return {{"model_type", "zamba2"},
          {"vocab_size", kVocab},
          {"hidden_size", kHidden},
          {"num_hidden_layers", kLayers},
          {"layers_block_type", kinds},
          {"mamba_d_state", kStates},
          {"mamba_expand", 2},
          {"mamba_ngroups", 1},
          {"n_mamba_heads", kHeads},
          {"intermediate_size", kMlp},
          {"num_attention_heads", 4},
          {"num_mem_blocks", 1},
          {"adapter_rank", kRank},
          {"use_mem_rope", true},
          {"use_shared_attention_adapter", true},
          {"rope_theta", 10000},
          {"max_position_embeddings", 4096},
          {"tie_word_embeddings", true}};
}

/// One set of weights, stored dense and as the oldest of the published writers stores it.
class Zamba2Files {
 public:
  Zamba2Files() {
    exact("model.embed_tokens.weight", {kVocab, kHidden}, 0.3f);
    exact("model.final_layernorm.weight", {kHidden}, 0.1f, 1);
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".";
      if (is_hybrid(layer)) add_module(prefix + "linear", kHidden, kHidden);
      add_mamba(prefix + (is_hybrid(layer) ? "mamba_decoder." : ""));
    }
    add_shared("model.layers.5.shared_transformer.");
  }

  int64_t modules() const { return static_cast<int64_t>(modules_.size()); }
  int64_t published_keys() const { return static_cast<int64_t>(published_.size()); }

  /// Dense copies of tensors under another prefix, the first weight of each plus `change`.
  void copy_shared(const std::string& from, const std::string& to, float change) {
    for (const auto& [name, tensor] : Tensors(dense_)) {
      if (!name.starts_with(from)) continue;
      Tensor copy = tensor;
      float first;
      std::memcpy(&first, copy.bytes.data(), sizeof first);
      first += change;
      std::memcpy(copy.bytes.data(), &first, sizeof first);
      dense_[to + name.substr(from.size())] = copy;
    }
  }

  void write_dense(const std::filesystem::path& dir) const { write(dir, dense_, config()); }

  void write_published(const std::filesystem::path& dir) const {
    nlohmann::json with_quantization = config();
    with_quantization["quantization_config"] = {{"quant_method", "hxq"},
                                                {"bits", 8},
                                                {"n_clusters", kLevels},
                                                {"compressed_modules", modules_},
                                                {"n_svd_routed", 0}};
    write(dir, published_, with_quantization);
  }

 private:
  struct Tensor {
    DType dtype;
    Shape shape;
    std::vector<std::byte> bytes;
  };
  using Tensors = std::map<std::string, Tensor>;

  std::vector<float> noise(int64_t count, float scale, float mean = 0) {
    std::normal_distribution<float> normal(mean, scale);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = normal(random_);
    return values;
  }

  void exact(const std::string& name, const Shape& shape, float scale, float mean = 0) {
    dense_[name] = published_[name] = {DType::f32, shape, testing::bytes_of(noise(element_count(shape), scale, mean))};
  }

  void add_module(const std::string& module, int64_t rows, int64_t cols) {
    const float scale = 1 / std::sqrt(static_cast<float>(cols));
    const std::vector<float> codebook = noise(kLevels, scale), exact_values = noise(kSidecar, 3 * scale);
    std::uniform_int_distribution<int> level(0, kLevels - 1);
    std::vector<uint8_t> indices;
    std::vector<float> weight;
    for (int64_t i = 0; i < rows * cols; ++i) {
      indices.push_back(static_cast<uint8_t>(level(random_)));
      weight.push_back(codebook[indices.back()]);
    }
    std::vector<int64_t> positions;
    for (int64_t i = 0; i < kSidecar; ++i) {
      positions.push_back(i * rows * cols / kSidecar);
      weight[static_cast<size_t>(positions.back())] = exact_values[static_cast<size_t>(i)];
    }
    dense_[module + ".weight"] = {DType::f32, {rows, cols}, testing::bytes_of(weight)};
    published_[module + ".codebook"] = {DType::f32, {kLevels}, testing::bytes_of(codebook)};
    published_[module + ".indices"] = {DType::u8, {rows, cols}, testing::bytes_of(indices)};
    published_[module + ".sidecar_positions"] = {DType::i64, {kSidecar}, testing::bytes_of(positions)};
    published_[module + ".sidecar_values"] = {DType::f32, {kSidecar}, testing::bytes_of(exact_values)};
    modules_.push_back(module);
  }

  void add_mamba(const std::string& prefix) {
    exact(prefix + "input_layernorm.weight", {kHidden}, 0.1f, 1);
    const std::string mamba = prefix + "mamba.";
    exact(mamba + "conv1d.weight", {kConv, 1, 4}, 0.5f);
    exact(mamba + "conv1d.bias", {kConv}, 0.2f);
    exact(mamba + "dt_bias", {kHeads}, 1, -2);
    exact(mamba + "A_log", {kHeads}, 0.8f, 1);
    exact(mamba + "D", {kHeads}, 0.2f, 1);
    exact(mamba + "norm.weight", {kInner}, 0.1f, 1);
    add_module(mamba + "in_proj", kInner + kConv + kHeads, kHidden);
    add_module(mamba + "out_proj", kHidden, kInner);
  }

  void add_shared(const std::string& prefix) {
    exact(prefix + "input_layernorm.weight", {2 * kHidden}, 0.1f, 1);
    exact(prefix + "pre_ff_layernorm.weight", {kHidden}, 0.1f, 1);
    const auto add_adapters = [&](const std::string& list, int64_t rows, int64_t cols) {
      for (int64_t use = 0; use < kUses; ++use) {
        add_module(prefix + list + "." + std::to_string(use) + ".0", kRank, cols);
        add_module(prefix + list + "." + std::to_string(use) + ".1", rows, kRank);
      }
    };
    for (const std::string name : {"q", "k", "v"}) {
      add_module(prefix + "self_attn." + name + "_proj", 2 * kHidden, 2 * kHidden);
      add_adapters("self_attn.linear_" + name + "_adapter_list", 2 * kHidden, 2 * kHidden);
    }
    add_module(prefix + "self_attn.o_proj", kHidden, 2 * kHidden);
    add_module(prefix + "feed_forward.gate_up_proj", 2 * kMlp, kHidden);
    add_module(prefix + "feed_forward.down_proj", kHidden, kMlp);
    add_adapters("feed_forward.gate_up_proj_adapter_list", 2 * kMlp, kHidden);
  }

  static void write(const std::filesystem::path& dir, const Tensors& tensors, const nlohmann::json& config) {
    std::ofstream(dir / "config.json") << config;
    std::vector<TensorPlan> plan;
    for (const auto& [name, tensor] : tensors) plan.push_back({name, tensor.dtype, tensor.shape});
    SafetensorsWriter writer(dir / "model.safetensors", plan);
    for (const auto& [name, tensor] : tensors) writer.add(name, tensor.dtype, tensor.shape, tensor.bytes);
    writer.finish();
  }

  std::mt19937 random_{1};
  Tensors dense_, published_;
  std::vector<std::string> modules_;
};

std::vector<float> logits_of(const Model& model) {
  std::vector<int32_t> tokens;
  for (int32_t i = 0; i < 80; ++i) tokens.push_back(i * 7 % static_cast<int32_t>(kVocab));
  State state = model.new_state();
  std::vector<float> logits(tokens.size() * static_cast<size_t>(kVocab));
  model.forward(tokens, state, Logits::all, logits);
  return logits;
}

TEST(PublishedZamba2, OpensAndRuns) {
  const Zamba2Files files;
  EXPECT_EQ(files.modules(), 136);
  EXPECT_EQ(files.published_keys(), 136 * 4 + kLayers * 7 + 2 + 2);
  const testing::TempDir published, dense;
  files.write_published(published.path());
  files.write_dense(dense.path());

  const Model model = Model::open(published.path(), {.threads = 2});
  EXPECT_EQ(model.info().compressed_matrices, 136);
  EXPECT_EQ(model.info().dense_matrices, 1) << "the embedding";
  const Model reference = Model::open(dense.path(), {.threads = 2});
  EXPECT_EQ(reference.info().compressed_matrices, 0);
  EXPECT_EQ(reference.info().parameters, model.info().parameters);

  const std::vector<float> got = logits_of(model), expected = logits_of(reference);
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], 1e-3f) << i;
}

/// Another writer stores the shared block once for every layer that uses it.
TEST(PublishedZamba2, CopiesOfTheSharedBlockMustBeTheSame) {
  const auto fault = [](float change) {
    Zamba2Files files;
    files.copy_shared("model.layers.5.shared_transformer.", "model.layers.11.shared_transformer.", change);
    const testing::TempDir dir;
    files.write_dense(dir.path());
    try {
      Model::open(dir.path(), {.threads = 1});
      return std::string();
    } catch (const Error& error) {
      return std::string(error.what());
    }
  };
  EXPECT_EQ(fault(0), "");
  const std::string message = fault(1);
  for (const char* part : {"model.layers.11.shared_transformer.feed_forward.down_proj.weight': differs from "
                           "model.layers.5.shared_transformer.feed_forward.down_proj.weight",
                           "not supported"}) {
    EXPECT_NE(message.find(part), std::string::npos) << message;
  }
}

}  // namespace
}  // namespace hxq
