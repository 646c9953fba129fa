// Every wrong call is HXQ_INVALID_ARGUMENT with a line that names what is wrong, and writes nothing.

#include <cmath>
#include <cstring>
#include <limits>

#include "capi_test_support.h"

namespace hxq::testing {
namespace {

constexpr int64_t kHuge = std::numeric_limits<int64_t>::max();

TEST(Misuse, Contexts) {
  hxq_context* context = nullptr;
  expect_invalid(hxq_context_create(0, nullptr, &context), "0 threads");
  expect_invalid(hxq_context_create(-4, nullptr, &context), "-4 threads");
  expect_invalid(hxq_context_create(1025, nullptr, &context), "1025 threads");
  expect_invalid(hxq_context_create(1, "mmx", &context), "target is 'mmx'");
  expect_invalid(hxq_context_create(1, "", &context), "target is ''");
  expect_invalid(hxq_context_create(1, nullptr, nullptr), "context is null");
  EXPECT_EQ(context, nullptr);
}

TEST(Misuse, Matrices) {
  const SmallMatrix m;
  hxq_matrix* made = nullptr;
  const auto create = [&](auto change, int64_t rows = kRows, int64_t cols = kCols) {
    std::vector<hxq_tensor> parts = m.parts;
    change(parts);
    return hxq_matrix_create("m", parts.data(), parts.size(), rows, cols, &made);
  };
  const auto same = [](auto&) {};
  expect_invalid(hxq_matrix_create(nullptr, m.parts.data(), 4, 0, 0, &made), "name is null");
  expect_invalid(hxq_matrix_create("m", nullptr, 4, 0, 0, &made), "parts is null");
  expect_invalid(hxq_matrix_create("m", m.parts.data(), 4, 0, 0, nullptr), "matrix is null");
  expect_invalid(create(same, -1, 4), "shape is [-1, 4]");
  expect_invalid(create(same, 0, 4), "shape is [0, 4]");
  expect_invalid(create([](auto& p) { p[0].name = nullptr; }), "no name");
  expect_invalid(create([](auto& p) { p[1] = p[0]; }), "given twice");
  expect_invalid(create([](auto& p) { p[0].dtype = 40; }), "dtype 40");
  expect_invalid(create([](auto& p) { p[0].dtype = -1; }), "dtype -1");
  expect_invalid(create([](auto& p) { p[0].rank = 5; }), "rank is 5");
  expect_invalid(create([](auto& p) { p[0].rank = -1; }), "rank is -1");
  expect_invalid(create([](auto& p) { p[0].shape[0] = -16; }), "shape is [-16]");
  expect_invalid(create([](auto& p) { p[1].shape[0] = kHuge; }), "no tensor has it");
  expect_invalid(create([](auto& p) { p[0].data = nullptr; }), "no data");
  const auto add_part = [](auto& p) { p.push_back(tensor("scales", HXQ_F32, {3}, p.back().data)); };
  expect_invalid(create(add_part), "'scales' is no part of codec 'codebook'");
  const std::vector<int64_t> elsewhere = {9};
  const auto add_older_name = [&](auto& p) { p.push_back(tensor("sidecar_indices", HXQ_I64, {1}, elsewhere.data())); };
  expect_invalid(create(add_older_name), "'sidecar_positions' and 'sidecar_indices' are names of one part");
  // What the tensors hold is data, not the call.
  expect_failure(create(same, kRows + 1), HXQ_BAD_DATA, "m.");
  expect_failure(create([](auto& p) { p[0].shape[0] = 3; }), HXQ_BAD_DATA, "expected less than 3");
  expect_failure(create([](auto& p) { p.erase(p.begin()); }), HXQ_BAD_DATA, "m");
  EXPECT_EQ(made, nullptr);
  expect_invalid(hxq_matrix_get_info(m.handle.get(), nullptr), "info is null");
  hxq_matrix_info info = {};
  expect_invalid(hxq_matrix_get_info(nullptr, &info), "matrix is null");
}

class Products : public ::testing::Test {
 protected:
  SmallMatrix m_;
  ContextHandle context_ = make_context();
  std::vector<float> x_ = random_floats(4 * kCols, 1);
  std::vector<float> y_ = std::vector<float>(4 * 80, -7.0f);
  std::vector<float> untouched_ = y_;
  std::vector<int64_t> ids_ = {0, 1, 2, 36};
  hxq_output_rows out_ = {y_.data(), HXQ_F32, 0};

