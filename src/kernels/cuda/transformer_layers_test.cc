// Layers of a transformer as one kernel against the same in double.

#include "kernels/cuda/transformer_layers.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <memory>
#include <set>

#include "kernels/cuda/kv_cache_test_data.h"
#include "kernels/cuda/linear_test_data.h"

namespace hxq::cuda {
namespace {

using namespace testing;

struct Shape {
  int64_t hidden, heads, head_dim, kv_heads, inner;
  double outliers = 0.0005;  ///< share of the weights; 0: no lists of any
  bool qkv_biases = false, other_biases = false;
  Activation activation = Activation::silu;

  /// Rows and columns of a product's matrix.
  std::pair<int64_t, int64_t> matrix(int product) const {
    const int64_t attended = heads * head_dim, kept = kv_heads * head_dim;
    const std::pair<int64_t, int64_t> all[] = {{attended, hidden}, {kept, hidden},  {kept, hidden}, {hidden, attended},
                                               {inner, hidden},    {inner, hidden}, {hidden, inner}};
    return all[product];
  }
};

/// How a kernel is asked for the tokens of a sequence, from `position` on.
struct Case {
  int position = 0;
  DType cache = DType::f32;
  int64_t window = 0;
  bool rotates = true;
  int tokens = 1;  ///< 0: a segment without rows
};

constexpr float kEps = 0.1f;
constexpr double kBound = 1e-5;  ///< of the largest element: everything is float

/// As `make_matrix` makes one, but fast and not decoded: layers have up to 200 million weights. Rows have no outliers,
/// some or many.
TestMatrix make_large_matrix(const MatrixOptions& options, Random& random) {
  TestMatrix m;
  static_cast<MatrixOptions&>(m) = options;
  m.level_scale = 0x1p-14f;
  for (int32_t i = 0; i < m.k; ++i) {
    const float level = std::clamp(m.size * random.normal(), -1.9f, 1.9f);
    m.codebook.push_back(rounded(level / m.level_scale, DType::f16) * m.level_scale);
  }
  std::mt19937_64 words(static_cast<uint64_t>(random.below(1 << 30)));
  m.indices.resize(static_cast<size_t>(m.rows * m.cols));
  uint64_t word = 0;
  for (size_t i = 0; i < m.indices.size(); ++i, word >>= 8) {
    if (i % 8 == 0) word = words();
    m.indices[i] = static_cast<uint8_t>((word & 0xff) % static_cast<uint64_t>(m.k));
  }
  if (m.outliers == 0) return m;
  m.row_begin = {0};
  for (int64_t r = 0; r < m.rows; ++r) {
    const double wanted = m.outliers * static_cast<double>(m.cols * (r % 3));
    auto count = static_cast<size_t>(wanted);
    if (static_cast<double>(random.below(1000)) < 1000 * (wanted - std::floor(wanted))) ++count;
    std::set<uint32_t> cols;
    while (cols.size() < count) cols.insert(static_cast<uint32_t>(random.below(m.cols)));
    for (const uint32_t col : cols) {
      m.col.push_back(col);
      m.change.push_back(10 * m.size * random.normal());
    }
    m.row_begin.push_back(static_cast<uint32_t>(m.col.size()));
  }
  return m;
}

std::vector<double> product(const TestMatrix& m, const std::vector<float>& bias, const std::vector<double>& x) {
  const std::vector<double> levels(m.codebook.begin(), m.codebook.end());
  std::vector<double> y(bias.begin(), bias.end());
  y.resize(static_cast<size_t>(m.rows));
  for (size_t r = 0; r < y.size(); ++r) {
    const uint8_t* row = m.indices.data() + r * x.size();
    for (size_t c = 0; c < x.size(); ++c) y[r] += levels[row[c]] * x[c];
    for (size_t i = m.row_begin.empty() ? 0 : m.row_begin[r]; i < (m.row_begin.empty() ? 0 : m.row_begin[r + 1]); ++i) {
      y[r] += static_cast<double>(m.change[i]) * x[m.col[i]];
    }
  }
  return y;
}

std::vector<double> norm(const std::vector<double>& h, const std::vector<float>& weight) {
  double squares = 0;
  for (const double value : h) squares += value * value;
  std::vector<double> x;
  for (size_t i = 0; i < h.size(); ++i) {
    x.push_back(h[i] / std::sqrt(squares / static_cast<double>(h.size()) + kEps) * weight[i]);
  }
  return x;
}

double activate(Activation activation, double x) {
  return activation == Activation::silu ? x / (1 + std::exp(-x)) : 0.5 * x * std::erfc(-x / std::sqrt(2.0));
}

void add(std::vector<double>& to, const std::vector<double>& more) {
  ASSERT_EQ(to.size(), more.size());
  for (size_t i = 0; i < to.size(); ++i) to[i] += more[i];
}

/// Expects every element within the bound of the largest one, and as near as `dtype` has numbers.
void expect_near(const std::vector<float>& values, const std::vector<double>& expected, DType dtype,
                 const std::string& what) {
  double largest = 0;
  for (const double value : expected) largest = std::max(largest, std::fabs(value));
  expect_close(values, expected, std::vector<double>(expected.size(), largest), kBound, dtype, what);
}

/// A layer's weights, on the host and on the device.
struct TestLayer {
  std::vector<TestMatrix> weight;
  std::vector<std::vector<float>> bias;  ///< empty: none
  std::vector<float> norm, mlp_norm, frequency;
  std::vector<DeviceMatrix> device_weight;
  std::vector<DeviceArray<float>> device_bias;
  DeviceArray<float> device_norm, device_mlp_norm, device_frequency;
  DeviceArray<void*> frequencies;

