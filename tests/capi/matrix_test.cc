#include <algorithm>

#include "capi_test_support.h"
#include "codec/codebook/encode.h"
#include "io/half.h"

extern "C" hxq_status hxq_header_products(const char* name, const hxq_tensor* parts, size_t count, const float* x,
                                          float* y);

namespace hxq::testing {
namespace {

/// x W^T + bias in double.
std::vector<double> product(const SmallMatrix& m, const std::vector<float>& x, const float* bias) {
  std::vector<double> y;
  for (size_t t = 0; t < x.size() / kCols; ++t) {
    for (int64_t r = 0; r < kRows; ++r) {
      double sum = bias == nullptr ? 0.0 : bias[r];
      for (int64_t c = 0; c < kCols; ++c) sum += m.weight(r, c) * x[t * kCols + static_cast<size_t>(c)];
      y.push_back(sum);
    }
  }
  return y;
}

TEST(Matrix, TellsWhatItIs) {
  const SmallMatrix m;
  hxq_matrix_info info = {};
  ASSERT_OK(hxq_matrix_get_info(m.handle.get(), &info));
  EXPECT_EQ(info.rows, kRows);
  EXPECT_EQ(info.cols, kCols);
  EXPECT_EQ(info.codewords, 16);
  EXPECT_EQ(info.vector_dim, 1);
  EXPECT_EQ(info.outliers, 3);
  EXPECT_EQ(info.rank, 0);
  EXPECT_GE(info.bytes, kRows * kCols);
}

TEST(Matrix, MultipliesInEveryPhaseAndPrecision) {
  const SmallMatrix m;
  const std::vector<float> bias = random_floats(kRows, 4);
  for (const int64_t tokens : {1, 3, 40, 200}) {
    const std::vector<float> x = random_floats(tokens * kCols, 3);
    const std::vector<double> expected = product(m, x, bias.data());
    for (const int32_t phase : {HXQ_PREFILL, HXQ_DECODE}) {
      for (const int32_t precision : {HXQ_FAST, HXQ_EXACT}) {
        std::vector<float> y(expected.size());
        const hxq_linear_args args = {.tokens = tokens,
                                      .x = {x.data(), HXQ_F32, 0},
                                      .y = {y.data(), HXQ_F32, 0},
                                      .bias = bias.data(),
                                      .phase = phase,
                                      .precision = precision};
        ASSERT_OK(hxq_linear(make_context().get(), m.handle.get(), &args));
        EXPECT_LT(relative_error(y, expected), precision == HXQ_EXACT ? 2e-6 : 4e-3);
      }
    }
  }
}

/// A matrix whose codebook AVX-512 multiplies in whole numbers: fast products round x, exact ones do not.
TEST(Matrix, ExactProductsDoNotRound) {
  const std::vector<float> source = random_floats(64 * 256, 5);
  const hxq_tensor tensor_of = tensor("w", HXQ_F32, {64, 256}, source.data());
  hxq_encoded* made = nullptr;
  ASSERT_OK(hxq_encode(&tensor_of, nullptr, &made, nullptr));
  const EncodedHandle encoded(made);
  std::vector<hxq_tensor> parts(hxq_encoded_count(made));
  for (size_t i = 0; i < parts.size(); ++i) ASSERT_OK(hxq_encoded_part(made, i, &parts[i]));
  hxq_matrix* matrix = nullptr;
  ASSERT_OK(hxq_matrix_create("w", parts.data(), parts.size(), 64, 256, &matrix));
  const MatrixHandle handle(matrix);
  std::vector<float> dense(64 * 256);
  const ContextHandle context = make_context();
  const hxq_output_rows out = {dense.data(), HXQ_F32, 0};
  ASSERT_OK(hxq_decode(context.get(), matrix, &out));
  const int64_t tokens = 300;
  const std::vector<float> x = random_floats(tokens * 256, 6);
  std::vector<float> y(tokens * 64);
  std::vector<double> expected;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = 0; r < 64; ++r) {
      double sum = 0;
      for (int64_t c = 0; c < 256; ++c) sum += static_cast<double>(dense[r * 256 + c]) * x[t * 256 + c];
      expected.push_back(sum);
    }
  }
  hxq_linear_args args = {.tokens = tokens, .x = {x.data(), HXQ_F32, 0}, .y = {y.data(), HXQ_F32, 0}};
  args.precision = HXQ_EXACT;
  ASSERT_OK(hxq_linear(context.get(), matrix, &args));
  EXPECT_LT(relative_error(y, expected), 2e-6);
}

