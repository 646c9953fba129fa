// Other devices give what the CPU gives. Of the guarded one the host cannot touch the memory: nothing of the runtime
// reads device memory on the host.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "devices.h"
#include "guarded_device.h"
#include "kernels/kernels.h"
#include "texts.h"

namespace hxq {
namespace {

using testing::no_device_reason;
using Case = testing::DeviceCase;

void add_guarded_device() {
  static const bool kAdded = [] {
    kernels::add_device(std::make_unique<testing::GuardedDevice>());
    return true;
  }();
  (void)kAdded;
}

/// Logits of prompts in one piece and in several, of decoded tokens, after a reset, and of sequences run together.
std::vector<float> logits_on(const std::filesystem::path& folder, const ModelOptions& options) {
  const Model model = Model::open(folder, options);
  const int64_t vocab = model.info().vocab_size;
  Workspace workspace = model.new_workspace();
  std::vector<Sequence> sequences;
  std::vector<float> all;
  for (int64_t i = 0; i < 3; ++i) {
    sequences.push_back(model.new_sequence());
    for (int round = 0; round < 2; ++round) {
      for (const std::vector<float>& logits :
           alone(model, testing::text_of(20 + i, vocab), sequences.back(), workspace)) {
        all.insert(all.end(), logits.begin(), logits.end());
      }
    }
  }
  // Two that decode and a prompt, the logits of which lie apart from each other in a step.
  const std::vector<int32_t> tokens = {1, 2, 3, 4, 5};
  const Segment segments[] = {{.sequence = &sequences[0], .tokens = 1, .phase = Phase::decode, .logits = Logits::last},
                              {.sequence = &sequences[1], .tokens = 3, .logits = Logits::all},
                              {.sequence = &sequences[2], .tokens = 1, .phase = Phase::decode, .logits = Logits::last}};
  std::vector<float> logits(static_cast<size_t>(5 * vocab));
  model.forward(tokens, segments, workspace, logits);
  all.insert(all.end(), logits.begin(), logits.end());
  return all;
}

class SecondDevice : public ::testing::TestWithParam<Case> {
 protected:
  void SetUp() override {
    add_guarded_device();
    HXQ_NEEDS_DEVICE(device_);
  }

  /// The model's folder, as it is or compressed.
  testing::TestFolder make_folder() const {
    return testing::TestFolder(GetParam().folder, GetParam().compressed, GetParam().profile);
  }

