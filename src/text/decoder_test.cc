#include <gtest/gtest.h>

#include <random>

#include "io/utf8.h"
#include "text/tokenizer_fixture.h"

namespace hxq::testing {
namespace {

using Ids = std::vector<int32_t>;
using nlohmann::json;

json fallback_spec(json decoders) {
  json spec =
      bare_spec({{"\u2581a", 0}, {"b", 1}, {"<0xE2>", 2}, {"<0x82>", 3}, {"<0xAC>", 4}, {"\u2581", 5}, {"<0xZZ>", 6}},
                json::array());
  spec["decoder"] = {{"type", "Sequence"}, {"decoders", std::move(decoders)}};
  return spec;
}

const json kReplace = {{"type", "Replace"}, {"pattern", {{"String", "\u2581"}}}, {"content", " "}};
const json kFallback = {{"type", "ByteFallback"}};
const json kFuse = {{"type", "Fuse"}};

json strip(int start, int stop) { return {{"type", "Strip"}, {"content", " "}, {"start", start}, {"stop", stop}}; }

TEST(Decoder, ByteLevelNeverCutsACharacter) {
  const Tokenizer tokenizer = load_tokenizer(byte_spec());
  const std::string text = "a\u00e9\u20ac\U0001F600";
  StreamDecoder stream(tokenizer);
  std::vector<std::string> pieces;
  for (const int32_t id : tokenizer.encode(text)) pieces.push_back(stream.push(id));
  EXPECT_EQ(pieces, (std::vector<std::string>{"a", "", "\u00e9", "", "", "\u20ac", "", "", "", "\U0001F600"}));
  EXPECT_EQ(stream.flush(), "");
}

TEST(Decoder, ByteLevelReplacesWhatCannotBecomeValid) {
  const Tokenizer tokenizer = load_tokenizer(byte_spec());
  StreamDecoder stream(tokenizer);
  EXPECT_EQ(stream.push(0xE2), "");
  EXPECT_EQ(stream.push(0x82), "");
  EXPECT_EQ(stream.push('a'), "\uFFFDa");
  EXPECT_EQ(stream.push(0xFF), "\uFFFD");
  EXPECT_EQ(stream.push(0xF0), "");
  EXPECT_EQ(stream.flush(), "\uFFFD");
  EXPECT_EQ(stream.push('b'), "b");  // a new text
}

TEST(Decoder, ByteFallbackIsTextOrOneReplacementForEachByte) {
  const Tokenizer tokenizer = load_tokenizer(fallback_spec({kReplace, kFallback, kFuse, strip(1, 0)}));
  EXPECT_EQ(tokenizer.decode(Ids{0, 2, 3, 4, 0}), "a\u20ac a");
  EXPECT_EQ(tokenizer.decode(Ids{2, 3, 0}), "\uFFFD\uFFFD a");
  EXPECT_EQ(tokenizer.decode(Ids{2, 3, 4, 4}), "\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(tokenizer.decode(Ids{6, 1}), "<0xZZ>b");
  StreamDecoder stream(tokenizer);
  EXPECT_EQ(stream.push(0), "a");                                     // the space before it is stripped
  for (const int32_t id : {2, 3, 4}) EXPECT_EQ(stream.push(id), "");  // a later byte could spoil them all
  EXPECT_EQ(stream.push(1), "\u20acb");
}

TEST(Decoder, StripTakesFromBothEnds) {
  const Tokenizer fused = load_tokenizer(fallback_spec({kReplace, kFuse, strip(1, 2)}));
  EXPECT_EQ(fused.decode(Ids{5, 5, 1, 5, 5, 5}), " b ");
  EXPECT_EQ(fused.decode(Ids{5, 5, 5}), "");
  EXPECT_EQ(fused.decode(Ids{}), "");
  const Tokenizer each = load_tokenizer(fallback_spec({kReplace, strip(1, 0)}));
  EXPECT_EQ(each.decode(Ids{0, 0, 1, 5}), "aab");
}

TEST(Decoder, StepsAfterFuseSeeOneToken) {
  const json joined = {{"type", "Replace"}, {"pattern", {{"String", "bb"}}}, {"content", "!"}};
  const Tokenizer tokenizer = load_tokenizer(fallback_spec({kFuse, joined, strip(0, 0)}));
  EXPECT_EQ(tokenizer.decode(Ids{1, 1, 1, 0}), "!b\u2581a");
}

TEST(Decoder, MetaspaceDropsThoseOfTheFirstToken) {
  json spec = fallback_spec(json::array());
  spec["decoder"] = {{"type", "Metaspace"}, {"replacement", "\u2581"}, {"prepend_scheme", "always"}};
  EXPECT_EQ(load_tokenizer(spec).decode(Ids{0, 0, 5, 1}), "a a b");
  spec["decoder"]["prepend_scheme"] = "never";
  EXPECT_EQ(load_tokenizer(spec).decode(Ids{0, 0, 5, 1}), " a a b");
}

TEST(Decoder, WithoutOneTokensAreJoinedWithSpaces) {
  const Tokenizer tokenizer = load_tokenizer(bare_spec({{"a", 0}, {"b", 1}}, json::array()));
  EXPECT_EQ(tokenizer.decode(Ids{0, 7, 1, -1, 0}), "a b a");  // ids that do not exist are left out
}

TEST(Decoder, StreamsJoinToTheWhole) {
  std::mt19937 random(3);
  std::vector<Tokenizer> tokenizers;
  tokenizers.push_back(load_tokenizer(byte_spec()));
  tokenizers.push_back(load_tokenizer(fallback_spec({kReplace, kFallback, kFuse, strip(1, 0)})));
  tokenizers.push_back(load_tokenizer(fallback_spec({kReplace, kFallback, kFuse, strip(2, 2)})));
  for (const Tokenizer& tokenizer : tokenizers) {
    const auto size = static_cast<int32_t>(tokenizer.vocab_size());
    for (int round = 0; round < 2000; ++round) {
      Ids ids(random() % 12);
      for (int32_t& id : ids) id = static_cast<int32_t>(random()) % size, id = id < 0 ? -id : id;
      StreamDecoder stream(tokenizer);
      std::string joined;
      for (const int32_t id : ids) {
        const std::string piece = stream.push(id);
        EXPECT_TRUE(is_valid_utf8(piece));
        joined += piece;
      }
      joined += stream.flush();
      EXPECT_EQ(joined, tokenizer.decode(ids));
    }
  }
}

}  // namespace
}  // namespace hxq::testing
