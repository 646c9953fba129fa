// What layers ask of a device that takes several operations as one: all that it needs is in the arguments, and what it
// need not write is not read.

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <span>
#include <vector>

#include "kernels/device.h"
#include "kernels/operations.h"
#include "texts.h"

namespace hxq {
namespace {

/// A context over the CPU's, to which each operation goes on.
struct FusingContext : kernels::Context {
  FusingContext(const kernels::Context& of, int64_t& taken, bool runs) noexcept;
  const kernels::Context& cpu;
  int64_t& layers;  ///< that were taken as one operation
  bool computes;    ///< pointers lead somewhere
};

const FusingContext& on_fusing(const kernels::Context& context) noexcept {
  return static_cast<const FusingContext&>(context);
}

template <auto operation, class Args>
void forward(const Args& args, const kernels::Context& context) noexcept {
  operation(args, on_fusing(context).cpu);
}

void linear(const kernels::PreparedMatrix& weight, const kernels::LinearArgs& args,
            const kernels::Context& context) noexcept {
  kernels::linear(weight, args, on_fusing(context).cpu);
}

void gather_rows(const kernels::PreparedMatrix& weight, const int32_t* ids, int64_t count, float* out,
                 const kernels::Context& context) noexcept {
  kernels::gather_rows(weight, ids, count, out, on_fusing(context).cpu);
}

void multiply(kernels::LinearProduct product, const kernels::Batch& batch, const kernels::Context& cpu) noexcept {
  product.args.tokens = batch.rows;
  product.args.phase = Phase::decode;
  kernels::linear(*product.weight, product.args, cpu);
}

void multiply(const kernels::FusedLinearArgs& args, const kernels::Batch& batch, const kernels::Context& cpu) noexcept {
  kernels::rms_norm(*args.norm, cpu);
  for (size_t i = 0; i < args.count; ++i) multiply(args.products[i], batch, cpu);
}

bool transformer_layer(const kernels::TransformerLayerArgs& args, const kernels::Context& context) noexcept {
  const FusingContext& on = on_fusing(context);
  const kernels::Batch& batch = args.step.attend.batch;
  if (!batch.few_positions) return false;  // as a device may that has something faster then
  if (context.team.rank() == 0) ++on.layers;
  multiply(args.qkv, batch, on.cpu);
  if (args.step.rotary) kernels::rotary_table(*args.step.rotary, on.cpu);
  kernels::extend_cache(args.step.extend, on.cpu);
  kernels::attention(args.step.attend, on.cpu);
  multiply(args.o, batch, on.cpu);
  multiply(args.gate_up, batch, on.cpu);
  kernels::gated_activation(args.activation, on.cpu);
  multiply(args.down, batch, on.cpu);
  return true;
}

/// Afterwards the output of the norm or the activation means nothing.
bool fused_linear(const kernels::FusedLinearArgs& args, const kernels::Context& context) noexcept {
  const FusingContext& on = on_fusing(context);
  if (args.norm) kernels::rms_norm(*args.norm, on.cpu);
  if (args.activation) kernels::gated_activation(*args.activation, on.cpu);
  for (size_t i = 0; i < args.count; ++i) kernels::linear(*args.products[i].weight, args.products[i].args, on.cpu);
  if ((!args.norm && !args.activation) || !on.computes) return true;
  context.team.barrier();
  if (context.team.rank() == 0) {
    if (args.norm) std::fill_n(args.norm->y, args.norm->tokens * args.norm->dim, std::nanf(""));
    for (int64_t t = 0; args.activation && t < args.activation->tokens; ++t) {
      std::fill_n(args.activation->y + t * args.activation->y_stride, args.activation->dim, std::nanf(""));
    }
  }
  context.team.barrier();
  return true;
}

int64_t prefill_positions = 0;  ///< that attention was told of last

void attention(const kernels::AttentionArgs& args, const kernels::Context& context) noexcept {
  if (context.team.rank() == 0) prefill_positions = args.batch.prefill_positions;
  kernels::attention(args, on_fusing(context).cpu);
}

constexpr kernels::Operations kFusing = {.linear = linear,
                                         .gather_rows = gather_rows,
                                         .copy_rows = forward<kernels::copy_rows>,
                                         .rms_norm = forward<kernels::rms_norm>,
                                         .causal_conv1d_silu = forward<kernels::causal_conv1d_silu>,
                                         .selective_scan = forward<kernels::selective_scan>,
                                         .ssd = forward<kernels::ssd>,
                                         .rotary_table = forward<kernels::rotary_table>,
                                         .extend_cache = forward<kernels::extend_cache>,
                                         .attention = attention,
                                         .gated_activation = forward<kernels::gated_activation>,
                                         .most_likely = forward<kernels::most_likely>,
                                         .transformer_layer = transformer_layer,
                                         .fused_linear = fused_linear};

FusingContext::FusingContext(const kernels::Context& of, int64_t& taken, bool runs) noexcept
    : Context{kFusing, of.team, of.precision}, cpu(of), layers(taken), computes(runs) {}

/// The CPU with an operation more.
class FusingDevice final : public kernels::Device {
 public:
  static inline int64_t layers = 0;  ///< that ran as one operation