TEST(Matrix, TakesHalvesAndStrides) {
  const SmallMatrix m;
  const int64_t tokens = 5;
  const int64_t x_stride = kCols + 3;
  const int64_t y_stride = kRows + 2;
  std::vector<float> x = random_floats(tokens * kCols, 3);
  for (const int32_t dtype : {HXQ_F16, HXQ_BF16}) {
    std::vector<uint16_t> halves(tokens * x_stride, 0x7fff);  // NaN between the rows
    for (size_t i = 0; i < x.size(); ++i) {
      const uint16_t half = dtype == HXQ_F16 ? f16_from_float(x[i]) : bf16_from_float(x[i]);
      halves[i / kCols * x_stride + i % kCols] = half;
      x[i] = dtype == HXQ_F16 ? float_from_f16(half) : float_from_bf16(half);
    }
    std::vector<float> y(tokens * y_stride, -1.0f);
    const hxq_linear_args args = {.tokens = tokens,
                                  .x = {halves.data(), dtype, x_stride},
                                  .y = {y.data(), HXQ_F32, y_stride},
                                  .precision = HXQ_EXACT};
    ASSERT_OK(hxq_linear(make_context().get(), m.handle.get(), &args));
    const std::vector<double> expected = product(m, x, nullptr);
    for (int64_t t = 0; t < tokens; ++t) {
      for (int64_t r = 0; r < kRows; ++r) EXPECT_NEAR(y[t * y_stride + r], expected[t * kRows + r], 1e-4);
      EXPECT_EQ(y[t * y_stride + kRows], -1.0f);
    }
  }
}

TEST(Matrix, TransposedIsTheGradientOfX) {
  const SmallMatrix m;
  const int64_t tokens = 7;
  const int64_t stride = kRows + 5;
  const std::vector<float> g = random_floats(tokens * stride, 3);
  std::vector<float> dx(tokens * kCols);
  const hxq_rows from = {g.data(), HXQ_F32, stride};
  const hxq_output_rows to = {dx.data(), HXQ_F32, 0};
  ASSERT_OK(hxq_linear_transposed(make_context().get(), m.handle.get(), tokens, &from, &to));
  std::vector<double> expected(dx.size());
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = 0; r < kRows; ++r) {
      for (int64_t c = 0; c < kCols; ++c) expected[t * kCols + c] += g[t * stride + r] * m.weight(r, c);
    }
  }
  EXPECT_LT(relative_error(dx, expected), 2e-6);
}

TEST(Matrix, CodebookGradientsSumOverTheWeightsThatTakeAnEntry) {
  const SmallMatrix m;
  const int64_t tokens = 7;
  const std::vector<float> x = random_floats(tokens * kCols, 3);
  const std::vector<float> g = random_floats(tokens * kRows, 4);
  std::vector<double> expected(16);
  for (int64_t i = 0; i < kRows * kCols; ++i) {
    if (std::ranges::count(m.positions, i) > 0) continue;
    for (int64_t t = 0; t < tokens; ++t) {
      expected[m.indices[i]] += static_cast<double>(g[t * kRows + i / kCols]) * x[t * kCols + i % kCols];
    }
  }
  std::vector<float> gradient(16);
  ASSERT_OK(hxq_codebook_gradient(make_context().get(), m.handle.get(), tokens, x.data(), g.data(), gradient.data()));
  EXPECT_LT(relative_error(gradient, expected), 5e-6);
}