  TestLayer(const Shape& s, Random& random)
      : norm(random.normals(static_cast<size_t>(s.hidden))),
        mlp_norm(random.normals(static_cast<size_t>(s.hidden))),
        frequency(frequencies_of(s.head_dim)),
        device_norm(norm),
        device_mlp_norm(mlp_norm),
        device_frequency(frequency),
        frequencies(std::vector<void*>{device_frequency.data()}) {
    device_weight.reserve(kTransformerProducts);
    for (int i = 0; i < kTransformerProducts; ++i) {
      constexpr int32_t kCodewords[] = {256, 100, 256, 256, 256, 200, 256};
      const auto [rows, cols] = s.matrix(i);
      weight.push_back(make_large_matrix({.rows = rows,
                                          .cols = cols,
                                          .k = kCodewords[i],
                                          .outliers = s.outliers,
                                          .size = 1.2f / std::sqrt(static_cast<float>(s.hidden))},
                                         random));
      bias.emplace_back();
      if (i <= kValue ? s.qkv_biases : s.other_biases) bias.back() = random.normals(static_cast<size_t>(rows));
      device_weight.emplace_back(weight.back());
      device_bias.emplace_back(bias.back());
    }
  }

  static std::vector<float> frequencies_of(int64_t head_dim) {
    std::vector<float> all;
    for (int64_t i = 0; i < head_dim; i += 2) {
      all.push_back(static_cast<float>(std::pow(10000.0, -static_cast<double>(i) / static_cast<double>(head_dim))));
    }
    return all;
  }

  TransformerLayer layer(const Shape& s, const Case& test, const TestCache& cache) const {
    TransformerLayer layer{
        .norm_weight = device_norm.data(), .mlp_norm_weight = device_mlp_norm.data(), .activation = s.activation};
    layer.attention.query_heads = s.heads;
    layer.attention.scale = 1 / std::sqrt(static_cast<float>(s.head_dim));
    layer.attention.window = test.window;
    layer.attention.inverse_frequency = test.rotates ? frequencies.data() : nullptr;
    layer.attention.cache = cache.view();
    for (size_t i = 0; i < kTransformerProducts; ++i) {
      layer.weight[i] = device_weight[i].weight();
      layer.bias[i] = bias[i].empty() ? nullptr : device_bias[i].data();
    }
    return layer;
  }

  std::vector<double> times(TransformerProduct which, const std::vector<double>& x) const {
    return product(weight[which], bias[which], x);
  }

