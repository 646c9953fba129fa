#include "serve/check_request.h"

#include <fmt/format.h>

#include "serve/api_error.h"

namespace hxq::serve {

namespace beast = boost::beast;
namespace http = beast::http;

std::string_view path_of(const Request& request) {
  const std::string_view target = text_of(request.target());
  return target.substr(0, target.find('?'));
}

void check_request(const Request& request, const Route* route, const Access& access, bool preflight) {
  const std::string_view path = path_of(request);
  const std::string_view host = text_of(request[http::field::host]);
  const std::string_view origin = text_of(request[http::field::origin]);
  if (request.count(http::field::host) > 1) throw bad_request("the request has several headers Host");
  if (!access.serves(host)) {
    const std::string_view found = host.substr(0, 100);
    const std::string name = name_of_host(found);
    const std::string remedy = name.empty()
                                   ? ""
                                   : fmt::format(
                                         ": to be asked by this name, start the server with --host {}, --cors-origin "
                                         "http://{} or API keys (--api-key-file FILE)",
                                         name, found);
    throw ApiError(
        403, "invalid_request_error",
        fmt::format("the Host is '{}', expected an IP address, localhost or what --host says{}", found, remedy), "",
        "host_not_allowed");
  }
  if (!route) {
    throw ApiError(404, "invalid_request_error", fmt::format("there is nothing at {}", path.substr(0, 100)), "",
                   "not_found");
  }
  if (!access.admits(origin, host)) {
    throw ApiError(403, "invalid_request_error",
                   fmt::format("pages of {0} are not let in: start the server with --cors-origin {0} to let them in",
                               origin.substr(0, 100)),
                   "", "origin_not_allowed");
  }
  const http::verb verb = request.method();
  const bool fits = route->post ? verb == http::verb::post : verb == http::verb::get || verb == http::verb::head;
  if (!fits && !preflight) {
    throw ApiError(405, "invalid_request_error", fmt::format("{} takes {}", route->path, route->post ? "POST" : "GET"),
                   "", "method_not_allowed");
  }
  if (preflight) return;
  if (!route->is_public && !access.has_key(text_of(request[http::field::authorization]))) {
    throw ApiError(401, "invalid_request_error", "a right API key is needed: Authorization: Bearer KEY", "",
                   "invalid_api_key");
  }
  if (path.size() < request.target().size() && route->endpoint != Endpoint::page) {
    throw bad_request("the address has a query, and none is taken", "", "unknown_parameter");
  }
  if (route->post) {
    const std::string_view type = text_of(request[http::field::content_type]);
    if (!beast::iequals(beast::string_view(type.data(), std::min(type.find(';'), type.size())), "application/json")) {
      throw ApiError(415, "invalid_request_error", "expected Content-Type: application/json", "", "unsupported_media");
    }
    if (!request[http::field::content_encoding].empty()) {
      throw ApiError(415, "invalid_request_error", "Content-Encoding is not supported", "", "unsupported_media");
    }
  }
}

}  // namespace hxq::serve
