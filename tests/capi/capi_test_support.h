#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "hxq/c_api.h"

namespace hxq::testing {

template <class T, void (*destroy)(T*)>
struct Destroy {
  void operator()(T* handle) const { destroy(handle); }
};
template <class T, void (*destroy)(T*)>
using Handle = std::unique_ptr<T, Destroy<T, destroy>>;

using ContextHandle = Handle<hxq_context, hxq_context_destroy>;
using MatrixHandle = Handle<hxq_matrix, hxq_matrix_destroy>;
using EncodedHandle = Handle<hxq_encoded, hxq_encoded_destroy>;
using ModelHandle = Handle<hxq_model, hxq_model_destroy>;
using SequenceHandle = Handle<hxq_sequence, hxq_sequence_destroy>;
using Text = Handle<char, hxq_free>;

#define EXPECT_OK(call) EXPECT_EQ((call), HXQ_OK) << hxq_last_error()
#define ASSERT_OK(call) ASSERT_EQ((call), HXQ_OK) << hxq_last_error()

/// The call fails with that status, and its line has `part` in it.
inline void expect_failure(hxq_status status, hxq_status expected, const std::string& part) {
  EXPECT_EQ(status, expected) << hxq_last_error();
  EXPECT_NE(std::string(hxq_last_error()).find(part), std::string::npos)
      << "'" << hxq_last_error() << "' does not say '" << part << "'";
}
inline void expect_invalid(hxq_status status, const std::string& part) {
  expect_failure(status, HXQ_INVALID_ARGUMENT, part);
}

inline ContextHandle make_context(int32_t threads = 2, const char* target = nullptr) {
  hxq_context* context = nullptr;
  EXPECT_OK(hxq_context_create(threads, target, &context));
  return ContextHandle(context);
}

inline std::vector<float> random_floats(int64_t count, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(random);
  return values;
}

inline hxq_tensor tensor(const char* name, int32_t dtype, std::vector<int64_t> shape, const void* data) {
  hxq_tensor made = {};
  made.name = name;
  made.dtype = dtype;
  made.rank = static_cast<int32_t>(shape.size());
  for (size_t i = 0; i < shape.size() && i < 4; ++i) made.shape[i] = shape[i];
  made.data = data;
  return made;
}

/// A small matrix of random indices with outliers, and its weights.
struct SmallMatrix {
  static constexpr int64_t kRows = 37;
  static constexpr int64_t kCols = 64;

  std::vector<float> codebook = random_floats(16, 1);
  std::vector<uint8_t> indices = std::vector<uint8_t>(kRows * kCols);
  std::vector<int64_t> positions = {5, 700, 2000};
  std::vector<float> values = {4.0f, -3.0f, 2.5f};
  std::vector<hxq_tensor> parts;
  std::vector<double> weights;
  MatrixHandle handle;

  SmallMatrix() {
    std::mt19937 random(2);
    for (uint8_t& index : indices) index = static_cast<uint8_t>(random() % 16);
    for (const uint8_t index : indices) weights.push_back(codebook[index]);
    for (size_t i = 0; i < positions.size(); ++i) weights[static_cast<size_t>(positions[i])] = values[i];
    parts = {tensor("codebook", HXQ_F32, {16}, codebook.data()),
             tensor("indices", HXQ_U8, {kRows, kCols}, indices.data()),
             tensor("sidecar_positions", HXQ_I64, {3}, positions.data()),
             tensor("sidecar_values", HXQ_F32, {3}, values.data())};
    hxq_matrix* made = nullptr;
    EXPECT_OK(hxq_matrix_create("m", parts.data(), parts.size(), kRows, kCols, &made));
    handle.reset(made);
  }

  double weight(int64_t row, int64_t col) const { return weights[static_cast<size_t>(row * kCols + col)]; }
};

constexpr int64_t kRows = SmallMatrix::kRows;
constexpr int64_t kCols = SmallMatrix::kCols;

/// Largest difference, as a share of the largest expected value.
template <class A, class B>
double relative_error(const A& found, const B& expected) {
  EXPECT_EQ(found.size(), expected.size());
  double error = 0;
  double size = 1e-30;
  for (size_t i = 0; i < found.size(); ++i) {
    const double difference = std::abs(static_cast<double>(found[i]) - static_cast<double>(expected[i]));
    error = difference <= error ? error : difference;  // NaN counts
    size = std::max(size, std::abs(static_cast<double>(expected[i])));
  }
  return error / size;
}

}  // namespace hxq::testing
