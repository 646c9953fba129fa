#include <gtest/gtest.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <mutex>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "hxq/error.h"
#include "serve/access.h"
#include "serve/api.h"
#include "serve/api_error.h"
#include "serve/embeddings.h"
#include "serve/engine.h"
#include "serve/http_date.h"
#include "serve/parameters.h"
#include "text/tokenizer_fixture.h"

namespace hxq::serve {
namespace {

/// The status and the parameter that a refusal names.
template <class Function>
std::pair<int, std::string> refusal_of(Function function) {
  try {
    function();
  } catch (const ApiError& error) {
    EXPECT_FALSE(std::string(error.what()).empty());
    return {error.status, error.param};
  }
  return {0, ""};
}

TEST(Access, AKeyIsRightOrNot) {
  const Access access({"secret", "s"}, {});
  for (const char* right : {"Bearer secret", "bearer secret", "Bearer s"}) EXPECT_TRUE(access.has_key(right)) << right;
  for (const char* wrong : {"", "Bearer", "Bearer ", "Bearer secre", "Bearer secretsecret", "Bearer  secret",
                            "Bearer secret ", "Bearer ss", "secret", "Basic secret"}) {
    EXPECT_FALSE(access.has_key(wrong)) << wrong;
  }
  EXPECT_TRUE(Access({}, {}).has_key("")) << "no keys: anybody";
}

TEST(Access, OriginsOfPages) {
  const Access none({}, {});
  EXPECT_TRUE(none.admits("", "localhost:1"));
  EXPECT_TRUE(none.admits("http://localhost:1", "localhost:1"));
  for (const char* other : {"http://localhost", "http://localhost:12", "null", "localhost:1", "https://evil.example"}) {
    EXPECT_FALSE(none.admits(other, "localhost:1")) << other;
  }
  const Access listed({}, {"https://page.example"});
  EXPECT_TRUE(listed.admits("https://page.example", "localhost:1"));
  EXPECT_FALSE(listed.lists("https://page.example.evil"));
  EXPECT_TRUE(Access({}, {"*"}).lists("null"));
}

TEST(Access, NamesOfTheServer) {
  const Access alone({}, {"https://proxy.example", "http://box.lan:8080"}, "Box.example");
  for (const char* own : {"", "localhost", "LOCALHOST:8080", "127.0.0.1:1", "[::1]:8080", "[::1]", "box.example:80",
                          "10.0.0.1", "[fe80::1]:80", "proxy.example", "Box.lan:8080"}) {
    EXPECT_TRUE(alone.serves(own)) << own;
  }
  for (const char* other : {"evil.example", "evil.example:8080", "localhost.evil.example", "127.0.0.1.evil.example",
                            "localhost:8080@evil", "[::1", "[::1]x", "::1", "10.0.0.1.evil:80", "10.1", "0x7f000001",
                            "localhost.", ":80", "box.lan", "box.lan:81", "proxy.example:443", "[]", "["}) {
    EXPECT_FALSE(alone.serves(other)) << other;
  }
  for (const char* other : {"evil.example", "evil.example:8080", "127.0.0.1.evil.example", "localhost."}) {
    EXPECT_FALSE(alone.admits(std::string("http://") + other, other)) << "they agree, which a page can bring about";
  }
  const Access with_key({"key"}, {}, "localhost");
  EXPECT_TRUE(with_key.serves("box.example"));
  EXPECT_TRUE(with_key.admits("https://box.example", "box.example"));
  EXPECT_FALSE(with_key.admits("https://evil.example", "box.example"));
  for (const char* everywhere : {"0.0.0.0", "::"}) {
    const Access open({}, {}, everywhere);
    EXPECT_FALSE(open.serves("box.example")) << everywhere;
    EXPECT_FALSE(open.admits("http://box.example:80", "box.example:80"));
    EXPECT_TRUE(open.admits("http://10.0.0.1:80", "10.0.0.1:80"));
    EXPECT_TRUE(open.admits("http://[fe80::1]:80", "[fe80::1]:80"));
  }
  for (const char* malformed : {"x:8y", ":80", "[", "[:", "[]", "[::1]x", "a b", "me@box", "box/"}) {
    EXPECT_FALSE(Access({}, {}, "").serves(malformed)) << malformed;
    EXPECT_FALSE(Access({}, {"*"}).serves(malformed)) << malformed;
  }
  EXPECT_TRUE(Access({}, {"*"}).serves("box.example")) << "any page may read everything then";
}

TEST(HttpDate, IsThatOfTheStandard) {
  EXPECT_EQ(http_date(784111777), "Sun, 06 Nov 1994 08:49:37 GMT");  // RFC 9110's example
  EXPECT_EQ(http_date(951827696), "Tue, 29 Feb 2000 12:34:56 GMT");
}

TEST(Parameters, WhatNobodyTakesIsRefused) {
  Parameters parameters(R"({"a": 1, "b": null})");
  EXPECT_EQ(parameters.integer("a", 0, 2), 1);
  EXPECT_EQ(refusal_of([&] { parameters.finish(); }), (std::pair<int, std::string>(400, "b")));
  parameters.label("b");
  parameters.finish();
}

TEST(Parameters, RangesAndTypes) {
  Parameters parameters(R"({"i": -3, "large": 18446744073709551615, "f": 0.5, "t": "x", "l": ["x", ""], "nan": NaN})");
  const std::pair<int, std::string> refused_i(400, "i");
  EXPECT_EQ(parameters.integer("i", -3, 0), -3);
  EXPECT_EQ(refusal_of([&] { parameters.integer("i", -2, 0); }), refused_i);
  EXPECT_EQ(refusal_of([&] { parameters.integer("large", 0, INT64_MAX); }).first, 400);
  EXPECT_EQ(refusal_of([&] { parameters.integer("f", 0, 1); }).first, 400);
  EXPECT_EQ(parameters.number("f", 0.5, 1), 0.5);
  EXPECT_EQ(refusal_of([&] { parameters.number("f", 0.5, 1, true); }).first, 400);
  EXPECT_EQ(refusal_of([&] { parameters.number("nan", -1e300, 1e300); }).first, 400);
  EXPECT_EQ(parameters.texts("t", 1), std::vector<std::string>{"x"});
  EXPECT_EQ(refusal_of([&] { parameters.texts("l", 4); }).first, 400);
  EXPECT_EQ(parameters.integer("absent", 0, 1), std::nullopt);
}

TEST(Parameters, BodiesThatAreNoObjects) {
  for (const char* body : {"", "[]", "{", "1", "\"\xff\"", "{\"a\":\"\xff\"}"}) {
    EXPECT_EQ(refusal_of([&] { Parameters parameters(body); }).first, 400) << body;
  }
}

TEST(Parameters, NoMemberTwice) {
  using Refusal = std::pair<int, std::string>;
  for (const char* body : {R"({"a": 1, "a": 2})", R"({"a": 1, "b": 1, "\u0061": 1})", R"({"b": [{"a": 1, "a": 1}]})"}) {
    EXPECT_EQ(refusal_of([&] { Parameters parameters(body); }), Refusal(400, "a")) << body;
  }
  Parameters(R"({"a": {"a": 1, "b": {"a": 1}}, "b": [{"a": 1}, {"a": 1}]})");
}

TEST(ApiErrors, HaveOpenAisShape) {
  EXPECT_EQ(bad_request("no \"x\"", "x").json().dump(),
            R"({"error":{"message":"no \"x\"","type":"invalid_request_error","param":"x","code":null}})");
}