  void refused(hxq_status status, const std::string& part) {
    expect_invalid(status, part);
    EXPECT_EQ(y_, untouched_);
  }
};

TEST_F(Products, Linear) {
  const hxq_linear_args good = {.tokens = 4, .x = {x_.data(), HXQ_F32, 0}, .y = out_};
  const auto with = [&](auto change) {
    hxq_linear_args args = good;
    change(args);
    return hxq_linear(context_.get(), m_.handle.get(), &args);
  };
  refused(hxq_linear(nullptr, m_.handle.get(), &good), "context is null");
  refused(hxq_linear(context_.get(), nullptr, &good), "matrix is null");
  refused(hxq_linear(context_.get(), m_.handle.get(), nullptr), "args is null");
  refused(with([](auto& a) { a.tokens = -1; }), "tokens is -1");
  refused(with([](auto& a) { a.tokens = kHuge; }), "no memory holds");
  refused(with([](auto& a) { a.x.data = nullptr; }), "x is null");
  refused(with([](auto& a) { a.y.data = nullptr; }), "y is null");
  refused(with([](auto& a) { a.x.dtype = HXQ_I32; }), "dtype is I32");
  refused(with([](auto& a) { a.y.dtype = HXQ_F64; }), "dtype is F64");
  refused(with([](auto& a) { a.x.dtype = 77; }), "dtype 77");
  refused(with([](auto& a) { a.x.stride = kCols - 1; }), "the stride of x is 63, its rows have 64");
  refused(with([](auto& a) { a.y.stride = -1; }), "the stride of y is -1");
  refused(with([](auto& a) { a.x.stride = kHuge; }), "the stride of x");
  refused(with([](auto& a) { a.phase = 2; }), "phase is 2");
  refused(with([](auto& a) { a.precision = -1; }), "precision is -1");
  EXPECT_OK(with([](auto& a) { a.tokens = 0; }));
  EXPECT_EQ(y_, untouched_);
}

TEST_F(Products, Transposed) {
  const hxq_rows g = {x_.data(), HXQ_F32, 0};
  const auto run = [&](int64_t tokens, const hxq_rows* from, const hxq_output_rows* to) {
    return hxq_linear_transposed(context_.get(), m_.handle.get(), tokens, from, to);
  };
  const hxq_rows narrow = {x_.data(), HXQ_F32, kRows - 1};
  const hxq_rows integers = {x_.data(), HXQ_I64, 0};
  const hxq_output_rows nowhere = {nullptr, HXQ_F32, 0};
  refused(run(4, nullptr, &out_), "g is null");
  refused(run(4, &g, nullptr), "dx is null");
  refused(run(4, &g, &nowhere), "dx is null");
  refused(run(-4, &g, &out_), "tokens is -4");
  refused(run(2, &narrow, &out_), "the stride of g");
  refused(run(2, &integers, &out_), "dtype is I64");
}

TEST_F(Products, CodebookGradients) {
  const auto run = [&](int64_t tokens, const float* x, const float* g, float* to) {
    return hxq_codebook_gradient(context_.get(), m_.handle.get(), tokens, x, g, to);
  };
  refused(run(4, nullptr, x_.data(), y_.data()), "x is null");
  refused(run(4, x_.data(), nullptr, y_.data()), "g is null");
  refused(run(4, x_.data(), x_.data(), nullptr), "gradient is null");
  refused(run(-1, x_.data(), x_.data(), y_.data()), "tokens is -1");
}

TEST_F(Products, Gathering) {
  const auto run = [&](int64_t count, const int64_t* ids, const hxq_output_rows* to) {
    return hxq_gather_rows(context_.get(), m_.handle.get(), count, ids, to);
  };
  refused(run(4, nullptr, &out_), "ids is null");
  refused(run(4, ids_.data(), nullptr), "out is null");
  refused(run(-1, ids_.data(), &out_), "count is -1");
  const hxq_output_rows narrow = {y_.data(), HXQ_F32, 3};
  refused(run(4, ids_.data(), &narrow), "the stride of out");
  ids_[2] = kRows;
  refused(run(4, ids_.data(), &out_), "id 2 is 37, outside the 37 rows");
  ids_[2] = -1;
  refused(run(4, ids_.data(), &out_), "id 2 is -1");
  refused(hxq_gather_gradient(context_.get(), m_.handle.get(), 4, ids_.data(), x_.data(), y_.data()), "id 2 is -1");
  refused(hxq_gather_gradient(context_.get(), m_.handle.get(), 4, ids_.data(), nullptr, y_.data()), "g is null");
  refused(hxq_decode(context_.get(), m_.handle.get(), nullptr), "out is null");
  refused(hxq_decode(context_.get(), m_.handle.get(), &narrow), "the stride of out");
}

TEST_F(Products, RunningOutOfMemoryNamesWhatWasAskedFor) {
  const int64_t count = int64_t{1} << 53;
  expect_failure(hxq_gather_rows(context_.get(), m_.handle.get(), count, ids_.data(), &out_), HXQ_OUT_OF_MEMORY,
                 "out of memory: a copy of the ids takes");
  EXPECT_EQ(y_, untouched_);
}

TEST(Misuse, Encoding) {
  const std::vector<float> source = random_floats(32 * 32, 1);
  const hxq_tensor good = tensor("w", HXQ_F32, {32, 32}, source.data());
  hxq_encoded* made = nullptr;
  const auto with = [&](hxq_encode_options options) { return hxq_encode(&good, &options, &made, nullptr); };
  expect_invalid(hxq_encode(nullptr, nullptr, &made, nullptr), "source is null");
  expect_invalid(hxq_encode(&good, nullptr, nullptr, nullptr), "encoded is null");
  expect_invalid(with({.sidecar_fraction = -0.1, .max_codewords = 256}), "sidecar_fraction is -0.1");
  expect_invalid(with({.sidecar_fraction = 0, .max_codewords = 0}), "max_codewords is 0");
  expect_invalid(with({.sidecar_fraction = 0, .max_codewords = 257}), "max_codewords is 257");
  expect_invalid(with({.sidecar_fraction = 0, .max_codewords = 256, .threads = -1}), "-1 threads");
  const auto profile = [&](const char* name, int32_t bits, int64_t group, double sidecar = 0.001) {
    return with({.sidecar_fraction = sidecar, .max_codewords = 256, .profile = name, .bits = bits, .group = group});
  };
  expect_invalid(profile("g9", 0, 0), "expected one of hxq, hxq-segments, g8");
  expect_invalid(profile("g4", 5, 0), "how many bits");
  expect_invalid(profile("hxq", 0, 32), "no choice of bits or groups");
  expect_invalid(profile(nullptr, 9, 0), "9 bits");
  expect_invalid(profile("g4", 0, 12), "a multiple of 8");
  expect_invalid(profile("g4", 0, 0, 0.01), "no effect");
  const hxq_tensor vector = tensor("w", HXQ_F32, {1024}, source.data());
  expect_invalid(hxq_encode(&vector, nullptr, &made, nullptr), "shape is [1024]");
  const hxq_tensor integers = tensor("w", HXQ_I32, {32, 32}, source.data());
  expect_invalid(hxq_encode(&integers, nullptr, &made, nullptr), "dtype is I32");
  std::vector<float> infinite = source;
  infinite[7] = HUGE_VALF;
  const hxq_tensor bad = tensor("w", HXQ_F32, {32, 32}, infinite.data());
  expect_failure(hxq_encode(&bad, nullptr, &made, nullptr), HXQ_BAD_DATA, "'w'");
  EXPECT_EQ(made, nullptr);

  int32_t answer = -7;
  expect_invalid(hxq_would_compress("pope", &good, nullptr, &answer), "role is 'pope'");
  expect_invalid(hxq_would_compress("head", &good, "g9", &answer), "profile is 'g9'");
  expect_invalid(hxq_knows_architecture(nullptr, &answer), "config is null");
  expect_failure(hxq_knows_architecture("{", &answer), HXQ_BAD_DATA, "config.json");
  expect_invalid(hxq_would_compress("head", nullptr, nullptr, &answer), "tensor is null");
  const hxq_tensor negative = tensor("w", HXQ_F32, {-2, 32}, nullptr);
  expect_invalid(hxq_would_compress("head", &negative, nullptr, &answer), "shape is [-2, 32]");
  EXPECT_EQ(answer, -7);
  hxq_tensor part = {};
  ASSERT_OK(hxq_encode(&good, nullptr, &made, nullptr));
  const EncodedHandle encoded(made);
  expect_invalid(hxq_encoded_part(made, 99, &part), "part 99");
  expect_invalid(hxq_encoded_part(made, 0, nullptr), "part is null");
}

class SequenceOperations : public ::testing::Test {
 protected:
  ContextHandle context_ = make_context();
  std::vector<float> in_ = random_floats(4096, 1);
  std::vector<float> y_ = std::vector<float>(4096, -7.0f);
  std::vector<float> untouched_ = y_;

