// Transformer operations and row lookup on the GPU against plain code in double.

#include <gtest/gtest.h>

#include <algorithm>
#include <array>

#include "kernels/cuda/attention_prefill.cuh"
#include "kernels/cuda/attention_step.h"
#include "kernels/cuda/kv_cache_test_data.h"
#include "kernels/cuda/linear_test_data.h"
#include "kernels/cuda/sequence.h"
#include "kernels/cuda/test_device.h"

namespace hxq::cuda {
namespace {

using namespace testing;

struct Model {
  int64_t query_heads, heads, dim;
};

struct Case {
  std::vector<int> positions, lengths;
  DType dtype = DType::f32;  // of activations
  DType cache = DType::f32;
  int64_t window = 0;
  Precision precision = Precision::exact;
  float q = 1, k = 1, v = 1;  // sizes of values
  int64_t q_gap = 5;          // elements between rows of queries: even ones are read in pairs
  int64_t kv_gap = 1;         // of new keys and values; where both are multiples of 4 many rows are cached in tiles
  int64_t zero_values = 0;    // rows from the first whose values are zeros
  int64_t seen = 0;           // positions that room is made for; 0: all that there are
};

enum class Way {
  any,        // what `attention` takes for the rows
  prefill,    // `attention`, which must take tensor cores
  rounded,    // the same, which must round the cache beforehand, of one segment at least
  unrounded,  // the same, which must not
  fused,      // `attention_step`, which leaves the queries as they are
};

void check_attention(const Model& m, const Case& test, Way way = Way::any) {
  const bool fused = way == Way::fused, by_tensor_cores = way != Way::any && !fused;
  Random random(8);
  std::vector<RowRange> segments;
  std::vector<int32_t> positions;
  int64_t rows = 0, longest = 0, end = 0, seen = 0;
  for (size_t s = 0; s < test.lengths.size(); ++s) {
    segments.push_back({static_cast<int32_t>(rows), static_cast<int32_t>(rows) + test.lengths[s]});
    for (int t = 0; t < test.lengths[s]; ++t) positions.push_back(test.positions[s] + t);
    rows += test.lengths[s];
    longest = std::max<int64_t>(longest, test.lengths[s]);
    end = std::max<int64_t>(end, test.positions[s] + test.lengths[s]);
    seen += test.positions[s] + test.lengths[s];
  }
  const int64_t q_width = m.query_heads * m.dim, k_width = m.heads * m.dim, half = m.dim / 2;
  const auto q = random.normals(static_cast<size_t>(rows * q_width), test.dtype, test.q),
             k = random.normals(static_cast<size_t>(rows * k_width), test.dtype, test.k);
  auto v = random.normals(static_cast<size_t>(rows * k_width), test.dtype, test.v);
  std::fill_n(v.begin(), test.zero_values * k_width, 0.0f);
  std::vector<float> frequency;
  for (int64_t i = 0; i < half; ++i)
    frequency.push_back(static_cast<float>(std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(half))));
  const DeviceRows dq(q, rows, q_width, test.q_gap, test.dtype), dk(k, rows, k_width, test.kv_gap, test.dtype),
      dv(v, rows, k_width, test.kv_gap, test.dtype), dy(rows, q_width, 2, test.dtype);
  const DeviceArray<float> df(frequency);
  const DeviceArray<void*> frequencies(std::vector<void*>(segments.size(), df.data()));
  const DeviceArray<RowRange> ds(segments);
  const DeviceArray<int32_t> dp(positions);
  const TestCache cache(m.heads, m.dim, segments.size(), end, test.cache);
  cache.fill(test.positions, test.k, test.v, random);
  const Batch batch{.segments = ds.data(),
                    .positions = dp.data(),
                    .count = static_cast<int32_t>(segments.size()),
                    .max_rows = static_cast<int32_t>(longest),
                    .total_rows = static_cast<int32_t>(rows)};
  AttentionArgs args{.batch = batch,
                     .q = dq.input(),
                     .y = dy.output(),
                     .query_heads = m.query_heads,
                     .scale = 1 / std::sqrt(static_cast<float>(m.dim)),
                     .window = test.window,
                     .seen_positions = test.seen > 0 ? test.seen : seen,
                     .cache = cache.view(),
                     .precision = test.precision};
  EXPECT_TRUE(!by_tensor_cores || supports_attention_prefill(args));
  const DeviceArray<std::byte> workspace(attention_workspace(args));
  if (workspace.size() > 0) {
    args.workspace = {.data = workspace.data(), .bytes = workspace.size() - 1};
    EXPECT_EQ(attention(args, nullptr), Status::invalid_value);
  }
  args.workspace = {.data = workspace.data(), .bytes = workspace.size()};
  if (fused) {
    const AttentionStepArgs step{.batch = batch,
                                 .q = args.q,
                                 .k = dk.input(),
                                 .v = dv.input(),
                                 .y = args.y,
                                 .query_heads = m.query_heads,
                                 .scale = args.scale,
                                 .window = args.window,
                                 .inverse_frequency = frequencies.data(),
                                 .cache = args.cache};
    if (current_capability() < 90) GTEST_SKIP() << "no clusters";
    ASSERT_TRUE(supports_attention_step(step));
    HXQ_EXPECT_OK(attention_step(step, nullptr));
  } else {
    HXQ_EXPECT_OK(extend_cache({.batch = batch,
                                .q = dq.output(),
                                .k = dk.input(),
                                .v = dv.input(),
                                .query_heads = m.query_heads,
                                .inverse_frequency = frequencies.data(),
                                .cache = cache.view()},
                               nullptr));
    HXQ_EXPECT_OK(attention(args, nullptr));
  }
  expect_finished();
  if (way == Way::rounded || way == Way::unrounded) {
    const auto left = workspace.values();
    const bool is_written = std::any_of(left.begin(), left.end(), [](std::byte b) { return b != std::byte{0xff}; });
    // Other GPUs multiply a cache of binary16 as it is.
    const bool expected = way == Way::rounded && (test.cache == DType::f32 || current_capability() == 90);
    EXPECT_EQ(is_written, expected) << "whether the cache was rounded beforehand";
  }

