// Every operation ends with a barrier: once it returns on one thread, its result is complete, however late others
// began.

#include <gtest/gtest.h>

#include <chrono>
#include <thread>
#include <vector>

#include "kernels/attention.h"
#include "kernels/kernels_test_data.h"
#include "kernels/most_likely.h"
#include "kernels/uniform_batch.h"

namespace hxq::kernels {
namespace {

using namespace kernels::testing;

constexpr int kThreads = 3;
constexpr int64_t kRows = 96, kCols = 64, kTokens = 130;

/// Runs the operation, which writes `size` numbers of y, with each thread late in turn.
template <class Number = float, class Operation>
void expect_complete(int64_t size, const Operation& operation) {
  for (int late = 0; late < kThreads; ++late) {
    std::vector<Number> y(static_cast<size_t>(size), -1);
    std::vector<std::vector<Number>> seen(kThreads);
    Scratch scratch(kThreads);
    run_on_cpu(kThreads, supported_targets().back(), scratch, [&](const CpuContext& context) {
      if (context.team.rank() == late && !context.measures) std::this_thread::sleep_for(std::chrono::milliseconds(5));
      operation(y.data(), context);
      if (!context.measures) seen[static_cast<size_t>(context.team.rank())] = y;
    });
    for (const std::vector<Number>& copy : seen) EXPECT_EQ(copy, y) << "thread " << late << " was late";
  }
}

class BarrierTest : public ::testing::Test {
 protected:
  const TestMatrix matrix_{{.rows = kRows, .cols = kCols, .levels = Levels::integer}};
  const std::vector<float> x_ = normal_floats(kTokens * kCols, 1);
  const std::vector<float> weight_ = normal_floats(kRows * kCols, 2);
  const DenseMatrix dense_{kRows, kCols, DType::f32, reinterpret_cast<const std::byte*>(weight_.data())};

  LinearArgs linear_args(float* y, int64_t tokens) const {
    return {.x = x_.data(), .x_stride = kCols, .y = y, .y_stride = kRows, .tokens = tokens};
  }
};

TEST_F(BarrierTest, Products) {
  for (const int64_t tokens : {int64_t{1}, int64_t{20}, kTokens}) {
    expect_complete(tokens * kRows, [&](float* y, const CpuContext& context) {
      linear(*matrix_.prepared, linear_args(y, tokens), context);
    });
    expect_complete(tokens * kRows,
                    [&](float* y, const CpuContext& context) { linear(dense_, linear_args(y, tokens), context); });
  }
}

TEST_F(BarrierTest, GatheredRows) {
  const std::vector<int32_t> ids = {5, 0, 95, 7, 7, 1};
  const auto count = static_cast<int64_t>(ids.size());
  expect_complete(count * kCols, [&](float* y, const CpuContext& context) {
    gather_rows(*matrix_.prepared, ids.data(), count, y, context);
  });
  expect_complete(count * kCols,
                  [&](float* y, const CpuContext& context) { gather_rows(dense_, ids.data(), count, y, context); });
}

TEST_F(BarrierTest, MostLikelyTokens) {
  expect_complete<int32_t>(5, [&](int32_t* token, const CpuContext& context) {
    most_likely({.logits = x_.data(), .rows = 5, .vocabulary = kCols, .token = token}, context);
  });
}

TEST_F(BarrierTest, Norm) {
  expect_complete(6 * kCols, [&](float* y, const CpuContext& context) {
    rms_norm({.x = x_.data(), .weight = weight_.data(), .y = y, .tokens = 6, .dim = kCols, .eps = 1e-5f}, context);
  });
}

TEST_F(BarrierTest, Convolution) {
  std::vector<float> memory(3 * kCols);
  const UniformBatch batch(1, 2);
  void* state = memory.data();
  expect_complete(2 * kCols, [&](float* y, const CpuContext& context) {
    causal_conv1d_silu({.x = x_.data(),
                        .x_stride = kCols,
                        .y = y,
                        .batch = batch.view(),
                        .channels = kCols,
                        .width = 4,
                        .weight = weight_.data(),
                        .state = &state,
                        .state_rows = 3},
                       context);
  });
}

TEST_F(BarrierTest, Scan) {
  std::vector<float> memory(8 * kCols);
  const UniformBatch batch(1, 2);
  void* state = memory.data();
  const std::vector<float> a(8 * kCols, -1);
  expect_complete(2 * kCols, [&](float* y, const CpuContext& context) {
    selective_scan({.u = x_.data(),
                    .dt = x_.data() + 2 * kCols,
                    .b = weight_.data(),
                    .c = weight_.data() + 8,
                    .bc_stride = 16,
                    .z = x_.data() + 4 * kCols,
                    .z_stride = kCols,
                    .a = a.data(),
                    .d = weight_.data() + 100,
                    .state = &state,
                    .y = y,
                    .batch = batch.view(),
                    .channels = kCols,
                    .state_size = 8},
                   context);
  });
}

TEST_F(BarrierTest, GatedActivation) {
  expect_complete(2 * kCols, [&](float* y, const CpuContext& context) {
    gated_activation({.gate = x_.data(),
                      .up = x_.data() + 2 * kCols,
                      .x_stride = kCols,
                      .y = y,
                      .y_stride = kCols,
                      .tokens = 2,
                      .dim = kCols},
                     context);
  });
}

}  // namespace
}  // namespace hxq::kernels
