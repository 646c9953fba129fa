// Gradients of products on the GPU against sums in double.

#include "kernels/cuda/gradients.h"

#include <gtest/gtest.h>

#include "kernels/cuda/linear_test_data.h"

namespace hxq::cuda {
namespace {

using namespace testing;

TEST(CudaGradients, OfProducts) {
  HXQ_NEEDS_GPU();
  for (const MatrixOptions& options :
       {MatrixOptions{.rows = 70, .cols = 50, .outliers = 0.02, .rank = 2, .scales = true},
        MatrixOptions{.rows = 33, .cols = 48, .k = 4096, .d = 2, .index_bits = 12},
        MatrixOptions{.rows = 300, .cols = 129, .outliers = 0.01}}) {
    for (const int64_t tokens : {1, 7, 19}) {
      const TestMatrix m = make_matrix(options);
      const DeviceMatrix device(m);
      Random random(7);
      const auto g = random.normals(static_cast<size_t>(tokens * m.rows), DType::bf16),
                 x = random.normals(static_cast<size_t>(tokens * m.cols));
      const DeviceRows dg(g, tokens, m.rows, 3, DType::bf16), dx(x, tokens, m.cols, 1, DType::f32),
          out(tokens, m.cols, 2, DType::f32);
      const auto start = random.normals(m.codebook.size());
      const DeviceArray<float> gradient(start);
      HXQ_EXPECT_OK(
          linear_transposed(device.weight(), {.g = dg.input(), .dx = out.output(), .tokens = tokens}, nullptr));
      HXQ_EXPECT_OK(codebook_gradient(
          device.weight(), {.x = dx.input(), .g = dg.input(), .tokens = tokens, .gradient = gradient.data()}, nullptr));
      expect_finished();
      std::vector<double> expected(static_cast<size_t>(tokens * m.cols)), size(expected.size());
      std::vector<double> expected_codebook(start.begin(), start.end()), codebook_size(start.size(), 1.0);
      for (int64_t r = 0; r < m.rows; ++r) {
        for (int64_t c = 0; c < m.cols; ++c) {
          double product = 0, product_size = 0;
          for (int64_t t = 0; t < tokens; ++t) {
            const double gt = g[static_cast<size_t>(t * m.rows + r)];
            const double term = gt * m.decoded[static_cast<size_t>(r * m.cols + c)];
            expected[static_cast<size_t>(t * m.cols + c)] += term;
            size[static_cast<size_t>(t * m.cols + c)] += std::fabs(term);
            const double of_codeword = gt * x[static_cast<size_t>(t * m.cols + c)] /
                                       (m.scales ? m.channel_scales[static_cast<size_t>(c)] : 1.0f);
            product += of_codeword;
            product_size += std::fabs(of_codeword);
          }
          bool is_outlier = false;
          for (uint32_t i = m.row_begin.empty() ? 0 : m.row_begin[static_cast<size_t>(r)];
               !m.row_begin.empty() && i < m.row_begin[static_cast<size_t>(r + 1)]; ++i)
            is_outlier |= m.col[i] == c;
          if (is_outlier) continue;
          const int64_t position = r * m.cols + c;
          const auto entry =
              static_cast<size_t>(index_at(m.indices.data(), m.index_bits, position / m.d) * m.d + position % m.d);
          expected_codebook[entry] += product;
          codebook_size[entry] += product_size;
        }
      }
      const std::string what = to_string(Shape{tokens, m.rows, m.cols});
      expect_close(out.values(), expected, size, 2e-6, DType::f32, "dx " + what);
      expect_close(gradient.values(), expected_codebook, codebook_size, 2e-6, DType::f32, "codebook " + what);
    }
  }
}

}  // namespace
}  // namespace hxq::cuda
