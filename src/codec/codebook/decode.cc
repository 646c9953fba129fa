#include <algorithm>

#include "codec/codebook/index_packing.h"
#include "codec/codebook/matrix.h"

namespace hxq {
namespace {

void add_low_rank(const LowRankView& term, int64_t row, std::span<float> out) {
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

void decode_row(const CodebookMatrix& m, int64_t row, std::span<float> out) {
  const int64_t codewords = m.cols / m.d;  // in one row
  for (int64_t c = 0; c < m.cols; ++c) {
    const int64_t index = index_at(m.layout, m.indices, row * codewords + c / m.d);
    out[c] = m.codebook[index * m.d + c % m.d];
  }
  const Sidecar& sidecar = m.sidecar;
  for (size_t i = sidecar.first_of(row); i < sidecar.row.size() && sidecar.row[i] == row; ++i) {
    out[sidecar.col[i]] = sidecar.value[i];
  }
  if (m.low_rank.rank > 0) add_low_rank(m.low_rank, row, out.first(static_cast<size_t>(m.cols)));
}

}  // namespace

void CodebookMatrix::decode_rows(int64_t begin, int64_t end, std::span<float> out) const noexcept {
  for (int64_t row = begin; row < end; ++row) {
    decode_row(*this, row, out.subspan(static_cast<size_t>((row - begin) * cols), static_cast<size_t>(cols)));
  }
}

std::vector<float> CodebookMatrix::weight_levels() const {
  if (d != 1 || !channel_scales.empty()) return {};
  std::vector<float> sorted = codebook;
  std::ranges::sort(sorted);
  return sorted;
}

int64_t CodebookMatrix::bytes_read() const noexcept {
  const size_t floats = codebook.size() + low_rank.s.size() + channel_scales.size();
  const size_t stored = indices.size() + low_rank.u.bytes.size() + low_rank.vt.bytes.size();
  constexpr size_t kOutlier = 2 * sizeof(uint32_t) + sizeof(float);  // row, column, value
  return static_cast<int64_t>(stored + sizeof(float) * floats + kOutlier * sidecar.value.size());
}

}  // namespace hxq
