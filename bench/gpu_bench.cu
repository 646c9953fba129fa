// Times products on one GPU and checks every answer; prints rows for results.csv.
//
// Matrices rotate so that none is in the second-level cache when its turn comes: 2 GB of them, one CUDA graph of
// back-to-back launches, median of its replays. R is what a plain kernel reads a second of 2 GB.

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "gpu_bench.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/grouped.h"
#include "kernels/cuda/linear.h"

namespace {

using namespace hxq;
using namespace hxq::cuda;
using namespace hxq::cuda::bench;

/// Matrices of one shape, with a tenth of a percent of outliers.
class Rotation {
 public:
  Rotation(int64_t rows, int64_t cols, double outliers = 0.001) : rows_(rows), cols_(cols) {
    const auto bytes = static_cast<size_t>(rows * cols);
    const size_t count = std::max<size_t>(2, std::min<size_t>(kRotationBytes / bytes, 512));
    std::mt19937 engine(1);
    std::normal_distribution<float> normal;
    for (int i = 0; i < 256; ++i)
      codebook_.push_back(std::round(std::clamp(normal(engine) * 0x1p11f, -32000.f, 32000.f)) * 0x1p-17f);
    for (float& level : codebook_) level = std::ldexp(std::round(std::ldexp(level, 17) / 32) * 32, -17);
    row_begin_.push_back(0);
    for (int64_t r = 0; r < rows; ++r) {
      const auto n =
          static_cast<int64_t>(static_cast<double>(r + 1) * static_cast<double>(cols) * outliers) - row_begin_.back();
      for (int64_t i = 0; i < n; ++i) {
        col_.push_back(static_cast<uint32_t>((engine() + static_cast<uint64_t>(i)) % static_cast<uint64_t>(cols)));
        change_.push_back(normal(engine));
      }
      std::sort(col_.end() - n, col_.end());
      row_begin_.push_back(static_cast<uint32_t>(col_.size()));
    }
    for (size_t i = 0; i < count; ++i) {
      auto* indices = allocate<uint8_t>((bytes + 15) / 16 * 16);
      fill_random<<<1024, 256>>>(reinterpret_cast<uint32_t*>(indices), (bytes + 3) / 4, static_cast<uint32_t>(i));
      weights_.push_back({.rows = rows,
                          .cols = cols,
                          .k = 256,
                          .indices = indices,
                          .codebook = upload(codebook_),
                          .outlier_row_begin = outliers > 0 ? upload(row_begin_) : nullptr,
                          .outlier_col = upload(col_),
                          .outlier_change = upload(change_),
                          .level_scale = 0x1p-17f,
                          .levels_fit_half = true,
                          .fits_tiles = true});
    }
  }
  ~Rotation() {
    for (const CodebookWeight& w : weights_)
      free_all({w.indices, w.codebook, w.outlier_row_begin, w.outlier_col, w.outlier_change});
  }
  const std::vector<CodebookWeight>& weights() const { return weights_; }
  std::string name() const { return "codebook " + std::to_string(rows_) + "x" + std::to_string(cols_); }
  double bytes() const {
    return static_cast<double>(rows_ * cols_) + 8.0 * static_cast<double>(col_.size()) +
           4.0 * static_cast<double>(rows_) + 1024;
  }

  /// Largest error of sampled values of y = W x for one matrix, in parts of the sum of |w x|.
  double error(size_t matrix, const std::vector<float>& x, const std::vector<float>& y, int64_t tokens) const {
    double worst = 0;
    for (int64_t r = 0; r < rows_; r += std::max<int64_t>(1, rows_ / 37)) {
      const auto indices =
          download(static_cast<const uint8_t*>(weights_[matrix].indices) + r * cols_, static_cast<size_t>(cols_));
      for (int64_t t = 0; t < tokens; t += std::max<int64_t>(1, tokens / 5)) {
        double sum = 0, size = 0;
        const float* row = x.data() + t * cols_;
        const auto add = [&](double w, float v) {
          sum += w * v;
          size += std::fabs(w * v);
        };
        for (int64_t c = 0; c < cols_; ++c) add(codebook_[indices[static_cast<size_t>(c)]], row[c]);
        for (uint32_t i = row_begin_[static_cast<size_t>(r)]; i < row_begin_[static_cast<size_t>(r + 1)]; ++i)
          add(change_[i], row[col_[i]]);
        const double error = std::fabs(y[static_cast<size_t>(t * rows_ + r)] - sum) / size;
        worst = worse(worst, error);
      }
    }
    return worst;
  }