  void refused(hxq_status status, const std::string& part) {
    expect_invalid(status, part);
    EXPECT_EQ(y_, untouched_);
  }
};

TEST_F(SequenceOperations, Conv) {
  const hxq_conv_args good = {
      .batch = 1, .tokens = 3, .channels = 8, .width = 4, .x = {in_.data(), 0}, .weight = in_.data(), .y = y_.data()};
  const auto with = [&](auto change) {
    hxq_conv_args args = good;
    change(args);
    return hxq_causal_conv1d(context_.get(), &args);
  };
  refused(hxq_causal_conv1d(nullptr, &good), "context is null");
  refused(hxq_causal_conv1d(context_.get(), nullptr), "args is null");
  refused(with([](auto& a) { a.batch = 0; }), "batch is 0");
  refused(with([](auto& a) { a.tokens = -3; }), "tokens is -3");
  refused(with([](auto& a) { a.channels = kHuge; }), "no memory holds");
  refused(with([](auto& a) { a.width = 0; }), "width is 0");
  refused(with([](auto& a) { a.x.data = nullptr; }), "x is null");
  refused(with([](auto& a) { a.x.stride = 7; }), "the stride of x is 7");
  refused(with([](auto& a) { a.weight = nullptr; }), "weight is null");
  refused(with([](auto& a) { a.y = nullptr; }), "y is null");
  refused(with([&](auto& a) {
            a.state = y_.data();
            a.state_rows = 2;
          }),
          "state_rows is 2, expected 3 or 4");
  hxq_conv_gradients gradients = {in_.data(), y_.data(), y_.data(), y_.data()};
  refused(hxq_causal_conv1d_gradient(context_.get(), &good, &gradients), "y must be null");
  hxq_conv_args without = good;
  without.y = nullptr;
  refused(hxq_causal_conv1d_gradient(context_.get(), &without, nullptr), "gradients is null");
  gradients.dweight = nullptr;
  refused(hxq_causal_conv1d_gradient(context_.get(), &without, &gradients), "dweight is null");
}

TEST_F(SequenceOperations, Scan) {
  const float* in = in_.data();
  const hxq_scan_args good = {.batch = 1,
                              .tokens = 3,
                              .channels = 8,
                              .state_size = 4,
                              .u = in,
                              .dt = in,
                              .b = {in, 0},
                              .c = {in, 0},
                              .z = {in, 0},
                              .a = in,
                              .d = in,
                              .y = y_.data()};
  const auto with = [&](auto change) {
    hxq_scan_args args = good;
    change(args);
    return hxq_selective_scan(context_.get(), &args);
  };
  refused(hxq_selective_scan(context_.get(), nullptr), "args is null");
  refused(with([](auto& a) { a.state_size = 0; }), "state_size is 0");
  refused(with([](auto& a) { a.tokens = kHuge; }), "no memory holds");
  refused(with([](auto& a) { a.u = nullptr; }), "u is null");
  refused(with([](auto& a) { a.dt = nullptr; }), "dt is null");
  refused(with([](auto& a) { a.b.data = nullptr; }), "b is null");
  refused(with([](auto& a) { a.c.data = nullptr; }), "c is null");
  refused(with([](auto& a) { a.z.data = nullptr; }), "z is null");
  refused(with([](auto& a) { a.a = nullptr; }), "a is null");
  refused(with([](auto& a) { a.d = nullptr; }), "d is null");
  refused(with([](auto& a) { a.y = nullptr; }), "y is null");
  refused(with([](auto& a) { a.b.stride = 3; }), "the stride of b is 3");
  refused(with([](auto& a) { a.c.stride = 5; }), "different strides");
  refused(with([](auto& a) { a.z.stride = 7; }), "the stride of z is 7");
  float* y = y_.data();
  hxq_scan_gradients gradients = {in, y, y, y, y, y, y, y, y};
  refused(hxq_selective_scan_gradient(context_.get(), &good, &gradients), "y must be null");
  hxq_scan_args without = good;
  without.y = nullptr;
  gradients.da_log = nullptr;
  refused(hxq_selective_scan_gradient(context_.get(), &without, &gradients), "da_log is null");
  refused(hxq_selective_scan_gradient(context_.get(), &without, nullptr), "gradients is null");
  refused(hxq_decay_rates(context_.get(), nullptr, 4, 4, y), "a_log is null");
  refused(hxq_decay_rates(context_.get(), in, 0, 4, y), "channels is 0");
  refused(hxq_decay_rates(nullptr, in, 4, 4, y), "context is null");
}

TEST_F(SequenceOperations, Ssd) {
  const float* in = in_.data();
  const hxq_ssd_args good = {.batch = 1,
                             .tokens = 3,
                             .heads = 4,
                             .head_dim = 2,
                             .groups = 2,
                             .state_size = 4,
                             .xbc = {in, 0},
                             .dt = {in, 0},
                             .z = {in, 0},
                             .dt_bias = in,
                             .dt_max = 1,
                             .a_log = in,
                             .d = in,
                             .y = y_.data()};
  const auto with = [&](auto change) {
    hxq_ssd_args args = good;
    change(args);
    return hxq_ssd(context_.get(), &args);
  };
  refused(hxq_ssd(context_.get(), nullptr), "args is null");
  refused(with([](auto& a) { a.heads = 0; }), "heads is 0");
  refused(with([](auto& a) { a.head_dim = kHuge; }), "no memory holds");
  refused(with([](auto& a) { a.groups = 3; }), "4 heads are not a multiple of 3 groups");
  refused(with([](auto& a) { a.groups = 0; }), "groups is 0");
  refused(with([](auto& a) { a.xbc.stride = 23; }), "the stride of xbc is 23, its rows have 24");
  refused(with([](auto& a) { a.dt.stride = 1; }), "the stride of dt is 1");
  refused(with([](auto& a) { a.z.data = nullptr; }), "z is null");
  refused(with([](auto& a) { a.dt_bias = nullptr; }), "dt_bias is null");
  refused(with([](auto& a) { a.a_log = nullptr; }), "a_log is null");
  refused(with([](auto& a) { a.y = nullptr; }), "y is null");
  refused(with([](auto& a) { a.dt_min = 2; }), "dt_min is 2, expected no more than dt_max, 1");
  refused(with([](auto& a) { a.dt_max = NAN; }), "dt_min is 0");
  float* y = y_.data();
  hxq_ssd_gradients gradients = {in, y, y, y, y, y, nullptr};
  hxq_ssd_args without = good;
  without.y = nullptr;
  refused(hxq_ssd_gradient(context_.get(), &without, &gradients), "ddt_bias is null");
  refused(hxq_ssd_gradient(context_.get(), &good, &gradients), "y must be null");
}

/// A pointer that is `bytes` beside where numbers of its type can lie.
template <class T>
T* beside(T* pointer, size_t bytes) {
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(pointer) + bytes);
}

TEST_F(Products, AddressesAreAligned) {
  const hxq_linear_args good = {.tokens = 1, .x = {x_.data(), HXQ_F32, 0}, .y = out_};
  const auto with = [&](auto change) {
    hxq_linear_args args = good;
    change(args);
    return hxq_linear(context_.get(), m_.handle.get(), &args);
  };
  refused(with([&](auto& a) { a.x.data = beside(x_.data(), 2); }), "x is not aligned to 4 bytes");
  refused(with([&](auto& a) { a.x = {beside(x_.data(), 1), HXQ_F16, 0}; }), "x is not aligned to 2 bytes");
  refused(with([&](auto& a) { a.y.data = beside(y_.data(), 1); }), "y is not aligned to 4 bytes");
  refused(with([&](auto& a) { a.bias = beside(x_.data(), 3); }), "bias is not aligned");
  refused(hxq_gather_rows(context_.get(), m_.handle.get(), 1, beside(ids_.data(), 4), &out_),
          "ids is not aligned to 8");
  const hxq_output_rows out = {beside(y_.data(), 2), HXQ_F32, 0};
  refused(hxq_decode(context_.get(), m_.handle.get(), &out), "out is not aligned");
  refused(hxq_codebook_gradient(context_.get(), m_.handle.get(), 1, beside(x_.data(), 1), x_.data(), y_.data()),
          "x is not aligned");
  // Halves need no more than two bytes.
  EXPECT_OK(with([&](auto& a) { a.x = {beside(x_.data(), 2), HXQ_F16, 0}; }));
}

TEST_F(SequenceOperations, AddressesAreAligned) {
  float* in = in_.data();
  const hxq_conv_args conv = {.batch = 1,
                              .tokens = 3,
                              .channels = 8,
                              .width = 4,
                              .x = {in, 0},
                              .weight = in,
                              .state = beside(in, 2),
                              .state_rows = 3,
                              .y = y_.data()};
  refused(hxq_causal_conv1d(context_.get(), &conv), "state is not aligned to 4 bytes");
  refused(hxq_decay_rates(context_.get(), beside(in, 1), 4, 4, y_.data()), "a_log is not aligned");
}

/// Tensors lie as files have them, which align nothing.
TEST(Misuse, PartsOfMatricesNeedNoAlignment) {
  const SmallMatrix m;
  std::vector<std::vector<char>> memory;
  std::vector<hxq_tensor> parts = m.parts;
  for (hxq_tensor& part : parts) {
    const size_t size = part.dtype == HXQ_U8 ? 1 : part.dtype == HXQ_F32 ? 4 : 8;
    const size_t bytes = size * static_cast<size_t>(part.shape[0] * (part.rank == 2 ? part.shape[1] : 1));
    memory.emplace_back(bytes + 1);
    part.data = std::memcpy(memory.back().data() + 1, part.data, bytes);
  }
  hxq_matrix* made = nullptr;
  ASSERT_OK(hxq_matrix_create("m", parts.data(), parts.size(), kRows, kCols, &made));
  const MatrixHandle handle(made);
  const ContextHandle context = make_context();
  std::vector<float> found(kRows * kCols);
  const hxq_output_rows out = {found.data(), HXQ_F32, 0};
  EXPECT_OK(hxq_decode(context.get(), made, &out));
  for (size_t i = 0; i < found.size(); ++i) EXPECT_EQ(found[i], static_cast<float>(m.weights[i]));
}

}  // namespace
}  // namespace hxq::testing
