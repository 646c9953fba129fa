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

TEST(Devices, ThatAreNotThereAreNamed) {
  add_guarded_device();
  try {
    kernels::find_device("cuda");
    ADD_FAILURE() << "there is no such device";
  } catch (const Error& error) {
    EXPECT_STREQ(error.what(), "there is no device 'cuda': this build has cpu, guarded");
  }
}

}  // namespace
}  // namespace hxq
