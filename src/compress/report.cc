#include "hxq/report.h"

#include <fmt/format.h>
#include <fmt/ranges.h>
#include <unistd.h>

#include <fstream>
#include <nlohmann/json.hpp>
#include <span>

#include "compress/report_page.h"
#include "hxq/error.h"
#include "hxq/version.h"
#include "io/system_error.h"
#include "io/temporary_file.h"
#include "io/utf8.h"

namespace hxq {
namespace {

std::string json_string(std::string_view text) { return nlohmann::json(to_valid_utf8(text)).dump(); }

/// Levels in the fewest digits that are read back as the same floats.
std::string json_of(const WeightHistogram& histogram) {
  return fmt::format(R"({{"tensor":{},"of_source":{},"low":{},"high":{},"below":{},"above":{},"not_finite":{},)"
                     R"("counts":[{}],"levels":[{}]}})",
                     json_string(histogram.tensor), histogram.of_source, histogram.low, histogram.high, histogram.below,
                     histogram.above, histogram.not_finite, fmt::join(histogram.counts, ","),
                     fmt::join(histogram.levels, ","));
}

std::string json_of(const Report& report) {
  std::vector<std::string> histograms;
  for (const WeightHistogram& histogram : report.histograms) histograms.push_back(json_of(histogram));
  std::string json = fmt::format(
      R"({{"version":{},"name":{},"text":{},"inspection":{},"verification":{},"scores":{},"histograms":[{}]}})",
      json_string(kVersion), json_string(report.name), json_string(report.text), to_json(report.inspection),
      report.verification ? to_json(*report.verification) : "null", report.scores ? to_json(*report.scores) : "null",
      fmt::join(histograms, ",\n"));
  // Within a page, "<" could end the element that the JSON is in. In JSON it stands in strings alone.
  for (size_t at = json.find('<'); at != json.npos; at = json.find('<', at)) json.replace(at, 1, "\\u003c");
  return json;
}

bool is_report(const std::filesystem::path& file) {
  std::ifstream in(file, std::ios::binary);
  std::string begin(kReportBegin.size(), '\0');
  in.read(begin.data(), static_cast<std::streamsize>(begin.size()));
  return in && begin == kReportBegin;
}

}  // namespace

std::string report_page(const Report& report) {
  constexpr std::string_view kMark = "HXQ_DATA";
  std::string text(kReportPage);
  return text.replace(text.find(kMark), kMark.size(), json_of(report));
}

void check_report_file(const std::filesystem::path& file, bool replace) {
  const std::filesystem::path folder = file.has_parent_path() ? file.parent_path() : ".";
  if (::access(folder.c_str(), W_OK | X_OK) != 0) throw_system_error(file, "create");
  if (!is_there(file)) return;
  if (!replace) throw Error("exists already, and is left as it is", {.file = file.string()});
  const bool is_plain = std::filesystem::symlink_status(file).type() == std::filesystem::file_type::regular;
  if (!is_plain || !is_report(file))
    throw Error("is no page of a report, so it is not replaced", {.file = file.string()});
}

void write_report(const Report& report, const std::filesystem::path& file, bool replace) {
  const std::string text = report_page(report);
  TemporaryFile written(file);
  written.write(std::as_bytes(std::span(text)), 0, file);
  check_report_file(file, replace);  // another process may have made it since
  written.sync_and_rename(file);
}

}  // namespace hxq
