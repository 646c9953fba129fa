// Steps as one kernel against the same operations as kernels of their own, which have tests in double.

#include "kernels/cuda/step.h"

#include <gtest/gtest.h>

#include "kernels/cuda/linear_test_data.h"
#include "kernels/cuda/sequence.h"
#include "kernels/cuda/sequence_test_data.h"

namespace hxq::cuda {
namespace {

using namespace testing;

void expect_near(const std::vector<float>& values, const std::vector<float>& reference, const std::string& what) {
  ASSERT_EQ(values.size(), reference.size()) << what;
  float largest = 0.1f;  // sums of terms of that size and more may come out as nearly nothing
  for (const float value : reference) {
    ASSERT_FALSE(std::isnan(value)) << what;
    largest = std::max(largest, std::fabs(value));
  }
  for (size_t i = 0; i < values.size(); ++i) {
    ASSERT_NEAR(values[i], reference[i], 2e-5f * largest) << what << ", element " << i;
  }
}

/// Operations as a step.
class RunStep {
 public:
  explicit RunStep(const std::vector<StepOperation>& operations) {
    const auto count = static_cast<int64_t>(operations.size());
    const StepSize size = step_size(operations.data(), count);
    EXPECT_EQ(cudaMalloc(&memory_, size.bytes), cudaSuccess);
    EXPECT_EQ(cudaMemset(memory_, 0, size.bytes), cudaSuccess);
    std::vector<std::byte> image(size.image_bytes);
    HXQ_EXPECT_OK(write_step(operations.data(), count, memory_, image.data(), step_));
    EXPECT_EQ(cudaMemcpy(memory_, image.data(), image.size(), cudaMemcpyHostToDevice), cudaSuccess);
    HXQ_EXPECT_OK(lay_out_step(step_, nullptr));
  }
  RunStep(const RunStep&) = delete;
  RunStep& operator=(const RunStep&) = delete;
  ~RunStep() { cudaFree(memory_); }

  void operator()() const { HXQ_EXPECT_OK(run_step(step_, nullptr)); }

 private:
  void* memory_ = nullptr;
  Step step_;
};

void run_apart(const StepOperation& operation) {
  if (const auto* products = std::get_if<StepProducts>(&operation)) {
    HXQ_EXPECT_OK(fused_linear(products->input, products->products, products->count, nullptr));
  } else {
    HXQ_EXPECT_OK(mamba_step(std::get<MambaStepArgs>(operation), nullptr));
  }
}

bool has_steps() { return current_capability() >= 90 && current_capability() < 120; }

/// A layer of Mamba, with everything a matrix may have.
struct MambaLayer {
  int64_t hidden, inner, rank, states, width, kept;
  DeviceMatrix in_proj, x_proj, dt_proj, out_proj;
  DeviceArray<float> norm, filter, bias, a, d, dt_bias, xz, y;
  TestBatch conv, scan;

  MambaLayer(int64_t hidden_size, int64_t inner_size, int64_t dt_rank, int64_t state_size, int64_t taps, int64_t past,
             int32_t low_rank, Random& random)
      : hidden(hidden_size),
        inner(inner_size),
        rank(dt_rank),
        states(state_size),
        width(taps),
        kept(past),
        in_proj(make_matrix({.rows = 2 * inner, .cols = hidden, .outliers = 0.003, .rank = low_rank, .size = 0.02f})),
        x_proj(make_matrix(
            {.rows = rank + 2 * states, .cols = inner, .outliers = 0.002, .rank = low_rank, .size = 0.03f})),
        dt_proj(make_matrix({.rows = inner, .cols = rank, .k = 200, .outliers = 0.01, .rank = low_rank, .size = 0.1f})),
        out_proj(make_matrix({.rows = hidden, .cols = inner, .k = 16, .size = 0.02f})),
        norm(random.normals(static_cast<size_t>(hidden))),
        filter(random.normals(static_cast<size_t>(width * inner))),
        bias(random.normals(static_cast<size_t>(inner))),
        a(negative(random.normals(static_cast<size_t>(states * inner)))),
        d(random.normals(static_cast<size_t>(inner))),
        dt_bias(random.normals(static_cast<size_t>(inner))),
        xz(static_cast<size_t>(2 * inner)),
        y(static_cast<size_t>(inner)),
        conv({1}, static_cast<size_t>(kept * inner), random),
        scan({1}, static_cast<size_t>(states * inner), random) {}

