#include "codec/codebook/read.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>

#include "hxq/error.h"
#include "test_checkpoint.h"

namespace hxq {
namespace {

using testing::bytes_of;
using testing::TestCheckpoint;

constexpr float kNan = std::numeric_limits<float>::quiet_NaN();

/// Module "m": [2, 3], k = 4.
TestCheckpoint scalar_module() {
  TestCheckpoint files;
  files.set("m.codebook", DType::f32, {4}, std::vector<float>{-1, 0.5f, 2, 8});
  files.set("m.indices", DType::u8, {2, 3}, std::vector<uint8_t>{0, 1, 2, 3, 2, 1});
  return files;
}

/// Module "m": [2, 4] of pairs with 300 codewords, codeword i = (i, -i).
TestCheckpoint vector_module(DType dtype) {
  TestCheckpoint files;
  std::vector<float> codebook;
  for (int i = 0; i < 300; ++i) codebook.insert(codebook.end(), {static_cast<float>(i), static_cast<float>(-i)});
  files.set("m.codebook", DType::f32, {300, 2}, codebook);
  if (dtype == DType::u8) {
    // 0x12B, 0x001 and 0x100, 0x0FF, packed by hand.
    files.set("m.indices", DType::u8, {6}, std::vector<uint8_t>{0x2b, 0x11, 0x00, 0x00, 0xf1, 0x0f});
  } else {
    files.set("m.indices", dtype, {2, 2}, std::vector<uint16_t>{299, 1, 256, 255});
  }
  return files;
}

std::vector<float> decode(const CodebookMatrix& matrix) {
  std::vector<float> out(static_cast<size_t>(matrix.rows * matrix.cols));
  matrix.decode_rows(0, matrix.rows, out);
  return out;
}

TEST(ReadCodebookMatrix, DecodesAScalarCodebook) {
  const Checkpoint checkpoint = scalar_module().open();
  EXPECT_EQ(codec_of(checkpoint, "m"), &kCodebookCodec);
  EXPECT_EQ(codec_of(checkpoint, "n"), nullptr);
  const CodebookMatrix matrix = read_codebook_matrix(checkpoint, "m");
  EXPECT_EQ(matrix.k, 4);
  EXPECT_EQ(matrix.d, 1);
  EXPECT_EQ(decode(matrix), (std::vector<float>{-1, 0.5f, 2, 8, 2, 0.5f}));
}

TEST(ReadCodebookMatrix, DecodesPairsInEveryLayout) {
  const std::vector<float> want = {299, -299, 1, -1, 256, -256, 255, -255};
  EXPECT_EQ(decode(read_codebook_matrix(vector_module(DType::u16).open(), "m")), want);
  EXPECT_EQ(decode(read_codebook_matrix(vector_module(DType::i16).open(), "m")), want);
  EXPECT_EQ(decode(read_codebook_matrix(vector_module(DType::u8).open(), "m", {2, 4})), want);
  EXPECT_EQ(read_codebook_matrix(vector_module(DType::u8).open(), "m", {2, 2, 2}).rows, 4);
}

TEST(ReadCodebookMatrix, ReadsI16AsUnsigned) {
  TestCheckpoint files;
  files.set("m.codebook", DType::f32, {65536}, std::vector<float>(65536, 3));
  files.set("m.indices", DType::i16, {1, 2}, std::vector<uint16_t>{0xffff, 0});
  EXPECT_EQ(decode(read_codebook_matrix(files.open(), "m")), (std::vector<float>{3, 3}));
}

TEST(ReadCodebookMatrix, TakesTheShapeOfFlatIndicesFromWhatIsStoredBeside) {
  const auto shape_with = [](const char* name, Shape shape) {
    TestCheckpoint files = vector_module(DType::u8);
    files.set(name, DType::f32, shape, std::vector<float>(static_cast<size_t>(element_count(shape)), 1));
    return codebook_matrix_shape(files.open(), "m");
  };
  EXPECT_EQ(codebook_matrix_shape(vector_module(DType::u8).open(), "m"), Shape{8});
  EXPECT_EQ(shape_with("m", {2, 4}), (Shape{2, 4}));
  EXPECT_EQ(shape_with("m.weight", {4, 2}), (Shape{4, 2}));
  EXPECT_EQ(shape_with("m.svd_Vt", {1, 4}), (Shape{2, 4}));
  EXPECT_EQ(shape_with("m.channel_scales", {2}), (Shape{4, 2}));
  EXPECT_EQ(shape_with("m.bias", {4}), (Shape{4, 2}));
  EXPECT_EQ(shape_with("m.bias", {3}), Shape{8});
  EXPECT_THROW(read_codebook_matrix(vector_module(DType::u8).open(), "m"), Error);
  EXPECT_THROW(read_codebook_matrix(vector_module(DType::u8).open(), "m", {2, 3}), Error);
}

TEST(ReadCodebookMatrix, SidecarReplacesAndOfEqualPositionsTheLastCounts) {
  for (const char* name : {"m.sidecar_positions", "m.sidecar_indices"}) {
    TestCheckpoint files = scalar_module();
    files.set(name, DType::i64, {4}, std::vector<int64_t>{5, 1, 5, 0});
    files.set("m.sidecar_values", DType::f32, {4}, std::vector<float>{10, 11, 12, 13});
    const Checkpoint checkpoint = files.open();
    const CodebookMatrix matrix = read_codebook_matrix(checkpoint, "m");
    EXPECT_EQ(decode(matrix), (std::vector<float>{13, 11, 2, 8, 2, 12}));
    EXPECT_EQ(matrix.sidecar.row, (std::vector<uint32_t>{0, 0, 1}));
    EXPECT_EQ(matrix.sidecar.first_of(1), 2);
    EXPECT_EQ(matrix.sidecar.first_of(2), 3);
    EXPECT_EQ(matrix.sidecar.col, (std::vector<uint32_t>{0, 1, 2}));
  }
}

TEST(ReadCodebookMatrix, SidecarValuesMayBeHalf) {
  TestCheckpoint files = scalar_module();
  files.set("m.sidecar_positions", DType::i64, {1}, std::vector<int64_t>{2});
  files.set("m.sidecar_values", DType::f16, {1}, std::vector<uint16_t>{0x3e00});
  EXPECT_EQ(decode(read_codebook_matrix(files.open(), "m"))[2], 1.5f);
}

TEST(ReadCodebookMatrix, CodebookMayBeHalf) {
  for (const auto& [dtype, one] : {std::pair(DType::f16, uint16_t{0x3c00}), {DType::bf16, uint16_t{0x3f80}}}) {
    TestCheckpoint files;
    files.set("m.codebook", dtype, {2}, std::vector<uint16_t>{0, one});
    files.set("m.indices", DType::u8, {1, 3}, std::vector<uint8_t>{1, 0, 1});
    EXPECT_EQ(decode(read_codebook_matrix(files.open(), "m")), (std::vector<float>{1, 0, 1}));
  }
}

TEST(ReadCodebookMatrix, LowRankIsAddedAfterTheSidecar) {
  TestCheckpoint files = scalar_module();
  files.set("m.sidecar_positions", DType::i64, {1}, std::vector<int64_t>{0});
  files.set("m.sidecar_values", DType::f32, {1}, std::vector<float>{100});
  files.set("m.svd_U", DType::f32, {2, 2}, std::vector<float>{1, 2, 3, 4});
  files.set("m.svd_s", DType::f32, {2}, std::vector<float>{10, 0.5f});
  files.set("m.svd_Vt", DType::f32, {2, 3}, std::vector<float>{1, 0, 2, 0, 1, 1});
  // U diag(s) = [10 1; 30 2], times Vt = [10 1 21; 30 2 62].
  EXPECT_EQ(decode(read_codebook_matrix(files.open(), "m")), (std::vector<float>{110, 1.5f, 23, 38, 4, 62.5f}));
}

TEST(ReadCodebookMatrix, ChannelScalesAreReadAndNotFoldedIn) {
  TestCheckpoint files = scalar_module();
  files.set("m.channel_scales", DType::f32, {3}, std::vector<float>{1, 2, 4});
  const Checkpoint checkpoint = files.open();
  const CodebookMatrix matrix = read_codebook_matrix(checkpoint, "m");
  EXPECT_EQ(matrix.channel_scales, (std::vector<float>{1, 2, 4}));
  EXPECT_EQ(decode(matrix)[1], 0.5f);
}

TEST(ReadCodebookMatrix, EmptyOptionalPartsAndDerivedCopiesDoNotCount) {
  TestCheckpoint files = scalar_module();
  for (const char* part : {"sidecar_values", "svd_U", "svd_s", "svd_Vt", "channel_scales", "weight"}) {
    files.set(std::string("m.") + part, DType::f32, {0}, std::vector<float>{});
  }
  files.set("m.sidecar_positions", DType::i64, {0}, std::vector<int64_t>{});
  files.set("m.codebook_f16", DType::f16, {4}, std::vector<uint16_t>{1, 2, 3, 4});
  files.set("m._sidecar_rows", DType::i64, {1}, std::vector<int64_t>{77});
  EXPECT_EQ(decode(read_codebook_matrix(files.open(), "m")), decode(read_codebook_matrix(scalar_module().open(), "m")));
}

TEST(ReadCodebookMatrix, DoesNotScanIndicesThatCannotBeWrong) {
  TestCheckpoint files;
  files.set("m.codebook", DType::f32, {256}, std::vector<float>(256, 1));
  files.set("m.indices", DType::u8, {1, 2}, std::vector<uint8_t>{255, 0});
  EXPECT_EQ(read_codebook_matrix(files.open(), "m").cols, 2);
}

struct Fault {
  const char* tensor;
  DType dtype;
  Shape shape;
  std::vector<std::byte> bytes;
  const char* says;
};

TEST(ReadCodebookMatrix, NamesTheTensorOfEveryFault) {
  TestCheckpoint whole = scalar_module();
  whole.set("m.sidecar_positions", DType::i64, {2}, std::vector<int64_t>{0, 5});
  whole.set("m.sidecar_values", DType::f32, {2}, std::vector<float>{1, 2});
  whole.set("m.svd_U", DType::f32, {2, 1}, std::vector<float>{1, 2});
  whole.set("m.svd_s", DType::f32, {1}, std::vector<float>{1});
  whole.set("m.svd_Vt", DType::f32, {1, 3}, std::vector<float>{1, 2, 3});
  whole.set("m.channel_scales", DType::f32, {3}, std::vector<float>{1, 1, 1});
  ASSERT_NO_THROW(read_codebook_matrix(whole.open(), "m"));
  const auto f32 = [](std::vector<float> v) { return bytes_of(v); };
  const auto i64 = [](std::vector<int64_t> v) { return bytes_of(v); };
  const auto u8 = [](std::vector<uint8_t> v) { return bytes_of(v); };
  for (const Fault& fault : std::vector<Fault>{
           {"m.codebook", DType::f32, {4}, f32({1, 2, kNan, 4}), "value 2 is nan"},
           {"m.codebook", DType::f32, {4}, f32({1, 2, INFINITY, 4}), "value 2 is inf"},
           {"m.codebook", DType::f32, {1, 2, 2}, f32({1, 2, 3, 4}), "[k, d]"},
           {"m.codebook", DType::f32, {0}, {}, "missing or empty"},
           {"m.codebook", DType::f32, {}, f32({1}), "[k, d]"},
           {"m.codebook", DType::i64, {4}, i64({1, 2, 3, 4}), "dtype is I64"},
           {"m.codebook", DType::f32, {65537}, std::vector<std::byte>(4 * 65537), "at most 65536"},
           {"m.indices", DType::u8, {2, 3}, u8({0, 1, 2, 3, 4, 1}), "index 4 is 4, expected less than 4"},
           {"m.indices", DType::u8, {6}, u8({0, 1, 2, 3, 2, 1}), "expected [rows, columns]"},
           {"m.indices", DType::u8, {2, 3, 1}, u8({0, 1, 2, 3, 2, 1}), "expected [rows, columns]"},
           {"m.indices", DType::u8, {0, 3}, {}, "missing or empty"},
           {"m.indices", DType::f32, {2, 3}, f32({0, 1, 2, 3, 2, 1}), "dtype is F32"},
           {"m.indices", DType::i8, {2, 3}, u8({0, 1, 2, 3, 2, 1}), "dtype is I8"},
           {"m.sidecar_positions", DType::i64, {2}, i64({0, 6}), "position 6 is outside the matrix of 6 weights"},
           {"m.sidecar_positions", DType::i64, {2}, i64({-1, 5}), "position -1 is outside"},
           {"m.sidecar_positions", DType::i64, {1}, i64({1}), "1 positions for 2 values"},
           {"m.sidecar_positions", DType::i64, {0}, {}, "is missing"},
           {"m.sidecar_positions", DType::f32, {2}, f32({0, 5}), "expected I64"},
           {"m.sidecar_values", DType::f32, {2}, f32({1, kNan}), "value 1 is nan"},
           {"m.sidecar_values", DType::f32, {0}, {}, "missing or empty"},
           {"m.svd_U", DType::f32, {1, 2}, f32({1, 2}), "expected [2, 1]"},
           {"m.svd_U", DType::f32, {2, 1}, f32({1, kNan}), "value 1 is nan"},
           {"m.svd_s", DType::f32, {1, 1}, f32({1}), "expected [1]"},
           {"m.svd_s", DType::f32, {0}, {}, "missing or empty"},
           {"m.svd_Vt", DType::f32, {3, 1}, f32({1, 2, 3}), "expected [1, 3]"},
           {"m.channel_scales", DType::f32, {2}, f32({1, 2}), "expected [3]"},
           {"m.channel_scales", DType::f32, {3}, f32({1, 0, 1}), "value 1 is 0"},
       }) {
    TestCheckpoint files = whole;
    files.set(fault.tensor, fault.dtype, fault.shape, fault.bytes);
    const Checkpoint checkpoint = files.open();
    try {
      read_codebook_matrix(checkpoint, "m");
      ADD_FAILURE() << "accepted: " << fault.tensor << " " << fault.says;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(fault.says), std::string::npos) << error.what();
      EXPECT_EQ(error.place().tensor, fault.tensor) << error.what();
      EXPECT_FALSE(error.place().file.empty());
    }
  }
}

TEST(ReadCodebookMatrix, ChecksIndicesOfEveryLayout) {
  for (DType dtype : {DType::u8, DType::u16, DType::i16}) {
    TestCheckpoint files = vector_module(dtype);
    files.set("m.codebook", DType::f32, {299, 2}, std::vector<float>(598, 1));
    try {
      read_codebook_matrix(files.open(), "m", {2, 4});
      ADD_FAILURE() << "accepted an index of 299 for 299 codewords";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("index 0 is 299"), std::string::npos) << error.what();
    }
  }
}