  // Queries and new keys as they were rotated, then attention over what the cache holds.
  const auto rotated_q = dq.values();
  const auto tiles = cache.tiles.values();
  const auto key_in = [&](size_t s, int64_t p, int64_t h, int64_t i) {
    return read_element(tiles.data() + cache.key_at(s, p, h, i), test.cache);
  };
  const auto value_in = [&](size_t s, int64_t p, int64_t h, int64_t i) {
    return read_element(tiles.data() + cache.value_at(s, p, h, i), test.cache);
  };
  const auto rotate = [&](const float* x, int64_t i, int64_t position) {
    const double angle = static_cast<double>(position) * frequency[static_cast<size_t>(i % half)];
    return i < half ? x[i] * std::cos(angle) - x[i + half] * std::sin(angle)
                    : x[i] * std::cos(angle) + x[i - half] * std::sin(angle);
  };
  const bool fast = by_tensor_cores && test.precision == Precision::fast;
  std::vector<double> expected, size;
  for (size_t s = 0; s < segments.size(); ++s) {
    for (int64_t t = 0; t < segments[s].end - segments[s].begin; ++t) {
      const int64_t row = segments[s].begin + t, position = test.positions[s] + t;
      for (int64_t h = 0; h < m.query_heads; ++h) {
        std::vector<double> query(rotated_q.begin() + row * q_width + h * m.dim,
                                  rotated_q.begin() + row * q_width + (h + 1) * m.dim);
        const int64_t kv = h / (m.query_heads / m.heads);
        for (int64_t i = 0; i < m.dim; ++i) {
          const double exact = rotate(q.data() + row * q_width + h * m.dim, i, position);
          double& rotated = query[static_cast<size_t>(i)];
          if (fused) rotated = exact;
          ASSERT_NEAR(rotated, exact, 1e-6 * test.q + 1.01 * rounding_of(test.dtype) * std::fabs(exact)) << "query";
          const double key = rotate(k.data() + row * k_width + kv * m.dim, i, position);
          ASSERT_NEAR(key_in(s, position, kv, i), key, 1e-6 * test.k + 1.01 * rounding_of(test.cache) * std::fabs(key))
              << "key";
          ASSERT_EQ(value_in(s, position, kv, i),
                    rounded(v[static_cast<size_t>(row * k_width + kv * m.dim + i)], test.cache))
              << "value";
        }
        std::vector<double> score, score_size, sum(static_cast<size_t>(m.dim)), sum_size(sum.size());
        const int64_t first = test.window > 0 ? std::max<int64_t>(0, position - test.window + 1) : 0;
        double largest = -1e300, total = 0;
        for (int64_t p = first; p <= position; ++p) {
          double dot = 0, dot_size = 0;
          for (int64_t i = 0; i < m.dim; ++i) {
            const double term = query[static_cast<size_t>(i)] * key_in(s, p, kv, i);
            dot += term;
            dot_size += std::fabs(term);
          }
          score.push_back(dot * args.scale);
          score_size.push_back(dot_size * args.scale);
          largest = std::max(largest, score.back());
        }
        for (int64_t p = first; p <= position; ++p) {
          const double weight = std::exp(score[static_cast<size_t>(p - first)] - largest);
          total += weight;
          for (int64_t i = 0; i < m.dim; ++i) {
            sum[static_cast<size_t>(i)] += weight * value_in(s, p, kv, i);
            sum_size[static_cast<size_t>(i)] += weight * std::fabs(value_in(s, p, kv, i));
          }
        }
        for (size_t i = 0; i < sum.size(); ++i) {
          expected.push_back(sum[i] / total);
          size.push_back(sum_size[i] / total);
          if (!fast) continue;
          // A score that is off by a part of its size changes its weight by as much, and the output by that much of
          // what its value is away from it.
          for (int64_t p = first; p <= position; ++p) {
            const auto at = static_cast<size_t>(p - first);
            const double weight = std::exp(score[at] - largest) / total;
            size.back() +=
                weight * score_size[at] * std::fabs(value_in(s, p, kv, static_cast<int64_t>(i)) - expected.back());
          }
        }
      }
    }
  }
  // `fast`: weights and values are rounded to 11 bits each, queries and keys too; the rest is float's.
  expect_close(dy.values(), expected, size, fast ? 0x1p-10 + 1e-5 : 1e-5, test.dtype,
               to_string(Shape{m.query_heads, m.heads, m.dim, rows, end}));
}

TEST(CudaAttention, AttendsOverTheTilesOfEachSequence) {
  HXQ_NEEDS_GPU();
  for (const Model& m : {Model{8, 4, 32}, Model{4, 4, 8}, Model{12, 2, 128}, Model{24, 1, 64}, Model{2, 2, 256},
                         Model{6, 2, 112}, Model{2, 1, 192}}) {
    check_attention(m, {.positions = {0}, .lengths = {1}});
    check_attention(m, {.positions = {0}, .lengths = {70}});
    for (const DType cache : {DType::f32, DType::bf16, DType::f16}) {
      check_attention(m, {.positions = {30, 100, 7}, .lengths = {70, 1, 33}, .cache = cache, .q_gap = 4, .kv_gap = 8});
    }
    check_attention(m, {.positions = {600, 3, 63}, .lengths = {1, 1, 1}, .dtype = DType::bf16, .cache = DType::bf16});
    check_attention(m, {.positions = {130, 5}, .lengths = {3, 40}, .cache = DType::f16});
    check_attention(
        m, {.positions = {300, 0}, .lengths = {9, 100}, .dtype = DType::f16, .cache = DType::f32, .window = 50});
  }
  // So many tiles of rows that a block brings several heads of each into the cache.
  check_attention({20, 10, 64},
                  {.positions = std::vector<int>(70), .lengths = std::vector<int>(70, 33), .q_gap = 4, .kv_gap = 4});
}

TEST(CudaAttention, MultipliesManyRowsByTensorCores) {
  HXQ_NEEDS_GPU();
  for (const Model& m : {Model{2, 2, 64}, Model{8, 2, 64}, Model{8, 1, 64}, Model{3, 1, 80}, Model{2, 2, 72},
                         Model{4, 2, 96}, Model{4, 1, 128}, Model{2, 2, 128}, Model{2, 1, 256}}) {
    for (const Precision precision : {Precision::exact, Precision::fast}) {
      const auto check = [&](Case test) {
        test.precision = precision;
        check_attention(m, test, Way::prefill);
      };
      check({.positions = {0}, .lengths = {129}});
      check({.positions = {0}, .lengths = {64}, .cache = DType::f16});
      check({.positions = {0, 300, 64}, .lengths = {33, 1, 70}, .cache = DType::f16});
      check({.positions = {5, 31, 0}, .lengths = {2, 64, 100}, .dtype = DType::bf16});
      check({.positions = {190}, .lengths = {65}, .dtype = DType::bf16, .window = 50});
      check({.positions = {63, 0}, .lengths = {100, 3}, .dtype = DType::f16, .cache = DType::f16, .window = 64});
    }
  }
}

/// Of a cache of floats with many queries: all of a batch's segments that there is room for.
TEST(CudaAttention, RoundsACacheOnceForManyRows) {
  HXQ_NEEDS_GPU();
  for (const Model& m :
       {Model{8, 1, 64}, Model{8, 1, 80}, Model{16, 2, 72}, Model{8, 1, 96}, Model{8, 1, 128}, Model{8, 1, 256}}) {
    for (const Precision precision : {Precision::exact, Precision::fast}) {
      const auto check = [&](Case test, Way way) {
        test.precision = precision;
        check_attention(m, test, way);
      };
      check({.positions = {63}, .lengths = {64}, .dtype = DType::bf16}, Way::rounded);
      check({.positions = {5, 31, 0, 64}, .lengths = {2, 64, 0, 100}}, Way::rounded);
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16})
        check({.positions = {1}, .lengths = {65}, .dtype = dtype, .q_gap = 4, .kv_gap = 4}, Way::rounded);
      check({.positions = {1}, .lengths = {65}, .q_gap = 2}, Way::rounded);
      check({.positions = {700}, .lengths = {65}, .dtype = DType::f16, .window = 50}, Way::rounded);
      check({.positions = {460, 3}, .lengths = {70, 64}}, Way::rounded);
      check({.positions = {3, 460}, .lengths = {70, 64}, .seen = 256}, Way::rounded);
      check({.positions = {460, 3}, .lengths = {70, 64}, .seen = 256}, Way::unrounded);
    }
  }
  const Model many{8, 1, 64};
  std::vector<int> lengths(70, 3);
  lengths[40] = 64;
  check_attention(many, {.positions = std::vector<int>(70, 60), .lengths = lengths}, Way::rounded);
}