  static std::vector<float> negative(std::vector<float> values) {
    for (float& value : values) value = -std::fabs(value);
    return values;
  }

  void add_to(std::vector<StepOperation>& operations, float* x) const {
    StepProducts in{.input = {.x = {.data = x}, .norm_weight = norm.data(), .eps = 1e-5f}, .count = 1};
    in.products[0] = {.weight = in_proj.weight(), .y = {.data = xz.data()}, .bias = nullptr};
    operations.emplace_back(in);
    operations.emplace_back(MambaStepArgs{.batch = conv.batch(),
                                          .conv = {.x = {.data = xz.data(), .stride = 2 * inner},
                                                   .channels = inner,
                                                   .width = width,
                                                   .weight = filter.data(),
                                                   .bias = bias.data(),
                                                   .states = conv.pointers.data(),
                                                   .state_rows = kept},
                                          .x_proj = x_proj.weight(),
                                          .dt_proj = dt_proj.weight(),
                                          .scan = {.dt_bias = dt_bias.data(),
                                                   .z = {.data = xz.data() + inner, .stride = 2 * inner},
                                                   .a = a.data(),
                                                   .d = d.data(),
                                                   .states = scan.pointers.data(),
                                                   .y = {.data = y.data(), .stride = inner},
                                                   .channels = inner,
                                                   .state_size = states}});
    StepProducts out{.input = {.x = {.data = y.data()}}, .count = 1};
    out.products[0] = {.weight = out_proj.weight(), .y = {.data = x}, .bias = norm.data(), .accumulate = true};
    operations.emplace_back(out);
  }
};

void copy(float* to, const std::vector<float>& from) {
  ASSERT_EQ(cudaMemcpy(to, from.data(), from.size() * sizeof(float), cudaMemcpyHostToDevice), cudaSuccess);
}

/// Runs the operations apart and as a step, for each token, and expects the same in `outputs` and the states.
void expect_same(const std::vector<StepOperation>& operations, const std::vector<std::vector<float>>& tokens, float* x,
                 const std::vector<MambaLayer>& layers, const std::vector<const DeviceArray<float>*>& outputs) {
  for (const StepOperation& operation : operations) ASSERT_TRUE(supports_step(operation));
  const RunStep run(operations);
  std::vector<std::vector<float>> expected, got;
  std::vector<std::vector<float>> start;
  for (const DeviceArray<float>* output : outputs) start.push_back(output->values());
  for (const bool as_step : {false, true}) {
    for (const MambaLayer& layer : layers) {
      copy(layer.conv.state[0].data(), layer.conv.start[0]);
      copy(layer.scan.state[0].data(), layer.scan.start[0]);
    }
    for (size_t i = 0; i < outputs.size(); ++i) copy(outputs[i]->data(), start[i]);
    auto& results = as_step ? got : expected;
    for (const auto& token : tokens) {
      copy(x, token);
      if (as_step) {
        run();
      } else {
        for (const StepOperation& operation : operations) run_apart(operation);
      }
      expect_finished();
      for (const DeviceArray<float>* output : outputs) results.push_back(output->values());
    }
    for (const MambaLayer& layer : layers) {
      if (layer.kept > 0) results.push_back(layer.conv.state[0].values());
      results.push_back(layer.scan.state[0].values());
    }
  }
  for (size_t i = 0; i < expected.size(); ++i) expect_near(got[i], expected[i], "result " + std::to_string(i));
}

TEST(CudaStep, IsWhatItsOperationsAre) {
  HXQ_NEEDS_GPU();
  if (!has_steps()) GTEST_SKIP() << "no steps on this GPU";
  struct Case {
    int64_t hidden, inner, rank, states, width, kept, vocab;
    int32_t low_rank;
    int layers = 3;
  };
  // Rows that a warp has for itself and rows that warps share, in one round and in two (the last).
  for (const Case& test : {Case{768, 1536, 48, 16, 4, 3, 5000, 0}, Case{64, 128, 4, 16, 4, 3, 300, 2},
                           Case{1024, 2048, 64, 16, 3, 5, 260, 0}, Case{48, 112, 4, 3, 1, 0, 1, 1},
                           Case{1536, 3072, 96, 16, 4, 3, 100, 1, 2}, Case{4112, 4240, 16, 16, 4, 4, 64, 0, 1}}) {
    SCOPED_TRACE(std::to_string(test.inner) + " channels");
    Random random(static_cast<uint32_t>(test.inner));
    std::vector<MambaLayer> layers;
    layers.reserve(static_cast<size_t>(test.layers));
    for (int i = 0; i < test.layers; ++i) {
      layers.emplace_back(test.hidden, test.inner, test.rank, test.states, test.width, test.kept, test.low_rank,
                          random);
    }
    const DeviceMatrix head(make_matrix({.rows = test.vocab, .cols = test.hidden, .outliers = 0.01})),
        other(make_matrix({.rows = 40, .cols = test.hidden})),
        square(make_matrix({.rows = test.hidden, .cols = test.hidden, .outliers = 0.001, .size = 0.02f}));
    const DeviceArray<float> x(static_cast<size_t>(test.hidden)), logits(static_cast<size_t>(test.vocab)), more(40),
        between(static_cast<size_t>(test.hidden));
    std::vector<StepOperation> operations;
    for (const MambaLayer& layer : layers) {
      layer.add_to(operations, x.data());
      StepProducts in{.input = {.x = {.data = x.data()}, .norm_weight = layer.norm.data(), .eps = 1e-5f}, .count = 1};
      in.products[0] = {.weight = square.weight(), .y = {.data = between.data()}};
      StepProducts out{.input = {.x = {.data = between.data()}}, .count = 1};
      out.products[0] = {.weight = square.weight(), .y = {.data = x.data()}, .accumulate = true};
      operations.emplace_back(in);
      operations.emplace_back(out);
    }
    StepProducts last{.input = {.x = {.data = x.data()}, .norm_weight = layers[0].norm.data(), .eps = 1e-5f},
                      .count = 2};
    last.products[0] = {.weight = head.weight(), .y = {.data = logits.data()}};
    last.products[1] = {.weight = other.weight(), .y = {.data = more.data()}};
    operations.emplace_back(last);
    std::vector<std::vector<float>> tokens;
    for (int t = 0; t < 5; ++t) tokens.push_back(random.normals(static_cast<size_t>(test.hidden)));
    expect_same(operations, tokens, x.data(), layers, {&logits, &more, &x});
  }
}

TEST(CudaStep, TakesMatricesOfAnyShape) {
  HXQ_NEEDS_GPU();
  if (!has_steps()) GTEST_SKIP() << "no steps on this GPU";
  // More rows and more outliers than lie in shared memory, lanes that share a warp, two units of a lane, few outliers
  // in few rows and many.
  for (const MatrixOptions& options :
       {MatrixOptions{.rows = 70000, .cols = 48, .outliers = 0.03, .rank = 2},
        MatrixOptions{.rows = 300, .cols = 8208, .rank = 1},
        MatrixOptions{.rows = 2500, .cols = 2048, .k = 200, .outliers = 0.002}, MatrixOptions{.rows = 1, .cols = 16384},
        MatrixOptions{.rows = 130, .cols = 768, .outliers = 0.2},
        MatrixOptions{.rows = 133, .cols = 1536, .outliers = 0.5}}) {
    SCOPED_TRACE(std::to_string(options.rows) + " x " + std::to_string(options.cols));
    Random random(static_cast<uint32_t>(options.rows));
    const DeviceMatrix matrix(make_matrix(options));
    const DeviceArray<float> x(static_cast<size_t>(options.cols)), y(random.normals(static_cast<size_t>(options.rows))),
        bias(random.normals(static_cast<size_t>(options.rows)));
    StepProducts one{.input = {.x = {.data = x.data()}}, .count = 1};
    one.products[0] = {.weight = matrix.weight(), .y = {.data = y.data()}, .bias = bias.data(), .accumulate = true};
    std::vector<std::vector<float>> tokens;
    for (int t = 0; t < 3; ++t) tokens.push_back(random.normals(static_cast<size_t>(options.cols)));
    expect_same({one}, tokens, x.data(), {}, {&y});
  }
}

}  // namespace
}  // namespace hxq::cuda