  /// Every head of x, in pairs of elements that lie half a head apart.
  void rotate(std::vector<double>& x, int64_t position) const {
    const size_t half = frequency.size();
    for (size_t head = 0; head < x.size(); head += 2 * half) {
      for (size_t i = head; i < head + half; ++i) {
        const double angle = static_cast<double>(position) * frequency[i - head];
        const double first = x[i], second = x[i + half];
        x[i] = first * std::cos(angle) - second * std::sin(angle);
        x[i + half] = second * std::cos(angle) + first * std::sin(angle);
      }
    }
  }
};

/// What queries get of the positions that a token sees, by keys and values as they are in the cache.
std::vector<double> attend(const Shape& s, const std::vector<double>& q, const HostCache& cache, int64_t position,
                           int64_t window) {
  std::vector<double> y(q.size());
  const int64_t first = window > 0 ? std::max<int64_t>(0, position - window + 1) : 0;
  for (int64_t head = 0; head < s.heads; ++head) {
    const int64_t kv = head / (s.heads / s.kv_heads);
    const double* query = q.data() + head * s.head_dim;
    std::vector<double> score;
    for (int64_t p = first; p <= position; ++p) {
      double dot = 0;
      for (int64_t i = 0; i < s.head_dim; ++i) dot += query[i] * cache.key(p, kv, i);
      score.push_back(dot / std::sqrt(static_cast<double>(s.head_dim)));
    }
    const double largest = *std::max_element(score.begin(), score.end());
    double total = 0;
    for (double& one : score) total += one = std::exp(one - largest);
    for (int64_t p = first; p <= position; ++p) {
      const double weight = score[static_cast<size_t>(p - first)] / total;
      for (int64_t i = 0; i < s.head_dim; ++i) {
        y[static_cast<size_t>(head * s.head_dim + i)] += weight * cache.value(p, kv, i);
      }
    }
  }
  return y;
}

/// One token through one layer: `h` changes. The cache is as the kernel left it; what it holds of the token must be
/// right, and is what the token attends to.
void step_in_double(const Shape& s, const Case& test, const TestLayer& layer, const HostCache& cache, int64_t position,
                    std::vector<double>& h, const std::string& what) {
  const std::vector<double> x = norm(h, layer.norm);
  std::vector<double> q = layer.times(kQuery, x), k = layer.times(kKey, x);
  if (test.rotates) {
    layer.rotate(q, position);
    layer.rotate(k, position);
  }
  std::vector<float> keys, values;
  for (int64_t head = 0; head < s.kv_heads; ++head) {
    for (int64_t i = 0; i < s.head_dim; ++i) {
      keys.push_back(cache.key(position, head, i));
      values.push_back(cache.value(position, head, i));
    }
  }
  expect_near(keys, k, test.cache, what + ", keys");
  expect_near(values, layer.times(kValue, x), test.cache, what + ", values");
  add(h, layer.times(kOutput, attend(s, q, cache, position, test.window)));

  const std::vector<double> mlp_x = norm(h, layer.mlp_norm);
  std::vector<double> gate = layer.times(kGate, mlp_x);
  const std::vector<double> up = layer.times(kUp, mlp_x);
  for (size_t i = 0; i < gate.size(); ++i) gate[i] = activate(s.activation, gate[i]) * up[i];
  add(h, layer.times(kDown, gate));
}

/// A token's row among others that belong to nobody.
struct Token {
  static constexpr int kRows = 3, kRow = 1;

  Token(const Shape& s, int position, bool has_row, Random& random)
      : start(random.normals(static_cast<size_t>(kRows * s.hidden))),
        h(start, kRows, s.hidden, 4, DType::f32),
        positions(std::vector<int32_t>{-1, position, -1}),
        segment(std::vector<RowRange>{{kRow, has_row ? kRow + 1 : kRow}}) {}

  Batch batch() const {
    return {.segments = segment.data(), .positions = positions.data(), .count = 1, .max_rows = 1, .total_rows = kRows};
  }

  std::vector<float> start;
  DeviceRows h;
  DeviceArray<int32_t> positions;
  DeviceArray<RowRange> segment;
};

/// One for all, so that words of other shapes are met. Never freed.
void* exchange() {
  static const auto* memory = new DeviceArray<char>(std::vector<char>(kTransformerExchangeBytes));
  return memory->data();
}

class Model {
 public:
  Model(const Shape& shape, int layers) : shape_(shape), random_(static_cast<uint32_t>(shape.hidden + layers)) {
    for (int i = 0; i < layers; ++i) layers_.push_back(std::make_unique<TestLayer>(shape, random_));
  }

