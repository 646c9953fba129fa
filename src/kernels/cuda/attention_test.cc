// Transformer operations, row lookup and sampling on the GPU against plain code in double.

#include "kernels/cuda/attention.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "kernels/cuda/linear_test_data.h"
#include "kernels/cuda/sampling.h"
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
};

/// A cache whose pages lie in no order.
struct TestCache {
  TestCache(const Model& m, size_t sequences, int64_t positions, DType cache_dtype)
      : model(m),
        dtype(cache_dtype),
        max_pages((positions + KvCacheView::kPage - 1) / KvCacheView::kPage),
        pages(static_cast<size_t>(max_pages) * sequences),
        keys(static_cast<size_t>(max_pages) * sequences * static_cast<size_t>(m.heads * KvCacheView::kPage * m.dim) *
             element_bytes(dtype)),
        values(keys.size()),
        device_pages(pages.size()) {
    std::iota(pages.begin(), pages.end(), 0);
    std::reverse(pages.begin(), pages.end());
    EXPECT_EQ(cudaMemcpy(device_pages.data(), pages.data(), pages.size() * sizeof(int32_t), cudaMemcpyHostToDevice),
              cudaSuccess);
  }
  KvCacheView view() const {
    return {.keys = keys.data(),
            .values = values.data(),
            .pages = device_pages.data(),
            .max_pages = max_pages,
            .heads = model.heads,
            .head_dim = model.dim,
            .dtype = dtype};
  }
  size_t place(size_t sequence, int64_t position, int64_t head, int64_t i) const {
    const int64_t page =
        pages[sequence * static_cast<size_t>(max_pages) + static_cast<size_t>(position / KvCacheView::kPage)];
    return static_cast<size_t>(
        ((page * model.heads + head) * KvCacheView::kPage + position % KvCacheView::kPage) * model.dim + i);
  }
  float read(const std::vector<std::byte>& from, size_t sequence, int64_t position, int64_t head, int64_t i) const {
    return read_element(from.data() + place(sequence, position, head, i) * element_bytes(dtype), dtype);
  }

  Model model;
  DType dtype;
  int64_t max_pages;
  std::vector<int32_t> pages;
  DeviceArray<std::byte> keys, values;
  DeviceArray<int32_t> device_pages;
};

void fill_cache(const TestCache& cache, const Case& test, Random& random) {
  std::vector<std::byte> k = cache.keys.values(), v = cache.values.values();
  for (size_t s = 0; s < test.positions.size(); ++s) {
    for (int64_t p = 0; p < test.positions[s]; ++p) {
      for (int64_t h = 0; h < cache.model.heads; ++h) {
        for (int64_t i = 0; i < cache.model.dim; ++i) {
          write_element(k.data() + cache.place(s, p, h, i) * element_bytes(cache.dtype), cache.dtype, random.normal());
          write_element(v.data() + cache.place(s, p, h, i) * element_bytes(cache.dtype), cache.dtype, random.normal());
        }
      }
    }
  }
  EXPECT_EQ(cudaMemcpy(cache.keys.data(), k.data(), k.size(), cudaMemcpyHostToDevice), cudaSuccess);
  EXPECT_EQ(cudaMemcpy(cache.values.data(), v.data(), v.size(), cudaMemcpyHostToDevice), cudaSuccess);
}

