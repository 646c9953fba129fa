#include "codec/decode_reference.h"

#include "codec/index_packing.h"

namespace hxq {
namespace {

void decode_row(const CodebookMatrix& m, int64_t row, std::span<float> out) {
  const int64_t codewords = m.cols / m.d;  // in one row
  for (int64_t c = 0; c < m.cols; ++c) {
    const int64_t index = index_at(m.layout, m.indices, row * codewords + c / m.d);
    out[c] = m.codebook[index * m.d + c % m.d];
  }
  if (!m.sidecar.row_begin.empty()) {
    for (uint32_t i = m.sidecar.row_begin[row]; i < m.sidecar.row_begin[row + 1]; ++i) {
      out[m.sidecar.col[i]] = m.sidecar.value[i];
    }
  }
  if (m.low_rank.rank == 0) return;
  for (int64_t c = 0; c < m.cols; ++c) {
    double sum = out[c];
    for (int64_t i = 0; i < m.low_rank.rank; ++i) {
      sum += static_cast<double>(m.low_rank.u_scaled[row * m.low_rank.rank + i]) * m.low_rank.vt[i * m.cols + c];
    }
    out[c] = static_cast<float>(sum);
  }
}

}  // namespace

void decode_reference(const CodebookMatrix& matrix, std::span<float> out) {
  decode_rows_reference(matrix, 0, matrix.rows, out);
}

void decode_rows_reference(const CodebookMatrix& matrix, int64_t row_begin, int64_t row_end, std::span<float> out) {
  for (int64_t row = row_begin; row < row_end; ++row) {
    decode_row(matrix, row,
               out.subspan(static_cast<size_t>((row - row_begin) * matrix.cols), static_cast<size_t>(matrix.cols)));
  }
}

void decode_dense_rows(const CodebookMatrix& matrix, int64_t row_begin, int64_t row_end, std::span<float> out) {
  decode_rows_reference(matrix, row_begin, row_end, out);
  if (matrix.channel_scales.empty()) return;
  for (size_t i = 0; i < out.size(); ++i) out[i] /= matrix.channel_scales[i % matrix.channel_scales.size()];
}

}  // namespace hxq
