// Layers of Mamba as one kernel against the same in double.

#include "kernels/cuda/mamba_layers.h"

#include <gtest/gtest.h>

#include <memory>

#include "kernels/cuda/linear_test_data.h"
#include "kernels/cuda/sequence_test_data.h"

namespace hxq::cuda {
namespace {

using namespace testing;

struct Shape {
  int64_t hidden, inner, rank, states, taps;
  double outliers = 0.0005;  ///< 0: no list of any
  bool biases = false;       ///< of the projections
  bool bare = false;         ///< no biases of the convolution and of dt, no d
};

constexpr float kEps = 1e-5f;

/// A layer's weights, on the host and on the device.
struct TestLayer {
  TestMatrix in, x, dt, out;
  std::vector<float> norm, in_bias, filter, conv_bias, a, d, dt_bias, out_bias;
  DeviceMatrix device_in, device_x, device_dt, device_out;
  DeviceArray<float> device_norm, device_in_bias, device_filter, device_conv_bias, device_a, device_d, device_dt_bias,
      device_out_bias;

  TestLayer(const Shape& s, uint32_t seed, Random& random)
      : in(make_matrix({.rows = 2 * s.inner, .cols = s.hidden, .outliers = s.outliers, .size = 0.03f, .seed = seed})),
        x(make_matrix({.rows = s.rank + 2 * s.states,
                       .cols = s.inner,
                       .k = 100,
                       .outliers = s.outliers,
                       .size = 0.03f,
                       .seed = seed})),
        dt(make_matrix({.rows = s.inner, .cols = s.rank, .outliers = s.outliers, .size = 0.1f, .seed = seed})),
        out(make_matrix(
            {.rows = s.hidden, .cols = s.inner, .k = 200, .outliers = s.outliers, .size = 0.03f, .seed = seed})),
        norm(random.normals(static_cast<size_t>(s.hidden))),
        in_bias(random.normals(static_cast<size_t>(2 * s.inner))),
        filter(random.normals(static_cast<size_t>(s.taps * s.inner))),
        conv_bias(random.normals(static_cast<size_t>(s.inner))),
        a(random.normals(static_cast<size_t>(s.states * s.inner))),
        d(random.normals(static_cast<size_t>(s.inner))),
        dt_bias(random.normals(static_cast<size_t>(s.inner))),
        out_bias(random.normals(static_cast<size_t>(s.hidden))),
        device_in(in),
        device_x(x),
        device_dt(dt),
        device_out(out),
        device_norm(norm),
        device_in_bias(in_bias),
        device_filter(filter),
        device_conv_bias(conv_bias),
        device_a((make_negative(a), a)),
        device_d(d),
        device_dt_bias(dt_bias),
        device_out_bias(out_bias) {
    if (s.bare) {
      for (std::vector<float>* none : {&conv_bias, &d, &dt_bias}) std::fill(none->begin(), none->end(), 0.0f);
    }
    if (s.biases) return;
    std::fill(in_bias.begin(), in_bias.end(), 0.0f);
    std::fill(out_bias.begin(), out_bias.end(), 0.0f);
  }

  static void make_negative(std::vector<float>& values) {
    for (float& value : values) value = -std::fabs(value);
  }

