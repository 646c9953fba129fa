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

/// Throws `ApiError` for a head that may not be served. route: of its path; null: none. preflight: a browser asks
/// whether pages of a listed origin may send the request.
void check_request(const Request& request, const Route* route, const Access& access, bool preflight);

}  // namespace hxq::serve
