#include "hxq/generate.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <new>

#include "hxq/chat.h"
#include "hxq/error.h"
#include "hxq/scheduler.h"
#include "model_runner.h"
#include "refusal.h"
#include "text/tokenizer_fixture.h"

namespace {

/// How many allocations of this thread succeed before one fails; < 0: all.
thread_local int64_t allocations_left = -1;

}  // namespace

// Not inlined, or GCC pairs one's malloc with the other's caller and warns of a mismatch.
__attribute__((noinline)) void* operator new(size_t size) {
  if (allocations_left == 0) {
    allocations_left = -1;
    throw std::bad_alloc();
  }
  if (allocations_left > 0) --allocations_left;
  if (void* memory = std::malloc(size > 0 ? size : 1)) return memory;
  throw std::bad_alloc();
}
// Sanitizers have one of their own, which would not fit the delete below.
__attribute__((noinline)) void* operator new(size_t size, const std::nothrow_t&) noexcept {
  try {
    return operator new(size);
  } catch (const std::bad_alloc&) {
    return nullptr;
  }
}
__attribute__((noinline)) void operator delete(void* memory) noexcept { std::free(memory); }
__attribute__((noinline)) void operator delete(void* memory, size_t) noexcept { std::free(memory); }

namespace hxq {
namespace {

using testing::refusal;
using testing::TemporaryFolder;

std::filesystem::path tiny(const char* name) { return std::filesystem::path(HXQ_SOURCE_DIR) / "tests" / "e2e" / name; }

/// A Llama with a context of 160 tokens.
const Model& llama() {
  static const Model model = Model::open(tiny("llama-bias"), {.threads = 2});
  return model;
}

/// A tokenizer whose 64 tokens are "<s>", "</s>" and 62 letters and digits; nothing is added around a text. `space`: a
/// letter whose token is a space instead.
Tokenizer letters(const std::string& config = R"({"bos_token": "<s>", "eos_token": "</s>"})", char space = '\0') {
  nlohmann::json vocab;
  for (const char c : std::string("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789")) {
    const size_t id = vocab.size() + 2;
    vocab[std::string(1, c == space ? ' ' : c)] = id;
  }
  vocab["<s>"] = 0;
  vocab["</s>"] = 1;
  nlohmann::json spec = testing::bare_spec(vocab, nlohmann::json::array());
  spec["decoder"] = {{"type", "Fuse"}};
  for (const auto& [token, id] : {std::pair{"<s>", 0}, {"</s>", 1}}) {
    nlohmann::json added = testing::added_token(id, token);
    added["special"] = true;
    spec["added_tokens"].push_back(added);
  }
  return testing::load_tokenizer(spec, config);
}

TEST(Generate, EmptyPromptsBeginWithTheBeginningOfText) {
  EXPECT_EQ(prompt_tokens(llama(), letters(), ""), (std::vector<int32_t>{0}));
  const int32_t of_model = llama().info().bos_token;
  ASSERT_GE(of_model, 0);
  EXPECT_EQ(prompt_tokens(llama(), letters("{}"), ""), (std::vector<int32_t>{of_model}));
  const TemporaryFolder folder;
  std::filesystem::copy(tiny("llama-bias"), folder.path(), std::filesystem::copy_options::recursive);
  nlohmann::json config = nlohmann::json::parse(std::ifstream(tiny("llama-bias") / "config.json"));
  config.erase("bos_token_id");
  folder.write("config.json", config.dump());
  const Model none = Model::open(folder.path());
  EXPECT_NE(refusal([&] { prompt_tokens(none, letters("{}"), ""); }).find("prompt is empty"), std::string::npos);
}

TEST(Generate, APromptOfOneSpecialTokenIsThatToken) {
  const Tokenizer tokenizer = letters();
  const GenerateResult special = generate(llama(), tokenizer, "<s>", {.max_tokens = 8});
  EXPECT_EQ(special.prompt_tokens, (std::vector<int32_t>{0}));
  EXPECT_EQ(special.tokens, generate(llama(), tokenizer, "", {.max_tokens = 8}).tokens);
}

TEST(Generate, PromptsLongerThanTheContextAreRefusedBeforeAnyText) {
  const Tokenizer tokenizer = letters();
  const std::vector<std::string> prompts = {"A", std::string(161, 'B')};
  const auto no_text = [](size_t, std::string_view) { FAIL() << "text came before the check"; };
  const std::string message = refusal([&] { generate_all(llama(), tokenizer, prompts, {}, no_text); });
  EXPECT_EQ(message, "the prompt has 161 tokens; the model's context holds 160");
}

TEST(Generate, StopsWhereTheContextEnds) {
  const Tokenizer tokenizer = letters();
  const GenerateOptions options = {.max_tokens = 1000, .ignore_eos = true};
  const GenerateResult some = generate(llama(), tokenizer, std::string(150, 'C'), options);
  EXPECT_EQ(some.stop_reason, StopReason::context);
  EXPECT_EQ(some.tokens.size(), 11u) << "the last one is chosen after the context's last token, and not run";
  const GenerateResult full = generate(llama(), tokenizer, std::string(160, 'C'), options);
  EXPECT_EQ(full.stop_reason, StopReason::context);
  EXPECT_EQ(full.tokens.size(), 1u);
  EXPECT_EQ(full.text.size(), 1u);
  EXPECT_EQ(generate(llama(), tokenizer, std::string(150, 'C'), {.max_tokens = 11, .ignore_eos = true}).stop_reason,
            StopReason::length);
}

TEST(Generate, EndsWhereItIsInterrupted) {
  const Tokenizer tokenizer = letters();
  const std::vector<std::string> prompts = {"Hello", "abc", "Hello"};
  GenerateOptions options = {.max_tokens = 8, .ignore_eos = true};
  const std::vector<GenerateResult> whole = generate_all(llama(), tokenizer, prompts, options);
  // Each has a counter of its own, asked before its prompt, after it and after every token.
  options.interrupted = [asked = 0]() mutable { return ++asked > 5; };
  const std::vector<GenerateResult> results = generate_all(llama(), tokenizer, prompts, options);
  ASSERT_EQ(results.size(), prompts.size());
  for (size_t i = 0; i < results.size(); ++i) {
    EXPECT_EQ(results[i].stop_reason, StopReason::interrupted);
    ASSERT_EQ(results[i].tokens.size(), 4u);
    EXPECT_EQ(results[i].text, whole[i].text.substr(0, 4));
  }
}

TEST(Generate, PromptsThatWaitWhenItIsInterruptedAreNotRun) {
  const Tokenizer tokenizer = letters();
  const std::vector<std::string> prompts(70, "Hello");  // more than are run at once
  const auto results = generate_all(llama(), tokenizer, prompts, {.max_tokens = 8, .interrupted = [] { return true; }});
  ASSERT_EQ(results.size(), prompts.size());
  for (const GenerateResult& result : results) {
    EXPECT_EQ(result.stop_reason, StopReason::interrupted);
    EXPECT_TRUE(result.tokens.empty());
  }
}

TEST(Generate, LongPromptsAreTheSameInOnePieceAndTokenByToken) {
  const Model model = Model::open(tiny("mamba2-limit"), {.threads = 2});  // no limit to the context
  const Tokenizer tokenizer = letters();
  std::string prompt;
  for (int i = 0; i < 1500; ++i) prompt += static_cast<char>('A' + i * i % 26);
  const GenerateOptions options = {.max_tokens = 12, .ignore_eos = true};
  const GenerateResult whole = generate(model, tokenizer, prompt, options);
  EXPECT_EQ(whole.prompt_tokens.size(), 1500u);
  testing::ModelRunner runner(model);
  std::vector<float> logits(static_cast<size_t>(model.info().vocab_size));
  std::vector<float> in_one(logits.size());
  testing::ModelRunner other(model);
  other.prefill(whole.prompt_tokens, Logits::last, in_one);
  for (const int32_t token : whole.prompt_tokens) runner.prefill({&token, 1}, Logits::last, logits);
  EXPECT_EQ(logits, in_one);
  Sampler sampler({});
  EXPECT_EQ(sampler.choose(logits), whole.tokens[0]);
}

TEST(Generate, SeveralPromptsGiveWhatEachGivesAlone) {
  const std::vector<std::string> prompts = {"Hello", "", "abc", std::string(100, 'x'), "Hello", "<s>Z"};
  const Tokenizer tokenizer = letters();
  for (const char* name : {"llama-bias", "mamba2-limit", "zamba2-plain", "llama-dynamic"}) {
    const Model model = Model::open(tiny(name), {.threads = 2});
    const GenerateOptions options = {.sampling = {.temperature = 1, .top_k = 20, .repetition_penalty = 1.1, .seed = 5},
                                     .max_tokens = 20};
    std::vector<std::string> streamed(prompts.size());
    const auto results =
        generate_all(model, tokenizer, prompts, options, [&](size_t i, std::string_view text) { streamed[i] += text; });
    ASSERT_EQ(results.size(), prompts.size());
    for (size_t i = 0; i < prompts.size(); ++i) {
      const GenerateResult alone = generate(model, tokenizer, prompts[i], options);
      EXPECT_EQ(results[i].tokens, alone.tokens) << name << ", prompt " << i;
      EXPECT_EQ(results[i].text, alone.text);
      EXPECT_EQ(results[i].stop_reason, alone.stop_reason);
      EXPECT_EQ(streamed[i], alone.text);
    }
  }
}

TEST(Generate, GreedyTextsFollowTheLargestLogitsAmongOthers) {
  const Tokenizer tokenizer = letters();
  for (const char* name : {"llama-bias", "mamba2-limit"}) {
    const Model model = Model::open(tiny(name), {.threads = 2});
    Scheduler scheduler(model);
    const GenerateOptions greedy = {.max_tokens = 12, .ignore_eos = true};
    GenerateOptions sampled = greedy, told = greedy, penalised = greedy;
    sampled.sampling = {.temperature = 1, .seed = 4};
    told.logprobs = 2;
    penalised.sampling.repetition_penalty = 8;
    std::vector<GenerateOptions> options = {greedy, sampled, greedy, told, greedy, penalised};
    std::vector<Scheduler::Id> ids;
    for (size_t i = 0; i < options.size(); ++i) {
      const std::vector<int32_t> prompt(3 + 5 * i, static_cast<int32_t>(10 + i));
      ids.push_back(scheduler.add(Generation(model.info(), tokenizer, prompt, options[i])));
      scheduler.step();  // so that prompts are run beside texts
    }
    while (scheduler.step()) {
    }
    for (size_t i = 0; i < options.size(); ++i) {
      const GenerateResult result = scheduler.take(ids[i]).value();
      ASSERT_EQ(result.tokens.size(), 12u);
      if (options[i].sampling.temperature > 0) {
        EXPECT_EQ(result.tokens, Session(model, tokenizer).generate(result.prompt_tokens, options[i]).tokens);
        continue;
      }
      testing::ModelRunner runner(model);
      std::vector<float> logits(static_cast<size_t>(model.info().vocab_size));
      runner.prefill(result.prompt_tokens, Logits::last, logits);
      Sampler penalising(options[i].sampling);
      penalising.observe(result.prompt_tokens);
      int others = 0;  // than the largest
      for (const int32_t token : result.tokens) {
        const auto largest = static_cast<int32_t>(std::ranges::max_element(logits) - logits.begin());
        std::vector<float> copy = logits;
        ASSERT_EQ(token, i == 5 ? penalising.choose(copy) : largest) << name << ", text " << i;
        others += token != largest;
        runner.decode(token, logits);
      }
      EXPECT_EQ(others > 0, i == 5) << name << ", text " << i;
      EXPECT_EQ(result.logprobs.size(), i == 3 ? 12u : 0u);
    }
  }
}

TEST(Generate, StopsAtTheEndTokensOfEveryFile) {
  // What comes next is made an end-of-text token: by the config of generation, or by the tokenizer.
  const GenerateOptions options = {.max_tokens = 6};
  const Tokenizer plain = letters("{}");
  const GenerateResult open = generate(llama(), plain, "Hello", {.max_tokens = 6, .ignore_eos = true});
  const int32_t third = open.tokens[2];
  const auto ended = [&](const GenerateResult& result) {
    EXPECT_EQ(result.stop_reason, StopReason::eos);
    EXPECT_EQ(result.tokens.back(), third);
    EXPECT_LE(result.tokens.size(), 3u);
  };
  for (const std::string& value : {std::to_string(third), "[1, " + std::to_string(third) + "]"}) {
    const TemporaryFolder folder;
    std::filesystem::copy(tiny("llama-bias"), folder.path(), std::filesystem::copy_options::recursive);
    folder.write("generation_config.json", R"({"temperature": 0.6, "eos_token_id": )" + value + "}");
    const Model model = Model::open(folder.path());
    ended(generate(model, plain, "Hello", options));
    EXPECT_EQ(generate(model, plain, "Hello", {.max_tokens = 6, .ignore_eos = true}).tokens, open.tokens)
        << "greedy whatever the file's temperature";
    folder.write("generation_config.json", R"({"eos_token_id": "x"})");
    EXPECT_NE(refusal([&] { Model::open(folder.path()); }).find("generation_config.json"), std::string::npos);
  }
  const Tokenizer named = letters(R"({"eos_token": ")" + std::string(*plain.id_to_token(third)) + R"("})");
  ended(generate(llama(), named, "Hello", options));
}

TEST(Session, RunsOnlyWhatIsNew) {
  const Tokenizer tokenizer = letters();
  for (const char* name : {"llama-bias", "mamba2-limit", "zamba2-plain"}) {
    const Model model = Model::open(tiny(name), {.threads = 2});
    const GenerateOptions options = {.max_tokens = 10, .ignore_eos = true};
    Session session(model, tokenizer);
    std::vector<int32_t> text = tokenizer.encode("Once");
    const GenerateResult first = session.generate(text, options);
    EXPECT_EQ(first.reused_tokens, 0);
    text.insert(text.end(), first.tokens.begin(), first.tokens.end());
    text.push_back(7);
    const GenerateResult second = session.generate(text, options);
    EXPECT_EQ(second.reused_tokens, 4 + 9) << "the last new token was never run";
    EXPECT_EQ(second.tokens, Session(model, tokenizer).generate(text, options).tokens) << name;

    text[1] += 1;  // another text
    const GenerateResult other = session.generate(text, options);
    EXPECT_EQ(other.reused_tokens, 0);
    EXPECT_EQ(other.tokens, Session(model, tokenizer).generate(text, options).tokens) << name;
    EXPECT_THROW(session.generate({}, options), Error);
  }
}

TEST(Session, IsAsNewAfterWhatFailed) {
  const Tokenizer tokenizer = letters();
  const Model model = Model::open(tiny("llama-bias"), {.threads = 1});
  const GenerateOptions options = {.max_tokens = 2, .ignore_eos = true};
  const std::vector<int32_t> text = tokenizer.encode("Once");
  const GenerateResult expected = Session(model, tokenizer).generate(text, options);
  int failures = 0;
  for (bool failed = true; failed && failures < 10000;) {
    Session session(model, tokenizer);
    allocations_left = failures;
    try {
      session.generate(text, options);
      failed = false;
    } catch (const std::bad_alloc&) {
      ++failures;
    }
    allocations_left = -1;
    ASSERT_EQ(session.generate(text, options).tokens, expected.tokens) << "after allocation " << failures << " failed";
  }
  EXPECT_GT(failures, 0);
}

TEST(Chat, ContinuesAConversation) {
  const TemporaryFolder folder;
  folder.write("chat_template.jinja",
               "{% for m in messages %}{{ m.role[0] }}{{ m.content }}{{ eos_token if m.role == 'assistant' }}"
               "{% endfor %}{% if add_generation_prompt %}a{% endif %}");
  const std::optional<ChatTemplate> chat_template = ChatTemplate::load(folder.path());
  ASSERT_TRUE(chat_template);
  const Tokenizer tokenizer = letters();
  Chat chat(llama(), tokenizer, *chat_template, "Brief");
  const GenerateOptions options = {.max_tokens = 5};
  const GenerateResult first = chat.say("Hi", options);
  EXPECT_EQ(first.prompt_tokens, tokenizer.encode("sBriefuHia"));
  const GenerateResult second = chat.say("More", options);
  EXPECT_EQ(second.prompt_tokens, tokenizer.encode("sBriefuHia" + first.text + "</s>uMorea"));
  EXPECT_GT(second.reused_tokens, static_cast<int64_t>(first.prompt_tokens.size()));
  EXPECT_EQ(second.tokens, Session(llama(), tokenizer).generate(second.prompt_tokens, options).tokens);
  ASSERT_EQ(chat.messages().size(), 5u);
  EXPECT_THROW(chat.say(std::string(200, 'x'), options), Error);
  EXPECT_EQ(chat.messages().size(), 5u) << "the conversation is as before";
  chat.reset();
  EXPECT_EQ(chat.say("Hi", options).text, first.text);
}

TEST(Chat, KeepsTheTokensOfAnswersThatATemplateTrims) {
  const TemporaryFolder folder;
  const auto write = [&](const std::string& content) {
    folder.write("chat_template.jinja", "{% for m in messages %}<s>{{ " + content + " }}</s>{% endfor %}<s>");
    return ChatTemplate::load(folder.path());
  };
  const GenerateOptions options = {.max_tokens = 5, .ignore_eos = true};
  const std::string began = generate(llama(), letters(), "<s>Q</s><s>", options).text;
  ASSERT_GE(began.size(), 2u);
  ASSERT_NE(began[0], 'Q');
  const Tokenizer tokenizer = letters(R"({"bos_token": "<s>", "eos_token": "</s>"})", began[0]);

  const auto trimming = write("m.content | trim");
  Chat chat(llama(), tokenizer, *trimming);
  const GenerateResult first = chat.say("Q", options);
  ASSERT_EQ(first.text[0], ' ');
  const GenerateResult second = chat.say("Q", options);
  EXPECT_EQ(second.reused_tokens, static_cast<int64_t>(first.prompt_tokens.size()) + 4);
  EXPECT_EQ(second.tokens, Session(llama(), tokenizer).generate(second.prompt_tokens, options).tokens);

  const auto changing = write("m.content if loop.last else 'Z'");
  Chat other(llama(), tokenizer, *changing);
  other.say("Q", options);
  const GenerateResult anew = other.say("Q", options);
  EXPECT_EQ(anew.reused_tokens, 0);
  EXPECT_EQ(anew.prompt_tokens, tokenizer.encode("<s>Z</s><s>Z</s><s>Q</s><s>"));
}

TEST(ChatTemplate, IsFoundWhereModelsHaveIt) {
  const auto found = [](const std::string& config) {
    const TemporaryFolder folder;
    folder.write("tokenizer_config.json", config);
    const auto chat_template = ChatTemplate::load(folder.path());
    const std::vector<ChatMessage> messages = {{"user", "hey"}};
    return chat_template ? chat_template->render(messages, letters()).text : "none";
  };
  EXPECT_EQ(found("{}"), "none");
  EXPECT_EQ(found(R"({"chat_template": null})"), "none");
  EXPECT_EQ(found(R"({"chat_template": "{{ bos_token }}{{ messages[0].content }}{{ pad_token is defined }}"})"),
            "<s>heyFalse");
  EXPECT_EQ(
      found(R"({"chat_template": [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}]})"),
      "d");
  EXPECT_NE(refusal([&] { found(R"({"chat_template": [{"name": "rag", "template": "t"}]})"); }).find("default"),
            std::string::npos);
  EXPECT_NE(refusal([&] { found(R"({"chat_template": 7})"); }).find("tokenizer_config.json"), std::string::npos);
  EXPECT_NE(refusal([&] { found(R"({"chat_template": "\n{% if %}"})"); }).find("line 2"), std::string::npos);
}

TEST(Model, RefusesMoreThreadsThanASystemHas) {
  const std::string message = refusal([] { Model::open(tiny("llama-linear"), {.threads = 100000}); });
  EXPECT_NE(message.find("100000 threads: expected 0 (all cores) to 1024"), std::string::npos) << message;
}

TEST(Sequence, BelongsToItsModel) {
  const Model other = Model::open(tiny("llama-linear"));
  Sequence sequence = other.new_sequence();
  Workspace workspace = other.new_workspace(), foreign = llama().new_workspace();
  const std::vector<int32_t> tokens = {1};
  const auto run = [&](const Model& model, Sequence& on, Workspace& in) {
    model.forward(tokens, on, Phase::prefill, Logits::none, in, {});
  };
  EXPECT_NE(refusal([&] { run(llama(), sequence, foreign); }).find("this model's"), std::string::npos);
  EXPECT_NE(refusal([&] { run(other, sequence, foreign); }).find("this model's"), std::string::npos);
  Sequence moved = std::move(sequence);
  EXPECT_THROW(run(other, sequence, workspace), Error);
  EXPECT_NO_THROW(run(other, moved, workspace));
}

TEST(Model, RefusesRoomThatDoesNotFitWhatIsAsked) {
  Sequence sequence = llama().new_sequence();
  Workspace workspace = llama().new_workspace();
  const std::vector<int32_t> tokens = {1, 2};
  const Segment segment{.sequence = &sequence, .tokens = 2, .logits = Logits::most_likely};
  std::vector<float> logits(64);
  std::vector<int32_t> chosen(2);
  const std::span<int32_t> one = std::span(chosen).first(1);
  EXPECT_EQ(refusal([&] {
              llama().forward(tokens, {&segment, 1}, workspace, {});
            }),
            "room for 0 most likely tokens, expected 1");
  EXPECT_EQ(refusal([&] {
              llama().forward(tokens, {&segment, 1}, workspace, {}, chosen);
            }),
            "room for 2 most likely tokens, expected 1");
  EXPECT_EQ(refusal([&] {
              llama().forward(tokens, {&segment, 1}, workspace, logits, one);
            }),
            "room for 64 logits, expected 0 x 64");
  EXPECT_EQ(refusal([&] {
              llama().hidden_states(tokens, {&segment, 1}, workspace, {});
            }),
            "hidden states have no most likely token");
  EXPECT_EQ(sequence.position(), 0);
}

}  // namespace
}  // namespace hxq
