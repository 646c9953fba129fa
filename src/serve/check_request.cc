#include "serve/check_request.h"

#include <fmt/format.h>

#include <algorithm>
#include <string>

#include "serve/api_error.h"

namespace hxq::serve {

namespace beast = boost::beast;
namespace http = beast::http;

std::string_view path_of(const Request& request) {
  const std::string_view target = text_of(request.target());
  return target.substr(0, target.find('?'));
}

bool has_clear_end(const Request& request) {
  const size_t encodings = request.count(http::field::transfer_encoding);
  return encodings == 0 || (encodings == 1 && request.version() >= 11 &&
                            beast::iequals(request[http::field::transfer_encoding], "chunked"));
}

void resolve_target(Request& request) {
  const size_t hosts = request.count(http::field::host);
  if (hosts > 1) throw bad_request("the request has several headers Host");
  if (hosts == 0 && request.version() >= 11) throw bad_request("the request has no header Host");
  const std::string target(text_of(request.target()));
  const size_t scheme = target.find("://");
  if (!target.starts_with('/') && scheme != target.npos) {
    if (!beast::iequals(beast::string_view(target.data(), scheme), "http")) {
      throw ApiError(421, "invalid_request_error", "this server is asked by http alone", "", "scheme_not_served");
    }
    const size_t begin = scheme + 3;
    const size_t path = std::min(target.find_first_of("/?", begin), target.size());
    if (path == begin) throw bad_request("the address that is asked for has no host");
    request.set(http::field::host, target.substr(begin, path - begin));
    request.target((target[path] == '/' ? "" : "/") + target.substr(path));
  }
  const std::string_view host = text_of(request[http::field::host]);
  if (!host.empty() && name_of_host(host).empty()) {
    throw bad_request(
        fmt::format("the Host is '{}', expected a name or an address, and a port or none", host.substr(0, 100)));
  }
}

void check_request(const Request& request, const Route* route, const Access& access, bool preflight) {
  const std::string_view path = path_of(request);
  const std::string_view host = text_of(request[http::field::host]);
  const std::string_view origin = text_of(request[http::field::origin]);
  if (!has_clear_end(request)) {
    throw ApiError(501, "invalid_request_error", "the Transfer-Encoding is not chunked, or HTTP/1.0 has one", "",
                   "unsupported_transfer");
  }
  const std::string_view expected = text_of(request[http::field::expect]);
  if (!expected.empty() && request.version() >= 11 && !beast::iequals(request[http::field::expect], "100-continue")) {
    throw ApiError(417, "invalid_request_error",
                   fmt::format("what is expected is '{}', and 100-continue is all there is", expected.substr(0, 100)),
                   "", "expectation_failed");
  }
  if (!access.serves(host)) {
    const std::string_view found = host.substr(0, 100);
    throw ApiError(403, "invalid_request_error",
                   fmt::format("the Host is '{}', expected an IP address, localhost or what --host says: to be asked "
                               "by this name, start the server with --host {}, --cors-origin http://{} or API keys "
                               "(--api-key-file FILE)",
                               found, name_of_host(found), found),
                   "", "host_not_allowed");
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
