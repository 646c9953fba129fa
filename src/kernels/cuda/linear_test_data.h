#pragma once

#include <algorithm>
#include <set>

#include "kernels/cuda/codebook_index.h"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/test_device.h"

/// Codebook matrices for tests of the CUDA kernels, and what they decode to.
namespace hxq::cuda::testing {

struct MatrixOptions {
  int64_t rows = 1;
  int64_t cols = 1;
  int32_t k = 256;
  int32_t d = 1;
  int32_t index_bits = 8;
  double outliers = 0;  ///< share of the elements
  int32_t rank = 0;
  bool scales = false;
  bool half_levels = true;  ///< levels are binary16 numbers times a power of two
  bool fits_tiles = true;   ///< as `CodebookWeight` says
  float size = 0.3f;        ///< of the levels
  int index_offset = 0;     ///< bytes from an aligned address to the first index
  uint32_t seed = 0;        ///< matrices of one shape differ by it
};

struct TestMatrix : MatrixOptions {
  std::vector<uint8_t> indices;
  std::vector<float> codebook;
  std::vector<uint32_t> row_begin, col;
  std::vector<float> change;
  std::vector<float> channel_scales, u, vt;
  float level_scale = 0;
  std::vector<double> decoded;  // [rows, cols], scales and low-rank term included
};

inline void put_index(std::vector<uint8_t>& to, int bits, int64_t i, uint32_t index) {
  const auto at = static_cast<size_t>(bits == 12 ? i / 2 * 3 : bits / 8 * i);
  if (bits == 8) {
    to[at] = static_cast<uint8_t>(index);
  } else if (bits == 16) {
    to[at] = static_cast<uint8_t>(index);
    to[at + 1] = static_cast<uint8_t>(index >> 8);
  } else if (i % 2 == 0) {
    to[at] = static_cast<uint8_t>(index);
    to[at + 1] = static_cast<uint8_t>((to[at + 1] & 0xf0) | index >> 8);
  } else {
    to[at + 1] = static_cast<uint8_t>((to[at + 1] & 0x0f) | (index & 0xf) << 4);
    to[at + 2] = static_cast<uint8_t>(index >> 4);
  }
}

/// Decodes with code of its own: what the kernels share with the host is what is tested.
inline TestMatrix make_matrix(const MatrixOptions& options) {
  TestMatrix m;
  static_cast<MatrixOptions&>(m) = options;
  Random random(static_cast<uint32_t>(options.rows * 31 + options.cols) ^ options.seed << 16);
  m.level_scale = options.d == 1 ? 0x1p-14f : 0.0f;
  for (int32_t i = 0; i < m.k * m.d; ++i) {
    float level = std::clamp(m.size * random.normal(), -1.9f, 1.9f);
    if (m.half_levels) level = rounded(level / 0x1p-14f, DType::f16) * 0x1p-14f;
    m.codebook.push_back(level);
  }
  const int64_t count = m.rows * m.cols / m.d;
  m.indices.resize(static_cast<size_t>((count * m.index_bits + 7) / 8));
  m.decoded.resize(static_cast<size_t>(m.rows * m.cols));
  for (int64_t i = 0; i < count; ++i) {
    const auto index = static_cast<uint32_t>(random.below(m.k));
    put_index(m.indices, m.index_bits, i, index);
    for (int32_t j = 0; j < m.d; ++j) {
      m.decoded[static_cast<size_t>(i * m.d + j)] =
          m.codebook[index * static_cast<size_t>(m.d) + static_cast<size_t>(j)];
    }
  }
  if (m.outliers > 0) {
    std::set<int64_t> positions;
    const auto wanted = std::max<int64_t>(1, static_cast<int64_t>(m.outliers * static_cast<double>(m.rows * m.cols)));
    while (static_cast<int64_t>(positions.size()) < wanted) positions.insert(random.below(m.rows * m.cols));
    m.row_begin.assign(static_cast<size_t>(m.rows + 1), 0);
    for (const int64_t position : positions) {
      const float change = 3 * random.normal();
      m.decoded[static_cast<size_t>(position)] += change;
      ++m.row_begin[static_cast<size_t>(position / m.cols + 1)];
      m.col.push_back(static_cast<uint32_t>(position % m.cols));
      m.change.push_back(change);
    }
    for (size_t r = 0; r + 1 < m.row_begin.size(); ++r) m.row_begin[r + 1] += m.row_begin[r];
  }
  if (m.rank > 0) {
    m.u = random.normals(static_cast<size_t>(m.rows * m.rank));
    m.vt = random.normals(static_cast<size_t>(m.rank * m.cols), DType::f32, 0.1f);
  }
  if (m.scales) {
    for (int64_t c = 0; c < m.cols; ++c) m.channel_scales.push_back(0.5f + std::fabs(random.normal()));
  }
  for (int64_t r = 0; r < m.rows; ++r) {
    for (int64_t c = 0; c < m.cols; ++c) {
      double& w = m.decoded[static_cast<size_t>(r * m.cols + c)];
      for (int32_t n = 0; n < m.rank; ++n) {
        w += static_cast<double>(m.u[static_cast<size_t>(r * m.rank + n)]) * m.vt[static_cast<size_t>(n * m.cols + c)];
      }
      if (m.scales) w /= m.channel_scales[static_cast<size_t>(c)];
    }
  }
  return m;
}

/// A matrix on the device.
class DeviceMatrix {
 public:
  explicit DeviceMatrix(const TestMatrix& m)
      : weight_{.rows = m.rows,
                .cols = m.cols,
                .k = m.k,
                .d = m.d,
                .index_bits = m.index_bits,
                .rank = m.rank,
                .level_scale = m.level_scale,
                .levels_fit_half = m.half_levels,
                .fits_tiles = m.fits_tiles},
        indices_(shifted(m)),
        codebook_(m.codebook),
        row_begin_(m.row_begin),
        col_(m.col),
        change_(m.change),
        scales_(m.channel_scales),
        u_(m.u),
        vt_(m.vt) {
    weight_.indices = indices_.data() + m.index_offset;
    weight_.codebook = codebook_.data();
    if (!m.row_begin.empty()) {
      weight_.outlier_row_begin = row_begin_.data();
      weight_.outlier_col = col_.data();
      weight_.outlier_change = change_.data();
    }
    if (m.scales) weight_.channel_scales = scales_.data();
    if (m.rank > 0) {
      weight_.low_rank_u = u_.data();
      weight_.low_rank_vt = vt_.data();
    }
  }
  const CodebookWeight& weight() const { return weight_; }
  float* codebook() const { return codebook_.data(); }

