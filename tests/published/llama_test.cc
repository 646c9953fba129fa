// A checkpoint laid out as the published tinyllama-1.1b: all 22 layers and 156 modules, narrow, and 44 keys of norms
// whose names an older tool got wrong.

#include <gtest/gtest.h>

#include <algorithm>

#include "hxq/compress.h"
#include "hxq/verify.h"
#include "published_files.h"
#include "temp_dir.h"

namespace hxq {
namespace {

constexpr int64_t kLayers = 22, kVocab = 500, kHidden = 128, kHeads = 32, kKvHeads = 4, kHeadDim = 4, kMlp = 352;

nlohmann::json config() {
  return {{"model_type", "llama"},
          {"architectures", {"LlamaForCausalLM"}},
          {"vocab_size", kVocab},
          {"hidden_size", kHidden},
          {"num_hidden_layers", kLayers},
          {"num_attention_heads", kHeads},
          {"num_key_value_heads", kKvHeads},
          {"intermediate_size", kMlp},
          {"rms_norm_eps", 1e-5},
          {"rope_theta", 10000.0},
          {"max_position_embeddings", 2048},
          {"hidden_act", "silu"},
          {"tie_word_embeddings", false}};
}

std::vector<std::string> junk_keys() {
  std::vector<std::string> keys;
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    keys.push_back(prefix + "input.layernorm.weight");
    keys.push_back(prefix + "post.attention.layernorm.weight");
  }
  std::ranges::sort(keys);
  return keys;
}

testing::PublishedFiles files() {
  testing::PublishedFiles files;
  files.compressed("model.embed_tokens", kVocab, kHidden);
  files.compressed("lm_head", kVocab, kHidden);
  files.exact("model.norm.weight", {kHidden}, 0.1f, 1);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const std::string prefix = "model.layers." + std::to_string(layer) + ".";
    files.exact(prefix + "input_layernorm.weight", {kHidden}, 0.1f, 1);
    files.exact(prefix + "post_attention_layernorm.weight", {kHidden}, 0.1f, 1);
    files.compressed(prefix + "self_attn.q_proj", kHidden, kHidden);
    files.compressed(prefix + "self_attn.k_proj", kKvHeads * kHeadDim, kHidden);
    files.compressed(prefix + "self_attn.v_proj", kKvHeads * kHeadDim, kHidden);
    files.compressed(prefix + "self_attn.o_proj", kHidden, kHidden);
    files.compressed(prefix + "mlp.gate_proj", kMlp, kHidden);
    files.compressed(prefix + "mlp.up_proj", kMlp, kHidden);
    files.compressed(prefix + "mlp.down_proj", kHidden, kMlp);
  }
  for (const std::string& key : junk_keys()) files.junk(key, {kHidden});
  return files;
}

TEST(PublishedLlama, OpensAndRunsAndIgnoresJunk) {
  const testing::PublishedFiles model_files = files();
  EXPECT_EQ(model_files.modules(), 22 * 7 + 2);
  EXPECT_EQ(model_files.keys(), 156 * 4 + 45 + 44);
  const testing::TempDir published, dense;
  model_files.write_published(published.path(), config());
  model_files.write_dense(dense.path(), config());

  const Inspection inspection = inspect(published.path());
  EXPECT_EQ(inspection.other_keys, junk_keys());
  EXPECT_EQ(inspection.tensors.size(), 156u + 45u);
  EXPECT_TRUE(verify(published.path()).ok());

  const Model model = Model::open(published.path(), {.threads = 2});
  EXPECT_EQ(model.info().compressed_matrices, 156);
  EXPECT_EQ(model.info().dense_matrices, 0);
  EXPECT_EQ(model.info().parameters, inspection.parameters);
  const Model reference = Model::open(dense.path(), {.threads = 2});
  EXPECT_EQ(reference.info().parameters, model.info().parameters);
  const std::vector<float> expected = testing::logits_of(reference, 80);
  testing::expect_same_logits(testing::logits_of(model, 80), expected);

  decompress(published.path(), dense.path() / "decompressed");
  testing::expect_same_logits(testing::logits_of(Model::open(dense.path() / "decompressed"), 80), expected);
}

}  // namespace
}  // namespace hxq