TEST(Events, AreOnOneLine) {
  EXPECT_EQ(sse_event(dumped({{"text", "a\n\nb\xff"}})), "data: {\"text\":\"a\\n\\nb\xEF\xBF\xBD\"}\n\n");
}

TEST(Routes, AreFoundByPath) {
  EXPECT_EQ(find_route("/v1/models/any/name")->endpoint, Endpoint::models);
  EXPECT_EQ(find_route("/health")->endpoint, Endpoint::health);
  for (const char* path : {"", "/healt", "/health/", "/v1", "health"}) EXPECT_EQ(find_route(path), nullptr) << path;
}

/// Updates of an engine, and a way to wait for them.
class Inbox {
 public:
  Engine::Deliver deliver() {
    return [this](std::vector<Engine::Delivery> deliveries) {
      const std::lock_guard lock(mutex_);
      for (Engine::Delivery& delivery : deliveries) {
        Update& all = updates_[delivery.ticket];
        all.text += delivery.update.text;
        for (TokenUpdate& token : delivery.update.tokens) all.tokens.push_back(std::move(token));
        if (delivery.update.ending) all.ending = std::move(delivery.update.ending);
      }
      came_.notify_all();
    };
  }
  Update wait_for_the_end_of(Engine::Ticket ticket) {
    std::unique_lock lock(mutex_);
    const auto has_ended = [&] { return updates_[ticket].ending.has_value(); };
    if (!came_.wait_for(lock, std::chrono::minutes(5), has_ended)) throw std::runtime_error("no end has come");
    return updates_[ticket];
  }
  bool has_any(Engine::Ticket ticket) {
    const std::lock_guard lock(mutex_);
    return updates_.contains(ticket);
  }