 private:
  static std::vector<uint8_t> shifted(const TestMatrix& m) {
    std::vector<uint8_t> bytes(static_cast<size_t>(m.index_offset), 0);
    bytes.insert(bytes.end(), m.indices.begin(), m.indices.end());
    return bytes;
  }

  CodebookWeight weight_;
  DeviceArray<uint8_t> indices_;
  DeviceArray<float> codebook_;
  DeviceArray<uint32_t> row_begin_, col_;
  DeviceArray<float> change_, scales_, u_, vt_;
};

/// y = W x + bias + start in double, and sum |w x| for bounds.
struct Product {
  std::vector<double> y, size;
};

template <class W, class X>
Product multiply_rows(const std::vector<W>& w, int64_t rows, int64_t cols, const std::vector<X>& x, int64_t tokens,
                      const std::vector<float>& bias, const std::vector<float>& start) {
  Product product;
  for (int64_t t = 0; t < tokens; ++t) {
    for (int64_t r = 0; r < rows; ++r) {
      double sum = 0, size = 0;
      for (int64_t c = 0; c < cols; ++c) {
        const double term =
            static_cast<double>(w[static_cast<size_t>(r * cols + c)]) * x[static_cast<size_t>(t * cols + c)];
        sum += term;
        size += std::fabs(term);
      }
      const auto at = static_cast<size_t>(t * rows + r);
      const double more = (bias.empty() ? 0.0 : bias[static_cast<size_t>(r)]) + (start.empty() ? 0.0 : start[at]);
      product.y.push_back(sum + more);
      product.size.push_back(size + std::fabs(more));
    }
  }
  return product;
}

inline Product multiply(const TestMatrix& m, const std::vector<float>& x, int64_t tokens,
                        const std::vector<float>& bias, const std::vector<float>& start) {
  return multiply_rows(m.decoded, m.rows, m.cols, x, tokens, bias, start);
}

/// How a product is asked for.
struct Call {
  int64_t tokens = 1;
  DType x = DType::f32;
  DType y = DType::f32;
  int64_t gap = 0;  ///< between rows of x, and of y
  bool bias = false;
  bool accumulate = false;
  Precision precision = Precision::exact;
};

/// Expects `linear` with a matrix on the device, of these weights, to be right.
template <class Weight, class W>
void expect_linear(const Weight& weight, const std::vector<W>& decoded, const Call& call, const std::string& what,
                   double bound) {
  Random random(99);
  const auto tokens = call.tokens;
  const std::vector<float> x = random.normals(static_cast<size_t>(tokens * weight.cols), call.x);
  const std::vector<float> start = random.normals(static_cast<size_t>(tokens * weight.rows), call.y);
  const std::vector<float> bias = random.normals(static_cast<size_t>(weight.rows));
  const DeviceRows device_x(x, tokens, weight.cols, call.gap, call.x);
  DeviceRows device_y(tokens, weight.rows, call.gap, call.y);
  if (call.accumulate) device_y.set(start);
  const DeviceArray<float> device_bias(bias);
  const DeviceArray<std::byte> workspace(linear_workspace(weight, tokens));
  HXQ_EXPECT_OK(linear(weight,
                       {.x = device_x.input(),
                        .y = device_y.output(),
                        .tokens = tokens,
                        .bias = call.bias ? device_bias.data() : nullptr,
                        .accumulate = call.accumulate,
                        .precision = call.precision,
                        .workspace = {.data = workspace.data(), .bytes = workspace.size()}},
                       nullptr));
  expect_finished();
  const Product expected =
      multiply_rows(decoded, weight.rows, weight.cols, x, tokens, call.bias ? bias : std::vector<float>{},
                    call.accumulate ? start : std::vector<float>{});
  expect_close(device_y.values(), expected.y, expected.size, bound, call.y, what);
}

inline Product multiply_dense(const std::vector<float>& w, int64_t rows, int64_t cols, const std::vector<float>& x,
                              int64_t tokens) {
  return multiply_rows(w, rows, cols, x, tokens, {}, {});
}

}  // namespace hxq::cuda::testing
