#include "codec/grouped/codec.h"

#include <fmt/format.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "codec/grouped/matrix.h"
#include "hxq/error.h"
#include "test_checkpoint.h"

namespace hxq {
namespace {

using testing::TestCheckpoint;

/// Module "m", [2, 11] in groups of 8, with k = 8. Indices by hand, three bits each, lowest bits first:
///     row 0:  0 1 2 3 4 5 6 7  0 1 2      row 1:  7 6 5 4 3 2 1 0  7 7 7
TestCheckpoint module() {
  TestCheckpoint files;
  files.set("m.grouped_levels", DType::f32, {8}, std::vector<float>{-4, -3, -2, -1, 1, 2, 3, 4});
  files.set("m.grouped_indices", DType::u8, {2, 5},
            std::vector<uint8_t>{0x88, 0xc6, 0xfa, 0x88, 0x00, 0x77, 0x39, 0x05, 0xff, 0x01});
  files.set("m.grouped_scales", DType::u8, {2, 2}, std::vector<uint8_t>{0, 1, 2, 0});
  files.set("m.grouped_scale_levels", DType::f32, {3}, std::vector<float>{0.5f, 2, 0});
  files.set("m.grouped_shape", DType::i64, {2}, std::vector<int64_t>{11, 8});
  return files;
}

TEST(Grouped, DecodesByItsDefinition) {
  const Checkpoint checkpoint = module().open();
  EXPECT_EQ(codec_of(checkpoint, "m"), &kGroupedCodec);
  EXPECT_EQ(kGroupedCodec.shape(checkpoint, "m"), (Shape{2, 11}));
  const auto matrix = read_matrix(checkpoint, "m", {2, 11});
  std::vector<float> out(22);
  matrix->decode_rows(0, 2, out);
  EXPECT_EQ(out, (std::vector<float>{-2, -1.5f, -1, -0.5f, 0.5f, 1, 1.5f, 2, -8, -6, -4,  //
                                     0,  0,     0,  0,     0,    0, 0,    0, 2,  2,  2}));
  std::vector<float> second(11);
  matrix->decode_rows(1, 2, second);
  EXPECT_EQ(second, std::vector<float>(out.begin() + 11, out.end()));
  EXPECT_EQ(matrix->bytes_read(), 10 + 4 + 4 * 8 + 4 * 3);
}

/// Every width, every place of an index within a byte, and rows that end at every bit.
TEST(Grouped, DecodesEveryWidth) {
  for (int bits = 3; bits <= 8; ++bits) {
    for (int64_t cols = 1; cols <= 26; ++cols) {
      SCOPED_TRACE(fmt::format("{} bits, {} columns", bits, cols));
      const int64_t row_bytes = (cols * bits + 7) / 8, groups = (cols + 7) / 8;
      std::vector<float> levels, expected;
      for (int i = 0; i < 1 << bits; ++i) levels.push_back(static_cast<float>(i * i) - 77);
      std::vector<uint8_t> packed(static_cast<size_t>(3 * row_bytes)), scales(static_cast<size_t>(3 * groups));
      for (size_t i = 0; i < scales.size(); ++i) scales[i] = static_cast<uint8_t>(i * 5 % 4);
      for (int64_t r = 0; r < 3; ++r) {
        for (int64_t c = 0; c < cols; ++c) {
          const int64_t index = (r * 131 + c * 47) % (1 << bits);
          for (int64_t bit = 0; bit < bits; ++bit) {
            const int64_t at = c * bits + bit;
            packed[static_cast<size_t>(r * row_bytes + at / 8)] |= static_cast<uint8_t>((index >> bit & 1) << at % 8);
          }
          expected.push_back((1.0f + scales[static_cast<size_t>(r * groups + c / 8)]) *
                             levels[static_cast<size_t>(index)]);
        }
      }
      TestCheckpoint files;
      files.set("m.grouped_levels", DType::f32, {1 << bits}, levels);
      files.set("m.grouped_indices", DType::u8, {3, row_bytes}, packed);
      files.set("m.grouped_scales", DType::u8, {3, groups}, scales);
      files.set("m.grouped_scale_levels", DType::f32, {4}, std::vector<float>{1, 2, 3, 4});
      files.set("m.grouped_shape", DType::i64, {2}, std::vector<int64_t>{cols, 8});
      const Checkpoint checkpoint = files.open();
      std::vector<float> out(expected.size());
      read_matrix(checkpoint, "m")->decode_rows(0, 3, out);
      EXPECT_EQ(out, expected);
    }
  }
}

/// What reading the module says.
std::string refusal_of(const TestCheckpoint& files, const Shape& expected = {}) {
  const Checkpoint checkpoint = files.open();
  try {
    read_matrix(checkpoint, "m", expected);
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("model.safetensors"), std::string::npos) << error.what();
    return error.what();
  }
  return "read";
}

/// The same with one part replaced.
template <class T>
std::string refusal(const std::string& part, DType dtype, const Shape& shape, const std::vector<T>& values,
                    const Shape& expected = {}) {
  TestCheckpoint files = module();
  files.set("m." + part, dtype, shape, values);
  const std::string message = refusal_of(files, expected);
  EXPECT_NE(message.find("m.grouped_"), std::string::npos) << message;
  return message;
}

void expect_in(const std::string& message, const char* text) {
  EXPECT_NE(message.find(text), std::string::npos) << message;
}

TEST(Grouped, RefusesLevelsThatAreNoPowerOfTwoOrNotFinite) {
  for (const int64_t k : {1, 4, 7, 12, 512}) {
    expect_in(refusal("grouped_levels", DType::f32, {k}, std::vector<float>(static_cast<size_t>(k), 1)),
              "expected 8, 16, 32, 64, 128 or 256");
  }
  expect_in(refusal("grouped_levels", DType::f32, {2, 8}, std::vector<float>(16, 1)), "one dimension");
  expect_in(refusal("grouped_levels", DType::i64, {8}, std::vector<int64_t>(8, 1)), "expected F32");
  std::vector<float> levels(8, 1);
  levels[5] = std::numeric_limits<float>::quiet_NaN();
  expect_in(refusal("grouped_levels", DType::f32, {8}, levels), "value 5 is nan");
}

TEST(Grouped, RefusesScalesThatAreNotFiniteOrNotThere) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  expect_in(refusal("grouped_scale_levels", DType::f32, {3}, std::vector<float>{1, kInf, 0}), "value 1 is inf");
  expect_in(refusal("grouped_scale_levels", DType::f32, {3}, std::vector<float>{1, -2e38f, 0}), "overflows");
  expect_in(refusal("grouped_scale_levels", DType::f32, {2}, std::vector<float>{1, 2}), "scale 2 is 2");
  expect_in(refusal("grouped_scale_levels", DType::f32, {1, 3}, std::vector<float>(3, 1)), "one dimension");
  expect_in(refusal("grouped_scale_levels", DType::f32, {257}, std::vector<float>(257, 1)), "at most 256");
  expect_in(refusal("grouped_scales", DType::i8, {2, 2}, std::vector<int8_t>(4)), "expected U8");
}

