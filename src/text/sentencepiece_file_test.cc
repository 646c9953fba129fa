#include "text/sentencepiece_file.h"

#include <gtest/gtest.h>

#include <bit>

#include "hxq/error.h"
#include "shared_data.h"
#include "text/tokenizer_fixture.h"

namespace hxq::testing {
namespace {

using Ids = std::vector<int32_t>;

// Messages of Protocol Buffers, written by hand.
std::string varint(uint64_t value) {
  std::string out;
  for (; value >= 0x80; value >>= 7) out += static_cast<char>(0x80 | (value & 0x7F));
  return out + static_cast<char>(value);
}
std::string number(int field, uint64_t value) { return varint(static_cast<uint64_t>(field) << 3) + varint(value); }
std::string bytes(int field, const std::string& value) {
  return varint(static_cast<uint64_t>(field) << 3 | 2) + varint(value.size()) + value;
}
std::string real(int field, float value) {
  const auto bits = std::bit_cast<uint32_t>(value);
  std::string out = varint(static_cast<uint64_t>(field) << 3 | 5);
  for (int i = 0; i < 4; ++i) out += static_cast<char>(bits >> 8 * i);
  return out;
}

std::string piece(const std::string& text, float score, int type = 1) {
  return bytes(1, bytes(1, text) + real(2, score) + number(3, static_cast<uint64_t>(type)));
}

const std::string kSpecials = piece("<unk>", 0, 2) + piece("<s>", 0, 3) + piece("</s>", 0, 3);
const std::string kBpe = bytes(2, number(3, 2));
const std::string kIdentity = bytes(3, bytes(1, "identity") + number(4, 0));
const std::string kLetters = piece("\u2581", -10) + piece("a", -11) + piece("b", -12);

Tokenizer load_model(const std::string& model, const std::string& config = {}, const std::string& added = {}) {
  const TemporaryFolder folder;
  folder.write("tokenizer.model", model);
  if (!config.empty()) folder.write("tokenizer_config.json", config);
  if (!added.empty()) folder.write("added_tokens.json", added);
  return Tokenizer::load(folder.path());
}

TEST(SentencePieceFile, BetterScoresMergeFirstAndThenTheOneToTheLeft) {
  // "ab" before "ba"; "aab" can come of two pairs, which count the same.
  const std::string model = kSpecials + piece("ab", -1) + piece("ba", -2) + piece("\u2581a", -2) + piece("aab", -3) +
                            piece("aa", -4) + kLetters + kBpe + kIdentity;
  const Tokenizer tokenizer = load_model(model);
  EXPECT_EQ(tokenizer.encode("bab"), (Ids{1, 8, 10, 3}));
  EXPECT_EQ(tokenizer.encode("ba"), (Ids{1, 8, 4}));
  EXPECT_EQ(tokenizer.encode("aab"), (Ids{1, 5, 3}));
  EXPECT_EQ(tokenizer.encode("aaab"), (Ids{1, 5, 6}));
  EXPECT_EQ(tokenizer.decode(Ids{1, 5, 6, 2}), "aaab");
}

TEST(SentencePieceFile, TellsWhatGoesAroundAText) {
  const std::string model = kSpecials + kLetters + kBpe + kIdentity;
  EXPECT_EQ(load_model(model).encode("a"), (Ids{1, 3, 4}));
  EXPECT_EQ(load_model(model, R"({"add_bos_token": false, "add_eos_token": true})").encode("a"), (Ids{3, 4, 2}));
  const Tokenizer tokenizer = load_model(model);
  EXPECT_EQ(tokenizer.bos_id(), 1);
  EXPECT_EQ(tokenizer.eos_id(), 2);
  EXPECT_EQ(tokenizer.unk_id(), 0);
  EXPECT_EQ(tokenizer.pad_id(), std::nullopt);
  EXPECT_EQ(load_model(model, R"({"eos_token": "b"})").eos_id(), 5);
  EXPECT_EQ(tokenizer.encode("a<s>b</s>"), (Ids{1, 3, 4, 1, 3, 5, 2})) << "control pieces are found in a text";
  EXPECT_EQ(tokenizer.encode("azz"), (Ids{1, 3, 4, 0})) << "unknown characters in a row are one token";
}

TEST(SentencePieceFile, TokensAddedBesideTheModel) {
  const std::string model = kSpecials + kLetters + kBpe + kIdentity;
  const Tokenizer old = load_model(model, {}, R"({"<|b|>": 7, "<|a|>": 6})");
  EXPECT_EQ(old.encode("<|b|><|a|>", false), (Ids{7, 6}));
  const Tokenizer tokenizer =
      load_model(model, R"({"added_tokens_decoder": {"6": {"content": "<|a|>", "special": true, "rstrip": true},
                                          "2": {"content": "</s>", "special": true}}})");
  EXPECT_EQ(tokenizer.encode("<|a|> a", false), (Ids{6, 3, 4}));
  EXPECT_TRUE(tokenizer.is_special(6));
  EXPECT_EQ(tokenizer.vocab_size(), 7u);
  EXPECT_THROW(load_model(model, {}, R"({"<|b|>": 9})"), Error);
  EXPECT_THROW(load_model(model, {}, R"({"<|b|>": 4})"), Error);
}