  std::string_view name() const noexcept override { return "fusing"; }
  bool is_host() const noexcept override { return true; }
  std::byte* allocate(size_t bytes, std::string_view what) const override { return cpu().allocate(bytes, what); }
  void free(std::byte* memory, size_t bytes) const noexcept override { cpu().free(memory, bytes); }
  void upload(std::byte* to, std::span<const std::byte> from) const override { cpu().upload(to, from); }
  void download(std::span<std::byte> to, const std::byte* from) const override { cpu().download(to, from); }
  void clear(std::byte* memory, size_t bytes) const override { cpu().clear(memory, bytes); }
  void wait() const override {}
  std::unique_ptr<const kernels::PreparedMatrix> prepare(std::unique_ptr<const StoredMatrix> stored) const override {
    return cpu().prepare(std::move(stored));
  }
  std::unique_ptr<kernels::Executor> new_executor(const kernels::ExecutorOptions& options) const override {
    return std::make_unique<FusingExecutor>(options);
  }

 private:
  class FusingExecutor final : public kernels::Executor {
   public:
    explicit FusingExecutor(const kernels::ExecutorOptions& options) : cpu_(cpu().new_executor(options)) {}
    void reserve(const kernels::DeviceCode& code) override {
      int64_t measured = 0;
      with(code, measured, false, [&](const kernels::DeviceCode& fusing) { cpu_->reserve(fusing); });
    }
    void run(int threads, const kernels::DeviceCode& code, uint64_t key) override {
      with(code, layers, true, [&](const kernels::DeviceCode& fusing) { cpu_->run(threads, fusing, key); });
    }

   private:
    template <class Use>
    static void with(const kernels::DeviceCode& code, int64_t& taken, bool computes, const Use& use) {
      const auto fusing = [&](const kernels::Context& context) { code(FusingContext(context, taken, computes)); };
      use(kernels::DeviceCode::of(fusing));
    }

    std::unique_ptr<kernels::Executor> cpu_;
  };