  /// With states of its own; `h` and the sequences are the caller's.
  MambaLayer layer(const Shape& s, const TestBatch& past, const TestBatch& states) const {
    return {.norm_weight = device_norm.data(),
            .in_proj = device_in.weight(),
            .in_bias = s.biases ? device_in_bias.data() : nullptr,
            .step = {.batch = past.batch(),
                     .conv = {.channels = s.inner,
                              .width = s.taps,
                              .weight = device_filter.data(),
                              .bias = s.bare ? nullptr : device_conv_bias.data(),
                              .states = past.pointers.data(),
                              .state_rows = s.taps - 1},
                     .x_proj = device_x.weight(),
                     .dt_proj = device_dt.weight(),
                     .scan = {.dt_bias = s.bare ? nullptr : device_dt_bias.data(),
                              .a = device_a.data(),
                              .d = s.bare ? nullptr : device_d.data(),
                              .states = states.pointers.data(),
                              .channels = s.inner,
                              .state_size = s.states}},
            .out_proj = device_out.weight(),
            .out_bias = s.biases ? device_out_bias.data() : nullptr};
  }
};

std::vector<double> product(const TestMatrix& m, const std::vector<double>& x) {
  return multiply_rows(m.decoded, m.rows, m.cols, x, 1, {}, {}).y;
}

/// One token through one layer: `h`, the convolution's past [taps - 1, inner] and the states [states, inner] change.
void step_in_double(const Shape& s, const TestLayer& layer, std::vector<double>& h, std::vector<double>& past,
                    std::vector<double>& states) {
  double squares = 0;
  for (const double value : h) squares += value * value;
  std::vector<double> normed;
  for (size_t i = 0; i < h.size(); ++i) {
    normed.push_back(h[i] / std::sqrt(squares / static_cast<double>(s.hidden) + kEps) * layer.norm[i]);
  }
  std::vector<double> xz = product(layer.in, normed);
  for (size_t i = 0; i < xz.size(); ++i) xz[i] += layer.in_bias[i];
  const auto inner = static_cast<size_t>(s.inner), rank = static_cast<size_t>(s.rank);
  const auto taps = static_cast<size_t>(s.taps), size = static_cast<size_t>(s.states);
  past.insert(past.end(), xz.begin(), xz.begin() + static_cast<int64_t>(inner));
  std::vector<double> u(inner), y(inner);
  for (size_t c = 0; c < inner; ++c) {
    u[c] = layer.conv_bias[c];
    for (size_t j = 0; j < taps; ++j) u[c] += layer.filter[j * inner + c] * past[j * inner + c];
    u[c] = silu_of(u[c]);
  }
  past.erase(past.begin(), past.begin() + static_cast<int64_t>(inner));
  const std::vector<double> dbc = product(layer.x, u);
  const std::vector<double> dt = product(layer.dt, {dbc.begin(), dbc.begin() + static_cast<int64_t>(rank)});
  for (size_t c = 0; c < inner; ++c) {
    const double delta = softplus_of(dt[c] + layer.dt_bias[c]);
    y[c] = layer.d[c] * u[c];
    for (size_t n = 0; n < size; ++n) {
      double& state = states[n * inner + c];
      state = std::exp(delta * layer.a[n * inner + c]) * state + delta * dbc[rank + n] * u[c];
      y[c] += state * dbc[rank + size + n];
    }
    y[c] *= silu_of(xz[inner + c]);
  }
  const std::vector<double> added = product(layer.out, y);
  for (size_t i = 0; i < h.size(); ++i) h[i] += added[i] + layer.out_bias[i];
}

/// Layers, sequences with a token or none, and what the kernel is asked.
class Model {
 public:
  Model(const Shape& shape, int layers, std::vector<int> lengths)
      : shape_(shape),
        lengths_(std::move(lengths)),
        random_(static_cast<uint32_t>(shape.hidden + layers)),
        batch_(lengths_, 1, random_) {
    const auto inner = static_cast<size_t>(shape.inner);
    for (int i = 0; i < layers; ++i) {
      layers_.push_back(std::make_unique<TestLayer>(shape, static_cast<uint32_t>(i), random_));
      past_.push_back(std::make_unique<TestBatch>(lengths_, static_cast<size_t>(shape.taps - 1) * inner, random_));
      states_.push_back(std::make_unique<TestBatch>(lengths_, static_cast<size_t>(shape.states) * inner, random_));
      args_.push_back(layers_.back()->layer(shape, *past_.back(), *states_.back()));
    }
    start_ = random_.normals(static_cast<size_t>(batch_.rows * shape.hidden));
    h_ = std::make_unique<DeviceRows>(start_, batch_.rows, shape.hidden, 4, DType::f32);
  }

  /// `spread`: with memory that all of the GPU's blocks exchange something through.
  MambaLayersArgs args(Precision precision, bool spread = false) {
    return {.batch = batch_.batch(),
            .h = h_->output(),
            .eps = kEps,
            .precision = precision,
            .layers = args_.data(),
            .count = std::ssize(args_),
            .exchange = spread ? exchange_.data() : nullptr};
  }
  std::vector<MambaLayer>& layers() { return args_; }

  /// Expects every element within `bound` of the largest of its token, or its states.
  void expect_right(double bound, const std::string& what) const {
    const std::vector<float> h = h_->values();
    const auto hidden = static_cast<size_t>(shape_.hidden);
    std::vector<float> others = start_;  // rows that no sequence has
    for (size_t s = 0; s < lengths_.size(); ++s) {
      const auto row = static_cast<size_t>(batch_.segments[s].begin) * hidden;
      const auto first = static_cast<int64_t>(row), end = static_cast<int64_t>(row + hidden);
      const std::string name = what + ", sequence " + std::to_string(s);
      std::vector<double> expected(start_.begin() + first, start_.begin() + end);
      for (size_t i = 0; i < layers_.size(); ++i) {
        std::vector<double> past(past_[i]->start[s].begin(), past_[i]->start[s].end());
        std::vector<double> states(states_[i]->start[s].begin(), states_[i]->start[s].end());
        if (lengths_[s] == 1) step_in_double(shape_, *layers_[i], expected, past, states);
        expect_near(past_[i]->state[s].values(), past, bound, name + ", past of layer " + std::to_string(i));
        expect_near(states_[i]->state[s].values(), states, bound, name + ", states of layer " + std::to_string(i));
      }
      expect_near({h.begin() + first, h.begin() + end}, expected, bound, name);
      if (lengths_[s] == 1) std::copy(h.begin() + first, h.begin() + end, others.begin() + first);
    }
    EXPECT_EQ(h, others) << what;
  }