/// Few queries with many positions before them: several blocks share the positions, and segments that see few leave
/// some of these without any.
TEST(CudaAttention, CutsPositionsWhereBlocksAreFew) {
  HXQ_NEEDS_GPU();
  for (const Model& m : {Model{16, 1, 64}, Model{16, 1, 80}, Model{32, 2, 128}}) {
    for (const Precision precision : {Precision::exact, Precision::fast}) {
      for (const DType cache : {DType::f32, DType::f16}) {
        const auto check = [&](Case test, Way way = Way::prefill) {
          test.cache = cache;
          test.precision = precision;
          check_attention(m, test, way);
        };
        check({.positions = {3000}, .lengths = {5}});
        check({.positions = {1470, 0, 2000}, .lengths = {9, 6, 1}, .dtype = DType::bf16});
        check({.positions = {2000, 0}, .lengths = {5, 4}, .window = 700});
        check({.positions = {1500, 700}, .lengths = {5, 4}, .seen = 1024}, Way::unrounded);
        check({.positions = {700, 1500}, .lengths = {5, 4}, .seen = 1024});
      }
    }
  }
}

TEST(CudaAttention, TensorCoresTakeLargeAndTinyValues) {
  HXQ_NEEDS_GPU();
  for (const Model& m : {Model{2, 2, 64}, Model{2, 1, 128}, Model{2, 2, 256}}) {
    for (const Precision precision : {Precision::exact, Precision::fast}) {
      for (const auto& [q, k, v] : {std::array{1e-6f, 1e6f, 1e6f}, {1e6f, 1e-6f, 1e-20f}, {1e-18f, 1e18f, 1e30f}}) {
        check_attention(m, {.positions = {40}, .lengths = {100}, .precision = precision, .q = q, .k = k, .v = v},
                        Way::prefill);
      }
    }
  }
  // Many queries, whose cache is rounded beforehand: products of sizes that vanish, and zeros beside tiny values.
  for (const Model& m : {Model{8, 1, 64}, Model{8, 1, 128}}) {
    for (const Precision precision : {Precision::exact, Precision::fast}) {
      for (const auto& [q, k, v] :
           {std::array{1e-20f, 1e-20f, 1.0f}, {1e-6f, 1e6f, 1e6f}, {1e6f, 1e-6f, 1e-20f}, {1e-18f, 1e18f, 1e30f}}) {
        check_attention(m, {.positions = {40}, .lengths = {100}, .precision = precision, .q = q, .k = k, .v = v},
                        Way::rounded);
      }
      check_attention(m, {.positions = {0}, .lengths = {150}, .precision = precision, .v = 1e-6f, .zero_values = 64},
                      Way::rounded);
      check_attention(m, {.positions = {63, 0}, .lengths = {70, 90}, .cache = DType::f16, .precision = precision},
                      Way::rounded);
    }
  }
}

