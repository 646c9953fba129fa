// A device whose memory the host cannot touch gives what the CPU gives: nothing of the runtime reads device memory on
// the host.

#include <gtest/gtest.h>

#include <algorithm>

#include "guarded_device.h"
#include "texts.h"

namespace hxq {
namespace {

struct Case {
  const char* folder;
  bool compressed;
};

void add_guarded_device() {
  static const bool kAdded = [] {
    kernels::add_device(std::make_unique<testing::GuardedDevice>());
    return true;
  }();
  (void)kAdded;
}

/// Logits of prompts in one piece and in several, of decoded tokens, after a reset, and of sequences run together.
std::vector<float> logits_on(const std::filesystem::path& folder, const std::string& device) {
  const Model model = Model::open(folder, {.threads = 2, .device = device});
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

class SecondDevice : public ::testing::TestWithParam<Case> {};

TEST_P(SecondDevice, GivesTheLogitsOfTheCpu) {
  add_guarded_device();
  const testing::TestFolder folder(GetParam().folder, GetParam().compressed);
  EXPECT_EQ(logits_on(folder.path(), "guarded"), logits_on(folder.path(), "cpu"));
}

INSTANTIATE_TEST_SUITE_P(Models, SecondDevice,
                         ::testing::Values(Case{"tests/golden/1", false}, Case{"tests/e2e/mamba2-limit", false},
                                           Case{"tests/e2e/mamba2-no-conv-bias", true},
                                           Case{"tests/e2e/zamba2-adapters", true},
                                           Case{"tests/e2e/zamba2-plain", false}, Case{"tests/e2e/llama-bias", false},
                                           Case{"tests/e2e/llama-dynamic", true}, Case{"tests/e2e/qwen2-sliding", true},
                                           Case{"tests/e2e/qwen2-layer-types", false}),
                         [](const auto& test) {
                           std::string name = std::filesystem::path(test.param.folder).filename();
                           std::ranges::replace(name, '-', '_');
                           return name + (test.param.compressed ? "_compressed" : "");
                         });

TEST(GuardedDevice, EndsTheProcessThatTouchesItsMemory) {
  const testing::GuardedDevice device;
  const kernels::DeviceArray<float> array(device, 16, "a test");
  EXPECT_DEATH({ array.data()[0] = 1; }, "");
}

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
  void free(std::byte* memory, size_t bytes) const noexcept override { kernels::cpu_device().free(memory, bytes); }
  void upload(std::byte* to, std::span<const std::byte> from) const override { kernels::cpu_device().upload(to, from); }
  void download(std::span<std::byte> to, const std::byte* from) const override {
    kernels::cpu_device().download(to, from);
  }
  void clear(std::byte* memory, size_t bytes) const override { kernels::cpu_device().clear(memory, bytes); }
  std::unique_ptr<const kernels::PreparedMatrix> prepare(std::unique_ptr<const StoredMatrix> stored) const override {
    return kernels::cpu_device().prepare(std::move(stored));
  }
  std::unique_ptr<kernels::Executor> new_executor(const kernels::ExecutorOptions& options) const override {
    return kernels::cpu_device().new_executor(options);
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
    Sequence fresh = model.new_sequence();
    Workspace own = model.new_workspace();
    const std::vector<float> expected = run(fresh, own, few);
    int64_t failures = 0;
    for (bool ran = false; !ran; ++failures) {
      LimitedDevice::left = kPlenty;
      Sequence sequence = model.new_sequence();
      Workspace workspace = model.new_workspace();
      LimitedDevice::left = failures;
      try {
        run(sequence, workspace, tokens);
        ran = true;
      } catch (const OutOfMemory&) {
        EXPECT_EQ(sequence.position(), 0);
        LimitedDevice::left = kPlenty;
        EXPECT_EQ(run(sequence, workspace, few), expected) << folder << ", after " << failures << " allocations";
      }
    }
    EXPECT_GT(failures, 5) << "no allocation failed";
  }
}

TEST(Devices, ThatAreNotThereAreNamed) {
  add_guarded_device();
  try {
    kernels::find_device("cuda");
    ADD_FAILURE() << "there is no such device";
  } catch (const Error& error) {
    EXPECT_EQ(std::string(error.what()).find("there is no device 'cuda': this build has cpu"), 0u) << error.what();
  }
}

}  // namespace
}  // namespace hxq