 private:
  int64_t rows_, cols_;
  std::vector<float> codebook_, change_;
  std::vector<uint32_t> row_begin_, col_;
  std::vector<CodebookWeight> weights_;
};

/// Grouped matrices of one shape, with whole levels as large as the encoder's.
class GroupedRotation {
 public:
  GroupedRotation(int64_t rows, int64_t cols, int bits) : rows_(rows), cols_(cols), bits_(bits) {
    const int64_t group = bits >= 7 ? 64 : 32;
    const auto packed = static_cast<size_t>(rows * cols * bits / 8), scales = static_cast<size_t>(rows * cols / group);
    bytes_ = static_cast<double>(packed + scales) + 2048;
    const size_t count = std::max<size_t>(2, std::min<size_t>(kRotationBytes / (packed + scales), 512));
    std::mt19937 engine(1);
    std::normal_distribution<float> normal;
    const float largest = bits <= 4 ? 127 : bits <= 6 ? 2047 : 32767;
    for (int i = 0; i < 1 << bits; ++i)
      levels_.push_back(std::round(std::clamp(0.3f * normal(engine), -1.0f, 1.0f) * largest));
    for (int i = 0; i < 256; ++i) scale_levels_.push_back((1 + static_cast<float>(i) / 256) / largest);
    for (size_t i = 0; i < count; ++i) {
      auto* indices = allocate<uint8_t>(packed);
      auto* numbers = allocate<uint8_t>(scales);
      fill_random<<<1024, 256>>>(reinterpret_cast<uint32_t*>(indices), packed / 4, static_cast<uint32_t>(i));
      fill_random<<<1024, 256>>>(reinterpret_cast<uint32_t*>(numbers), scales / 4, static_cast<uint32_t>(i) + 1000);
      weights_.push_back({.rows = rows,
                          .cols = cols,
                          .group = group,
                          .bits = bits,
                          .indices = indices,
                          .scales = numbers,
                          .levels = upload(levels_),
                          .scale_levels = upload(scale_levels_),
                          .level_parts = bits <= 4 ? 1 : 2});
    }
  }
  ~GroupedRotation() {
    for (const GroupedWeight& w : weights_) free_all({w.indices, w.scales, w.levels, w.scale_levels});
  }
  const std::vector<GroupedWeight>& weights() const { return weights_; }
  std::string name() const {
    return "grouped " + std::to_string(bits_) + " bits " + std::to_string(rows_) + "x" + std::to_string(cols_);
  }
  double bytes() const { return bytes_; }

  /// As that of codebooks.
  double error(size_t matrix, const std::vector<float>& x, const std::vector<float>& y, int64_t tokens) const {
    const GroupedWeight& w = weights_[matrix];
    double worst = 0;
    for (int64_t r = 0; r < rows_; r += std::max<int64_t>(1, rows_ / 37)) {
      const int64_t bytes = w.row_bytes(), groups = w.groups();
      const auto packed = download(static_cast<const uint8_t*>(w.indices) + r * bytes, static_cast<size_t>(bytes));
      const auto scales = download(w.scales + r * groups, static_cast<size_t>(groups));
      for (int64_t t = 0; t < tokens; t += std::max<int64_t>(1, tokens / 5)) {
        double sum = 0, size = 0;
        for (int64_t c = 0; c < cols_; ++c) {
          size_t index = 0;
          for (int64_t bit = (c + 1) * bits_ - 1; bit >= c * bits_; --bit)
            index = index << 1 | (packed[static_cast<size_t>(bit / 8)] >> bit % 8 & 1);
          const double term = static_cast<double>(scale_levels_[scales[static_cast<size_t>(c / w.group)]]) *
                              levels_[index] * x[static_cast<size_t>(t * cols_ + c)];
          sum += term;
          size += std::fabs(term);
        }
        const double error = std::fabs(y[static_cast<size_t>(t * rows_ + r)] - sum) / size;
        worst = worse(worst, error);
      }
    }
    return worst;
  }

