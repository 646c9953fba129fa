#include <algorithm>

#include "codec/codebook/index_packing.h"
#include "codec/codebook/matrix.h"

namespace hxq {
namespace {

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
  const size_t floats = codebook.size() + channel_scales.size();
  constexpr size_t kOutlier = 2 * sizeof(uint32_t) + sizeof(float);  // row, column, value
  return low_rank.bytes() +
         static_cast<int64_t>(indices.size() + sizeof(float) * floats + kOutlier * sidecar.value.size());
}

}  // namespace hxq
