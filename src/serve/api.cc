#include "serve/api.h"

#include <algorithm>
#include <array>

#include "hxq/error.h"
#include "serve/api_error.h"

namespace hxq::serve {
namespace {

using nlohmann::ordered_json;

constexpr std::array kRoutes = {
    Route{Endpoint::page, "/", false, true},
    Route{Endpoint::schema, "/openapi.json", false, true},
    Route{Endpoint::health, "/health", false, true},
    Route{Endpoint::models, "/v1/models", false, false},
    Route{Endpoint::metrics, "/metrics", false, false},
    Route{Endpoint::slots, "/slots", false, false},
    Route{Endpoint::tokenize, "/tokenize", true, false},
    Route{Endpoint::detokenize, "/detokenize", true, false},
    Route{Endpoint::completions, "/v1/completions", true, false},
    Route{Endpoint::chat_completions, "/v1/chat/completions", true, false},
    Route{Endpoint::embeddings, "/v1/embeddings", true, false},
};

constexpr std::string_view kOneModel = "/v1/models/";

}  // namespace

const Route* find_route(std::string_view path) {
  if (path.starts_with(kOneModel)) path = kOneModel.substr(0, kOneModel.size() - 1);
  const auto found = std::ranges::find(kRoutes, path, &Route::path);
  return found == kRoutes.end() ? nullptr : &*found;
}

Reply error_reply(const ApiError& error) { return {.status = error.status, .body = dumped(error.json())}; }

Reply models_reply(std::string_view path, const ServedModel& served) {
  const ModelInfo& info = served.model.info();
  const ordered_json model = {{"id", served.name},
                              {"object", "model"},
                              {"created", served.created},
                              {"owned_by", "hxq"},
                              {"architecture", info.model_type},
                              {"parameters", info.parameters},
                              {"context_length", served.context},
                              {"has_chat_template", served.chat_template != nullptr}};
  if (!path.starts_with(kOneModel))
    return {.body = dumped({{"object", "list"}, {"data", ordered_json::array({model})}})};
  if (path.substr(kOneModel.size()) == served.name) return {.body = dumped(model)};
  throw ApiError(404, "invalid_request_error", "there is no such model: '" + served.name + "' is served", "model",
                 "model_not_found");
}

Reply tokenize_reply(std::string_view body, const ServedModel& served) {
  Parameters parameters(body);
  const std::optional<std::string> content = parameters.text("content");
  if (!content) throw bad_request("content is missing", "content", "missing_required_parameter");
  const bool add_special = parameters.flag("add_special", true);
  parameters.finish();
  try {
    return {.body = dumped({{"tokens", served.tokenizer.encode(*content, add_special)}})};
  } catch (const Error& error) {
    throw bad_request(without_file(error), "content", "invalid_value");
  }
}

Reply detokenize_reply(std::string_view body, const ServedModel& served) {
  Parameters parameters(body);
  const nlohmann::json* tokens = parameters.find("tokens");
  if (!tokens) throw bad_request("tokens is missing", "tokens", "missing_required_parameter");
  parameters.finish();
  const std::vector<int32_t> ids =
      *tokens == nlohmann::json::array() ? std::vector<int32_t>() : read_tokens("tokens", *tokens, served);
  return {.body = dumped({{"content", served.tokenizer.decode(ids, false)}})};
}

}  // namespace hxq::serve
