#include "serve/completion.h"

#include <algorithm>
#include <array>
#include <chrono>

#include "hxq/version.h"
#include "io/utf8.h"
#include "serve/api_error.h"

namespace hxq::serve {
namespace {

using nlohmann::ordered_json;

constexpr std::string_view kStreamEnd = "data: [DONE]\n\n";

int64_t now_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(std::chrono::system_clock::now().time_since_epoch()).count();
}

const char* finish_reason(StopReason reason) {
  return reason == StopReason::eos || reason == StopReason::stop ? "stop" : "length";
}

size_t characters_of(std::string_view utf8) {
  return static_cast<size_t>(std::ranges::count_if(utf8, [](char c) { return (c & 0xC0) != 0x80; }));
}

ordered_json bytes_json(std::string_view bytes) {
  ordered_json list = ordered_json::array();
  for (const char c : bytes) list.push_back(static_cast<unsigned char>(c));
  return list;
}

ordered_json chat_token(const Tokenizer& tokenizer, int32_t token, float logprob) {
  const std::string bytes = tokenizer.token_bytes(token);
  return {{"token", to_valid_utf8(bytes)}, {"logprob", logprob}, {"bytes", bytes_json(bytes)}};
}

ordered_json chat_logprobs(const Tokenizer& tokenizer, const std::vector<TokenUpdate>& tokens) {
  ordered_json content = ordered_json::array();
  for (const TokenUpdate& update : tokens) {
    ordered_json item = chat_token(tokenizer, update.token, update.logprobs.logprob);
    item["top_logprobs"] = ordered_json::array();
    for (const auto& [token, logprob] : update.logprobs.top) {
      item["top_logprobs"].push_back(chat_token(tokenizer, token, logprob));
    }
    content.push_back(std::move(item));
  }
  return {{"content", std::move(content)}, {"refusal", nullptr}};
}

}  // namespace

std::string dumped(const ordered_json& json) {
  return json.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace);
}

std::string sse_event(std::string_view data) { return "data: " + std::string(data) + "\n\n"; }

std::string fault_events(const ApiError& fault) { return sse_event(dumped(fault.json())) + std::string(kStreamEnd); }

Completion::Completion(CompletionRequest request, const ServedModel& served, std::string id)
    : request_(std::move(request)),
      served_(served),
      id_(std::move(id)),
      created_(now_seconds()),
      choices_(static_cast<size_t>(request_.choices())),
      open_(choices_.size()) {
  if (!request_.stream || !request_.chat) return;
  for (size_t i = 0; i < choices_.size(); ++i) {
    put_event({{"index", i},
               {"delta", {{"role", "assistant"}, {"content", ""}}},
               {"logprobs", nullptr},
               {"finish_reason", nullptr}});
  }
}

ordered_json Completion::head(bool chunk) const {
  const char* object = request_.chat ? (chunk ? "chat.completion.chunk" : "chat.completion") : "text_completion";
  return {{"id", id_},
          {"object", object},
          {"created", created_},
          {"model", served_.name},
          {"system_fingerprint", std::string("hxq-") + kVersion}};
}

ordered_json Completion::usage() const {
  int64_t prompt = 0, reused = 0, fresh = 0;
  for (size_t i = 0; i < choices_.size(); ++i) {
    const Ending& ending = *choices_[i].ending;
    fresh += ending.new_tokens;
    if (static_cast<int64_t>(i) % request_.n != 0) continue;  // a prompt counts once, however many choices it has
    prompt += ending.prompt_tokens;
    reused += ending.reused_tokens;
  }
  return {{"prompt_tokens", prompt},
          {"completion_tokens", fresh},
          {"total_tokens", prompt + fresh},
          {"prompt_tokens_details", {{"cached_tokens", reused}}}};
}

