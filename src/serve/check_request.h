#pragma once

#include <boost/beast/http.hpp>
#include <string_view>

#include "serve/access.h"
#include "serve/api.h"

namespace hxq::serve {

using Request = boost::beast::http::request<boost::beast::http::string_body>;

inline std::string_view text_of(boost::beast::string_view view) { return {view.data(), view.size()}; }

/// The path that is asked for, without a query.
std::string_view path_of(const Request& request);

/// Whether the request ends where it was taken to end: not so for codings that are not decoded (RFC 9112, 6.1), after
/// which nothing that the client sends is a request.
bool has_clear_end(const Request& request);

/// Throws `ApiError` if it is not clear which host is asked (RFC 9112, 3.2). Of a target with scheme and host, as
/// clients send it to proxies, the path remains, and its host takes the place of the header's, which does not count.
void resolve_target(Request& request);

/// Throws `ApiError` for a head, its target resolved, that may not be served. route: of its path; null: none.
/// preflight: a browser asks whether pages of a listed origin may send the request.
void check_request(const Request& request, const Route* route, const Access& access, bool preflight);

}  // namespace hxq::serve