TEST(Grouped, RefusesBitsAfterTheLastIndex) {
  std::vector<uint8_t> packed = {0x88, 0xc6, 0xfa, 0x88, 0x02, 0x77, 0x39, 0x05, 0xff, 0x01};
  expect_in(refusal("grouped_indices", DType::u8, {2, 5}, packed), "row 0 has bits set after its last index");
  packed[4] = 0;
  packed[9] = 0x81;
  expect_in(refusal("grouped_indices", DType::u8, {2, 5}, packed), "row 1 has bits set after its last index");
}

TEST(Grouped, RefusesShapesThatDoNotFit) {
  expect_in(refusal("grouped_indices", DType::u8, {5, 2}, std::vector<uint8_t>(10)), "expected [5, 5]");
  expect_in(refusal("grouped_indices", DType::u8, {10}, std::vector<uint8_t>(10)), "expected [rows, bytes]");
  expect_in(refusal("grouped_indices", DType::i8, {2, 5}, std::vector<int8_t>(10)), "expected U8");
  expect_in(refusal("grouped_scales", DType::u8, {2, 3}, std::vector<uint8_t>(6)), "expected [2, 2]");
  expect_in(refusal("grouped_shape", DType::i64, {4}, std::vector<int64_t>{11, 8, 1, 1}), "expected [2]");
  expect_in(refusal("grouped_shape", DType::i32, {2}, std::vector<int32_t>{11, 8}), "expected I64");
  for (const int64_t group : {-8, 0, 4, 12}) {
    expect_in(refusal("grouped_shape", DType::i64, {2}, std::vector<int64_t>{11, group}), "a multiple of 8");
  }
  expect_in(refusal("grouped_shape", DType::i64, {2}, std::vector<int64_t>{11, 16}), "expected [2, 1]");
  for (const int64_t cols : {int64_t{-1}, int64_t{0}, int64_t{1} << 31, std::numeric_limits<int64_t>::max()}) {
    expect_in(refusal("grouped_shape", DType::i64, {2}, std::vector<int64_t>{cols, 8}), "columns, expected 1 to");
  }
  expect_in(refusal("grouped_shape", DType::i64, {2}, std::vector<int64_t>{14, 8}), "expected [2, 6]");
  expect_in(refusal("grouped_shape", DType::i64, {2}, std::vector<int64_t>{11, 8}, {11, 2}), "expected [11, 2]");
}

