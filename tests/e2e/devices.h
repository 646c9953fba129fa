#pragma once

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "refusal.h"

namespace hxq::testing {

/// A model folder of the tests, as it is or compressed, and where it is to run.
struct DeviceCase {
  const char* folder;
  bool compressed = false;
  const char* device = "cpu";
  const char* profile = "";  ///< what it is compressed with; empty: the published format

  bool on_cpu() const { return std::string_view(device) == "cpu"; }
};

inline std::string name_of_case(const ::testing::TestParamInfo<DeviceCase>& test) {
  std::string name = std::filesystem::path(test.param.folder).filename();
  if (test.param.compressed) name += "_compressed";
  if (*test.param.profile != 0) name += std::string("_") + test.param.profile;
  std::ranges::replace(name, '-', '_');
  return test.param.on_cpu() ? name : name + "_" + test.param.device;
}

/// Why nothing can run on that device here, or an empty string.
inline std::string no_device_reason(const std::string& device) {
  return refusal([&] { kernels::find_device(device); });
}

#define HXQ_NEEDS_DEVICE(device)                                                                                      \
  do {                                                                                                                \
    if (const std::string reason = ::hxq::testing::no_device_reason(device); !reason.empty()) GTEST_SKIP() << reason; \
  } while (false)

/// Keeps the largest error of a test in its report.
inline void record_worst(double error) {
  static const ::testing::TestInfo* of = nullptr;
  static double worst = 0;
  const ::testing::TestInfo* now = ::testing::UnitTest::GetInstance()->current_test_info();
  if (of == now && error <= worst) return;
  of = now;
  worst = error;
  ::testing::Test::RecordProperty("worst", std::to_string(worst));
}

/// How far a GPU may be from the CPU with `Precision::exact`, of the largest logit: sums in another order, amplified by
/// the tests' small random models (the CPU's own targets differ by up to a third of it). With keys and values of F16,
/// rounding to the one or the other number counts.
inline double gpu_bound(DType kv_cache = DType::f32) { return kv_cache == DType::f32 ? 2e-4 : 3e-3; }

/// Expects every logit within `bound` times the largest one in size of the expected; `bound` 0: the same bits.
inline void expect_logits(const std::vector<float>& got, const std::vector<float>& expected, double bound,
                          const std::string& what) {
  if (bound == 0) {
    ASSERT_EQ(got, expected) << what;
    return;
  }
  ASSERT_EQ(got.size(), expected.size()) << what;
  float largest = 0;
  for (const float logit : expected) largest = std::max(largest, std::fabs(logit));
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double error = std::fabs(static_cast<double>(got[i]) - static_cast<double>(expected[i]));
    worst = error <= worst ? worst : error;  // also for what is not a number
  }
  record_worst(worst / static_cast<double>(largest));
  ASSERT_LE(worst, bound * static_cast<double>(largest)) << what;
}

}  // namespace hxq::testing