/// text: what was sent of the choice up to its last token.
ordered_json Completion::logprobs_json(Choice& choice, const std::string& text,
                                       const std::vector<TokenUpdate>& tokens) const {
  if (request_.options.logprobs < 0) return nullptr;
  const Tokenizer& tokenizer = served_.tokenizer;
  if (request_.chat) return chat_logprobs(tokenizer, tokens);
  ordered_json json = {{"tokens", ordered_json::array()},
                       {"token_logprobs", ordered_json::array()},
                       {"top_logprobs", ordered_json::array()},
                       {"text_offset", ordered_json::array()}};
  for (const TokenUpdate& update : tokens) {
    const size_t offset = std::min(update.text_offset, text.size());
    choice.characters += characters_of(std::string_view(text).substr(choice.bytes, offset - choice.bytes));
    choice.bytes = offset;
    json["tokens"].push_back(to_valid_utf8(tokenizer.token_bytes(update.token)));
    json["token_logprobs"].push_back(update.logprobs.logprob);
    ordered_json top = ordered_json::object();
    for (const auto& [token, logprob] : update.logprobs.top) {
      const std::string name = to_valid_utf8(tokenizer.token_bytes(token));
      if (!top.contains(name)) top[name] = logprob;  // of tokens with the same text, the likeliest
    }
    json["top_logprobs"].push_back(request_.options.logprobs > 0 ? std::move(top) : ordered_json());
    json["text_offset"].push_back(choice.characters);
  }
  return json;
}

void Completion::put_event(ordered_json choice) {
  ordered_json event = head(true);
  event["choices"] = ordered_json::array({std::move(choice)});
  if (request_.include_usage) event["usage"] = nullptr;
  events_ += sse_event(dumped(event));
}

void Completion::put_chunk(size_t number, const std::string& text, const std::vector<TokenUpdate>& tokens) {
  Choice& choice = choices_[number];
  ordered_json json = {{"index", number}};
  if (request_.chat) {
    json["delta"] = {{"content", text}};
  } else {
    json["text"] = text;
  }
  json["logprobs"] = logprobs_json(choice, choice.text, tokens);
  json["finish_reason"] = nullptr;
  put_event(std::move(json));
}

void Completion::put_end_of_choice(size_t number) {
  ordered_json json = {{"index", number}};
  if (request_.chat) {
    json["delta"] = ordered_json::object();
  } else {
    json["text"] = "";
  }
  json["logprobs"] = nullptr;
  json["finish_reason"] = finish_reason(choices_[number].ending->reason);
  put_event(std::move(json));
}

void Completion::put_end() {
  if (fault_) {
    events_ += fault_events(*fault_);
    return;
  }
  if (request_.include_usage) {
    ordered_json event = head(true);
    event["choices"] = ordered_json::array();
    event["usage"] = usage();
    events_ += sse_event(dumped(event));
  }
  events_ += kStreamEnd;
}

void Completion::add(size_t number, Update update) {
  Choice& choice = choices_[number];
  choice.text += update.text;
  if (request_.stream && (!update.text.empty() || !update.tokens.empty())) {
    put_chunk(number, update.text, update.tokens);
  } else {
    std::ranges::move(update.tokens, std::back_inserter(choice.tokens));
  }
  if (!update.ending) return;
  choice.ending = std::move(update.ending);
  --open_;
  const std::string& fault = choice.ending->fault;
  if (!fault_ && !fault.empty()) fault_ = fault_of(*choice.ending);
  if (!request_.stream) return;
  if (fault.empty()) put_end_of_choice(number);
  if (done()) put_end();
}

std::string Completion::take_events() { return std::exchange(events_, {}); }

ordered_json Completion::body() const {
  ordered_json list = ordered_json::array();
  for (size_t i = 0; i < choices_.size(); ++i) {
    Choice choice = choices_[i];
    ordered_json json = {{"index", i}};
    if (request_.chat) {
      json["message"] = {{"role", "assistant"}, {"content", choice.text}, {"refusal", nullptr}};
    } else {
      json["text"] = choice.text;
    }
    json["logprobs"] = logprobs_json(choice, choice.text, choice.tokens);
    json["finish_reason"] = finish_reason(choice.ending->reason);
    list.push_back(std::move(json));
  }
  ordered_json body = head(false);
  body["choices"] = std::move(list);
  body["usage"] = usage();
  return body;
}

}  // namespace hxq::serve