 private:
  std::mutex mutex_;
  std::condition_variable came_;
  std::map<Engine::Ticket, Update> updates_;
};

class Engines : public ::testing::Test {
 protected:
  const std::filesystem::path folder_ = std::filesystem::path(HXQ_SOURCE_DIR) / "models" / "wiki-mamba-7m";
  const Model model_ = Model::open(folder_, {.threads = 2});
  const Tokenizer tokenizer_ = Tokenizer::load(folder_);
  const std::vector<int32_t> prompt_ = tokenizer_.encode("The city of London is");

  Generation generation(const GenerateOptions& options) const { return {model_.info(), tokenizer_, prompt_, options}; }
};

TEST_F(Engines, GiveWhatGenerateGives) {
  Inbox inbox;
  Engine engine(model_, {.sequences = 2}, Pooling::mean, inbox.deliver());
  std::vector<std::pair<Engine::Ticket, GenerateOptions>> running;
  for (uint64_t seed = 0; seed < 5; ++seed) {
    const GenerateOptions options = {
        .sampling = {.temperature = 1, .seed = seed}, .max_tokens = 12, .stop = {" the"}, .logprobs = 2};
    running.emplace_back(engine.submit(generation(options)), options);
  }
  for (const auto& [ticket, options] : running) {
    const Update found = inbox.wait_for_the_end_of(ticket);
    const GenerateResult alone = generate(model_, tokenizer_, "The city of London is", options);
    EXPECT_EQ(found.text, alone.text);
    EXPECT_EQ(found.ending->reason, alone.stop_reason);
    EXPECT_EQ(found.ending->new_tokens, std::ssize(alone.tokens));
    std::string of_tokens;
    for (const TokenUpdate& token : found.tokens) {
      EXPECT_EQ(token.text_offset, of_tokens.size());
      of_tokens += tokenizer_.token_bytes(token.token);
    }
    EXPECT_TRUE(of_tokens.starts_with(found.text)) << of_tokens;
  }
  EXPECT_EQ(engine.status().completed, 5);
  EXPECT_EQ(engine.status().open, 0);
}

TEST_F(Engines, CancelWhatRunsAndWhatWaits) {
  Inbox inbox;
  Engine engine(model_, {.sequences = 1}, Pooling::mean, inbox.deliver());
  const Engine::Ticket runs = engine.submit(generation({.max_tokens = 1'000'000}));
  const Engine::Ticket waits = engine.submit(generation({.max_tokens = 1'000'000}));
  const Engine::Ticket last = engine.submit(generation({.max_tokens = 2}));
  engine.cancel(waits);
  engine.cancel(runs);
  engine.cancel(12345);
  EXPECT_EQ(inbox.wait_for_the_end_of(last).ending->reason, StopReason::length);
  EXPECT_EQ(engine.status().cancelled, 2);
  EXPECT_FALSE(inbox.has_any(waits));
}

