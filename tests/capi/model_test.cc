#include "hxq/model.h"

#include <algorithm>
#include <array>
#include <filesystem>
#include <fstream>
#include <thread>

#include "capi_test_support.h"
#include "io/checkpoint.h"

namespace hxq::testing {
namespace {

const std::string kLlama = HXQ_SOURCE_DIR "/tests/e2e/llama-bias";
const std::string kZamba = HXQ_SOURCE_DIR "/tests/e2e/zamba2-plain";
const std::string kMamba = HXQ_SOURCE_DIR "/models/wiki-mamba-7m";
constexpr std::array<int32_t, 6> kTokens = {1, 5, 9, 2, 7, 3};

ModelHandle open(const std::string& folder, const hxq_model_options* options = nullptr) {
  hxq_model* model = nullptr;
  EXPECT_OK(hxq_model_open(folder.c_str(), options, &model));
  return ModelHandle(model);
}

SequenceHandle sequence_of(const hxq_model* model) {
  hxq_sequence* sequence = nullptr;
  EXPECT_OK(hxq_sequence_create(model, &sequence));
  return SequenceHandle(sequence);
}

hxq_segment segment(hxq_sequence* sequence, std::span<const int32_t> tokens, std::vector<float>& logits) {
  return {.sequence = sequence,
          .tokens = tokens.data(),
          .count = static_cast<int64_t>(tokens.size()),
          .phase = HXQ_PREFILL,
          .wanted = HXQ_LOGITS_ALL,
          .logits = logits.data()};
}

class Models : public ::testing::TestWithParam<std::string> {};
INSTANTIATE_TEST_SUITE_P(Folders, Models, ::testing::Values(kLlama, kZamba));

TEST_P(Models, GiveTheLogitsOfTheLibrary) {
  const Model reference = Model::open(GetParam(), {.threads = 1});
  Sequence expected_sequence = reference.new_sequence();
  Workspace workspace = reference.new_workspace();
  const auto vocab = static_cast<size_t>(reference.info().vocab_size);
  std::vector<float> expected(kTokens.size() * vocab);
  reference.forward(kTokens, expected_sequence, Phase::prefill, Logits::all, workspace, expected);

  const hxq_model_options options = {.threads = 1};
  const ModelHandle model = open(GetParam(), &options);
  hxq_model_info info = {};
  ASSERT_OK(hxq_model_get_info(model.get(), &info));
  EXPECT_EQ(info.vocab_size, reference.info().vocab_size);
  EXPECT_EQ(info.hidden_size, reference.info().hidden_size);
  EXPECT_EQ(info.context_length, reference.info().context_length);
  EXPECT_EQ(info.parameters, reference.info().parameters);

  const SequenceHandle sequence = sequence_of(model.get());
  std::vector<float> logits(expected.size());
  hxq_segment call = segment(sequence.get(), kTokens, logits);
  ASSERT_OK(hxq_forward(model.get(), &call, 1));
  EXPECT_EQ(logits, expected);
  EXPECT_EQ(hxq_sequence_position(sequence.get()), 6);

  // Again from the start, for the last token alone.
  ASSERT_OK(hxq_sequence_reset(sequence.get()));
  EXPECT_EQ(hxq_sequence_position(sequence.get()), 0);
  std::vector<float> last(vocab);
  call.wanted = HXQ_LOGITS_LAST;
  call.logits = last.data();
  ASSERT_OK(hxq_forward(model.get(), &call, 1));
  EXPECT_EQ(last, std::vector<float>(expected.end() - static_cast<int64_t>(vocab), expected.end()));
}

TEST_P(Models, OverTensorsInMemoryGiveTheLogitsOfTheFolder) {
  const Checkpoint checkpoint = Checkpoint::open(GetParam());
  std::vector<hxq_tensor> tensors;
  for (const auto& [name, view] : checkpoint.tensors()) {
    tensors.push_back(tensor(name.c_str(), static_cast<int32_t>(view.dtype), view.shape, view.bytes.data()));
  }
  std::ifstream file(GetParam() + "/config.json");
  const std::string config(std::istreambuf_iterator<char>(file), {});
  const hxq_model_options options = {.threads = 1};
  hxq_model* made = nullptr;
  ASSERT_OK(hxq_model_create(config.c_str(), tensors.data(), tensors.size(), &options, &made));
  const ModelHandle over_memory(made), of_folder = open(GetParam(), &options);
  hxq_model_info info = {};
  ASSERT_OK(hxq_model_get_info(made, &info));
  std::vector<std::vector<float>> logits;
  for (const hxq_model* model : {over_memory.get(), of_folder.get()}) {
    const SequenceHandle sequence = sequence_of(model);
    logits.emplace_back(kTokens.size() * static_cast<size_t>(info.vocab_size));
    const hxq_segment call = segment(sequence.get(), kTokens, logits.back());
    ASSERT_OK(hxq_forward(model, &call, 1));
  }
  EXPECT_EQ(logits[0], logits[1]);

  made = nullptr;
  const auto create = [&](const char* text, std::span<const hxq_tensor> given) {
    return hxq_model_create(text, given.data(), given.size(), nullptr, &made);
  };
  expect_failure(create("{", tensors), HXQ_BAD_DATA, "config.json");
  expect_failure(create("{}", tensors), HXQ_BAD_DATA, "model_type");
  expect_failure(create(config.c_str(), std::span(tensors).first(2)), HXQ_BAD_DATA, "missing");
  expect_invalid(create(nullptr, tensors), "config is null");
  tensors[1].name = tensors[0].name;
  expect_invalid(create(config.c_str(), tensors), "given twice");
  tensors[1].name = nullptr;
  expect_invalid(create(config.c_str(), tensors), "the name of a tensor is null");
  EXPECT_EQ(made, nullptr);
}

/// What a block remembers, and its shape.
std::pair<std::vector<int64_t>, std::vector<float>> read(const hxq_sequence* sequence, int64_t block, int32_t state) {
  std::array<int64_t, 4> shape = {};
  int32_t rank = -1;
  EXPECT_OK(hxq_sequence_read(sequence, block, state, shape.data(), &rank, nullptr, 0));
  const std::vector<int64_t> dimensions(shape.begin(), shape.begin() + rank);
  int64_t size = rank == 0 ? 0 : 1;
  for (const int64_t dimension : dimensions) size *= dimension;
  std::vector<float> values(static_cast<size_t>(size));
  EXPECT_OK(hxq_sequence_read(sequence, block, state, shape.data(), &rank, values.data(), size));
  return {dimensions, values};
}

TEST(Sequences, TellWhatTheyRemember) {
  const ModelHandle model = open(kLlama);
  hxq_model_info info = {};
  ASSERT_OK(hxq_model_get_info(model.get(), &info));
  std::vector<int32_t> tokens(70);  // more than a tile of the cache
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i % 9);
  std::vector<float> logits(tokens.size() * static_cast<size_t>(info.vocab_size));
  const SequenceHandle whole = sequence_of(model.get()), begun = sequence_of(model.get());
  hxq_segment call = segment(whole.get(), tokens, logits);
  ASSERT_OK(hxq_forward(model.get(), &call, 1));
  call = segment(begun.get(), std::span(tokens).first(66), logits);
  ASSERT_OK(hxq_forward(model.get(), &call, 1));

