#include "io/safetensors.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "hxq/error.h"

namespace hxq {
namespace {

/// A file in memory of exactly its own size, so that the address sanitizer sees every access beyond it.
std::vector<std::byte> file_of(uint64_t length_field, std::string_view header, size_t data_bytes) {
  std::vector<std::byte> bytes(8 + header.size() + data_bytes);
  std::memcpy(bytes.data(), &length_field, 8);
  std::memcpy(bytes.data() + 8, header.data(), header.size());
  for (size_t i = 0; i < data_bytes; ++i) bytes[8 + header.size() + i] = static_cast<std::byte>(i + 1);
  return bytes;
}

std::vector<std::byte> file_of(std::string_view header, size_t data_bytes) {
  return file_of(header.size(), header, data_bytes);
}

constexpr std::string_view kTwoTensors =
    R"({"__metadata__":{"format":"pt"},"b":{"dtype":"F32","shape":[2,1],"data_offsets":[3,11]},)"
    R"("a":{"dtype":"U8","shape":[3],"data_offsets":[0,3]}}   )";

TEST(Safetensors, ReadsNamesShapesAndBytes) {
  const std::vector<std::byte> bytes = file_of(kTwoTensors, 11);
  const SafetensorsContents contents = parse_safetensors(bytes, "x");
  ASSERT_EQ(contents.tensors.size(), 2u);
  const TensorView& a = contents.tensors.at("a");
  EXPECT_EQ(a.dtype, DType::u8);
  EXPECT_EQ(a.shape, Shape{3});
  EXPECT_EQ(a.bytes[2], std::byte{3});
  const TensorView& b = contents.tensors.at("b");
  EXPECT_EQ(b.dtype, DType::f32);
  EXPECT_EQ(b.shape, (Shape{2, 1}));
  EXPECT_EQ(b.bytes.size(), 8u);
  EXPECT_EQ(b.bytes[0], std::byte{4});
  EXPECT_EQ(contents.metadata.at("format"), "pt");
}

TEST(Safetensors, AcceptsScalarsEmptyTensorsAndNoTensors) {
  EXPECT_EQ(parse_safetensors(file_of("{}", 0), "x").tensors.size(), 0u);
  const auto bytes = file_of(
      R"({"s":{"dtype":"I64","shape":[],"data_offsets":[0,8]},"e":{"dtype":"F16","shape":[4,0],"data_offsets":[8,8]}})",
      8);
  const SafetensorsContents contents = parse_safetensors(bytes, "x");
  EXPECT_EQ(contents.tensors.at("s").size(), 1);
  EXPECT_EQ(contents.tensors.at("e").size(), 0);
}

TEST(Safetensors, KeepsDtypesThatAreNotReadApart) {
  const auto bytes = file_of(R"({"q":{"dtype":"F6_E2M3","shape":[5],"data_offsets":[0,5]},)"
                             R"("a":{"dtype":"U8","shape":[3],"data_offsets":[5,8]}})",
                             8);
  const SafetensorsContents contents = parse_safetensors(bytes, "x");
  EXPECT_EQ(contents.tensors.size(), 1u);
  EXPECT_EQ(contents.unsupported.at("q"), "F6_E2M3");
}

TEST(Safetensors, RefusesEveryTruncation) {
  const std::vector<std::byte> whole = file_of(kTwoTensors, 11);
  for (size_t size = 0; size < whole.size(); ++size) {
    const std::vector<std::byte> cut(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(size));
    EXPECT_THROW(parse_safetensors(cut, "x"), Error) << size;
  }
  std::vector<std::byte> longer = whole;
  longer.push_back(std::byte{0});
  EXPECT_THROW(parse_safetensors(longer, "x"), Error);
}

TEST(Safetensors, RefusesAHeaderLengthThatCannotBe) {
  EXPECT_THROW(parse_safetensors(file_of(0, "{}", 0), "x"), Error);
  for (uint64_t length : {3u, 4u, 9u, 10u, 11u}) {
    try {
      parse_safetensors(file_of(length, "{}", 0), "x");
      ADD_FAILURE() << length;
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("but only 2 bytes follow"), std::string::npos) << error.what();
    }
  }
  EXPECT_THROW(parse_safetensors(file_of(100'000'001, "{}", 0), "x"), Error);
  EXPECT_THROW(parse_safetensors(file_of(UINT64_MAX, "{}", 0), "x"), Error);
  EXPECT_THROW(parse_safetensors(file_of(UINT64_MAX - 7, "{}", 0), "x"), Error);
}

struct Malformed {
  const char* what;
  std::string header;
  size_t data_bytes;
};

class MalformedHeader : public ::testing::TestWithParam<Malformed> {};

TEST_P(MalformedHeader, IsRefusedWithTheFilesName) {
  try {
    parse_safetensors(file_of(GetParam().header, GetParam().data_bytes), "some/file");
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_EQ(error.place().file, "some/file");
    EXPECT_EQ(std::string(error.what()).find('\n'), std::string::npos) << error.what();
  }
}

std::string entry(const std::string& dtype, const std::string& shape, const std::string& offsets) {
  return R"({"a":{"dtype":)" + dtype + R"(,"shape":)" + shape + R"(,"data_offsets":)" + offsets + "}}";
}

std::string two(const std::string& first, const std::string& second) {
  return R"({"a":{"dtype":"U8","shape":[4],"data_offsets":)" + first +
         R"(},"b":{"dtype":"U8","shape":[4],"data_offsets":)" + second + "}}";
}

INSTANTIATE_TEST_SUITE_P(
    Table, MalformedHeader,
    ::testing::Values(
        Malformed{"NotAnObject", "[]", 0}, Malformed{"LeadingSpace", " {}", 0}, Malformed{"Trailing", "{}x", 0},
        Malformed{"EntryIsNotAnObject", R"({"a":1})", 0},
        Malformed{"NoDtype", R"({"a":{"shape":[1],"data_offsets":[0,1]}})", 1},
        Malformed{"NoShape", R"({"a":{"dtype":"U8","data_offsets":[0,1]}})", 1},
        Malformed{"NoOffsets", R"({"a":{"dtype":"U8","shape":[1]}})", 1},
        Malformed{"DtypeIsANumber", entry("8", "[1]", "[0,1]"), 1},
        Malformed{"WrongDtypeForTheSize", entry("\"F32\"", "[1]", "[0,1]"), 1},
        Malformed{"NegativeDimension", entry("\"U8\"", "[-1]", "[0,1]"), 1},
        Malformed{"FractionalDimension", entry("\"U8\"", "[1.0]", "[0,1]"), 1},
        Malformed{"DimensionBeyondInt64", entry("\"U8\"", "[9223372036854775808]", "[0,1]"), 1},
        Malformed{"DimensionBeyondUint64", entry("\"U8\"", "[18446744073709551617]", "[0,1]"), 1},
        Malformed{"ShapeOverflows", entry("\"F32\"", "[4294967296,4294967296]", "[0,0]"), 0},
        Malformed{"ShapeTimesSizeOverflows", entry("\"I64\"", "[2305843009213693952]", "[0,0]"), 0},
        Malformed{"OverflowTimesZero", entry("\"F32\"", "[4294967296,4294967296,4294967296,0]", "[0,1]"), 1},
        Malformed{"NestedShape", entry("\"U8\"", "[[1]]", "[0,1]"), 1},
        Malformed{"NegativeOffset", entry("\"U8\"", "[1]", "[-1,0]"), 1},
        Malformed{"DescendingOffsets", entry("\"U8\"", "[1]", "[1,0]"), 1},
        Malformed{"ThreeOffsets", entry("\"U8\"", "[1]", "[0,1,1]"), 1},
        Malformed{"OffsetIsText", entry("\"U8\"", "[1]", "[0,\"1\"]"), 1},
        Malformed{"BeyondTheFile", entry("\"U8\"", "[2]", "[0,2]"), 1},
        Malformed{"FarBeyondTheFile", entry("\"U8\"", "[1]", "[18446744073709551614,18446744073709551615]"), 1},
        Malformed{"Overlap", two("[0,4]", "[2,6]"), 6}, Malformed{"SameRange", two("[0,4]", "[0,4]"), 4},
        Malformed{"Hole", two("[0,4]", "[5,9]"), 9}, Malformed{"HoleAtTheBegin", two("[1,5]", "[5,9]"), 9},
        Malformed{"RemainderAtTheEnd", two("[0,4]", "[4,8]"), 9},
        Malformed{
            "SameNameTwice",
            R"({"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]},)"
            R"("a":{"dtype":"U8","shape":[1],"data_offsets":[1,2]}})",
            2},
        Malformed{"SameFieldTwice", R"({"a":{"dtype":"U8","dtype":"I8","shape":[1],"data_offsets":[0,1]}})", 1},
        Malformed{"InvalidUtf8", "{\"\xff\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,1]}}", 1},
        Malformed{"MetadataIsNotAnObject", R"({"__metadata__":[]})", 0},
        Malformed{"MetadataHasANumber", R"({"__metadata__":{"a":1}})", 0},
        Malformed{"DeepNesting", R"({"a":)" + std::string(100000, '[') + std::string(100000, ']') + "}", 0},
        Malformed{"NewlineInTheName", R"({"a\nb":{"dtype":"U8","shape":[2],"data_offsets":[0,1]}})", 1}),
    [](const auto& test) { return test.param.what; });

}  // namespace
}  // namespace hxq
