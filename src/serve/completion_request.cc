#include "serve/completion_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>

#include "hxq/error.h"
#include "serve/api_error.h"

namespace hxq::serve {
namespace {

using nlohmann::json;

constexpr size_t kMostStops = 16;
constexpr int64_t kMostLogprobs = 20;
/// Where a request does not say and the model's context has no end.
constexpr int64_t kChatTokens = 4096;
constexpr int64_t kCompletionTokens = 16;  // as OpenAI's

uint64_t random_seed() {
  std::random_device device;
  return uint64_t{device()} << 32 | device();
}

void read_sampling(Parameters& parameters, SamplingOptions& sampling) {
  sampling.temperature = parameters.number("temperature", 0, 2).value_or(1);
  sampling.top_p = parameters.number("top_p", 0, 1, true).value_or(1);
  sampling.top_k = parameters.integer("top_k", 0, INT64_MAX).value_or(0);
  sampling.repetition_penalty = parameters.number("repetition_penalty", 0.01, 100).value_or(1);
  const std::optional<int64_t> seed = parameters.integer("seed", INT64_MIN, INT64_MAX);
  sampling.seed = seed ? static_cast<uint64_t>(*seed) : random_seed();
}

/// What both kinds of requests share. Ends with what is refused.
void read_common(Parameters& parameters, CompletionRequest& request) {
  read_sampling(parameters, request.options.sampling);
  request.n = parameters.integer("n", 1, kMostChoices).value_or(1);
  request.options.stop = parameters.texts("stop", kMostStops);
  request.options.ignore_eos = parameters.flag("ignore_eos", false);
  request.stream = parameters.flag("stream", false);
  if (const json* options = parameters.find("stream_options")) {
    if (!request.stream) throw bad_request("stream_options without stream", "stream_options", "invalid_value");
    const bool known = options->is_object() && std::ranges::all_of(options->items(), [](const auto& item) {
                         return item.key() == "include_usage" && item.value().is_boolean();
                       });
    if (!known) refuse_value("stream_options", R"({"include_usage": true or false})", *options);
    request.include_usage = options->value("include_usage", false);
  }
  for (const std::string_view name : {"frequency_penalty", "presence_penalty"}) parameters.only(name, {0, 0.0});
  parameters.only("logit_bias", {json::object()});
  for (const std::string_view name : {"user", "metadata"}) parameters.label(name);
}

void check_context(const CompletionRequest& request, const ServedModel& served) {
  for (const std::vector<int32_t>& prompt : request.prompts) {
    if (std::ssize(prompt) < served.context && request.options.max_tokens <= served.context - std::ssize(prompt)) {
      continue;
    }
    throw bad_request(fmt::format("the context holds {} tokens: {} of the prompt and {} of the text are more",
                                  served.context, prompt.size(), request.options.max_tokens),
                      request.chat ? "messages" : "prompt", "context_length_exceeded");
  }
}

/// Tokens that are left for the text of the longest prompt, at least 1.
int64_t room(const CompletionRequest& request, const ServedModel& served) {
  size_t longest = 0;
  for (const auto& prompt : request.prompts) longest = std::max(longest, prompt.size());
  return std::max<int64_t>(served.context - static_cast<int64_t>(longest), 1);
}

/// Tokens that each text of a chat may have where none are asked for, at least 1.
int64_t chat_tokens(const CompletionRequest& request, const ServedModel& served) {
  const int64_t share = (served.queued_tokens - request.prompt_tokens()) / (request.choices() * request.token_weight());
  const int64_t most = std::min(room(request, served), std::max<int64_t>(share, 1));
  const bool has_end = served.model.info().context_length > 0;
  return has_end ? most : std::min(most, kChatTokens);
}

void check_choices(const CompletionRequest& request) {
  if (request.choices() <= kMostChoices) return;
  throw bad_request(fmt::format("{} choices asked for, expected at most {}", request.choices(), kMostChoices), "n",
                    "invalid_value");
}

std::vector<int32_t> tokens_of(const std::string& text, std::string_view name, const ServedModel& served) {
  try {
    return prompt_tokens(served.model, served.tokenizer, text);
  } catch (const ContextError& error) {
    throw bad_request(without_file(error), std::string(name), "context_length_exceeded");
  } catch (const Error& error) {
    throw bad_request(without_file(error), std::string(name), "invalid_value");
  }
}

/// A text, or a list of parts that are texts.
std::string read_content(const json& content, const std::string& name) {
  if (content.is_string()) return content.get<std::string>();
  if (!content.is_array()) refuse_value(name, "a text or a list of parts", content);
  std::string all;
  for (const json& part : content) {
    const bool is_text = part.is_object() && part.size() == 2 && part.value("type", json()) == "text" &&
                         part.value("text", json()).is_string();
    if (!is_text) refuse_value(name, R"({"type": "text", "text": ...})", part);
    all += part["text"].get<std::string>();
  }
  return all;
}

ChatMessage read_message(const json& message, const std::string& name) {
  if (!message.is_object()) refuse_value(name, "an object", message);
  for (const auto& [key, value] : message.items()) {
    if (key == "role" || key == "content" || value.is_null() || (value.is_array() && value.empty())) continue;
    throw bad_request(fmt::format("{}: '{}' is not supported", name, key.substr(0, 60)), name, "unsupported_value");
  }
  const json role = message.value("role", json());
  // "developer" is the later name of what templates call "system".
  for (const auto& [known, called] :
       {std::pair{"system", "system"}, {"developer", "system"}, {"user", "user"}, {"assistant", "assistant"}}) {
    if (role != known) continue;
    const auto content = message.find("content");
    if (content == message.end()) throw bad_request(name + ": content is missing", name, "missing_required_parameter");
    return {called, read_content(*content, name + ".content")};
  }
  refuse_value(name + ".role", "system, developer, user or assistant", role);
}

std::vector<ChatMessage> read_messages(Parameters& parameters) {
  const json* list = parameters.find("messages");
  if (!list) throw bad_request("messages is missing", "messages", "missing_required_parameter");
  if (!list->is_array() || list->empty()) refuse_value("messages", "a list of messages", *list);
  std::vector<ChatMessage> messages;
  for (const json& message : *list) {
    messages.push_back(read_message(message, fmt::format("messages[{}]", messages.size())));
  }
  return messages;
}

/// Tokens of the prompt before the last message: of what a program tells the model first, or of the conversation so
/// far.
int64_t tokens_before_the_last(std::vector<ChatMessage> messages, const std::vector<int32_t>& prompt,
                               const ServedModel& served) {
  messages.pop_back();
  if (messages.empty()) return 0;
  try {
    const std::vector<int32_t> before = served.chat_template->tokens(messages, served.tokenizer, false);
    return std::ranges::mismatch(before, prompt).in1 - before.begin();
  } catch (const Error&) {
    return 0;  // some templates take no conversation that ends so
  }
}

}  // namespace

int64_t CompletionRequest::prompt_tokens() const noexcept {
  int64_t tokens = 0;
  for (const auto& prompt : prompts) tokens += n * std::ssize(prompt);
  return tokens;
}

int64_t CompletionRequest::token_weight() const noexcept {
  return stream ? 1 : 1 + std::max<int64_t>(options.logprobs, 0);
}

double CompletionRequest::most_tokens() const noexcept {
  return static_cast<double>(prompt_tokens()) +
         static_cast<double>(choices() * token_weight()) * static_cast<double>(options.max_tokens);
}

GenerateOptions CompletionRequest::options_of(int64_t number) const {
  GenerateOptions of = options;
  of.sampling.seed += static_cast<uint64_t>(number % n);
  return of;
}

void check_model(Parameters& parameters, const ServedModel& served) {
  const std::optional<std::string> name = parameters.text("model");
  if (!name || *name == served.name) return;
  throw ApiError(404, "invalid_request_error",
                 fmt::format("there is no model '{}': '{}' is served", name->substr(0, 100), served.name), "model",
                 "model_not_found");
}

std::vector<int32_t> read_tokens(std::string_view name, const json& ids, const ServedModel& served) {
  const int64_t vocab = served.model.info().vocab_size;
  const auto is_token = [&](const json& id) {
    return id.is_number_unsigned() && id.get<uint64_t>() < static_cast<uint64_t>(vocab);
  };
  const std::string expected = fmt::format("a list of tokens below {}", vocab);
  if (!ids.is_array() || ids.empty()) refuse_value(name, expected, ids);
  if (const auto wrong = std::ranges::find_if_not(ids, is_token); wrong != ids.end())
    refuse_value(name, expected, *wrong);
  return ids.get<std::vector<int32_t>>();
}

std::vector<std::vector<int32_t>> read_texts(Parameters& parameters, std::string_view name, int64_t most,
                                             const ServedModel& served) {
  const json* all = parameters.find(name);
  if (!all) throw bad_request(fmt::format("{} is missing", name), std::string(name), "missing_required_parameter");
  if (all->is_string()) return {tokens_of(all->get<std::string>(), name, served)};
  const std::string expected = fmt::format("a text, a list of tokens, or a list of 1 to {} of these", most);
  if (!all->is_array() || all->empty()) refuse_value(name, expected, *all);
  if (all->front().is_number()) return {read_tokens(name, *all, served)};
  if (std::ssize(*all) > most) refuse_value(name, expected, *all);
  std::vector<std::vector<int32_t>> texts;
  for (const json& item : *all) {
    if (!item.is_string() && !item.is_array()) refuse_value(name, expected, item);
    texts.push_back(item.is_string() ? tokens_of(item.get<std::string>(), name, served)
                                     : read_tokens(name, item, served));
  }
  return texts;
}

CompletionRequest read_completion_request(std::string_view body, const ServedModel& served) {
  Parameters parameters(body);
  check_model(parameters, served);
  CompletionRequest request;
  read_common(parameters, request);
  request.options.logprobs = parameters.integer("logprobs", 0, kMostLogprobs).value_or(-1);
  const std::optional<int64_t> max_tokens = parameters.integer("max_tokens", 1, INT64_MAX);
  parameters.only("best_of", {request.n});
  parameters.only("echo", {false});
  parameters.only("suffix", {""});
  parameters.only("prompt_logprobs", {});
  parameters.label("prompt");
  parameters.finish();  // before any work
  request.prompts = read_texts(parameters, "prompt", kMostChoices, served);
  check_choices(request);
  request.options.max_tokens = max_tokens.value_or(std::min(kCompletionTokens, room(request, served)));
  check_context(request, served);
  return request;
}

CompletionRequest read_chat_request(std::string_view body, const ServedModel& served) {
  Parameters parameters(body);
  check_model(parameters, served);
  CompletionRequest request;
  request.chat = true;
  read_common(parameters, request);
  const bool logprobs = parameters.flag("logprobs", false);
  const std::optional<int64_t> top = parameters.integer("top_logprobs", 0, kMostLogprobs);
  if (top && !logprobs) throw bad_request("top_logprobs without logprobs", "top_logprobs", "invalid_value");
  request.options.logprobs = logprobs ? top.value_or(0) : -1;
  const std::optional<int64_t> old_name = parameters.integer("max_tokens", 1, INT64_MAX);
  const std::optional<int64_t> new_name = parameters.integer("max_completion_tokens", 1, INT64_MAX);
  if (old_name && new_name && *old_name != *new_name) {
    throw bad_request("max_tokens and max_completion_tokens differ", "max_tokens", "invalid_value");
  }
  parameters.only("response_format", {json{{"type", "text"}}});
  parameters.only("tools", {json::array()});
  parameters.only("tool_choice", {"none"});
  parameters.only("functions", {json::array()});
  parameters.only("function_call", {"none"});
  parameters.only("modalities", {json::array({"text"})});
  parameters.only("store", {false});
  parameters.only("service_tier", {"auto", "default"});
  const std::vector<ChatMessage> messages = read_messages(parameters);
  parameters.finish();
  if (!served.chat_template) {
    throw bad_request("the model has no chat template: /v1/completions serves it", "messages", "unsupported_value");
  }
  try {
    request.prompts = {served.chat_template->tokens(messages, served.tokenizer)};
  } catch (const Error& error) {
    throw bad_request(without_file(error), "messages", "invalid_value");
  }
  request.shared_tokens = tokens_before_the_last(messages, request.prompts[0], served);
  if (request.prompts[0].empty()) throw bad_request("the messages have no tokens", "messages", "invalid_value");
  request.options.max_tokens = (new_name ? new_name : old_name).value_or(chat_tokens(request, served));
  check_context(request, served);
  return request;
}

}  // namespace hxq::serve