  const std::string device_ = GetParam().device;
};

TEST_P(SecondDevice, GivesTheLogitsOfTheCpu) {
  const testing::TestFolder folder = make_folder();
  if (device_ == "guarded") {
    EXPECT_EQ(logits_on(folder.path(), {.threads = 2, .device = device_}), logits_on(folder.path(), {.threads = 2}));
    return;
  }
  // The scalar target rounds nothing but sums, as `exact` does on a GPU.
  for (const DType cache : {DType::f32, DType::f16}) {
    const auto expected = logits_on(folder.path(), {.threads = 2, .target = Target::scalar, .kv_cache = cache});
    const auto got = logits_on(folder.path(), {.precision = Precision::exact, .kv_cache = cache, .device = device_});
    testing::expect_logits(got, expected, testing::gpu_bound(cache), std::string(name_of(cache)));
  }
}

int32_t place_of_largest(std::span<const float> logits) {
  return static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin());
}

/// What a sequence chooses by itself is what the logits of another with the same tokens say.
TEST_P(SecondDevice, ChoosesTheTokensOfTheLargestLogits) {
  const testing::TestFolder folder = make_folder();
  const Model model = Model::open(folder.path(), {.threads = 2, .device = device_});
  const auto vocab = static_cast<size_t>(model.info().vocab_size);
  Workspace workspace = model.new_workspace();
  Sequence chooses = model.new_sequence(), tells = model.new_sequence();
  std::vector<int32_t> tokens = testing::text_of(5, model.info().vocab_size).prompt;
  std::vector<float> logits(vocab);
  for (Phase phase = Phase::prefill; tells.position() < 60; phase = Phase::decode) {
    int32_t chosen = -2;
    const Segment segment{
        .sequence = &chooses, .tokens = std::ssize(tokens), .phase = phase, .logits = Logits::most_likely};
    model.forward(tokens, {&segment, 1}, workspace, {}, {&chosen, 1});
    model.forward(tokens, tells, phase, Logits::last, workspace, logits);
    ASSERT_EQ(chosen, place_of_largest(logits)) << "after " << tells.position() << " tokens";
    tokens = {chosen};
  }
}

/// What a call gives of segments that want different things is what it gives where all want their last logits.
TEST_P(SecondDevice, GivesLogitsToSomeAndTokensToOthers) {
  const testing::TestFolder folder = make_folder();
  const Model model = Model::open(folder.path(), {.threads = 2, .device = device_});
  const auto vocab = static_cast<size_t>(model.info().vocab_size);
  struct Part {
    int64_t tokens;
    Phase phase;
    Logits wanted;
  };
  const Part parts[] = {{1, Phase::decode, Logits::last},         {3, Phase::prefill, Logits::most_likely},
                        {1, Phase::decode, Logits::most_likely},  {0, Phase::prefill, Logits::most_likely},
                        {7, Phase::prefill, Logits::last},        {2, Phase::prefill, Logits::none},
                        {1, Phase::decode, Logits::most_likely},  {1, Phase::prefill, Logits::last},
                        {5, Phase::prefill, Logits::most_likely}, {1, Phase::decode, Logits::last}};
  const auto run = [&](bool all_last, std::vector<float>& logits, std::vector<int32_t>& chosen) {
    Workspace workspace = model.new_workspace();
    std::vector<Sequence> sequences;
    for (size_t i = 0; i < std::size(parts); ++i) sequences.push_back(model.new_sequence());
    for (int round = 0; round < 3; ++round) {  // a GPU records the second
      std::vector<Segment> segments;
      std::vector<int32_t> tokens;
      size_t rows = 0, choices = 0;
      for (const Part& part : parts) {
        const bool last = all_last && part.wanted != Logits::none;
        segments.push_back({.sequence = &sequences[segments.size()],
                            .tokens = part.tokens,
                            .phase = part.phase,
                            .logits = last ? Logits::last : part.wanted});
        for (int64_t t = 0; t < part.tokens; ++t) tokens.push_back(static_cast<int32_t>(tokens.size() % vocab));
        if (part.tokens > 0) (segments.back().logits == Logits::last ? rows : choices) += part.wanted != Logits::none;
      }
      logits.resize(rows * vocab);
      chosen.assign(choices, -2);
      model.forward(tokens, segments, workspace, logits, chosen);
    }
  };
  std::vector<float> expected, logits;
  std::vector<int32_t> none, chosen;
  run(true, expected, none);
  run(false, logits, chosen);
  ASSERT_TRUE(none.empty());
  std::span<const float> left = expected, got = logits;
  std::span<const int32_t> tokens = chosen;
  for (const Part& part : parts) {
    if (part.tokens == 0 || part.wanted == Logits::none) continue;
    if (part.wanted == Logits::last) {
      ASSERT_TRUE(std::ranges::equal(got.first(vocab), left.first(vocab)));
      got = got.subspan(vocab);
    } else {
      ASSERT_EQ(tokens[0], place_of_largest(left.first(vocab)));
      tokens = tokens.subspan(1);
    }
    left = left.subspan(vocab);
  }
  EXPECT_TRUE(left.empty() && got.empty() && tokens.empty());
}

std::vector<Case> cases() {
  std::vector<Case> all;
  for (const char* device : {"guarded", "cuda"}) {
    for (const Case& test :
         {Case{"tests/golden/1"}, Case{"tests/golden/3"}, Case{"tests/e2e/mamba-tiles", true},
          Case{"tests/e2e/qwen2-tiles", true}, Case{"tests/e2e/mamba2-limit"},
          Case{"tests/e2e/mamba2-no-conv-bias", true}, Case{"tests/e2e/zamba2-adapters", true},
          Case{"tests/e2e/zamba2-plain"}, Case{"tests/e2e/llama-bias"}, Case{"tests/e2e/llama-dynamic", true},
          Case{"tests/e2e/qwen2-sliding", true}, Case{"tests/e2e/qwen2-layer-types"}}) {
      all.push_back({test.folder, test.compressed, device});
    }
  }
  for (const char* profile : {"g3", "g4", "g5", "g6", "g7", "g8", "g8-uniform"}) {
    all.push_back({"tests/e2e/llama-bias", true, "cuda", profile});
  }
  for (const char* folder : {"tests/e2e/mamba2-no-conv-bias", "tests/e2e/zamba2-adapters"}) {
    all.push_back({folder, true, "cuda", "g4"});
  }
  return all;
}

INSTANTIATE_TEST_SUITE_P(Models, SecondDevice, ::testing::ValuesIn(cases()), testing::name_of_case);

TEST(GuardedDevice, EndsTheProcessThatTouchesItsMemory) {
  const testing::GuardedDevice device;
  const kernels::DeviceArray<float> array(device, 16, "a test");
  EXPECT_DEATH({ array.data()[0] = 1; }, "");
}

/// Gives the memory of operations up before it takes more.
class LimitedExecutor final : public kernels::Executor {
 public:
  LimitedExecutor(const kernels::Device& device, std::unique_ptr<kernels::Executor> cpu)
      : device_(device), cpu_(std::move(cpu)) {}

