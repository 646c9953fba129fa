#pragma once

#include <string_view>

namespace hxq {

/// report.html, with a mark where the figures go.
extern const std::string_view kReportPage;

/// What every page of a report begins with.
inline constexpr std::string_view kReportBegin = "<!doctype html>\n<!-- hxq report -->\n";

}  // namespace hxq