void check_attention(const Model& m, const Case& test) {
  Random random(8);
  std::vector<Segment> segments;
  int64_t rows = 0, longest = 0, end = 0;
  for (size_t s = 0; s < test.lengths.size(); ++s) {
    segments.push_back({.first_row = static_cast<int32_t>(rows), .rows = test.lengths[s]});
    rows += test.lengths[s];
    longest = std::max<int64_t>(longest, test.lengths[s]);
    end = std::max<int64_t>(end, test.positions[s] + test.lengths[s]);
  }
  const int64_t q_width = m.query_heads * m.dim, k_width = m.heads * m.dim, half = m.dim / 2;
  const auto q = random.normals(static_cast<size_t>(rows * q_width), test.dtype),
             k = random.normals(static_cast<size_t>(rows * k_width), test.dtype),
             v = random.normals(static_cast<size_t>(rows * k_width), test.dtype);
  std::vector<float> frequency;
  for (int64_t i = 0; i < half; ++i)
    frequency.push_back(static_cast<float>(std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(half))));
  const DeviceRows dq(q, rows, q_width, 5, test.dtype), dk(k, rows, k_width, 1, test.dtype),
      dv(v, rows, k_width, 1, test.dtype), dy(rows, q_width, 2, test.dtype);
  const DeviceArray<float> df(frequency);
  const DeviceArray<Segment> ds(segments);
  const DeviceArray<int32_t> dp(std::vector<int32_t>(test.positions.begin(), test.positions.end()));
  const TestCache cache(m, segments.size(), end, test.cache);
  fill_cache(cache, test, random);
  const Batch batch{.segments = ds.data(),
                    .count = static_cast<int32_t>(segments.size()),
                    .max_rows = static_cast<int32_t>(longest),
                    .total_rows = static_cast<int32_t>(rows)};
  HXQ_EXPECT_OK(extend_cache({.batch = batch,
                              .q = dq.output(),
                              .k = dk.input(),
                              .v = dv.input(),
                              .query_heads = m.query_heads,
                              .inverse_frequency = df.data(),
                              .positions = dp.data(),
                              .cache = cache.view()},
                             nullptr));
  AttentionArgs args{.batch = batch,
                     .q = dq.input(),
                     .y = dy.output(),
                     .query_heads = m.query_heads,
                     .scale = 1 / std::sqrt(static_cast<float>(m.dim)),
                     .window = test.window,
                     .positions = dp.data(),
                     .max_position = end - 1,
                     .cache = cache.view()};
  const DeviceArray<std::byte> workspace(attention_workspace(args));
  args.workspace = {.data = workspace.data(), .bytes = workspace.size()};
  HXQ_EXPECT_OK(attention(args, nullptr));
  expect_finished();

  // Queries and new keys as they were rotated, then attention over what the cache holds.
  const auto rotated_q = dq.values();
  const auto keys = cache.keys.values(), values = cache.values.values();
  const auto rotate = [&](const float* x, int64_t i, int64_t position) {
    const double angle = static_cast<double>(position) * frequency[static_cast<size_t>(i % half)];
    return i < half ? x[i] * std::cos(angle) - x[i + half] * std::sin(angle)
                    : x[i] * std::cos(angle) + x[i - half] * std::sin(angle);
  };
  std::vector<double> expected, size;
  for (size_t s = 0; s < segments.size(); ++s) {
    for (int64_t t = 0; t < segments[s].rows; ++t) {
      const int64_t row = segments[s].first_row + t, position = test.positions[s] + t;
      for (int64_t h = 0; h < m.query_heads; ++h) {
        const float* query = rotated_q.data() + row * q_width + h * m.dim;
        const int64_t kv = h / (m.query_heads / m.heads);
        for (int64_t i = 0; i < m.dim; ++i) {
          const double exact = rotate(q.data() + row * q_width + h * m.dim, i, position);
          ASSERT_NEAR(query[i], exact, 1e-6 + 1.01 * rounding_of(test.dtype) * std::fabs(exact)) << "query";
          const double key = rotate(k.data() + row * k_width + kv * m.dim, i, position);
          ASSERT_NEAR(cache.read(keys, s, position, kv, i), key, 1e-6 + 1.01 * rounding_of(test.cache) * std::fabs(key))
              << "key";
          ASSERT_EQ(cache.read(values, s, position, kv, i),
                    rounded(v[static_cast<size_t>(row * k_width + kv * m.dim + i)], test.cache))
              << "value";
        }
        std::vector<double> score, sum(static_cast<size_t>(m.dim)), sum_size(sum.size());
        const int64_t first = test.window > 0 ? std::max<int64_t>(0, position - test.window + 1) : 0;
        double largest = -1e300, total = 0;
        for (int64_t p = first; p <= position; ++p) {
          double dot = 0;
          for (int64_t i = 0; i < m.dim; ++i) dot += static_cast<double>(query[i]) * cache.read(keys, s, p, kv, i);
          score.push_back(dot * args.scale);
          largest = std::max(largest, score.back());
        }
        for (int64_t p = first; p <= position; ++p) {
          const double weight = std::exp(score[static_cast<size_t>(p - first)] - largest);
          total += weight;
          for (int64_t i = 0; i < m.dim; ++i) {
            sum[static_cast<size_t>(i)] += weight * cache.read(values, s, p, kv, i);
            sum_size[static_cast<size_t>(i)] += weight * std::fabs(cache.read(values, s, p, kv, i));
          }
        }
        for (size_t i = 0; i < sum.size(); ++i) {
          expected.push_back(sum[i] / total);
          size.push_back(sum_size[i] / total);
        }
      }
    }
  }
  expect_close(dy.values(), expected, size, 1e-5, test.dtype,
               to_string(Shape{m.query_heads, m.heads, m.dim, rows, end}));
}