  static const kernels::Device& cpu() { return kernels::cpu_device(); }
};

struct Case {
  const char* folder;
  bool compressed;
  int64_t layers;  ///< of a decoded token that are one operation
};

class FusedLayers : public ::testing::TestWithParam<Case> {};

void add_fusing_device() {
  static const bool kAdded = [] {
    kernels::add_device(std::make_unique<FusingDevice>());
    return true;
  }();
  (void)kAdded;
}

TEST_P(FusedLayers, AreWhatTheirPartsAre) {
  add_fusing_device();
  const testing::TestFolder folder(GetParam().folder, GetParam().compressed);
  const Model fused = Model::open(folder.path(), {.threads = 2, .device = "fusing"});
  const Model apart = Model::open(folder.path(), {.threads = 2});
  Workspace workspace = fused.new_workspace(), other_workspace = apart.new_workspace();
  Sequence sequence = fused.new_sequence(), other = apart.new_sequence();
  for (int64_t number = 0; number < 4; ++number) {
    const testing::Text text = testing::text_of(number, fused.info().vocab_size);
    FusingDevice::layers = 0;
    const auto logits = alone(fused, text, sequence, workspace);
    EXPECT_EQ(FusingDevice::layers, std::ssize(text.decoded) * GetParam().layers) << "text " << number;
    EXPECT_EQ(logits, alone(apart, text, other, other_workspace)) << "text " << number;
  }
  // A token of one text beside another's prompt.
  const auto together = [&](const Model& model, Sequence& decoded, Workspace& of) {
    Sequence prompted = model.new_sequence();
    std::vector<int32_t> tokens(20, 3);
    std::vector<float> logits(static_cast<size_t>(2 * model.info().vocab_size));
    const Segment segments[] = {
        {.sequence = &decoded, .tokens = 1, .phase = Phase::decode, .logits = Logits::last},
        {.sequence = &prompted, .tokens = 19, .phase = Phase::prefill, .logits = Logits::last},
    };
    model.forward(tokens, segments, of, logits);
    return logits;
  };
  EXPECT_EQ(together(fused, sequence, workspace), together(apart, other, other_workspace));
}

/// Of each step it is known whether it has a row after many positions.
TEST(FewPositions, EndAtTheirBound) {
  add_fusing_device();
  constexpr int64_t kFew = kernels::Batch::kFewPositions;
  const testing::TestFolder folder("tests/e2e/qwen2-tiles", true);
  const Model model = Model::open(folder.path(), {.threads = 2, .device = "fusing"});
  Workspace workspace = model.new_workspace();
  Sequence sequence = model.new_sequence();
  const std::vector<int32_t> prompt(static_cast<size_t>(kFew) - 2, 1);
  model.forward(prompt, sequence, Phase::prefill, Logits::none, workspace, {});
  for (const int64_t expected : {2, 2, 0, 0}) {  // layers
    FusingDevice::layers = 0;
    model.forward(std::span(prompt).first(1), sequence, Phase::decode, Logits::none, workspace, {});
    EXPECT_EQ(FusingDevice::layers, expected) << "up to position " << sequence.position();
  }
}

/// Devices make room for what prompts see.
TEST(PrefillPositions, AreThoseOfAllPromptsOfAStep) {
  add_fusing_device();
  const testing::TestFolder folder("tests/e2e/qwen2-tiles", true);
  const Model model = Model::open(folder.path(), {.threads = 2, .device = "fusing"});
  Workspace workspace = model.new_workspace();
  Sequence decoded = model.new_sequence(), one = model.new_sequence(), other = model.new_sequence();
  const std::vector<int32_t> tokens(200, 1);
  const auto prefill = [&](Sequence& sequence, size_t count) {
    model.forward(std::span(tokens).first(count), sequence, Phase::prefill, Logits::none, workspace, {});
    return prefill_positions;
  };
  EXPECT_EQ(prefill(decoded, 64), 64);
  EXPECT_EQ(prefill(one, 65), 128);
  EXPECT_EQ(prefill(one, 70), 256);
  const Segment segments[] = {
      {.sequence = &one, .tokens = 30, .phase = Phase::prefill, .logits = Logits::none},
      {.sequence = &decoded, .tokens = 1, .phase = Phase::decode, .logits = Logits::none},
      {.sequence = &other, .tokens = 91, .phase = Phase::prefill, .logits = Logits::none},
  };
  model.forward(std::span(tokens).first(122), segments, workspace, {});
  EXPECT_EQ(prefill_positions, 256) << "165 and 91";
  model.forward(std::span(tokens).first(122), segments, workspace, {});
  EXPECT_EQ(prefill_positions, 512) << "195 and 182";
}

INSTANTIATE_TEST_SUITE_P(
    Models, FusedLayers,
    ::testing::Values(Case{"tests/e2e/llama-bias", false, 3}, Case{"tests/e2e/llama-dynamic", true, 3},
                      Case{"tests/e2e/qwen2-sliding", true, 3}, Case{"tests/e2e/qwen2-tiles", true, 2},
                      Case{"tests/e2e/mamba-tiles", true, 0}, Case{"tests/e2e/mamba2-limit", true, 0},
                      Case{"tests/e2e/zamba2-bias", true, 0}, Case{"tests/e2e/zamba2-adapters", false, 0}),
    [](const auto& test) {
      std::string name = std::filesystem::path(test.param.folder).filename();
      std::ranges::replace(name, '-', '_');
      return name;
    });

}  // namespace
}  // namespace hxq
