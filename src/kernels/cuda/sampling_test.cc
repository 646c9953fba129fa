#include "kernels/cuda/sampling.h"

#include <algorithm>

#include "kernels/cuda/test_device.h"

namespace hxq::cuda {
namespace {

using namespace testing;

constexpr float kInfinity = INFINITY;

/// By a plain loop: the first of the largest.
int32_t expected_token(const float* row, int64_t vocabulary) {
  int64_t token = 0;
  for (int64_t i = 0; i < vocabulary; ++i) {
    if (std::isnan(row[i])) return -1;
    if (row[i] > row[token]) token = i;
  }
  return std::isinf(row[token]) ? -1 : static_cast<int32_t>(token);
}

/// What the kernel chooses of each row, rows `gap` elements apart.
std::vector<int32_t> choose(const std::vector<float>& logits, int64_t rows, int64_t vocabulary, int64_t gap,
                            DType dtype) {
  const DeviceRows on_device(logits, rows, vocabulary, gap, dtype);
  const DeviceArray<int32_t> tokens(static_cast<size_t>(rows));
  HXQ_EXPECT_OK(most_likely(
      {.logits = on_device.input(), .rows = rows, .vocabulary = vocabulary, .token = tokens.data()}, nullptr));
  expect_finished();
  return tokens.values();
}

void expect_choices(const std::vector<float>& logits, int64_t rows, int64_t vocabulary, int64_t gap, DType dtype,
                    const std::string& what) {
  const std::vector<int32_t> got = choose(logits, rows, vocabulary, gap, dtype);
  for (int64_t r = 0; r < rows; ++r) {
    EXPECT_EQ(got[static_cast<size_t>(r)], expected_token(logits.data() + r * vocabulary, vocabulary))
        << what << ": row " << r << " of " << rows << " x " << vocabulary << ", gap " << gap;
  }
}

TEST(CudaSampling, TakesTheFirstOfTheLargest) {
  HXQ_NEEDS_GPU();
  Random random(6);
  for (const int64_t vocabulary : {1, 2, 3, 31, 700, 8191, 8192, 8193, 50280, 50257, 128256, 151936}) {
    for (const int64_t rows : {1, 3, 64}) {
      for (const DType dtype : {DType::f32, DType::bf16, DType::f16}) {
        if (rows == 64 && dtype != DType::f32) continue;
        // Of BF16 equal ones are common.
        const auto logits = random.normals(static_cast<size_t>(rows * vocabulary), DType::bf16);
        for (const int64_t gap : {0, 3, 4}) expect_choices(logits, rows, vocabulary, gap, dtype, "random");
      }
    }
  }
}

TEST(CudaSampling, TakesTheFirstWhereverItIs) {
  HXQ_NEEDS_GPU();
  const int64_t vocabulary = 20011;
  Random random(7);
  std::vector<int64_t> places = {0, 1, 2, 3, 4, 5, 511, 512, 2047, 2048, 8191, 8192, 16384, 20007, 20008, 20009, 20010};
  std::vector<float> logits;
  for (const int64_t place : places) {  // the same value there and in all that follow
    auto row = random.normals(static_cast<size_t>(vocabulary), DType::f32);
    std::fill(row.begin() + place, row.end(), 100.0f);
    logits.insert(logits.end(), row.begin(), row.end());
  }
  for (const int64_t gap : {0, 1}) {
    expect_choices(logits, std::ssize(places), vocabulary, gap, DType::f32, "equal ones");
    const std::vector<int32_t> got = choose(logits, std::ssize(places), vocabulary, gap, DType::f32);
    for (size_t i = 0; i < places.size(); ++i) EXPECT_EQ(got[i], places[i]);
  }
}

TEST(CudaSampling, RefusesWhatIsNotFinite) {
  HXQ_NEEDS_GPU();
  for (const int64_t vocabulary : {1, 5, 50280, 50257}) {
    Random random(8);
    const auto last = static_cast<size_t>(vocabulary - 1);
    std::vector<std::vector<float>> rows(11, random.normals(static_cast<size_t>(vocabulary), DType::f32));
    std::ranges::fill(rows[0], -kInfinity);
    std::ranges::fill(rows[1], NAN);
    rows[2][0] = NAN;
    rows[3][last] = NAN;
    rows[4][last / 2] = std::copysign(NAN, -1.0f);
    rows[5][last] = kInfinity;
    rows[6][0] = -kInfinity;  // which never hinders the others
    std::ranges::fill(rows[7], -kInfinity);
    rows[7][last] = -1e30f;
    std::ranges::fill(rows[8], -0.0f);  // equal to the other zero
    rows[8][last] = 0.0f;
    std::ranges::fill(rows[9], std::numeric_limits<float>::lowest());
    std::ranges::fill(rows[10], -std::numeric_limits<float>::denorm_min());
    std::vector<float> logits;
    for (const std::vector<float>& row : rows) logits.insert(logits.end(), row.begin(), row.end());
    for (const int64_t gap : {0, 3}) expect_choices(logits, 11, vocabulary, gap, DType::f32, "not finite");
    const std::vector<int32_t> got = choose(logits, 11, vocabulary, 0, DType::f32);
    for (const size_t row : {0, 1, 2, 3, 4, 5}) EXPECT_EQ(got[row], -1) << row;
    EXPECT_EQ(got[8], 0);
    EXPECT_EQ(got[9], 0);
  }
}

TEST(CudaSampling, RefusesSizesThatItDoesNotTake) {
  const float logit = 0;
  int32_t token = 0;
  const auto status = [&](int64_t rows, int64_t vocabulary) {
    return most_likely(
        {.logits = {.data = &logit, .stride = 1}, .rows = rows, .vocabulary = vocabulary, .token = &token}, nullptr);
  };
  EXPECT_EQ(status(1, 0), Status::invalid_value);
  EXPECT_EQ(status(-1, 1), Status::invalid_value);
  EXPECT_EQ(status(1, int64_t{1} << 31), Status::invalid_value);
  EXPECT_EQ(status(0, 1), Status::ok);
}

}  // namespace
}  // namespace hxq::cuda
