#include "hxq/tensor.h"

#include <gtest/gtest.h>

#include <cmath>

#include "hxq/error.h"
#include "io/half.h"

namespace hxq {
namespace {

TEST(Half, EveryBinary16RoundTrips) {
  for (uint32_t bits = 0; bits < 0x10000u; ++bits) {
    const float value = float_from_f16(static_cast<uint16_t>(bits));
    if (std::isnan(value)) {
      EXPECT_TRUE(std::isnan(float_from_f16(f16_from_float(value))));
    } else {
      EXPECT_EQ(f16_from_float(value), bits);
    }
  }
}

TEST(Half, AgreesWithTheCompilersConversion) {
  for (uint32_t bits = 0; bits < 0x7f800000u; bits += 4093u) {
    const float value = std::bit_cast<float>(bits);
    EXPECT_EQ(f16_from_float(value), std::bit_cast<uint16_t>(static_cast<_Float16>(value))) << value;
  }
}

TEST(Shape, CountsElementsAndRejectsOverflow) {
  EXPECT_EQ(element_count({}), 1);
  EXPECT_EQ(element_count({3, 4}), 12);
  EXPECT_EQ(element_count({3, 0}), 0);
  EXPECT_THROW(element_count({int64_t{1} << 40, int64_t{1} << 40}), Error);
  EXPECT_THROW(element_count({2, -1}), Error);
}

}  // namespace
}  // namespace hxq
