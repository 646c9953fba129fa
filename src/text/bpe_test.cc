#include <gtest/gtest.h>

#include <map>
#include <random>

#include "hxq/error.h"
#include "text/tokenizer_fixture.h"

namespace hxq::testing {
namespace {

using Ids = std::vector<int32_t>;
using nlohmann::json;

struct RandomModel {
  std::map<std::string, int32_t> vocab;
  std::vector<std::pair<std::string, std::string>> merges;
};

// Merges of tokens made before, each with a result of its own.
RandomModel random_model(std::mt19937& random, int merges) {
  RandomModel model;
  std::vector<std::string> tokens = {"a", "b", "c", "\u00e9", "\u4e00"};
  for (const auto& token : tokens) model.vocab.emplace(token, static_cast<int32_t>(model.vocab.size()));
  while (static_cast<int>(model.merges.size()) < merges) {
    const std::string left = tokens[random() % tokens.size()], right = tokens[random() % tokens.size()];
    if (!model.vocab.emplace(left + right, static_cast<int32_t>(model.vocab.size())).second) continue;
    tokens.push_back(left + right);
    model.merges.emplace_back(left, right);
  }
  return model;
}

// The definition: again and again the best pair anywhere, the leftmost of equals.
Ids encode_by_definition(const RandomModel& model, std::vector<std::string> symbols) {
  while (true) {
    size_t best_rank = model.merges.size(), best_at = 0;
    for (size_t at = 0; at + 1 < symbols.size(); ++at) {
      for (size_t rank = 0; rank < best_rank; ++rank) {
        if (model.merges[rank] == std::pair(symbols[at], symbols[at + 1])) best_rank = rank, best_at = at;
      }
    }
    if (best_rank == model.merges.size()) break;
    symbols[best_at] += symbols[best_at + 1];
    symbols.erase(symbols.begin() + static_cast<std::ptrdiff_t>(best_at) + 1);
  }
  Ids ids;
  for (const auto& symbol : symbols) ids.push_back(model.vocab.at(symbol));
  return ids;
}

TEST(Bpe, MergesAsDefined) {
  std::mt19937 random(7);
  const std::vector<std::string> alphabet = {"a", "b", "c", "\u00e9", "\u4e00"};
  for (const int merges : {0, 3, 10, 40}) {
    for (const bool pairs : {true, false}) {
      const RandomModel model = random_model(random, merges);
      json list = json::array();
      for (const auto& [left, right] : model.merges) {
        list.push_back(pairs ? json::array({left, right}) : json(left + " " + right));
      }
      const Tokenizer tokenizer = load_tokenizer(bare_spec(model.vocab, list));
      for (int word = 0; word < 200; ++word) {
        std::vector<std::string> symbols(random() % 40);
        std::string text;
        for (auto& symbol : symbols) text += symbol = alphabet[random() % alphabet.size()];
        EXPECT_EQ(tokenizer.encode(text), encode_by_definition(model, symbols)) << text;
      }
    }
  }
}

TEST(Bpe, UnknownCharacters) {
  const json vocab = {{"<unk>", 0}, {"a", 1}, {"<0xC3>", 2}, {"<0xA9>", 3}};
  json spec = bare_spec(vocab, json::array());
  EXPECT_EQ(load_tokenizer(spec).encode("axxa\u00e9"), (Ids{1, 1}));
  spec["model"]["unk_token"] = "<unk>";
  EXPECT_EQ(load_tokenizer(spec).encode("axxa\u00e9"), (Ids{1, 0, 0, 1, 0}));
  spec["model"]["fuse_unk"] = true;
  EXPECT_EQ(load_tokenizer(spec).encode("axxa\u00e9"), (Ids{1, 0, 1, 0}));
  spec["model"]["byte_fallback"] = true;
  EXPECT_EQ(load_tokenizer(spec).encode("axxa\u00e9"), (Ids{1, 0, 1, 2, 3}));
  // A pending unknown comes after byte tokens between it and the next known character.
  EXPECT_EQ(load_tokenizer(spec).encode("x\u00e9a"), (Ids{2, 3, 0, 1}));
  spec["model"]["unk_token"] = "<missing>";
  EXPECT_THROW(load_tokenizer(spec).encode("x"), Error);
  EXPECT_EQ(load_tokenizer(spec).encode("a"), (Ids{1}));
}

TEST(Bpe, IgnoresMergesForAWordThatIsAToken) {
  json spec = bare_spec({{"a", 0}, {"b", 1}, {"ab", 2}, {"aba", 3}}, json::array({"a b"}));
  EXPECT_EQ(load_tokenizer(spec).encode("aba"), (Ids{2, 0}));
  spec["model"]["ignore_merges"] = true;
  EXPECT_EQ(load_tokenizer(spec).encode("aba"), (Ids{3}));
}

TEST(Bpe, ALongWordIsNotQuadratic) {
  const Tokenizer tokenizer =
      load_tokenizer(bare_spec({{"a", 0}, {"aa", 1}, {"aaaa", 2}}, json::array({"a a", "aa aa"})));
  EXPECT_EQ(tokenizer.encode(std::string(1 << 20, 'a')), Ids(1 << 18, 2));
}

TEST(Bpe, RejectsWhatDoesNotFit) {
  const json a = {{"a", 0}};
  const std::pair<json, const char*> cases[] = {
      {bare_spec(a, json::array({"a b"})), "merges[0]"},
      {bare_spec({{"a", 0}, {"b", 1}}, json::array({"a b"})), "'ab'"},
      {bare_spec(a, json::array({"a"})), "expected two tokens"},
      {bare_spec(a, json::array({"a b c"})), "expected two tokens"},
      {bare_spec(a, json::array({json::array({"a"})})), "expected two tokens"},
      {bare_spec(a, json::array({7})), "expected two tokens"},
      {bare_spec({{"a", -1}}, json::array()), "-1"},
      {bare_spec({{"a", 1 << 24}}, json::array()), "16777216"},
      {bare_spec({{"a", "0"}}, json::array()), "expected a number"},
      {bare_spec(json::array(), json::array()), "model.vocab"},
      {bare_spec(a, a), "model.merges"},
      {bare_spec({{"a", 0}, {"", 1}}, json::array({" a"})), "empty token"},
  };
  for (const auto& [spec, part] : cases) {
    try {
      load_tokenizer(spec);
      ADD_FAILURE() << "accepted " << spec.dump();
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find(part), std::string::npos) << error.what();
      EXPECT_NE(std::string(error.what()).find("tokenizer.json"), std::string::npos) << error.what();
    }
  }
}

}  // namespace
}  // namespace hxq::testing
