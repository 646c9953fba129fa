// A checkpoint laid out as the published mamba-130m, in its true shapes: 573 keys, 97 modules, 13 with a low-rank term,
// and an embedding with evenly spaced levels, a low-rank term and no outliers.

#include <gtest/gtest.h>

#include <set>

#include "published_files.h"
#include "temp_dir.h"

namespace hxq {
namespace {

constexpr int64_t kLayers = 24, kVocab = 50280, kHidden = 768, kInner = 1536, kStates = 16, kRank = 48;
const std::set<int64_t> kLowRankX = {0, 2, 12, 15, 16, 17, 18, 19, 20, 23};
const std::set<int64_t> kLowRankDt = {0, 21, 22};

nlohmann::json config() {
  return {{"model_type", "mamba"}, {"vocab_size", kVocab}, {"hidden_size", kHidden}, {"num_hidden_layers", kLayers},
          {"state_size", kStates}, {"expand", 2},          {"conv_kernel", 4},       {"time_step_rank", kRank}};
}

testing::PublishedFiles files() {
  testing::PublishedFiles files;
  files.compressed("backbone.embeddings", kVocab, kHidden, {.outliers = 0, .rank = 8, .scale = 0.5f, .uniform = true});
  files.exact("backbone.norm_f.weight", {kHidden}, 0.1f, 1);
  for (int64_t layer = 0; layer < kLayers; ++layer) {
    const std::string prefix = "backbone.layers." + std::to_string(layer) + ".";
    const std::string mixer = prefix + "mixer.";
    files.exact(prefix + "norm.weight", {kHidden}, 0.1f, 1);
    files.exact(mixer + "A_log", {kInner, kStates}, 0.8f, 1);
    files.exact(mixer + "D", {kInner}, 0.2f, 1);
    files.exact(mixer + "conv1d.weight", {kInner, 1, 4}, 0.5f);
    files.exact(mixer + "conv1d.bias", {kInner}, 0.2f);
    files.exact(mixer + "dt_proj.bias", {kInner}, 1, -2);
    files.compressed(mixer + "in_proj", 2 * kInner, kHidden);
    files.compressed(mixer + "x_proj", kRank + 2 * kStates, kInner, {.rank = kLowRankX.contains(layer) ? 8 : 0});
    files.compressed(mixer + "dt_proj", kInner, kRank, {.rank = kLowRankDt.contains(layer) ? 8 : 0});
    files.compressed(mixer + "out_proj", kHidden, kInner);
  }
  return files;
}

TEST(PublishedMamba, OpensAndRuns) {
  const testing::PublishedFiles model_files = files();
  EXPECT_EQ(model_files.modules(), 97);
  EXPECT_EQ(model_files.keys(), 573);
  const testing::TempDir published, dense;
  model_files.write_published(published.path(), config());
  model_files.write_dense(dense.path(), config());

  const Model model = Model::open(published.path(), {.threads = 2});
  EXPECT_EQ(model.info().compressed_matrices, 97);
  EXPECT_EQ(model.info().dense_matrices, 0);
  const Model reference = Model::open(dense.path(), {.threads = 2});
  EXPECT_EQ(reference.info().compressed_matrices, 0);
  EXPECT_EQ(reference.info().parameters, model.info().parameters);
  for (const int tokens : {1, 20})
    testing::expect_same_logits(testing::logits_of(model, tokens), testing::logits_of(reference, tokens));
}

}  // namespace
}  // namespace hxq