TEST(Matrix, GathersRowsAndTheirGradient) {
  const SmallMatrix m;
  const std::vector<int64_t> ids = {36, 0, 0, 5};
  std::vector<float> rows(ids.size() * kCols);
  const hxq_output_rows out = {rows.data(), HXQ_F32, 0};
  ASSERT_OK(hxq_gather_rows(make_context().get(), m.handle.get(), 4, ids.data(), &out));
  const std::vector<float> g = random_floats(4 * kCols, 3);
  std::vector<double> expected(16);
  for (size_t i = 0; i < rows.size(); ++i) {
    const int64_t weight = ids[i / kCols] * kCols + static_cast<int64_t>(i % kCols);
    EXPECT_EQ(rows[i], static_cast<float>(m.weights[weight]));
    if (std::ranges::count(m.positions, weight) == 0) expected[m.indices[weight]] += g[i];
  }
  std::vector<float> gradient(16);
  ASSERT_OK(hxq_gather_gradient(make_context().get(), m.handle.get(), 4, ids.data(), g.data(), gradient.data()));
  EXPECT_LT(relative_error(gradient, expected), 5e-6);
}

TEST(Matrix, Decodes) {
  const SmallMatrix m;
  std::vector<float> dense(kRows * kCols);
  const hxq_output_rows out = {dense.data(), HXQ_F32, 0};
  ASSERT_OK(hxq_decode(make_context().get(), m.handle.get(), &out));
  EXPECT_EQ(relative_error(dense, m.weights), 0);
  std::vector<uint16_t> halves(kRows * kCols);
  const hxq_output_rows half_out = {halves.data(), HXQ_BF16, 0};
  ASSERT_OK(hxq_decode(make_context().get(), m.handle.get(), &half_out));
  for (size_t i = 0; i < halves.size(); ++i) EXPECT_EQ(halves[i], bf16_from_float(dense[i]));
}

TEST(Matrix, CProgramsMultiply) {
  const SmallMatrix m;
  const std::vector<float> x = random_floats(kCols, 3);
  std::vector<float> y(kRows);
  ASSERT_OK(hxq_header_products("m", m.parts.data(), m.parts.size(), x.data(), y.data()));
  EXPECT_LT(relative_error(y, product(m, x, nullptr)), 2e-6);
}

TEST(Encode, TakesARank) {
  const std::vector<float> source = random_floats(48 * 40, 9);
  const hxq_tensor given = tensor("w", HXQ_F32, {48, 40}, source.data());
  hxq_encode_options options;
  hxq_encode_options_init(&options);
  for (const auto& [asked, stored, profile] :
       {std::tuple(-1, 0, "hxq"), {0, 0, "hxq"}, {2, 2, "hxq"}, {2, 2, "g4"}, {-1, 0, "g4"}}) {
    options.low_rank = asked;
    options.profile = profile;
    hxq_encoded* made = nullptr;
    ASSERT_OK(hxq_encode(&given, &options, &made, nullptr));
    const EncodedHandle encoded(made);
    int64_t rank = 0;
    for (size_t i = 0; i < hxq_encoded_count(made); ++i) {
      hxq_tensor part = {};
      ASSERT_OK(hxq_encoded_part(made, i, &part));
      if (std::string_view(part.name) == "svd_s") rank = part.shape[0];
    }
    EXPECT_EQ(rank, stored) << asked;
  }
  for (const int wrong : {-2, 65}) {
    options.low_rank = wrong;
    hxq_encoded* made = nullptr;
    expect_invalid(hxq_encode(&given, &options, &made, nullptr), "expected -1 to 64");
  }
}

