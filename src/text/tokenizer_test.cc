#include "hxq/tokenizer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <thread>

#include "hxq/error.h"
#include "text/tokenizer_fixture.h"

namespace hxq::testing {
namespace {

using Ids = std::vector<int32_t>;
using nlohmann::json;

json with(json token, const char* flag) {
  token[flag] = true;
  return token;
}

// Ids above 255 as they are, bytes as characters: "a[256]b".
std::string shown(const Ids& ids) {
  std::string out;
  for (const int32_t id : ids) out += id < 256 ? std::string(1, static_cast<char>(id)) : "[" + std::to_string(id) + "]";
  return out;
}

std::string encoded(const json& added, const std::string& text, const json& normalizer = nullptr) {
  json spec = byte_spec();
  spec["added_tokens"] = added;
  spec["normalizer"] = normalizer;
  return shown(load_tokenizer(spec).encode(text));
}

TEST(Tokenizer, AddedTokensTakeTheLongest) {
  const json added = json::array({added_token(256, "<a"), added_token(257, "<a>"), added_token(258, "<a><b")});
  EXPECT_EQ(encoded(added, "x<a><a<a><b>"), "x[257][256][258]>");
}

TEST(Tokenizer, AddedTokensTakeSpaceAround) {
  EXPECT_EQ(encoded(json::array({with(added_token(256, "<l>"), "lstrip")}), "a \t\u3000<l> b"), "a[256] b");
  EXPECT_EQ(encoded(json::array({with(added_token(256, "<r>"), "rstrip")}), "a <r>\n\u00a0b"), "a [256]b");
  const json both = with(with(added_token(256, "<s>"), "lstrip"), "rstrip");
  EXPECT_EQ(encoded(json::array({both}), " <s>  <s> "), "[256][256]");
}

TEST(Tokenizer, AddedTokensAsSingleWords) {
  const json word = json::array({with(added_token(256, "cat"), "single_word")});
  EXPECT_EQ(encoded(word, "cat cats (cat) cat\xCC\x81 cat_"), "[256] cats ([256]) cat\xCC\x81 cat_");
}

TEST(Tokenizer, AddedTokensInNormalizedText) {
  const json nfc = {{"type", "NFC"}};
  const json plain = json::array({added_token(256, "\u1ea5")});
  const json normalized = json::array({with(added_token(256, "a\u0302\u0301"), "normalized")});
  EXPECT_EQ(encoded(plain, "\u1ea5a\u0302\u0301", nfc), "[256]\u1ea5");
  EXPECT_EQ(encoded(normalized, "\u1ea5a\u0302\u0301", nfc), "[256][256]");
  EXPECT_EQ(encoded(normalized, "\u1ea5a\u0302\u0301"), "\u1ea5[256]");
}

TEST(Tokenizer, AddedTokensAreNumberedFromTheVocabularyOn) {
  json spec = byte_spec();
  spec["added_tokens"] = {with(added_token(97, "a"), "special"), added_token(300, "<x>")};
  const Tokenizer tokenizer = load_tokenizer(spec);
  EXPECT_EQ(tokenizer.vocab_size(), 257u);
  EXPECT_EQ(tokenizer.token_to_id("<x>"), 256);
  EXPECT_EQ(tokenizer.token_to_id("a"), 97);
  EXPECT_EQ(tokenizer.token_to_id("none"), std::nullopt);
  EXPECT_EQ(tokenizer.id_to_token(256), "<x>");
  EXPECT_EQ(tokenizer.id_to_token(257), std::nullopt);
  EXPECT_EQ(tokenizer.id_to_token(-1), std::nullopt);
  EXPECT_TRUE(tokenizer.is_special(97));
  EXPECT_FALSE(tokenizer.is_special(256));
  EXPECT_EQ(tokenizer.decode(Ids{'b', 'a', 256}), "b<x>");
  EXPECT_EQ(tokenizer.decode(Ids{'b', 'a', 256}, false), "ba<x>");
}

TEST(Tokenizer, SpecialTokensGoAround) {
  json spec = byte_spec();
  const auto special = [](const char* id) { return json{{"SpecialToken", {{"id", id}, {"type_id", 0}}}}; };
  spec["post_processor"] = {
      {"type", "TemplateProcessing"},
      {"single", {special("A"), {{"Sequence", {{"id", "A"}, {"type_id", 0}}}}, special("Z")}},
      {"special_tokens", {{"A", {{"id", "A"}, {"ids", {65, 66}}}}, {"Z", {{"id", "Z"}, {"ids", {90}}}}}}};
  const Tokenizer tokenizer = load_tokenizer(spec);
  EXPECT_EQ(shown(tokenizer.encode("x")), "ABxZ");
  EXPECT_EQ(shown(tokenizer.encode("")), "ABZ");
  EXPECT_EQ(shown(tokenizer.encode("x", false)), "x");
}

TEST(Tokenizer, InvalidBytesCountAsReplacementCharacters) {
  const Tokenizer tokenizer = load_tokenizer(byte_spec());
  EXPECT_EQ(tokenizer.encode("a\xFF\xE2\x82z\xF0"), tokenizer.encode("a\uFFFD\uFFFDz\uFFFD"));
}

TEST(Tokenizer, ReadsTheNamesOfSpecialTokens) {
  const Tokenizer tokenizer = load_tokenizer(
      byte_spec(), R"({"bos_token": "a", "eos_token": {"content": "b"}, "pad_token": null, "unk_token": "??"})");
  EXPECT_EQ(tokenizer.bos_id(), 97);
  EXPECT_EQ(tokenizer.eos_id(), 98);
  EXPECT_EQ(tokenizer.pad_id(), std::nullopt);
  EXPECT_EQ(tokenizer.unk_id(), 256);  // added, as the vocabulary lacks it
  EXPECT_THROW(load_tokenizer(byte_spec(), R"({"eos_token": 7})"), Error);
  EXPECT_THROW(load_tokenizer(byte_spec(), "{"), Error);
}

TEST(Tokenizer, ThreadsShareOne) {
  const Tokenizer tokenizer = load_tokenizer(byte_spec());
  std::vector<Ids> results(4);
  std::vector<std::thread> threads;
  for (Ids& result : results) threads.emplace_back([&] { result = tokenizer.encode("the same text"); });
  for (std::thread& thread : threads) thread.join();
  for (const Ids& result : results) EXPECT_EQ(shown(result), "the same text");
}

std::string message_for(const std::string& file) {
  const TemporaryFolder folder;
  if (!file.empty()) folder.write("tokenizer.json", file);
  try {
    Tokenizer::load(folder.path());
  } catch (const Error& error) {
    const std::filesystem::path place = file.empty() ? folder.path() : folder.path() / "tokenizer.json";
    EXPECT_EQ(error.place().file, place.string());
    return error.what();
  }
  return "";
}

TEST(Tokenizer, ComplaintsNameFilePartAndWhatIsKnown) {
  const auto changed = [](const char* part, json value) {
    json spec = byte_spec();
    spec[part] = std::move(value);
    return spec.dump();
  };
  const auto nested = [](const char* list) { return json{{"type", "Sequence"}, {list, {{{"type", "Odd"}}}}}; };
  json unigram = {{"type", "Unigram"}, {"vocab", json::array({json::array({"a", -1.5})})}};
  const std::pair<std::string, std::vector<const char*>> cases[] = {
      {"", {"holds no tokenizer", "tokenizer.json", "tokenizer.model"}},
      {"{", {"not valid JSON"}},
      {"[]", {"expected an object"}},
      {"{}", {"'model'"}},
      {changed("version", "2.0"), {"version", "2.0"}},
      {changed("model", unigram), {"model:", "'Unigram'", "BPE"}},
      {changed("model", {{"type", "WordLevel"}, {"vocab", {{"a", 0}}}}), {"model:", "'WordLevel'", "BPE"}},
      {changed("normalizer", {{"type", "Odd"}}), {"normalizer:", "'Odd'", "NFC"}},
      {changed("normalizer", nested("normalizers")), {"normalizer.normalizers[0]", "'Odd'"}},
      {changed("pre_tokenizer", nested("pretokenizers")), {"pre_tokenizer.pretokenizers[0]", "'Odd'", "ByteLevel"}},
      {changed("post_processor", nested("processors")),
       {"post_processor.processors[0]", "'Odd'", "TemplateProcessing"}},
      {changed("decoder", nested("decoders")), {"decoder.decoders[0]", "'Odd'", "ByteFallback"}},
      {changed("decoder", {{"typ", "Odd"}}), {"decoder", "'type'"}},
      {changed("decoder", {{"type", "Strip"}, {"content", "ab"}, {"start", 0}, {"stop", 0}}),
       {"content", "one character"}},
      {changed("decoder", {{"type", "Strip"}, {"content", "a"}, {"start", -1}, {"stop", 0}}), {"start", "-1"}},
      {changed("pre_tokenizer",
               {{"type", "Split"}, {"pattern", {{"Regex", "("}}}, {"behavior", "Isolated"}, {"invert", false}}),
       {"pre_tokenizer.pattern", "'('"}},
      {changed("pre_tokenizer",
               {{"type", "Split"}, {"pattern", {{"String", "a"}}}, {"behavior", "Odd"}, {"invert", false}}),
       {"pre_tokenizer.behavior", "Isolated"}},
      {changed("added_tokens", {{{"id", 1}}}), {"added_tokens[0]", "'content'"}},
      {changed("added_tokens", 7), {"added_tokens", "expected an array"}},
  };
  for (const auto& [file, parts] : cases) {
    const std::string message = message_for(file);
    for (const char* part : parts) EXPECT_NE(message.find(part), std::string::npos) << part << " in: " << message;
    EXPECT_EQ(message.find('\n'), std::string::npos) << message;
  }
}

TEST(Tokenizer, SpecialTokensWhereTheyAreText) {
  const Tokenizer tokenizer = Tokenizer::load(std::filesystem::path(HXQ_SOURCE_DIR) / "models" / "wiki-mamba-7m");
  const std::string text = "One<|endoftext|> two <|endoftext|>three";
  const auto count = [&](const std::vector<int32_t>& ids) {
    return std::ranges::count_if(ids, [&](int32_t id) { return tokenizer.is_special(id); });
  };
  const std::vector<TextRange> found = tokenizer.special_tokens_in(text);
  ASSERT_EQ(found.size(), 2u);
  EXPECT_EQ(text.substr(found[1].begin, found[1].end - found[1].begin), "<|endoftext|>");
  EXPECT_EQ(tokenizer.encode(text, std::vector<TextRange>()), tokenizer.encode(text, false));
  EXPECT_EQ(count(tokenizer.encode(text, false)), 2);
  for (const TextRange& range : {found[0], {0, 4}, {15, 16}}) {
    const std::vector<int32_t> ids = tokenizer.encode(text, std::vector<TextRange>{range});
    EXPECT_EQ(count(ids), 1);
    EXPECT_EQ(tokenizer.decode(ids, false), text);
  }
  const std::vector<int32_t> none = tokenizer.encode(text, std::vector<TextRange>{{0, text.size()}});
  EXPECT_EQ(count(none), 0);
  EXPECT_EQ(tokenizer.decode(none), text);
}

TEST(Tokenizer, BytesOfTokensAddUpToTheText) {
  const Tokenizer tokenizer = Tokenizer::load(std::filesystem::path(HXQ_SOURCE_DIR) / "models" / "wiki-mamba-7m");
  const std::string text = "The citt\u00e0 of \u0141\u00f3d\u017a, \U0001f600\U0001f9d1\u200d\U0001f680 <|endoftext|>";
  std::string bytes;
  for (const int32_t id : tokenizer.encode(text)) bytes += tokenizer.token_bytes(id);
  EXPECT_EQ(bytes, text);
  EXPECT_EQ(tokenizer.token_bytes(1 << 30), "");
}

}  // namespace
}  // namespace hxq::testing
