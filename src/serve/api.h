#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "serve/completion.h"

namespace hxq::serve {

/// What an endpoint is asked with, and how.
enum class Endpoint : uint8_t {
  page,
  schema,
  health,
  models,
  metrics,
  slots,
  tokenize,
  detokenize,
  completions,
  chat_completions,
  embeddings,
};

struct Route {
  Endpoint endpoint;
  std::string_view path;
  bool post;       ///< else GET, and HEAD
  bool is_public;  ///< needs no key
};

/// The route of that path; null if there is none. "/v1/models/NAME" is the models' route.
const Route* find_route(std::string_view path);

struct Reply {
  int status = 200;
  std::string_view content_type = "application/json";
  std::string body = {};
};

Reply error_reply(const struct ApiError& error);

/// Replies that depend on the model alone. `path`: of the request.
Reply models_reply(std::string_view path, const ServedModel& served);
/// POST /tokenize: {"content", "add_special"} to {"tokens"}.
Reply tokenize_reply(std::string_view body, const ServedModel& served);
/// POST /detokenize: {"tokens"} to {"content"}.
Reply detokenize_reply(std::string_view body, const ServedModel& served);

/// Files that are part of the program: the page to chat with, and the API's description (OpenAPI 3.1).
extern const std::string_view kPage;
extern const std::string_view kSchema;

}  // namespace hxq::serve
