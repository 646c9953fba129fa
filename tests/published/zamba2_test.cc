// A checkpoint laid out as the published zamba2-1.2b: all 38 layers and 136 modules, narrow.

#include <gtest/gtest.h>

#include "published_files.h"
#include "refusal.h"
#include "temp_dir.h"

namespace hxq {
namespace {

constexpr int64_t kLayers = 38, kUses = 6, kVocab = 64, kHidden = 32, kStates = 16, kHeads = 8, kRank = 8, kMlp = 48;
constexpr int64_t kInner = 2 * kHidden, kConv = kInner + 2 * kStates;

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

class Zamba2Files : public testing::PublishedFiles {
 public:
  Zamba2Files() {
    exact("model.embed_tokens.weight", {kVocab, kHidden}, 0.3f);
    exact("model.final_layernorm.weight", {kHidden}, 0.1f, 1);
    for (int64_t layer = 0; layer < kLayers; ++layer) {
      const std::string prefix = "model.layers." + std::to_string(layer) + ".";
      if (is_hybrid(layer)) compressed(prefix + "linear", kHidden, kHidden);
      add_mamba(prefix + (is_hybrid(layer) ? "mamba_decoder." : ""));
    }
    add_shared("model.layers.5.shared_transformer.");
  }

 private:
  void add_mamba(const std::string& prefix) {
    exact(prefix + "input_layernorm.weight", {kHidden}, 0.1f, 1);
    const std::string mamba = prefix + "mamba.";
    exact(mamba + "conv1d.weight", {kConv, 1, 4}, 0.5f);
    exact(mamba + "conv1d.bias", {kConv}, 0.2f);
    exact(mamba + "dt_bias", {kHeads}, 1, -2);
    exact(mamba + "A_log", {kHeads}, 0.8f, 1);
    exact(mamba + "D", {kHeads}, 0.2f, 1);
    exact(mamba + "norm.weight", {kInner}, 0.1f, 1);
    compressed(mamba + "in_proj", kInner + kConv + kHeads, kHidden);
    compressed(mamba + "out_proj", kHidden, kInner);
  }

  void add_shared(const std::string& prefix) {
    exact(prefix + "input_layernorm.weight", {2 * kHidden}, 0.1f, 1);
    exact(prefix + "pre_ff_layernorm.weight", {kHidden}, 0.1f, 1);
    const auto add_adapters = [&](const std::string& list, int64_t rows, int64_t cols) {
      for (int64_t use = 0; use < kUses; ++use) {
        compressed(prefix + list + "." + std::to_string(use) + ".0", kRank, cols);
        compressed(prefix + list + "." + std::to_string(use) + ".1", rows, kRank);
      }
    };
    for (const std::string name : {"q", "k", "v"}) {
      compressed(prefix + "self_attn." + name + "_proj", 2 * kHidden, 2 * kHidden);
      add_adapters("self_attn.linear_" + name + "_adapter_list", 2 * kHidden, 2 * kHidden);
    }
    compressed(prefix + "self_attn.o_proj", kHidden, 2 * kHidden);
    compressed(prefix + "feed_forward.gate_up_proj", 2 * kMlp, kHidden);
    compressed(prefix + "feed_forward.down_proj", kHidden, kMlp);
    add_adapters("feed_forward.gate_up_proj_adapter_list", 2 * kMlp, kHidden);
  }
};

TEST(PublishedZamba2, OpensAndRuns) {
  const Zamba2Files files;
  EXPECT_EQ(files.modules(), 136);
  EXPECT_EQ(files.keys(), 136 * 4 + kLayers * 7 + 2 + 2);
  const testing::TempDir published, dense;
  files.write_published(published.path(), config());
  files.write_dense(dense.path(), config());

  const Model model = Model::open(published.path(), {.threads = 2});
  EXPECT_EQ(model.info().compressed_matrices, 136);
  EXPECT_EQ(model.info().dense_matrices, 1) << "the embedding";
  const Model reference = Model::open(dense.path(), {.threads = 2});
  EXPECT_EQ(reference.info().compressed_matrices, 0);
  EXPECT_EQ(reference.info().parameters, model.info().parameters);

  testing::expect_same_logits(testing::logits_of(model, 80), testing::logits_of(reference, 80));
}

/// Another writer stores the shared block once for every layer that uses it.
TEST(PublishedZamba2, CopiesOfTheSharedBlockMustBeTheSame) {
  const auto fault = [](float change) {
    Zamba2Files files;
    files.copy_dense("model.layers.5.shared_transformer.", "model.layers.11.shared_transformer.", change);
    const testing::TempDir dir;
    files.write_dense(dir.path(), config());
    return testing::refusal([&] { Model::open(dir.path(), {.threads = 1}); });
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
