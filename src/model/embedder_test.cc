#include "hxq/embedder.h"

#include <gtest/gtest.h>

#include <cmath>
#include <filesystem>

#include "hxq/error.h"

namespace hxq {
namespace {

class Embedders : public ::testing::TestWithParam<const char*> {
 protected:
  /// The pooled hidden states of one call for the whole text, by the formula.
  std::vector<float> alone(const std::vector<int32_t>& text, Pooling pooling) const {
    Sequence sequence = model_.new_sequence();
    Workspace workspace = model_.new_workspace();
    const auto hidden = static_cast<size_t>(model_.info().hidden_size);
    std::vector<float> states(text.size() * hidden);
    const Segment segment{.sequence = &sequence, .tokens = std::ssize(text), .logits = Logits::all};
    model_.hidden_states(text, {&segment, 1}, workspace, states);
    std::vector<double> sum(hidden);
    for (size_t t = pooling == Pooling::mean ? 0 : text.size() - 1; t < text.size(); ++t) {
      for (size_t i = 0; i < hidden; ++i) sum[i] += states[t * hidden + i];
    }
    double squares = 0;
    for (const double value : sum) squares += value * value;
    std::vector<float> vector;
    for (const double value : sum) vector.push_back(static_cast<float>(value / std::sqrt(squares)));
    return vector;
  }

  const Model model_ = Model::open(std::filesystem::path(HXQ_SOURCE_DIR) / "tests" / "e2e" / GetParam());
};

TEST_P(Embedders, VectorsAreThoseOfTheirTextsAlone) {
  std::vector<std::vector<int32_t>> texts;
  for (const int length : {5, 1, 40, 17, 2, 60}) {
    std::vector<int32_t>& text = texts.emplace_back();
    for (int t = 0; t < length; ++t) text.push_back((t * 7 + length) % 64);
  }
  Workspace workspace = model_.new_workspace();
  for (const Pooling pooling : {Pooling::mean, Pooling::last}) {
    for (const int64_t budget : {1, 16, 1000}) {
      Embedder embedder(model_, pooling, 3);
      std::vector<Embedder::Id> ids;
      for (const auto& text : texts) ids.push_back(embedder.add(text));
      embedder.cancel(ids[1]);
      while (embedder.step(budget, workspace)) {
      }
      EXPECT_EQ(embedder.take(ids[1]), std::nullopt);
      for (size_t i = 0; i < ids.size(); ++i) {
        if (i == 1) continue;
        EXPECT_EQ(embedder.take(ids[i]), alone(texts[i], pooling)) << i << ", " << budget << " at once";
      }
    }
  }
}

INSTANTIATE_TEST_SUITE_P(Tiny, Embedders,
                         ::testing::Values("llama-bias", "llama-dynamic", "mamba2-limit", "zamba2-plain"));

TEST(Embedder, TellsHowFarTextsAre) {
  const Model model = Model::open(std::filesystem::path(HXQ_SOURCE_DIR) / "tests" / "e2e" / "llama-bias");
  Embedder embedder(model, Pooling::mean, 2);
  Workspace workspace = model.new_workspace();
  embedder.add({1, 2, 3});
  const Embedder::Id second = embedder.add({4, 5, 6, 7});
  EXPECT_TRUE(embedder.running().empty()) << "they wait";
  embedder.step(5, workspace);
  const std::vector<Embedder::Progress> running = embedder.running();
  ASSERT_EQ(running.size(), 1) << "the first is done";
  EXPECT_EQ(running[0].id, second);
  EXPECT_EQ(running[0].tokens, 4);
  EXPECT_EQ(running[0].run_tokens, 2);
  embedder.step(5, workspace);
  EXPECT_TRUE(embedder.running().empty());
}

TEST(Embedder, RefusesWhatIsNoText) {
  const Model model = Model::open(std::filesystem::path(HXQ_SOURCE_DIR) / "tests" / "e2e" / "llama-bias");
  EXPECT_THROW(Embedder(model, Pooling::mean, 0), Error);
  Embedder embedder(model, Pooling::mean, 1);
  Workspace workspace = model.new_workspace();
  EXPECT_THROW(embedder.add({}), Error);
  EXPECT_THROW(embedder.add(std::vector<int32_t>(161, 1)), ContextError);
  EXPECT_FALSE(embedder.step(10, workspace));
  const Embedder::Id id = embedder.add({64});
  EXPECT_THROW(embedder.step(10, workspace), Error) << "a token that the model has not";
  embedder.cancel(id);
  EXPECT_FALSE(embedder.step(10, workspace));
}

}  // namespace
}  // namespace hxq