TEST(SentencePieceFile, ComplaintsNameTheFileAndWhatIsWrong) {
  const std::string whole = kSpecials + kLetters + kBpe + kIdentity;
  const std::pair<std::string, const char*> cases[] = {
      {"", "no pieces"},
      {whole.substr(0, 20), "ends within"},
      {std::string(20, '\xFF'), "64 bits"},
      {"\x0B" + whole, "unknown kind"},
      {number(1, 5), "expected the parts"},
      {kSpecials + kLetters + kIdentity, "type unigram"},
      {kSpecials + kLetters + bytes(2, number(3, 4)), "type char"},
      {kSpecials + kLetters + kBpe + bytes(3, bytes(1, "nmt_nfkc") + bytes(2, "map")), "'nmt_nfkc'"},
      {whole + piece("a", 0), "twice"},
      {whole + piece("\xFF", 0), "UTF-8"},
      {whole + piece("", 0), "UTF-8"},
      {whole + piece("q", 0, 5), "unused"},
      {whole + piece("q", 0, 9), "type 9"},
      {whole + piece("q", std::numeric_limits<float>::quiet_NaN()), "finite"},
      {whole + piece(std::string(100'000, 'q'), 0), "too long"},
  };
  for (const auto& [model, part] : cases) {
    try {
      load_model(model);
      ADD_FAILURE() << part;
    } catch (const Error& error) {
      EXPECT_NE(std::string_view(error.what()).find(part), std::string_view::npos) << error.what();
      EXPECT_TRUE(error.place().file.ends_with("tokenizer.model")) << error.what();
    }
  }
}

TEST(SentencePieceFile, AnyBytesAreReadOrRefused) {
  const std::string whole = kSpecials + piece("ab", -1) + kLetters + kBpe + kIdentity;
  for (size_t at = 0; at < whole.size(); ++at) {
    for (const char byte : {'\0', '\x01', '\x7F', '\x80', '\xFF'}) {
      std::string changed = whole;
      changed[at] = byte;
      try {
        load_model(changed).encode("ab a");
      } catch (const Error&) {
      }
    }
    try {
      load_model(whole.substr(0, at));
    } catch (const Error&) {
    }
  }
}

/// The same tokenizer in both forms, as Llama 2 is published.
TEST(SentencePieceFile, IsTheTokenizerJsonOfLlama) {
  const std::filesystem::path dir = shared_dir() / "tokenizers" / "llama2";
  if (!std::filesystem::exists(dir)) GTEST_SKIP() << "no reference data";
  const TemporaryFolder folder;
  std::filesystem::copy(dir / "tokenizer.model", folder.path() / "tokenizer.model");
  std::filesystem::copy(dir / "tokenizer_config.json", folder.path() / "tokenizer_config.json");
  const Tokenizer from_json = Tokenizer::load(dir), from_model = Tokenizer::load(folder.path());
  EXPECT_EQ(from_model.vocab_size(), from_json.vocab_size());
  EXPECT_EQ(from_model.bos_id(), from_json.bos_id());
  std::string text;
  for (int i = 0; i < 4000; ++i)
    text += " word" + std::to_string(i * i) + (i % 7 ? "" : "\n\u00e9\u65e5\U0001f600\t") + "  x";
  const Ids ids = from_json.encode(text);
  EXPECT_EQ(from_model.encode(text), ids);
  EXPECT_EQ(from_model.decode(ids), from_json.decode(ids));
}

}  // namespace
}  // namespace hxq::testing