  for (const int32_t state : {HXQ_STATE_KEYS, HXQ_STATE_VALUES}) {
    const auto [shape, all] = read(whole.get(), 0, state);
    const auto [first_shape, first] = read(begun.get(), 0, state);
    ASSERT_EQ(shape.size(), 3u);
    EXPECT_EQ(shape[1], 70);
    EXPECT_EQ(first_shape[1], 66);
    const int64_t dim = shape[2];
    for (int64_t head = 0; head < shape[0]; ++head) {
      const std::span one = std::span(all).subspan(static_cast<size_t>(head * 70 * dim), static_cast<size_t>(66 * dim));
      EXPECT_TRUE(std::ranges::equal(one, std::span(first).subspan(static_cast<size_t>(head * 66 * dim), one.size())));
      EXPECT_TRUE(std::ranges::all_of(one, [](float value) { return value != 0; }));
    }
  }
  EXPECT_TRUE(read(whole.get(), 0, HXQ_STATE_SSM).first.empty());
  EXPECT_TRUE(read(whole.get(), 0, HXQ_STATE_CONV).first.empty());

  std::array<int64_t, 4> shape = {};
  int32_t rank = 0;
  const auto ask = [&](const hxq_sequence* sequence, int64_t block, int32_t state, float* out, int64_t count) {
    return hxq_sequence_read(sequence, block, state, shape.data(), &rank, out, count);
  };
  expect_invalid(ask(nullptr, 0, 0, nullptr, 0), "sequence is null");
  expect_invalid(ask(whole.get(), info.blocks, 0, nullptr, 0), "the model has");
  expect_invalid(ask(whole.get(), -1, 0, nullptr, 0), "block is -1");
  expect_invalid(ask(whole.get(), 0, 4, nullptr, 0), "state is 4");
  expect_invalid(ask(whole.get(), 0, HXQ_STATE_KEYS, nullptr, 3), "out is null");
  expect_invalid(ask(whole.get(), 0, HXQ_STATE_KEYS, logits.data(), 3), "count is 3");
}

TEST(Sequences, PromptsInPiecesSayHowLongTheyGet) {
  const ModelHandle model = open(HXQ_SOURCE_DIR "/tests/e2e/llama-dynamic");
  hxq_model_info info = {};
  ASSERT_OK(hxq_model_get_info(model.get(), &info));
  const auto vocab = static_cast<size_t>(info.vocab_size);
  std::vector<int32_t> tokens(static_cast<size_t>(info.context_length));
  for (size_t i = 0; i < tokens.size(); ++i) tokens[i] = static_cast<int32_t>(i % 7);
  const auto last_logits = [&](bool in_pieces, int64_t end) {
    const SequenceHandle sequence = sequence_of(model.get());
    std::vector<float> logits(tokens.size() * vocab);
    const size_t cut = in_pieces ? tokens.size() / 3 : tokens.size();
    for (size_t at = 0; at < tokens.size(); at += cut) {
      const auto piece = std::span(tokens).subspan(at, std::min(cut, tokens.size() - at));
      hxq_segment call = segment(sequence.get(), piece, logits);
      call.wanted = HXQ_LOGITS_LAST;
      call.end = end;
      EXPECT_OK(hxq_forward(model.get(), &call, 1));
    }
    return std::vector<float>(logits.begin(), logits.begin() + static_cast<int64_t>(vocab));
  };
  const std::vector<float> whole = last_logits(false, 0);
  EXPECT_EQ(last_logits(true, info.context_length), whole);
  EXPECT_NE(last_logits(true, 0), whole);

  const SequenceHandle sequence = sequence_of(model.get());
  std::vector<float> logits(tokens.size() * vocab);
  hxq_segment call = segment(sequence.get(), tokens, logits);
  call.end = 3;
  expect_invalid(hxq_forward(model.get(), &call, 1), "end is 3");
}

TEST_P(Models, RunSegmentsOfSeveralSequences) {
  const ModelHandle model = open(GetParam());
  hxq_model_info info = {};
  ASSERT_OK(hxq_model_get_info(model.get(), &info));
  const std::array<std::span<const int32_t>, 3> texts = {std::span(kTokens), std::span(kTokens).subspan(3, 1),
                                                         std::span(kTokens).subspan(1, 4)};
  std::vector<std::vector<float>> alone;
  for (const auto& text : texts) {
    const SequenceHandle sequence = sequence_of(model.get());
    alone.emplace_back(text.size() * info.vocab_size);
    const hxq_segment call = segment(sequence.get(), text, alone.back());
    ASSERT_OK(hxq_forward(model.get(), &call, 1));
  }
  std::vector<SequenceHandle> sequences;
  std::vector<std::vector<float>> together;
  std::vector<hxq_segment> calls;
  for (const auto& text : texts) {
    sequences.push_back(sequence_of(model.get()));
    together.emplace_back(text.size() * info.vocab_size);
    calls.push_back(segment(sequences.back().get(), text, together.back()));
  }
  ASSERT_OK(hxq_forward(model.get(), calls.data(), calls.size()));
  EXPECT_EQ(together, alone);
}

TEST(Models, ServeSequencesOfSeveralThreads) {
  const ModelHandle model = open(kLlama);
  std::vector<std::vector<float>> results(4, std::vector<float>(6 * 512));
  hxq_model_info info = {};
  ASSERT_OK(hxq_model_get_info(model.get(), &info));
  std::vector<std::thread> threads;
  for (auto& logits : results) {
    logits.assign(kTokens.size() * static_cast<size_t>(info.vocab_size), 0.0f);
    threads.emplace_back([&] {
      const SequenceHandle sequence = sequence_of(model.get());
      const hxq_segment call = segment(sequence.get(), kTokens, logits);
      EXPECT_OK(hxq_forward(model.get(), &call, 1));
    });
  }
  for (std::thread& thread : threads) thread.join();
  for (const auto& logits : results) EXPECT_EQ(logits, results.front());
}

TEST(Models, HandlesAreDestroyedInAnyOrder) {
  ModelHandle model = open(kLlama);
  const SequenceHandle sequence = sequence_of(model.get());
  model.reset();
  EXPECT_EQ(hxq_sequence_position(sequence.get()), 0);
  EXPECT_OK(hxq_sequence_reset(sequence.get()));
}

TEST(Models, WrongOptionsAreInvalidAndWrongFilesAreBadData) {
  hxq_model* model = nullptr;
  expect_invalid(hxq_model_open(nullptr, nullptr, &model), "folder is null");
  expect_invalid(hxq_model_open(kLlama.c_str(), nullptr, nullptr), "model is null");
  const auto with = [&](hxq_model_options options) { return hxq_model_open(kLlama.c_str(), &options, &model); };
  expect_invalid(with({.threads = -1}), "-1 threads");
  expect_invalid(with({.threads = 100000}), "100000 threads");
  expect_invalid(with({.target = "sse9"}), "target is 'sse9'");
  expect_invalid(with({.kv_cache = HXQ_U8}), "kv_cache");
  const hxq_model_options half = {.kv_cache = HXQ_F16};
  expect_invalid(hxq_model_open(kMamba.c_str(), &half, &model), "kv_cache has no effect");
  expect_invalid(with({.precision = 7}), "precision is 7");
  expect_invalid(with({.device = "tpu"}), "there is no device 'tpu'");
  expect_invalid(with({.device = "cuda:63"}), "device 'cuda:63' cannot be used");
  expect_failure(hxq_model_open("/nonexistent/folder", nullptr, &model), HXQ_BAD_DATA, "/nonexistent/folder");
  EXPECT_EQ(model, nullptr);
}

TEST(Models, RefuseWrongSegmentsBeforeRunningAny) {
  const ModelHandle model = open(kLlama);
  const ModelHandle other = open(kLlama);
  hxq_model_info info = {};
  ASSERT_OK(hxq_model_get_info(model.get(), &info));
  const SequenceHandle first = sequence_of(model.get());
  const SequenceHandle second = sequence_of(model.get());
  const SequenceHandle foreign = sequence_of(other.get());
  std::vector<float> logits(kTokens.size() * info.vocab_size, -7.0f);
  const std::vector<float> untouched = logits;
  const hxq_segment good = segment(first.get(), kTokens, logits);
  const auto refused = [&](const std::string& part, auto change) {
    std::array<hxq_segment, 2> calls = {good, segment(second.get(), kTokens, logits)};
    change(calls[1]);
    expect_invalid(hxq_forward(model.get(), calls.data(), calls.size()), part);
    EXPECT_EQ(logits, untouched);
    EXPECT_EQ(hxq_sequence_position(first.get()), 0);
    EXPECT_EQ(hxq_sequence_position(second.get()), 0);
  };
  const std::vector<int32_t> strange = {1, static_cast<int32_t>(info.vocab_size)};
  refused("sequence is null", [](hxq_segment& s) { s.sequence = nullptr; });
  refused("two segments", [&](hxq_segment& s) { s.sequence = first.get(); });
  refused("not one of this model's", [&](hxq_segment& s) { s.sequence = foreign.get(); });
  refused("tokens is null", [](hxq_segment& s) { s.tokens = nullptr; });
  refused("count is 0", [](hxq_segment& s) { s.count = 0; });
  refused("count is -1", [](hxq_segment& s) { s.count = -1; });
  refused("outside the vocabulary", [&](hxq_segment& s) {
    s.tokens = strange.data();
    s.count = 2;
  });
  refused("phase is 9", [](hxq_segment& s) { s.phase = 9; });
  refused("wanted is 3", [](hxq_segment& s) { s.wanted = 3; });
  refused("logits is null", [](hxq_segment& s) { s.logits = nullptr; });
  refused("none are wanted", [](hxq_segment& s) { s.wanted = HXQ_LOGITS_NONE; });
  const std::vector<int32_t> many(static_cast<size_t>(info.context_length) + 1, 1);
  refused("context holds", [&](hxq_segment& s) {
    s.tokens = many.data();
    s.count = static_cast<int64_t>(many.size());
    s.wanted = HXQ_LOGITS_NONE;
    s.logits = nullptr;
  });
  refused("end is 161: the model's context holds 160", [](hxq_segment& s) { s.end = 161; });
  expect_invalid(hxq_forward(model.get(), &good, 0), "no segments");
  expect_invalid(hxq_forward(model.get(), nullptr, 1), "segments is null");
  expect_invalid(hxq_forward(nullptr, &good, 1), "model is null");
  expect_invalid(hxq_sequence_create(nullptr, nullptr), "model is null");
  expect_invalid(hxq_sequence_reset(nullptr), "sequence is null");
  expect_invalid(hxq_model_get_info(model.get(), nullptr), "info is null");
}

}  // namespace
}  // namespace hxq::testing
