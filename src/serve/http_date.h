#pragma once

#include <ctime>
#include <string>

namespace hxq::serve {

/// A moment as the header Date has it (RFC 9110, 5.6.7).
std::string http_date(std::time_t moment);

}  // namespace hxq::serve