TEST(CudaAttention, FusesTheStepOfATokenOfEachSequence) {
  HXQ_NEEDS_GPU();
  for (const Model& m : {Model{8, 4, 32}, Model{4, 4, 8}, Model{14, 2, 128}, Model{32, 4, 64}, Model{2, 2, 256},
                         Model{32, 32, 128}, Model{3, 1, 80}}) {
    check_attention(m, {.positions = {0}, .lengths = {1}}, Way::fused);
    check_attention(m, {.positions = {63}, .lengths = {1}}, Way::fused);
    check_attention(m, {.positions = {2100}, .lengths = {1}, .cache = DType::f16}, Way::fused);
    check_attention(m, {.positions = {600, 3, 64}, .lengths = {1, 0, 1}, .dtype = DType::bf16}, Way::fused);
    check_attention(m, {.positions = {300, 0}, .lengths = {1, 1}, .dtype = DType::f16, .window = 50}, Way::fused);
  }
  const Model many{2, 2, 64};
  check_attention(many, {.positions = std::vector<int>(150, 130), .lengths = std::vector<int>(150, 1)}, Way::fused);
}

/// Rows of a multiple of four elements are read four at a time where they are aligned.
TEST(CudaAttention, ActivatesGates) {
  HXQ_NEEDS_GPU();
  Random random(1);
  struct Rows {
    int64_t dim, gate_gap, up_gap, y_gap;
  };
  for (const auto& [dim, gate_gap, up_gap, y_gap] :
       {Rows{301, 7, 2, 1}, Rows{304, 8, 4, 0}, Rows{304, 0, 0, 1}, Rows{1100, 4, 0, 4}}) {
    for (const Activation activation : {Activation::silu, Activation::gelu}) {
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        const int64_t tokens = 3;
        const auto gate = random.normals(static_cast<size_t>(tokens * dim), dtype, 3),
                   up = random.normals(static_cast<size_t>(tokens * dim), dtype);
        const DeviceRows dg(gate, tokens, dim, gate_gap, dtype), du(up, tokens, dim, up_gap, dtype),
            dy(tokens, dim, y_gap, dtype);
        HXQ_EXPECT_OK(gated_activation({.gate = dg.input(),
                                        .up = du.input(),
                                        .y = dy.output(),
                                        .tokens = tokens,
                                        .dim = dim,
                                        .activation = activation},
                                       nullptr));
        expect_finished();
        std::vector<double> expected, size;
        for (size_t i = 0; i < gate.size(); ++i) {
          const double g = gate[i];
          const double active =
              activation == Activation::silu ? g / (1 + std::exp(-g)) : 0.5 * g * std::erfc(-g / std::sqrt(2.0));
          expected.push_back(active * up[i]);
          size.push_back(std::fabs(g * up[i]));
        }
        expect_close(dy.values(), expected, size, 1e-6, dtype, "gates");
      }
    }
  }
}