 private:
  int64_t rows_, cols_;
  int bits_;
  double bytes_;
  std::vector<float> levels_, scale_levels_;
  std::vector<GroupedWeight> weights_;
};

struct Bench : Rows {
  /// y = W x for `tokens` tokens of x in `x_type`, y in float.
  template <class Matrices>
  void product(const Matrices& rotation, int64_t tokens, DType x_type, Precision precision) {
    const auto& first = rotation.weights().front();
    std::mt19937 engine(3);
    std::normal_distribution<float> normal;
    std::vector<float> x(static_cast<size_t>(tokens * first.cols));
    std::vector<uint16_t> half(x.size());
    for (size_t i = 0; i < x.size(); ++i) {
      uint32_t bits;
      x[i] = normal(engine);
      std::memcpy(&bits, &x[i], 4);
      if (x_type == DType::bf16) bits &= 0xffff0000u;
      std::memcpy(&x[i], &bits, 4);
      half[i] = static_cast<uint16_t>(bits >> 16);
    }
    float* device_x = upload(x);
    uint16_t* device_half = upload(half);
    auto* y = allocate<float>(static_cast<size_t>(tokens * first.rows));
    cudaMemset(y, 0xff, static_cast<size_t>(tokens * first.rows) * 4);
    const size_t workspace_bytes = linear_workspace(first, tokens);
    auto* workspace = allocate<char>(workspace_bytes);
    const LinearArgs args{.x = {.data = x_type == DType::bf16 ? static_cast<void*>(device_half) : device_x,
                                .stride = first.cols,
                                .dtype = x_type},
                          .y = {.data = y, .stride = first.rows},
                          .tokens = tokens,
                          .precision = precision,
                          .workspace = {.data = workspace, .bytes = workspace_bytes}};
    const size_t used = tokens <= 1024 ? rotation.weights().size() : std::min<size_t>(rotation.weights().size(), 4);
    const double seconds = graph_seconds(stream, [&] {
      for (size_t i = 0; i < used; ++i) {
        require(linear(rotation.weights()[i], args, stream), "product");
      }
    });
    const size_t last = used - 1;
    const double error = rotation.error(last, x, download(y, static_cast<size_t>(tokens * first.rows)), tokens);
    std::string what = rotation.name() + ",M=" + std::to_string(tokens) + "," +
                       (x_type == DType::bf16 ? "bf16 x" : "f32 x") +
                       (precision == Precision::fast ? " fast" : " exact");
    row(what, seconds / static_cast<double>(last + 1), rotation.bytes(), error,
        precision == Precision::fast && tokens > 1 ? 0x1p-8 : 2e-6);
    free_all({device_x, device_half, y, workspace});
  }
};

}  // namespace

struct Options {
  bool outliers = true;
  int64_t rows = 0, cols = 0;  ///< this shape only
  int64_t tokens = 0;          ///< this number of tokens only
};

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    long long rows, cols;
    if (!std::strcmp(argv[i], "--no-outliers")) options.outliers = false;
    if (!std::strcmp(argv[i], "--tokens") && i + 1 < argc) options.tokens = std::atoll(argv[++i]);
    if (std::sscanf(argv[i], "%lldx%lld", &rows, &cols) == 2) options.rows = rows, options.cols = cols;
  }
  if (!open_cublas()) std::fprintf(stderr, "gpu_bench: no cuBLAS: prefill runs on the project's own kernels\n");
  Bench bench;
  std::vector<std::pair<int64_t, int64_t>> shapes = {{8192, 8192},  {4096, 4096}, {11008, 4096},
                                                     {50280, 768},  {3072, 768},  {768, 1536},
                                                     {4096, 11008}, {80, 1536},   {1536, 48}};
  if (options.rows) shapes = {{options.rows, options.cols}};
  for (const auto& [rows, cols] : shapes) {
    const Rotation rotation(rows, cols, options.outliers ? 0.001 : 0.0);
    for (const int64_t tokens : {1, 2, 8, 16, 32, 64, 128}) {
      if (options.tokens && tokens != options.tokens) continue;
      if (!options.rows && rows < 3072 && tokens > 1) continue;
      bench.product(rotation, tokens, DType::bf16, Precision::exact);
      if (tokens > 1) bench.product(rotation, tokens, DType::bf16, Precision::fast);
      bench.product(rotation, tokens, DType::f32, Precision::exact);
    }
    for (const int64_t tokens : {256, 512, 1024, 2048, 4096}) {
      if ((options.tokens && tokens != options.tokens) || rows * cols < 4096 * 4096) continue;
      bench.product(rotation, tokens, DType::bf16, Precision::fast);
    }
  }
  for (const auto& [rows, cols] : shapes) {
    if (cols % 128 != 0 || (!options.rows && rows < 3072)) continue;
    for (const int bits : {3, 4, 6, 8}) {
      const GroupedRotation rotation(rows, cols, bits);
      for (const int64_t tokens : {1, 2, 8, 512}) {
        if (options.tokens && tokens != options.tokens) continue;
        const bool many = tokens > 8;
        bench.product(rotation, tokens, many ? DType::bf16 : DType::f32, many ? Precision::fast : Precision::exact);
      }
    }
  }
  return bench.finish();
}