  void reserve(const kernels::DeviceCode& code) override {
    memory_ = {};
    memory_ = {device_, 1, "the work memory of operations"};
    cpu_->reserve(code);
  }
  void run(int threads, const kernels::DeviceCode& code, uint64_t key) override {
    EXPECT_EQ(memory_.size(), 1) << "nothing is reserved";
    cpu_->run(threads, code, key);
  }

 private:
  const kernels::Device& device_;
  std::unique_ptr<kernels::Executor> cpu_;
  kernels::DeviceArray<float> memory_;
};

/// The CPU with as many allocations as are left.
class LimitedDevice final : public kernels::Device {
 public:
  static inline int64_t left = 0;

  std::string_view name() const noexcept override { return "limited"; }
  bool is_host() const noexcept override { return true; }
  std::byte* allocate(size_t bytes, std::string_view what) const override {
    if (left == 0) throw OutOfMemory(what, bytes);
    --left;
    return kernels::cpu_device().allocate(bytes, what);
  }
  std::byte* allocate_on_host(size_t bytes, std::string_view what) const override { return allocate(bytes, what); }
  void free(std::byte* memory, size_t bytes) const noexcept override { kernels::cpu_device().free(memory, bytes); }
  void upload(std::byte* to, std::span<const std::byte> from) const override { kernels::cpu_device().upload(to, from); }
  void download(std::span<std::byte> to, const std::byte* from) const override {
    kernels::cpu_device().download(to, from);
  }
  void clear(std::byte* memory, size_t bytes) const override { kernels::cpu_device().clear(memory, bytes); }
  void wait() const override {}
  std::unique_ptr<const kernels::PreparedMatrix> prepare(std::unique_ptr<const StoredMatrix> stored) const override {
    return kernels::cpu_device().prepare(std::move(stored));
  }
  std::unique_ptr<kernels::Executor> new_executor(const kernels::ExecutorOptions& options) const override {
    return std::make_unique<LimitedExecutor>(*this, kernels::cpu_device().new_executor(options));
  }
};

TEST(OutOfMemory, LeavesSequencesAsTheyWereWhereverItComes) {
  static const bool kAdded = [] {
    kernels::add_device(std::make_unique<LimitedDevice>());
    return true;
  }();
  (void)kAdded;
  constexpr int64_t kPlenty = 1000000;
  for (const char* folder : {"tests/e2e/llama-bias", "tests/e2e/zamba2-adapters"}) {
    LimitedDevice::left = kPlenty;
    const Model model =
        Model::open(std::filesystem::path(HXQ_SOURCE_DIR) / folder, {.threads = 1, .device = "limited"});
    const std::vector<int32_t> tokens(155, 3);
    const std::span<const int32_t> few = std::span(tokens).first(70);
    const auto run = [&](Sequence& sequence, Workspace& workspace, std::span<const int32_t> of) {
      std::vector<float> logits(static_cast<size_t>(model.info().vocab_size));
      model.forward(of, sequence, Phase::prefill, Logits::last, workspace, logits);
      return logits;
    };
    const auto choose = [&](Sequence& sequence, Workspace& workspace) {
      int32_t chosen = -1;
      const Segment segment{.sequence = &sequence, .tokens = std::ssize(tokens), .logits = Logits::most_likely};
      model.forward(tokens, {&segment, 1}, workspace, {}, {&chosen, 1});
      return chosen;
    };
    Sequence fresh = model.new_sequence();
    Workspace own = model.new_workspace();
    const std::vector<float> expected = run(fresh, own, few);
    Sequence other = model.new_sequence();
    const int32_t token = choose(other, own);
    int64_t failures = 0;
    for (bool ran = false; !ran; ++failures) {  // a choice takes memory that logits do not
      LimitedDevice::left = kPlenty;
      Sequence sequence = model.new_sequence();
      Workspace workspace = model.new_workspace();
      Sequence earlier = model.new_sequence();
      EXPECT_EQ(run(earlier, workspace, few), expected);
      LimitedDevice::left = failures;
      try {
        choose(sequence, workspace);
        ran = true;
      } catch (const OutOfMemory&) {
        EXPECT_EQ(sequence.position(), 0);
        LimitedDevice::left = kPlenty;
        EXPECT_EQ(run(sequence, workspace, few), expected) << folder << ", after " << failures << " allocations";
        Sequence again = model.new_sequence();
        EXPECT_EQ(choose(again, workspace), token) << folder << ", after " << failures << " allocations";
      }
    }
    EXPECT_GT(failures, 5) << "no allocation failed";
  }
}

TEST(Devices, ThatAreNotThereAreNamed) {
  add_guarded_device();
  EXPECT_EQ(no_device_reason("tpu").find("there is no device 'tpu': expected one of cpu, cuda, cuda:N"), 0u)
      << no_device_reason("tpu");
  for (const char* name : {"cuda:", "cuda:x", "cuda:-1", "cuda:1x", "cuda:99999999999"}) {
    EXPECT_EQ(no_device_reason(name), std::string("there is no device '") + name + "': expected cuda or cuda:N");
  }
  EXPECT_NE(no_device_reason("cuda:63"), "") << "a machine with 64 GPUs";
  EXPECT_EQ(no_device_reason("cuda:63").find('\n'), std::string::npos);
}

TEST(Cuda, SaysWhatTakesTooMuchMemory) {
  HXQ_NEEDS_DEVICE("cuda");
  const kernels::Device& device = kernels::find_device("cuda");
  try {
    device.allocate(size_t{1} << 50, "a test");
    ADD_FAILURE() << "a petabyte of memory";
  } catch (const OutOfMemory& error) {
    EXPECT_STREQ(error.what(), "out of memory: a test on cuda:0 takes 1125899.9 GB");
  }
  const std::vector<float> values = {1, 2, 3};  // and goes on
  const kernels::DeviceArray<float> array(device, std::span<const float>(values), "a test");
  std::vector<float> back(values.size());
  array.download(back);
  EXPECT_EQ(back, values);
}

/// Copies from where nothing is, and says what came of it.
void copy_from_nowhere() {
  const kernels::Device& device = kernels::find_device("cuda");
  const auto executor = device.new_executor({});
  const kernels::DeviceArray<float> to(device, 16, "a test");
  std::vector<float> values(16);
  try {
    const auto* nowhere = reinterpret_cast<const float*>(uintptr_t{64});
    const auto copy = [&](const kernels::Context& context) {
      kernels::copy_rows({.from = nowhere, .from_stride = 16, .to = to.data(), .to_stride = 16, .rows = 1, .cols = 16},
                         context);
    };
    executor->reserve(kernels::DeviceCode::of(copy));
    executor->run(1, kernels::DeviceCode::of(copy), 0);
    to.download(values);
  } catch (const Error& error) {
    std::fputs(error.what(), stderr);
    std::_Exit(7);
  }
}

TEST(Cuda, AKernelThatFailsIsAnError) {
  HXQ_NEEDS_DEVICE("cuda");
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_EXIT(copy_from_nowhere(), ::testing::ExitedWithCode(7), "^cuda:0: its work failed: .*illegal memory access");
}

}  // namespace
}  // namespace hxq
