#include "codec/low_rank.h"

#include <algorithm>
#include <cmath>

#include "codec/module_parts.h"

namespace hxq {

LowRankView read_low_rank(const ModuleParts& parts, int64_t rows, int64_t cols) {
  LowRankView low_rank;
  if (!parts.find("svd_U") && !parts.find("svd_s") && !parts.find("svd_Vt")) return low_rank;
  low_rank.s = parts.floats("svd_s");
  low_rank.rank = static_cast<int64_t>(low_rank.s.size());
  parts.require_shape("svd_s", {low_rank.rank});
  parts.require_shape("svd_U", {rows, low_rank.rank});
  parts.require_shape("svd_Vt", {low_rank.rank, cols});
  const std::vector<float> u = parts.floats("svd_U");
  for (size_t i = 0; i < u.size(); ++i) {
    if (!std::isfinite(u[i] * low_rank.s[i % low_rank.s.size()])) parts.fail("svd_s", "svd_U times svd_s overflows");
  }
  parts.floats("svd_Vt");  // all are finite
  low_rank.u = parts.get("svd_U");
  low_rank.vt = parts.get("svd_Vt");
  return low_rank;
}

void add_low_rank(const LowRankView& term, int64_t row, std::span<float> out) noexcept {
  constexpr size_t kColumns = 256;
  float vt[kColumns];
  double sum[kColumns];
  for (size_t begin = 0; begin < out.size(); begin += kColumns) {
    const std::span<float> columns = out.subspan(begin, std::min(kColumns, out.size() - begin));
    std::ranges::copy(columns, sum);
    for (int64_t n = 0; n < term.rank; ++n) {
      const double u = term.scaled_u(row, n);
      read_floats(term.vt, n * static_cast<int64_t>(out.size()) + static_cast<int64_t>(begin), {vt, columns.size()});
      for (size_t c = 0; c < columns.size(); ++c) sum[c] += u * vt[c];
    }
    std::ranges::transform(sum, sum + columns.size(), columns.begin(), [](double v) { return static_cast<float>(v); });
  }
}

}  // namespace hxq