// Beside texts that go on, a prompt and a text to be embedded come on with the tokens of one budget in each turn, and
// neither keeps the other waiting. As many texts as the budget leave them a quarter of it.
TEST_F(Engines, PromptsAndEmbeddingsShareABudget) {
  constexpr int64_t kBudget = 16, kTokens = 200;
  for (const int64_t texts : {int64_t{1}, kBudget}) {
    const int64_t left = std::max(kBudget - texts, kBudget / 4);
    const std::vector<int32_t> text(kTokens, 7), prompt(kTokens, 8);
    std::mutex mutex;
    std::condition_variable came;
    Engine* running = nullptr;
    int64_t last = 0, turns = 0, end = 0, most = 0, ended = 0, most_apart = 0, decoding = 0;
    const auto look = [&](const std::vector<Engine::Delivery>& deliveries) {
      const std::lock_guard lock(mutex);
      const Engine::Status status = running->status();
      int64_t embedded = 0, prefilled = 0, all = status.prompt_tokens + status.new_tokens;
      decoding = 0;
      for (const auto& progress : status.embeddings) embedded += progress.run_tokens;
      for (const auto& progress : status.generations) {
        all += progress.run_tokens;
        decoding += progress.stage == Scheduler::Progress::Stage::decode;
      }
      all += embedded;
      if (std::ssize(status.generations) > texts) prefilled = status.generations.back().run_tokens;
      if (turns++ > 0) most = std::max(most, all - last);
      if (embedded > 0 && prefilled > 0) most_apart = std::max(most_apart, std::abs(embedded - prefilled));
      last = all;
      for (const Engine::Delivery& delivery : deliveries) ended += delivery.update.ending.has_value();
      if (ended == 2 && end == 0) end = turns;  // turns go on until the test wakes
      came.notify_all();
    };
    Engine engine(model_, {.sequences = texts + 1, .prefill_tokens_beside_decode = kBudget}, Pooling::mean, look);
    std::unique_lock lock(mutex);
    running = &engine;
    const auto comes = [&](auto condition) { ASSERT_TRUE(came.wait_for(lock, std::chrono::minutes(5), condition)); };
    for (int64_t i = 0; i < texts; ++i) {
      engine.submit(generation({.max_tokens = 1'000'000, .ignore_eos = true, .logprobs = 0}));
    }
    comes([&] { return turns > 1 && decoding == texts; });
    const int64_t before = turns;
    engine.submit(text);
    engine.submit(Generation(model_.info(), tokenizer_, prompt, {.max_tokens = 1}));
    comes([&] { return ended == 2; });
    EXPECT_LE(most, texts + left + 1) << "an end counts a token that was not run";
    EXPECT_LE(most_apart, 2 * kBudget);
    EXPECT_LE(end - before, 2 * kTokens / left + 2);
  }
}

TEST_F(Engines, EmbeddingsAreWrittenAsFloats) {
  const ServedModel served = {model_, tokenizer_, nullptr, "model", 0, 0, 0};
  EmbeddingAnswer answer({.texts = {{1}}}, served);
  answer.add(0, {.embedding = {1, -0.0F, 0.5F, 1e-5F, -3e-20F}, .ending = Ending()});
  const std::string body = answer.take_piece();
  EXPECT_NE(body.find("[1.0,-0.0,0.5,1e-05,-3e-20]"), body.npos) << body;
  EXPECT_TRUE(nlohmann::json::accept(body)) << body;
}

TEST_F(Engines, EndAllWithAFault) {
  Inbox inbox;
  Engine engine(model_, {.sequences = 1}, Pooling::mean, inbox.deliver());
  const Engine::Ticket runs = engine.submit(generation({.max_tokens = 1'000'000}));
  const Engine::Ticket waits = engine.submit(generation({.max_tokens = 1'000'000}));
  engine.end_all("enough");
  EXPECT_EQ(inbox.wait_for_the_end_of(runs).ending->fault, "enough");
  EXPECT_EQ(inbox.wait_for_the_end_of(waits).ending->fault, "enough");
  EXPECT_EQ(engine.status().failed, 2);
}

}  // namespace
}  // namespace hxq::serve