/// With a term of rank 2 on top.
TestCheckpoint with_term() {
  TestCheckpoint files = module();
  files.set("m.grouped_shape", DType::i64, {3}, std::vector<int64_t>{11, 8, 2});
  files.set("m.svd_U", DType::f16, {2, 2}, std::vector<uint16_t>{0x3c00, 0x3800, 0xc000, 0x0000});  // 1, 0.5; -2, 0
  files.set("m.svd_s", DType::f32, {2}, std::vector<float>{0.25f, 4});
  std::vector<float> vt(22);
  for (size_t i = 0; i < 22; ++i) vt[i] = static_cast<float>(i) - 7.3f;
  files.set("m.svd_Vt", DType::f32, {2, 11}, vt);
  return files;
}

TEST(Grouped, AddsTheLowRankTerm) {
  const Checkpoint checkpoint = with_term().open(), plain = module().open();
  EXPECT_EQ(codec_of(checkpoint, "m"), &kGroupedCodec);
  const auto matrix = read_matrix(checkpoint, "m", {2, 11});
  std::vector<float> out(22), without(22);
  matrix->decode_rows(0, 2, out);
  read_matrix(plain, "m")->decode_rows(0, 2, without);
  for (size_t c = 0; c < 11; ++c) {
    const double first = static_cast<float>(c) - 7.3f, second = static_cast<float>(c + 11) - 7.3f;
    EXPECT_EQ(out[c], static_cast<float>(without[c] + 0.25 * first + 2 * second));
    EXPECT_EQ(out[11 + c], static_cast<float>(without[11 + c] - 0.5 * first));
  }
  EXPECT_EQ(matrix->bytes_read(), read_matrix(plain, "m")->bytes_read() + 8 + 8 + 88);
  const StoredForm form = kGroupedCodec.describe(checkpoint, "m");
  EXPECT_EQ(form.text, "8 levels, groups of 8 + rank 2");
  EXPECT_EQ(form.facts.back().name, "low_rank");
  EXPECT_EQ(form.facts.back().value, 2);
}

TEST(Grouped, RefusesTermsThatDoNotFit) {
  const auto refused = [](const std::string& part, DType dtype, const Shape& shape, const auto& values) {
    TestCheckpoint files = with_term();
    files.set("m." + part, dtype, shape, values);
    return refusal_of(files);
  };
  for (const int64_t rank : {-1, 0}) {
    expect_in(refused("grouped_shape", DType::i64, {3}, std::vector<int64_t>{11, 8, rank}), "expected 1 or more");
  }
  expect_in(refused("grouped_shape", DType::i64, {3}, std::vector<int64_t>{11, 8, 3}), "expected [3]");
  expect_in(refused("grouped_shape", DType::i64, {3}, std::vector<int64_t>{11, 8, 1}), "expected [1]");
  expect_in(refused("grouped_shape", DType::i64, {2}, std::vector<int64_t>{11, 8}),
            "states no rank, but svd_U is there");
  expect_in(refused("svd_U", DType::f32, {1, 2}, std::vector<float>(2)), "expected [2, 2]");
  expect_in(refused("svd_Vt", DType::f32, {11, 2}, std::vector<float>(22)), "expected [2, 11]");
  expect_in(refused("svd_Vt", DType::i64, {2, 11}, std::vector<int64_t>(22)), "expected F32");
  expect_in(refused("svd_Vt", DType::f32, {2, 11}, std::vector<float>(22, NAN)), "value 0 is nan");
  expect_in(refused("svd_s", DType::f32, {2}, std::vector<float>{1, INFINITY}), "value 1 is inf");
  expect_in(refused("svd_s", DType::f32, {2}, std::vector<float>{3e38f, 1}), "overflows");
  for (const char* factor : {"svd_U", "svd_s", "svd_Vt"}) {
    expect_in(refused(factor, DType::f32, {0}, std::vector<float>()), "is missing or empty");
  }
}

}  // namespace
}  // namespace hxq
