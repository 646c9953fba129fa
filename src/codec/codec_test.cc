#include "codec/codec.h"

#include <gtest/gtest.h>

#include <thread>

#include "codec/encoder.h"
#include "codec/row_table.h"
#include "hxq/error.h"
#include "refusal.h"
#include "test_checkpoint.h"

namespace hxq {
namespace {

using Kind = PartSpec::Kind;
using testing::TestCheckpoint;

Shape no_shape(const Checkpoint&, std::string_view) { return {}; }
std::unique_ptr<const StoredMatrix> no_matrix(const Checkpoint&, std::string_view, const Shape&) { return nullptr; }
StoredForm no_form(const Checkpoint&, std::string_view) { return {.text = {}, .dtype = DType::u8}; }

Codec codec_with(std::string_view id, std::span<const PartSpec> parts) {
  return {.id = id, .parts = parts, .shape = no_shape, .read = no_matrix, .describe = no_form};
}

constexpr PartSpec kTwo[] = {{"test_a"}, {"test_b", Kind::needed, "test_old_b"}, {"test_c", Kind::optional}};
constexpr PartSpec kThree[] = {{"test_a"}, {"test_b"}, {"test_d"}};

/// Two codecs of the test, registered once for all tests of the program.
struct TestCodecs {
  Codec two = codec_with("test_two", kTwo);
  Codec three = codec_with("test_three", kThree);
  TestCodecs() {
    register_codec(two);
    register_codec(three);
  }
};

const TestCodecs& test_codecs() {
  static const TestCodecs codecs;
  return codecs;
}

Checkpoint with_parts(std::initializer_list<const char*> suffixes) {
  TestCheckpoint files;
  for (const char* suffix : suffixes) files.set(std::string("m.") + suffix, DType::u8, {1}, std::vector<uint8_t>{1});
  return files.open();
}

std::string refusal(const Codec& codec) {
  return testing::refusal([&] { register_codec(codec); });
}

TEST(Codecs, AModulesCodecIsTheOneThatNeedsTheMostOfItsParts) {
  const auto& [two, three] = test_codecs();
  EXPECT_EQ(codec_of(with_parts({"test_a", "test_b"}), "m"), &two);
  EXPECT_EQ(codec_of(with_parts({"test_a", "test_old_b"}), "m"), &two);
  EXPECT_EQ(codec_of(with_parts({"test_a", "test_b", "test_d"}), "m"), &three);
  EXPECT_EQ(codec_of(with_parts({"test_a", "test_c"}), "m"), nullptr);
  EXPECT_EQ(codec_of(with_parts({"test_a", "test_b"}), "n"), nullptr);
}

TEST(Codecs, PartsAreFoundUnderTheirOlderName) {
  const Codec& two = test_codecs().two;
  const Checkpoint checkpoint = with_parts({"test_a", "test_old_b"});
  EXPECT_EQ(find_part(checkpoint, "m", two.parts[1]), checkpoint.find("m.test_old_b"));
  EXPECT_EQ(find_part(checkpoint, "m", two.parts[2]), nullptr);
  EXPECT_TRUE(is_part_suffix("test_old_b"));
  EXPECT_FALSE(is_part_suffix("test_e"));
}

TEST(Codecs, RowsThatCannotWorkAreRefused) {
  test_codecs();
  EXPECT_NE(refusal(codec_with("test_two", kTwo)).find("is there already"), std::string::npos);
  EXPECT_NE(refusal(codec_with("exact", kTwo)).find("name"), std::string::npos);
  EXPECT_NE(refusal(codec_with("", kTwo)).find("name"), std::string::npos);
  EXPECT_NE(refusal(codec_with("test_none", {})).find("no needed part"), std::string::npos);
  constexpr PartSpec kOptional[] = {{"test_e", Kind::optional}};
  EXPECT_NE(refusal(codec_with("test_optional", kOptional)).find("no needed part"), std::string::npos);
  Codec lacking = codec_with("test_lacking", kTwo);
  lacking.read = nullptr;
  EXPECT_NE(refusal(lacking).find("lacks a function"), std::string::npos);
  EXPECT_EQ(find_codec("test_lacking"), nullptr);
}

TEST(Codecs, AnEncoderIsForARegisteredCodec) {
  static const Codec unknown = codec_with("test_unknown", kTwo);
  Encoder encoder = *encoders().front();
  encoder.codec = &unknown;
  EXPECT_THROW(register_encoder(encoder), Error);
  EXPECT_THROW(register_encoder(*encoders().front()), Error);
  EXPECT_EQ(&encoder_of({}), encoders().front());
  try {
    encoder_of("test_unknown");
    ADD_FAILURE() << "accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find(encoders().front()->codec->id), std::string::npos) << error.what();
  }
}

TEST(RowTable, IsReadWhileRowsAreAdded) {
  RowTable<int> table({});
  std::vector<int> values(60);
  std::vector<std::thread> threads;
  for (size_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      for (size_t i = t; i < values.size(); i += 3) {
        values[i] = 7;
        table.add(values[i], [](std::span<const int* const>) {});
      }
    });
  }
  for (size_t seen = 0; seen < values.size();) {
    const std::span<const int* const> rows = table.rows();
    EXPECT_GE(rows.size(), seen);
    seen = rows.size();
    for (const int* row : rows) ASSERT_EQ(*row, 7);
  }
  for (std::thread& thread : threads) thread.join();
  for (int i = 0; i < 4; ++i) table.add(values[0], [](std::span<const int* const>) {});
  EXPECT_THROW(table.add(values[0], [](std::span<const int* const>) {}), Error);
}

}  // namespace
}  // namespace hxq
