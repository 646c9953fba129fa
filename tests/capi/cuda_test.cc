// Functions for GPUs as far as they go without one: what is checked before anything is launched, and the arrays that a
// matrix wants beside its indices. Their results are tested from Python, where there is a GPU.

#include <cstring>

#include "capi_test_support.h"
#include "hxq/cuda_c_api.h"

namespace hxq::testing {
namespace {

using CudaMatrixHandle = Handle<hxq_cuda_matrix, hxq_cuda_matrix_destroy>;

CudaMatrixHandle make(const SmallMatrix& m) {
  hxq_cuda_matrix* made = nullptr;
  EXPECT_OK(hxq_cuda_matrix_create("m", m.parts.data(), m.parts.size(), SmallMatrix::kRows, SmallMatrix::kCols, &made));
  return CudaMatrixHandle(made);
}

TEST(Cuda, AMatrixIsCheckedAsOnTheCpu) {
  const SmallMatrix m;
  hxq_cuda_matrix* made = nullptr;
  std::vector<hxq_tensor> parts = m.parts;
  parts[0].shape[0] = 3;
  expect_failure(hxq_cuda_matrix_create("m", parts.data(), parts.size(), 0, 0, &made), HXQ_BAD_DATA,
                 "expected less than 3");
  expect_invalid(hxq_cuda_matrix_create(nullptr, m.parts.data(), m.parts.size(), 0, 0, &made), "name is null");
  expect_invalid(hxq_cuda_matrix_create("m", m.parts.data(), m.parts.size(), 0, 0, nullptr), "matrix is null");
  EXPECT_EQ(made, nullptr);
}

TEST(Cuda, AGroupedMatrixHasArraysAndNoCodebook) {
  const std::vector<uint8_t> zeros(6);
  const std::vector<float> levels(8, 1.0f);
  const std::vector<int64_t> shape = {8, 8};
  const std::vector<hxq_tensor> parts = {
      tensor("grouped_indices", HXQ_U8, {2, 3}, zeros.data()), tensor("grouped_levels", HXQ_F32, {8}, levels.data()),
      tensor("grouped_scales", HXQ_U8, {2, 1}, zeros.data()),
      tensor("grouped_scale_levels", HXQ_F32, {1}, levels.data()), tensor("grouped_shape", HXQ_I64, {2}, shape.data())};
  hxq_cuda_matrix* made = nullptr;
  ASSERT_OK(hxq_cuda_matrix_create("m", parts.data(), parts.size(), 0, 0, &made));
  const CudaMatrixHandle matrix(made);
  const void* data = nullptr;
  size_t bytes = 0;
  ASSERT_OK(hxq_cuda_matrix_arrays(made, &data, &bytes));
  EXPECT_GE(bytes, (8 + 256) * sizeof(float) + 2);  // levels, scale levels and scales
  EXPECT_EQ(std::memcmp(data, levels.data(), 8 * sizeof(float)), 0);
  float memory[1] = {};
  ASSERT_OK(hxq_cuda_matrix_place(made, memory, memory));
  hxq_cuda_call call = {};
  expect_invalid(hxq_cuda_codebook_gradient(&call, made, 1, memory, memory, memory), "has no codebook");
  const int32_t id = 0;
  expect_invalid(hxq_cuda_gather_gradient(&call, made, 1, &id, memory, memory), "has no codebook");
}

TEST(Cuda, ArraysBeginWithTheCodebook) {
  const SmallMatrix m;
  const CudaMatrixHandle matrix = make(m);
  const void* data = nullptr;
  size_t bytes = 0;
  ASSERT_OK(hxq_cuda_matrix_arrays(matrix.get(), &data, &bytes));
  const size_t levels = static_cast<size_t>(m.parts[0].shape[0]) * sizeof(float);
  ASSERT_GE(bytes, levels);
  EXPECT_EQ(std::memcmp(data, m.parts[0].data, levels), 0);
}

TEST(Cuda, AMatrixIsPlacedOnceAndBeforeItIsUsed) {
  const SmallMatrix m;
  const CudaMatrixHandle matrix = make(m);
  hxq_cuda_call call = {};
  hxq_linear_args args = {};
  expect_invalid(hxq_cuda_linear(&call, matrix.get(), &args), "has not been placed");
  expect_invalid(hxq_cuda_linear(&call, nullptr, &args), "matrix is null");
  float memory[1] = {};
  expect_invalid(hxq_cuda_matrix_place(matrix.get(), nullptr, memory), "indices is null");
  EXPECT_OK(hxq_cuda_matrix_place(matrix.get(), memory, memory));
  expect_invalid(hxq_cuda_matrix_place(matrix.get(), memory, memory), "has been placed");
  expect_invalid(hxq_cuda_linear(nullptr, matrix.get(), &args), "call is null");
  call.device = -1;
  expect_invalid(hxq_cuda_linear(&call, matrix.get(), &args), "device is negative");
}

TEST(Cuda, SizesOfSequencesAreChecked) {
  hxq_cuda_call call = {};
  hxq_conv_args conv = {};
  expect_invalid(hxq_cuda_causal_conv1d(&call, &conv), "batch is 0");
  conv.batch = conv.tokens = conv.channels = 1;
  conv.width = 17;
  expect_invalid(hxq_cuda_causal_conv1d(&call, &conv), "17 taps");
  hxq_scan_args scan = {};
  scan.batch = scan.tokens = scan.channels = 1;
  scan.state_size = 65;
  expect_invalid(hxq_cuda_selective_scan(&call, &scan), "65 states");
  hxq_ssd_args ssd = {};
  ssd.batch = ssd.tokens = ssd.heads = ssd.head_dim = ssd.state_size = 1;
  ssd.groups = 2;
  expect_invalid(hxq_cuda_ssd(&call, &ssd), "1 heads are not a multiple of 2 groups");
}

TEST(Cuda, WhatIsMissingIsOneLine) {
  if (hxq_cuda_check(0) == HXQ_OK) GTEST_SKIP() << "there is a GPU";
  const std::string line = hxq_last_error();
  EXPECT_FALSE(line.empty());
  EXPECT_EQ(line.find('\n'), std::string::npos);
}

}  // namespace
}  // namespace hxq::testing