TEST(ReadCodebookMatrix, ChecksBytesAgainstCodebooksOfLessThan256) {
  TestCheckpoint files;
  files.set("m.indices", DType::u8, {1, 2}, std::vector<uint8_t>{0, 254});
  files.set("m.codebook", DType::f32, {255}, std::vector<float>(255, 1));
  EXPECT_NO_THROW(read_codebook_matrix(files.open(), "m"));
  files.set("m.indices", DType::u8, {1, 2}, std::vector<uint8_t>{0, 255});
  EXPECT_THROW(read_codebook_matrix(files.open(), "m"), Error);
}

TEST(ReadCodebookMatrix, RefusesAnotherShapeThanExpected) {
  const Checkpoint checkpoint = scalar_module().open();
  EXPECT_NO_THROW(read_codebook_matrix(checkpoint, "m", {2, 3}));
  EXPECT_NO_THROW(read_codebook_matrix(checkpoint, "m", {2, 1, 3}));
  EXPECT_THROW(read_codebook_matrix(checkpoint, "m", {3, 2}), Error);
  EXPECT_THROW(read_codebook_matrix(checkpoint, "m", {6}), Error);
  EXPECT_THROW(read_codebook_matrix(checkpoint, "absent"), Error);
}

TEST(DecodeRows, GivesTheRowsOfTheWhole) {
  TestCheckpoint files = vector_module(DType::u16);
  files.set("m.sidecar_positions", DType::i64, {2}, std::vector<int64_t>{3, 6});
  files.set("m.sidecar_values", DType::f32, {2}, std::vector<float>{0.25f, 0.75f});
  const Checkpoint checkpoint = files.open();
  const CodebookMatrix matrix = read_codebook_matrix(checkpoint, "m");
  std::vector<float> row(4);
  matrix.decode_rows(1, 2, row);
  EXPECT_EQ(row, (std::vector<float>{256, -256, 0.75f, -255}));
}

}  // namespace
}  // namespace hxq