  /// New caches and tokens.
  void prepare(const Case& test) {
    caches_.clear(), args_.clear(), tokens_.clear();
    const int end = test.position + std::max(test.tokens, 1);
    for (const auto& layer : layers_) {
      caches_.push_back(std::make_unique<TestCache>(shape_.kv_heads, shape_.head_dim, 1, end, test.cache));
      caches_.back()->fill({test.position}, 1.2f, 2, random_);
      args_.push_back(layer->layer(shape_, test, *caches_.back()));
    }
    for (int t = 0; t < std::max(test.tokens, 1); ++t) {
      tokens_.push_back(std::make_unique<Token>(shape_, test.position + t, test.tokens > 0, random_));
    }
  }
  TransformerLayersArgs args(size_t token = 0) const {
    return {.batch = tokens_[token]->batch(),
            .h = tokens_[token]->h.output(),
            .eps = kEps,
            .layers = args_.data(),
            .count = std::ssize(args_),
            .exchange = exchange()};
  }
  std::vector<TransformerLayer>& layers() { return args_; }

  void expect_right(const Case& test) {
    prepare(test);
    const std::string what = std::to_string(shape_.hidden) + " wide, position " + std::to_string(test.position) +
                             (test.cache == DType::f16 ? ", F16" : "") +
                             (test.window > 0 ? ", window " + std::to_string(test.window) : "");
    std::vector<HostCache> expected, caches;  // what they hold but for the tokens, and afterwards
    for (const auto& cache : caches_) expected.push_back({*cache});
    for (size_t t = 0; t < tokens_.size(); ++t) {
      ASSERT_TRUE(supports_transformer_layers(args(t))) << what;
      HXQ_EXPECT_OK(transformer_layers(args(t), nullptr));
    }
    expect_finished();
    for (const auto& cache : caches_) caches.push_back({*cache});
    for (int t = 0; t < std::ssize(tokens_); ++t) {
      const Token& token = *tokens_[static_cast<size_t>(t)];
      const std::vector<float> rows = token.h.values();
      std::vector<float> others = token.start;
      if (test.tokens > 0) {
        const int64_t begin = Token::kRow * shape_.hidden, end = begin + shape_.hidden;
        std::vector<double> h(token.start.begin() + begin, token.start.begin() + end);
        for (size_t i = 0; i < layers_.size(); ++i) {
          const std::string name = what + ", layer " + std::to_string(i);
          step_in_double(shape_, test, *layers_[i], caches[i], test.position + t, h, name);
          expected[i].take(caches[i], test.position + t);
        }
        expect_near({rows.begin() + begin, rows.begin() + end}, h, DType::f32, what);
        std::copy(rows.begin() + begin, rows.begin() + end, others.begin() + begin);
      }
      EXPECT_EQ(rows, others) << what << ": rows of nobody";
    }
    for (size_t i = 0; i < caches.size(); ++i) {
      EXPECT_TRUE(caches[i].tiles == expected[i].tiles)
          << what << ": the cache of layer " << i << " at other positions";
    }
  }