TEST(CudaAttention, AttendsOverThePagesOfEachSequence) {
  HXQ_NEEDS_GPU();
  for (const Model& m : {Model{8, 4, 32}, Model{4, 4, 8}, Model{12, 2, 128}, Model{24, 1, 64}, Model{2, 2, 256}}) {
    check_attention(m, {.positions = {0}, .lengths = {1}});
    check_attention(m, {.positions = {0}, .lengths = {70}});
    check_attention(m, {.positions = {600, 3, 63}, .lengths = {1, 1, 1}, .dtype = DType::bf16, .cache = DType::bf16});
    check_attention(m, {.positions = {130, 5}, .lengths = {3, 40}, .cache = DType::f16});
    check_attention(
        m, {.positions = {300, 0}, .lengths = {9, 100}, .dtype = DType::f16, .cache = DType::f32, .window = 50});
  }
}

TEST(CudaAttention, ActivatesGates) {
  HXQ_NEEDS_GPU();
  Random random(1);
  for (const Activation activation : {Activation::silu, Activation::gelu}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      const int64_t tokens = 3, dim = 301;
      const auto gate = random.normals(static_cast<size_t>(tokens * dim), dtype, 3),
                 up = random.normals(static_cast<size_t>(tokens * dim), dtype);
      const DeviceRows dg(gate, tokens, dim, 7, dtype), du(up, tokens, dim, 2, dtype), dy(tokens, dim, 1, dtype);
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

TEST(CudaSampling, FindsTheLargest) {
  HXQ_NEEDS_GPU();
  Random random(6);
  for (const auto& [vocabulary, count] :
       {std::pair<int64_t, int32_t>{1, 1}, {50280, 1}, {50280, 40}, {700, 256}, {5, 5}}) {
    const int64_t rows = 3;
    auto logits = random.normals(static_cast<size_t>(rows * vocabulary), DType::bf16);  // equal ones are common
    logits[0] = NAN;
    const DeviceRows dl(logits, rows, vocabulary, 3, DType::bf16);
    const DeviceArray<int32_t> indices(static_cast<size_t>(rows * count));
    const DeviceArray<float> values(static_cast<size_t>(rows * count));
    HXQ_EXPECT_OK(top_k({.logits = dl.input(),
                         .rows = rows,
                         .vocabulary = vocabulary,
                         .count = count,
                         .indices = indices.data(),
                         .values = values.data()},
                        nullptr));
    expect_finished();
    const auto got = indices.values();
    const auto got_values = values.values();
    for (int64_t r = 0; r < rows; ++r) {
      std::vector<int32_t> order(static_cast<size_t>(vocabulary));
      std::iota(order.begin(), order.end(), 0);
      const float* row = logits.data() + r * vocabulary;
      const auto value = [&](int32_t i) { return std::isnan(row[i]) ? -INFINITY : row[i]; };
      std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) { return value(a) > value(b); });
      for (int32_t i = 0; i < count; ++i) {
        EXPECT_EQ(got[static_cast<size_t>(r * count + i)], order[static_cast<size_t>(i)]) << vocabulary << " " << i;
        EXPECT_EQ(got_values[static_cast<size_t>(r * count + i)], value(order[static_cast<size_t>(i)]));
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
