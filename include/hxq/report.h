#pragma once

#include <cstdint>
#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hxq/perplexity.h"
#include "hxq/verify.h"

namespace hxq {

/// How the weights of a tensor are spread.
struct WeightHistogram {
  std::string tensor = {};
  bool of_source = false;  ///< the source's weights; otherwise those that are stored, decoded
  /// Ends of the bins, which are of equal width: the least and the largest finite weight, but no more than 6 standard
  /// deviations from the mean.
  double low = 0;
  double high = 0;
  /// [bins] a weight w is in bin floor((w - low) bins / (high - low)), `high` in the last.
  std::vector<int64_t> counts = {};
  int64_t below = 0;  ///< weights below `low`
  int64_t above = 0;  ///< weights above `high`
  int64_t not_finite = 0;
  std::vector<float> levels = {};  ///< that weights are rounded to, ascending; of scaled groups at the median scale
};

struct HistogramOptions {
  std::filesystem::path source = {};  ///< the dense folder, whose weights are then counted; empty: those stored
  int threads = 0;                    ///< 0: the cores this process may run on
  std::function<void(std::string_view tensor, int64_t done, int64_t total)> progress = {};  ///< stored bytes
};

/// Counts the weights of the tensors that `inspection`, of the same folder, lists and that are F32, F16, BF16 or
/// compressed. The result does not depend on `threads`. Throws `Error` for a tensor that cannot be decoded, and for one
/// that the source has in another size.
std::vector<WeightHistogram> weight_histograms(const std::filesystem::path& dir, const Inspection& inspection,
                                               const HistogramOptions& options = {});

/// What a page about a model shows.
struct Report {
  std::string name;  ///< the model's
  Inspection inspection;
  std::optional<VerifyResult> verification = {};  ///< with a source: the distances that were measured
  std::vector<WeightHistogram> histograms = {};
  std::optional<PerplexityResult> scores = {};
  std::string text = {};  ///< the name of the text that was scored
};

/// Throws `Error` unless a page may be written to `file`: its folder takes one, and nothing is there, or with `replace`
/// a page that `write_report` has written.
void check_report_file(const std::filesystem::path& file, bool replace = false);

/// The report as one HTML page that needs no other file and no network. It holds its figures as JSON, in the element
/// with the id "data": those of `to_json` under "inspection", "verification" and "scores".
std::string report_page(const Report& report);

/// Writes that page: beside `file`, synced and renamed. Throws `Error` as `check_report_file`, and when writing fails.
void write_report(const Report& report, const std::filesystem::path& file, bool replace = false);

}  // namespace hxq