TEST(Encode, GivesTheBytesOfTheLibrary) {
  const std::vector<float> source = random_floats(48 * 40, 9);
  const hxq_tensor given = tensor("w", HXQ_F32, {48, 40}, source.data());
  hxq_encode_options options;
  hxq_encode_options_init(&options);
  options.sidecar_fraction = 0.01;
  options.max_codewords = 32;
  hxq_encoded* made = nullptr;
  hxq_fidelity fidelity = {};
  ASSERT_OK(hxq_encode(&given, &options, &made, &fidelity));
  const EncodedHandle encoded(made);
  const EncodedTensor expected = encode_codebook({DType::f32, {48, 40}, std::as_bytes(std::span(source))},
                                                 {.sidecar_fraction = 0.01, .max_codewords = 32});
  ASSERT_EQ(hxq_encoded_count(made), expected.parts.size());
  for (size_t i = 0; i < expected.parts.size(); ++i) {
    hxq_tensor part = {};
    ASSERT_OK(hxq_encoded_part(made, i, &part));
    const auto& plane = expected.parts[i];
    EXPECT_EQ(part.name, plane.suffix);
    EXPECT_EQ(part.dtype, static_cast<int32_t>(plane.dtype));
    EXPECT_TRUE(
        std::ranges::equal(plane.bytes, std::span(static_cast<const std::byte*>(part.data), plane.bytes.size())));
  }
  EXPECT_EQ(fidelity.outliers, expected.outliers);
  EXPECT_DOUBLE_EQ(fidelity.snr_db, expected.fidelity.snr_db());
}

TEST(Encode, TakesAProfile) {
  char* json = nullptr;
  ASSERT_OK(hxq_profiles(&json));
  const Text profiles(json);
  EXPECT_EQ(std::string(json).find(R"([{"bits":8,"group":0,"name":"hxq","quant_method":"hxq"})"), 0u) << json;
  const std::vector<float> source = random_floats(48 * 40, 9);
  const hxq_tensor given = tensor("w", HXQ_F32, {48, 40}, source.data());
  hxq_encode_options options;
  hxq_encode_options_init(&options);
  options.profile = "g6";
  options.group = 16;
  hxq_encoded* made = nullptr;
  ASSERT_OK(hxq_encode(&given, &options, &made, nullptr));
  const EncodedHandle encoded(made);
  const EncodedTensor expected = encoder_of("grouped").encode({DType::f32, {48, 40}, std::as_bytes(std::span(source))},
                                                              {.bits = 6, .group = 16, .threads = 2});
  ASSERT_EQ(hxq_encoded_count(made), expected.parts.size());
  for (size_t i = 0; i < expected.parts.size(); ++i) {
    hxq_tensor part = {};
    ASSERT_OK(hxq_encoded_part(made, i, &part));
    const EncodedPart& written = expected.parts[i];
    EXPECT_EQ(part.name, written.suffix);
    EXPECT_TRUE(
        std::ranges::equal(written.bytes, std::span(static_cast<const std::byte*>(part.data), written.bytes.size())));
  }
}

TEST(Encode, ThePolicyAnswers) {
  int32_t answer = -1;
  const hxq_tensor large = tensor(nullptr, HXQ_BF16, {512, 512}, nullptr);
  ASSERT_OK(hxq_would_compress("projection", &large, nullptr, &answer));
  EXPECT_EQ(answer, 1);
  const hxq_tensor integers = tensor(nullptr, HXQ_I64, {512, 512}, nullptr);
  ASSERT_OK(hxq_would_compress("projection", &integers, nullptr, &answer));
  EXPECT_EQ(answer, 0);
  const hxq_tensor narrow = tensor(nullptr, HXQ_F32, {16, 512}, nullptr);
  for (const char* role : {"projection", static_cast<const char*>(nullptr)}) {
    ASSERT_OK(hxq_would_compress(role, &narrow, nullptr, &answer));
    EXPECT_EQ(answer, role != nullptr);
  }
  const hxq_tensor small = tensor(nullptr, HXQ_BF16, {16, 64}, nullptr);  // a codebook of its own outweighs the gain
  for (const char* profile : {"g4", "hxq"}) {
    ASSERT_OK(hxq_would_compress("projection", &small, profile, &answer));
    EXPECT_EQ(answer, profile == std::string("g4"));
  }
  for (const char* config : {R"({"model_type": "llama"})", R"({"model_type": "bert"})"}) {
    ASSERT_OK(hxq_knows_architecture(config, &answer));
    EXPECT_EQ(answer, std::string(config).find("llama") != std::string::npos);
  }
}

}  // namespace
}  // namespace hxq::testing