 private:
  Shape shape_;
  Random random_;
  std::vector<std::unique_ptr<TestLayer>> layers_;
  std::vector<std::unique_ptr<TestCache>> caches_;
  std::vector<std::unique_ptr<Token>> tokens_;
  std::vector<TransformerLayer> args_;
};

constexpr Shape kTinyLlama = {.hidden = 2048, .heads = 32, .head_dim = 64, .kv_heads = 4, .inner = 5632};
constexpr Shape kLlama1b = {.hidden = 2048, .heads = 32, .head_dim = 64, .kv_heads = 8, .inner = 8192};
constexpr Shape kLlama7b = {.hidden = 4096, .heads = 32, .head_dim = 128, .kv_heads = 32, .inner = 11008};
constexpr Shape kManyHeads = {.hidden = 16, .heads = 32, .head_dim = 8, .kv_heads = 8, .inner = 32};
/// Heads of more elements than a warp has of keys and values at once, and of no power of two.
constexpr Shape kLongHeads = {.hidden = 1536, .heads = 12, .head_dim = 128, .kv_heads = 2, .inner = 8960};
constexpr Shape kLongestHeads = {.hidden = 1024, .heads = 4, .head_dim = 256, .kv_heads = 1, .inner = 10240};
constexpr Shape kOddHeads = {.hidden = 768, .heads = 8, .head_dim = 96, .kv_heads = 4, .inner = 3072};
constexpr Shape kQwen = {.hidden = 896, .heads = 14, .head_dim = 64, .kv_heads = 2, .inner = 4864, .qkv_biases = true};
/// Heads that are no power of two wide, one of them for each of keys and values.
constexpr Shape kOdd = {.hidden = 288, .heads = 6, .head_dim = 48, .kv_heads = 6, .inner = 768};
constexpr Shape kOddGroups = {.hidden = 288,
                              .heads = 6,
                              .head_dim = 48,
                              .kv_heads = 2,
                              .inner = 768,
                              .qkv_biases = true,
                              .other_biases = true,
                              .activation = Activation::gelu};
constexpr Shape kSmall = {.hidden = 64, .heads = 4, .head_dim = 16, .kv_heads = 2, .inner = 176, .outliers = 0.005};

TEST(CudaTransformerLayers, AreWhatTheirPartsAreInDouble) {
  HXQ_NEEDS_HOPPER();
  Model model(kTinyLlama, 2);
  for (const int position : {0, 5, 64, 300}) model.expect_right({.position = position});
  for (const int position : {1, 130, 1000}) model.expect_right({.position = position, .cache = DType::f16});
}

TEST(CudaTransformerLayers, TakeShapesOfOtherModels) {
  HXQ_NEEDS_HOPPER();
  for (const Shape& shape : {kQwen, kLlama1b, kLongHeads, kLongestHeads, kOddHeads}) {
    Model model(shape, 1);
    model.expect_right({.position = 0});
    model.expect_right({.position = 200, .cache = DType::f16});
    model.expect_right({.position = 127, .window = 100});
  }
}

TEST(CudaTransformerLayers, AttendOverAnyNumberOfTiles) {
  HXQ_NEEDS_HOPPER();
  for (const Shape& shape : {kOdd, kOddGroups, kSmall, kManyHeads}) {
    Model model(shape, 2);
    for (const DType cache : {DType::f32, DType::f16}) {
      for (const int position : {0, 1, 5, 63, 64, 127, 130, 300, 1000}) {
        model.expect_right({.position = position, .cache = cache});
      }
      for (const int64_t window : {1, 64, 100}) {
        for (const int position : {10, 63, 64, 163, 300}) {
          model.expect_right({.position = position, .cache = cache, .window = window});
        }
      }
    }
    model.expect_right({.position = 70, .rotates = false});
  }
}

TEST(CudaTransformerLayers, FollowEachOther) {
  HXQ_NEEDS_HOPPER();
  for (const Shape& shape : {kOddGroups, kQwen}) {
    Model model(shape, 2);
    for (const int position : {0, 63, 126}) model.expect_right({.position = position, .tokens = 2});
    model.expect_right({.position = 61, .cache = DType::f16, .tokens = 5});
  }
}

TEST(CudaTransformerLayers, LeaveASequenceWithoutATokenAsItIs) {
  HXQ_NEEDS_HOPPER();
  Model model(kOdd, 2);
  model.expect_right({.position = 40, .tokens = 0});
  model.expect_right({.position = 40});
}

TEST(CudaTransformerLayers, AreSeveralKernelsWhereTheyAreMany) {
  HXQ_NEEDS_HOPPER();
  Model model(kSmall, kMostTransformerLayers + 2);
  model.expect_right({.position = 3, .tokens = 2});
  Model(kOddGroups, 7).expect_right({.position = 5000});
}

TEST(CudaTransformerLayers, TakeAnyNumberOfOutliers) {
  HXQ_NEEDS_HOPPER();
  for (const double outliers : {0.0, 0.02}) {  // of some rows of the widest product 225
    for (Shape shape : {kOdd, kSmall, kTinyLlama}) {
      shape.outliers = outliers;
      Model(shape, 1).expect_right({.position = 20});
    }
  }
}

TEST(CudaTransformerLayers, LeaveOthersToTheirParts) {
  HXQ_NEEDS_GPU();
  Model model(kOdd, 2);
  model.prepare({.position = 5});
  TransformerLayersArgs args = model.args();
  if (current_capability() != 90) {
    EXPECT_FALSE(supports_transformer_layers(args));
    EXPECT_EQ(transformer_layers(args, nullptr), Status::invalid_value);
    GTEST_SKIP() << "no such kernel";
  }
  EXPECT_TRUE(supports_transformer_layers(args));
  for (TransformerLayer& layer : model.layers()) {
    const auto is_left = [&](const auto& change) {
      const TransformerLayer kept = layer;
      change(layer);
      const bool left = !supports_transformer_layers(args);
      layer = kept;
      return left;
    };
    for (size_t i = 0; i < kTransformerProducts; ++i) {
      EXPECT_TRUE(is_left([&](TransformerLayer& one) { one.weight[i].rank = 1; })) << "a low-rank term, " << i;
      EXPECT_TRUE(is_left([&](TransformerLayer& one) { one.weight[i].index_bits = 12; })) << i;
      EXPECT_TRUE(is_left([&](TransformerLayer& one) { one.weight[i].d = 2; })) << "codewords of two weights, " << i;
      EXPECT_TRUE(is_left([&](TransformerLayer& one) { one.weight[i].channel_scales = one.norm_weight; })) << i;
      EXPECT_TRUE(is_left([&](TransformerLayer& one) { one.weight[i].level_scale = 0; })) << "not finite, " << i;
      EXPECT_TRUE(is_left([&](TransformerLayer& one) { one.weight[i].cols += 32; })) << "another shape, " << i;
      EXPECT_TRUE(is_left([&](TransformerLayer& one) { one.weight[i].rows -= 48; })) << "another shape, " << i;
    }
    EXPECT_TRUE(is_left([](TransformerLayer& one) { one.attention.query_heads = 3; })) << "other heads";
    EXPECT_TRUE(is_left([](TransformerLayer& one) { one.attention.cache.heads = 2; })) << "other heads";
    EXPECT_TRUE(is_left([](TransformerLayer& one) { one.attention.cache.dtype = DType::bf16; }));
    EXPECT_TRUE(is_left([](TransformerLayer& one) { one.attention.cache.dtype = DType::f16; })) << "of one layer alone";
    EXPECT_TRUE(is_left([](TransformerLayer& one) { one.attention.window = 50; })) << "of one layer alone";
    EXPECT_TRUE(is_left([](TransformerLayer& one) { one.attention.scale *= 2; })) << "of one layer alone";
    EXPECT_TRUE(is_left([](TransformerLayer& one) { one.activation = Activation::gelu; })) << "of one layer alone";
    EXPECT_TRUE(is_left([](TransformerLayer& one) { one.norm_weight += 1; })) << "not aligned";
    EXPECT_TRUE(is_left([](TransformerLayer& one) { one.mlp_norm_weight += 1; })) << "not aligned";
  }
  const auto is_left = [&](const auto& change) {
    TransformerLayersArgs others = args;
    change(others);
    return !supports_transformer_layers(others) && transformer_layers(others, nullptr) == Status::invalid_value;
  };
  EXPECT_TRUE(is_left([](TransformerLayersArgs& others) { others.batch.count = 2; })) << "several sequences";
  EXPECT_TRUE(is_left([](TransformerLayersArgs& others) { others.batch.max_rows = 2; })) << "a prompt";
  EXPECT_TRUE(is_left([](TransformerLayersArgs& others) { others.h.dtype = DType::bf16; }));
  EXPECT_TRUE(is_left([](TransformerLayersArgs& others) { others.exchange = nullptr; }));
  EXPECT_TRUE(is_left([](TransformerLayersArgs& others) { others.count = 0; }));
  EXPECT_TRUE(is_left([](TransformerLayersArgs& others) { others.h.stride += 1; })) << "not aligned";
}

}  // namespace
}  // namespace hxq::cuda