TEST(CudaGather, CopiesRows) {
  HXQ_NEEDS_GPU();
  const std::vector<int32_t> rows = {4, 0, 4, 2};
  const DeviceArray<int32_t> device_rows(rows);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    const int64_t cols = 301;
    Random random(9);
    const auto from = random.normals(static_cast<size_t>(5 * cols), dtype);
    const DeviceRows source(from, 5, cols, 2, dtype);
    for (const bool all : {false, true}) {
      const DeviceRows to(4, cols, 7, DType::f32);
      HXQ_EXPECT_OK(copy_rows({.from = source.input(),
                               .row = all ? nullptr : device_rows.data(),
                               .to = to.output(),
                               .rows = 4,
                               .cols = cols},
                              nullptr));
      expect_finished();
      const auto got = to.values();
      for (int64_t i = 0; i < 4 * cols; ++i) {
        const int64_t row = all ? i / cols : rows[static_cast<size_t>(i / cols)];
        ASSERT_EQ(got[static_cast<size_t>(i)], from[static_cast<size_t>(row * cols + i % cols)]);
      }
    }
  }
}

TEST(CudaGather, DecodesRows) {
  HXQ_NEEDS_GPU();
  const std::vector<int32_t> ids = {3, 0, -1, 36, 3};
  const DeviceArray<int32_t> device_ids(ids);
  for (const MatrixOptions& options :
       {MatrixOptions{.rows = 37, .cols = 50, .outliers = 0.05, .rank = 3, .scales = true},
        MatrixOptions{.rows = 37, .cols = 48, .k = 4096, .d = 2, .index_bits = 12},
        MatrixOptions{.rows = 37, .cols = 300, .k = 300, .index_bits = 16, .outliers = 0.01}}) {
    const TestMatrix matrix = make_matrix(options);
    const DeviceMatrix device(matrix);
    const DeviceRows out(static_cast<int64_t>(ids.size()), matrix.cols, 3, DType::f32);
    HXQ_EXPECT_OK(gather_rows(
        device.weight(), {.ids = device_ids.data(), .count = static_cast<int64_t>(ids.size()), .out = out.output()},
        nullptr));
    expect_finished();
    std::vector<double> expected, size;
    for (const int32_t id : ids) {
      for (int64_t c = 0; c < matrix.cols; ++c) {
        expected.push_back(id < 0 ? 0.0 : matrix.decoded[static_cast<size_t>(id * matrix.cols + c)]);
        size.push_back(std::fabs(expected.back()) + 1);
      }
    }
    expect_close(out.values(), expected, size, 1e-6, DType::f32, "rows");
  }
}

}  // namespace
}  // namespace hxq::cuda
