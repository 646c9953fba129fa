// State-space duality on the GPU against the recurrence in double: ragged batches of few and of many tokens, every type
// of activations, decays near 1 and far from it, numbers of unlike sizes.

#include <gtest/gtest.h>

#include <algorithm>

#include "kernels/cuda/sequence.h"
#include "kernels/cuda/sequence_test_data.h"
#include "kernels/cuda/ssd_chunks_plan.h"

namespace hxq::cuda {
namespace {

using namespace testing;

struct Shape4 {
  int64_t heads, head_dim, groups, states;
};

struct Case {
  std::vector<int> lengths;
  Shape4 shape;
  DType dtype = DType::f32;
  int64_t gap = 0;
  bool has_gate = true;
  float decay = 1;                ///< of -a
  float delta = 0;                ///< added to dt
  float least = 0.01f;            ///< of delta
  bool has_unlike_sizes = false;  ///< tokens, elements and states up to 2^10 times larger than others
};

std::string name_of_case(const Case& c) {
  return std::to_string(c.lengths.size()) + " segments, first of " + std::to_string(c.lengths[0]) + " " +
         std::string(name_of(c.dtype)) + " " +
         to_string(Shape{c.shape.heads, c.shape.head_dim, c.shape.groups, c.shape.states}) + " decay " +
         std::to_string(c.decay);
}

/// Values [rows, cols], where asked for with powers of two of their row and column.
std::vector<float> values(Random& random, size_t rows, size_t cols, const Case& test) {
  auto all = random.normals(rows * cols, test.dtype);
  if (!test.has_unlike_sizes) return all;
  std::vector<int> of_row(rows), of_col(cols);
  for (int& e : of_row) e = static_cast<int>(random.below(6));
  for (int& e : of_col) e = static_cast<int>(random.below(6));
  for (size_t i = 0; i < all.size(); ++i)
    all[i] = rounded(std::ldexp(all[i], of_row[i / cols] + of_col[i % cols] - 5), test.dtype);
  return all;
}

void check(const Case& test) {
  const auto [heads, dim, groups, states] = test.shape;
  Random random(5);
  TestBatch batch(test.lengths, static_cast<size_t>(heads * states * dim), random);
  const auto rows = static_cast<size_t>(batch.rows);
  const auto width = static_cast<size_t>(heads * dim);
  auto x = values(random, rows, width, test), z = random.normals(rows * width, test.dtype);
  auto b = values(random, rows, static_cast<size_t>(groups * states), test),
       c = values(random, rows, static_cast<size_t>(groups * states), test);
  auto dt = random.normals(rows * static_cast<size_t>(heads), test.dtype, 2);
  for (float& value : dt) value = rounded(value + test.delta, test.dtype);
  for (std::vector<float>* of_all : {&x, &z, &b, &c, &dt}) {  // what follows a segment belongs to none
    const size_t cols = of_all->size() / rows;
    for (const RowRange& segment : batch.segments) {
      std::fill_n(of_all->begin() + static_cast<int64_t>(segment.end * cols), cols, std::nanf(""));
    }
  }
  const auto bias = random.normals(static_cast<size_t>(heads)), d = random.normals(static_cast<size_t>(heads));
  auto a = random.normals(static_cast<size_t>(heads));
  for (float& value : a) value = -test.decay * std::exp(value);
  // Rows that lie at multiples of 16 bytes, and others.
  const int64_t gap = test.gap == 0 ? 4 : 1;
  const DeviceRows dx(x, batch.rows, heads * dim, gap == 4 ? 4 : 3, test.dtype),
      dz(z, batch.rows, heads * dim, test.gap, test.dtype), dy(batch.rows, heads * dim, test.gap, test.dtype);
  const DeviceRows db(b, batch.rows, groups * states, gap, test.dtype),
      dc(c, batch.rows, groups * states, 2 * gap, test.dtype), ddt(dt, batch.rows, heads, 1, test.dtype);
  const DeviceArray<float> da(a), dd(d), dbias(bias);
  const float high = 2.0f;
  SsdArgs args{.batch = batch.batch(),
               .x = dx.input(),
               .b = db.input(),
               .c = dc.input(),
               .dt = ddt.input(),
               .dt_bias = dbias.data(),
               .dt_min = test.least,
               .dt_max = high,
               .a = da.data(),
               .d = dd.data(),
               .z = test.has_gate ? dz.input() : Input{},
               .states = batch.pointers.data(),
               .y = dy.output(),
               .heads = heads,
               .head_dim = dim,
               .groups = groups,
               .state_size = states};
  const DeviceArray<std::byte> workspace(ssd_workspace(args));
  if (states <= 128) {  // all GPUs have room
    EXPECT_EQ(workspace.size() > 0, args.batch.max_rows >= kFewestChunkTokens);
  }
  args.workspace = {.data = workspace.data(), .bytes = workspace.size()};
  HXQ_EXPECT_OK(ssd(args, nullptr));
  expect_finished();
  Expected expected, expected_state;
  std::vector<float> got_state;
  for (size_t q = 0; q < batch.segments.size(); ++q) {
    const RowRange segment = batch.segments[q];
    std::vector<double> s(batch.start[q].begin(), batch.start[q].end()), s_size(s.size());
    for (size_t i = 0; i < s.size(); ++i) s_size[i] = std::fabs(s[i]);
    std::vector<double> sum(static_cast<size_t>(dim)), size(sum.size());
    for (int64_t t = 0; t < segment.end - segment.begin; ++t) {
      const int64_t row = segment.begin + t;
      for (int64_t h = 0; h < heads; ++h) {
        const auto head = static_cast<size_t>(h);
        const double delta = std::min<double>(
            std::max<double>(softplus_of(static_cast<double>(dt[static_cast<size_t>(row * heads + h)]) + bias[head]),
                             test.least),
            high);
        const double decay = std::exp(delta * a[head]);
        const auto first = static_cast<size_t>(row * heads * dim + h * dim);
        for (size_t i = 0; i < sum.size(); ++i) {
          sum[i] = static_cast<double>(d[head]) * x[first + i];
          size[i] = std::fabs(sum[i]);
        }
        for (int64_t n = 0; n < states; ++n) {
          const auto bc = static_cast<size_t>(row * groups * states + h / (heads / groups) * states + n);
          const auto k = static_cast<size_t>((h * states + n) * dim);
          for (size_t i = 0; i < sum.size(); ++i) {
            const double in = delta * b[bc] * x[first + i];
            s[k + i] = decay * s[k + i] + in;
            s_size[k + i] = decay * s_size[k + i] + std::fabs(in);
            sum[i] += s[k + i] * c[bc];
            size[i] += s_size[k + i] * std::fabs(c[bc]);
          }
        }
        for (size_t i = 0; i < sum.size(); ++i) {
          const double gate = test.has_gate ? silu_of(z[first + i]) : 1;
          expected.y.push_back(sum[i] * gate);
          expected.size.push_back(size[i] * std::fabs(gate));
        }
      }
    }
    expected_state.y.insert(expected_state.y.end(), s.begin(), s.end());
    expected_state.size.insert(expected_state.size.end(), s_size.begin(), s_size.end());
    const auto state = batch.state[q].values();
    got_state.insert(got_state.end(), state.begin(), state.end());
  }
  const std::string what = name_of_case(test);
  expect_rows(dy, heads * dim, batch, expected, 1e-5, test.dtype, what);
  expect_close(got_state, expected_state.y, expected_state.size, 1e-5, DType::f32, "states of " + what);
}

const std::vector<int> kMixed = {1, 63, 0, 64, 65, 15, 16, 500, 2};

TEST(CudaSsd, StepsThroughFewTokens) {
  HXQ_NEEDS_GPU();
  for (const Shape4& shape : {Shape4{2, 64, 1, 128}, {4, 9, 2, 16}, {3, 8, 3, 40}, {1, 64, 1, 200}}) {
    check({{1}, shape});
    check({{1, 1, 1}, shape, DType::bf16, 3});
    check({{7, 0, 1, 14}, shape, DType::f16, 1});
  }
}

TEST(CudaSsd, TakesEveryShapeInChunks) {
  HXQ_NEEDS_GPU();
  for (const Shape4& shape :
       {Shape4{2, 64, 1, 128}, {4, 9, 2, 16}, {3, 8, 3, 40}, {1, 64, 1, 200}, {4, 64, 2, 64}, {2, 80, 1, 128}}) {
    check({kMixed, shape});
    check({kMixed, shape, DType::bf16, 3});
    check({kMixed, shape, DType::f16, 2, false});
    check({{130}, shape, DType::f32, 1});
  }
}

TEST(CudaSsd, KeepsLongSequencesExact) {
  HXQ_NEEDS_GPU();
  const Shape4 shape{2, 64, 1, 128};
  check({{2048, 1, 65}, shape});
  check({{2048}, shape, DType::f32, 0, false, 1e-4f, -4, 0});
  check({{2048}, shape, DType::f32, 0, true, 100, 2});
  check({{700}, shape, DType::f32, 0, true, 1e6f, 0, 0});
  check({{700, 300}, shape, DType::f32, 0, true, 1, 0, 0.01f, true});
  check({{300}, {1, 64, 1, 256}, DType::f32, 0, true, 0.01f, 0, 0.01f, true});
  check({{300}, {1, 64, 1, 64}, DType::f32, 0, true, 16, -3, 0.0f, true});
}

TEST(CudaSsd, SharesTheStateAmongWarps) {
  const auto covers = [](auto shape, auto share) {
    using S = decltype(shape);
    std::vector<int> owners(static_cast<size_t>(S::kStateTiles * S::kDims / 16));
    for (int warp = 0; warp < S::kWarps; ++warp) {
      const auto own = share(warp);
      for (int m = 0; m < S::kRowTiles; ++m) {
        for (int c = 0; c < S::kColTiles; ++c)
          ++owners.at(static_cast<size_t>((own.row_tile + m) * S::kDims / 16 + own.col_tile + c));
      }
    }
    for (const int count : owners) EXPECT_EQ(count, 1);
  };
  covers(ChunkShape<64, 32>(), [](int warp) { return StateShare<64, 32>(warp); });
  covers(ChunkShape<64, 64>(), [](int warp) { return StateShare<64, 64>(warp); });
  covers(ChunkShape<128, 64>(), [](int warp) { return StateShare<128, 64>(warp); });
  covers(ChunkShape<128, 32>(), [](int warp) { return StateShare<128, 32>(warp); });
  covers(ChunkShape<256, 32>(), [](int warp) { return StateShare<256, 32>(warp); });
}

}  // namespace
}  // namespace hxq::cuda