 private:
  static void expect_near(const std::vector<float>& values, const std::vector<double>& expected, double bound,
                          const std::string& what) {
    double largest = 0;
    for (const double value : expected) largest = std::max(largest, std::fabs(value));
    expect_close(values, expected, std::vector<double>(expected.size(), largest), bound, DType::f32, what);
  }

  Shape shape_;
  std::vector<int> lengths_;
  Random random_;
  TestBatch batch_;
  std::vector<std::unique_ptr<TestLayer>> layers_;
  std::vector<std::unique_ptr<TestBatch>> past_, states_;
  std::vector<MambaLayer> args_;
  std::vector<float> start_;
  std::unique_ptr<DeviceRows> h_;
  DeviceArray<char> exchange_{std::vector<char>(kMambaExchangeBytes)};
};

constexpr Shape kMamba130m = {.hidden = 768, .inner = 1536, .rank = 48, .states = 16, .taps = 4};
/// Widths that are no multiple of a unit of columns, blocks without channels, rows that blocks own no whole tile of.
constexpr Shape kOdd = {
    .hidden = 112, .inner = 208, .rank = 16, .states = 16, .taps = 4, .outliers = 0.003, .biases = true};
/// Blocks that own no rows of the hidden state, and no vectors that there need not be.
constexpr Shape kBare = {.hidden = 144, .inner = 304, .rank = 32, .states = 16, .taps = 4, .bare = true};
constexpr Shape kWide = {.hidden = 1024, .inner = 2048, .rank = 64, .states = 16, .taps = 4, .outliers = 0};
constexpr Shape kSmall = {.hidden = 16, .inner = 32, .rank = 16, .states = 16, .taps = 4, .outliers = 0.005};

/// One token each, but for a few sequences that may have none.
std::vector<int> lengths_of(int sequences, bool some_have_none) {
  std::vector<int> lengths(static_cast<size_t>(sequences), 1);
  if (some_have_none) lengths[1] = lengths[static_cast<size_t>(sequences) / 2] = lengths.back() = 0;
  return lengths;
}

struct Case {
  int layers, sequences;
  Precision precision = Precision::fast;
  bool spread = false;
};

/// Where sequences are odd in number, some have no token.
void expect_right(const Shape& shape, const std::vector<Case>& cases) {
  for (const Case& test : cases) {
    Model model(shape, test.layers, lengths_of(test.sequences, test.sequences > 1 && test.sequences % 2 == 1));
    const MambaLayersArgs args = model.args(test.precision, test.spread);
    const std::string what = std::to_string(shape.hidden) + " wide, " + std::to_string(test.sequences) + " sequences" +
                             (test.spread ? ", spread" : "");
    ASSERT_TRUE(supports_mamba_layers(args)) << what;
    HXQ_EXPECT_OK(mamba_layers(args, nullptr));
    expect_finished();
    // Tensor cores get weights and x in 11 bits, or x in 22; the largest of what a layer adds up is larger than what
    // it adds.
    model.expect_right(test.spread ? 1e-5 : test.precision == Precision::fast ? 0x1p-7 : 2e-5, what);
  }
}

TEST(CudaMambaLayers, AreWhatTheirPartsAreInDouble) {
  HXQ_NEEDS_HOPPER();
  expect_right(kMamba130m, {{1, 64}, {2, 33}, {2, 17, Precision::exact}, {2, 2}, {2, 5, Precision::exact}});
}

TEST(CudaMambaLayers, TakeWidthsOfAnyWholeTiles) {
  HXQ_NEEDS_HOPPER();
  expect_right(kOdd, {{3, 9}, {3, 15, Precision::exact}, {2, 40}});
  expect_right(kWide, {{1, 16}});
  expect_right(kSmall, {{3, 16, Precision::exact}, {2, 64}});
  expect_right(kBare, {{2, 12}});
}

/// What spreads over the GPU is float whatever the precision.
TEST(CudaMambaLayers, SpreadWhereSequencesAreFew) {
  HXQ_NEEDS_HOPPER();
  for (const int sequences : {1, 2}) {
    expect_right(kMamba130m, {{2, sequences, Precision::fast, true}});
    expect_right(kOdd, {{3, sequences, Precision::exact, true}});
    expect_right(kSmall, {{3, sequences, Precision::exact, true}});
    expect_right(kBare, {{5, sequences, Precision::exact, true}});
  }
  expect_right(kSmall, {{kMostMambaLayers + 2, 1, Precision::exact, true}});
  for (const auto& lengths : {std::vector{1, 0}, {0, 1}}) {
    Model model(kOdd, 2, lengths);
    HXQ_EXPECT_OK(mamba_layers(model.args(Precision::exact, true), nullptr));
    expect_finished();
    model.expect_right(1e-5, "one of two sequences without a token");
  }
  expect_right(kWide, {{2, 1, Precision::fast, true}});
  Shape shape = kMamba130m;
  shape.outliers = 0.02;  // more than lanes of a warp
  expect_right(shape, {{1, 1, Precision::fast, true}, {1, 2, Precision::fast, true}});
}

TEST(CudaMambaLayers, TakeAsManySequencesAsClustersHaveRoomFor) {
  HXQ_NEEDS_HOPPER();
  Model model(kSmall, 1, lengths_of(2, false));
  MambaLayersArgs args = model.args(Precision::fast);
  args.batch.count = 1024;
  while (args.batch.count > 0 && !supports_mamba_layers(args)) --args.batch.count;
  expect_right(kSmall, {{2, static_cast<int>(args.batch.count)}});
}

TEST(CudaMambaLayers, AreSeveralKernelsWhereTheyAreMany) {
  HXQ_NEEDS_HOPPER();
  expect_right(kSmall, {{kMostMambaLayers + 2, 16, Precision::exact}});
}

TEST(CudaMambaLayers, TakeMoreOutliersThanBlocksKeep) {
  HXQ_NEEDS_HOPPER();
  Shape shape = kMamba130m;
  shape.outliers = 0.005;  // of 96 rows of in_proj 370, of 48 rows of out_proj likewise
  expect_right(shape, {{1, 9, Precision::exact}});
}

TEST(CudaMambaLayers, LeaveOthersToTheirParts) {
  HXQ_NEEDS_GPU();
  Model model(kOdd, 2, lengths_of(16, false));
  MambaLayersArgs args = model.args(Precision::exact);
  if (current_capability() != 90) {
    EXPECT_FALSE(supports_mamba_layers(args));
    EXPECT_EQ(mamba_layers(args, nullptr), Status::invalid_value);
    GTEST_SKIP() << "no such kernel";
  }
  EXPECT_TRUE(supports_mamba_layers(args));
  const auto is_left = [&](const auto& change) {
    MambaLayer& last = model.layers().back();
    const MambaLayer kept = last;
    change(last);
    const bool left = !supports_mamba_layers(args);
    last = kept;
    return left;
  };
  EXPECT_TRUE(is_left([](MambaLayer& layer) { layer.in_proj.rank = 1; })) << "a low-rank term";
  EXPECT_TRUE(is_left([](MambaLayer& layer) { layer.out_proj.index_bits = 12; }));
  EXPECT_TRUE(is_left([](MambaLayer& layer) { layer.step.x_proj.levels_fit_half = false; }));
  EXPECT_TRUE(is_left([](MambaLayer& layer) { layer.step.scan.state_size = 8; }));
  EXPECT_TRUE(is_left([](MambaLayer& layer) { layer.step.conv.width = 3; }));
  EXPECT_TRUE(is_left([](MambaLayer& layer) { layer.step.conv.bias += 1; })) << "not aligned";
  EXPECT_TRUE(is_left([](MambaLayer& layer) { layer.out_proj.cols = 224; })) << "another shape";
  EXPECT_TRUE(is_left([](MambaLayer& layer) { layer.in_bias = nullptr; })) << "a bias in another layer alone";
  EXPECT_TRUE(is_left([](MambaLayer& layer) { layer.step.scan.d = nullptr; })) << "D in another layer alone";
  EXPECT_TRUE(is_left([](MambaLayer& layer) { layer.step.dt_proj.level_scale = 0; })) << "levels that are not finite";
  args.batch.count = 1;
  EXPECT_FALSE(supports_mamba_layers(args)) << "one sequence, and no memory to exchange something through";
  args.batch.count = 16;
  args.batch.max_rows = 2;
  EXPECT_FALSE(supports_mamba_layers(args)) << "a prompt";
  args.batch.max_rows = 1;
  args.batch.count = 1000;
  EXPECT_FALSE(supports_mamba_layers(args)) << "many sequences";
  args.batch.count = 16;
  args.h.dtype = DType::bf16;
  EXPECT_FALSE(supports_mamba_layers(args));
}

}  // namespace
}  // namespace hxq::cuda
