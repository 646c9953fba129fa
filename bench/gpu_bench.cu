// Times the CUDA kernels on one GPU and checks every answer; prints rows for results.csv.
//
// Matrices rotate so that none is in the second-level cache when its turn comes: 2 GB of them, one CUDA graph of
// back-to-back launches, median of its replays. R is what a plain kernel reads a second of 2 GB.

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <initializer_list>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "kernels/cuda/attention.h"
#include "kernels/cuda/cublas.h"
#include "kernels/cuda/grouped.h"
#include "kernels/cuda/linear.h"

namespace {

using namespace hxq;
using namespace hxq::cuda;

constexpr size_t kRotationBytes = size_t{2} << 30;
constexpr int kReplays = 9;

void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "gpu_bench: %s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
void require(Status status, const char* what) { require(static_cast<cudaError_t>(status), what); }

template <class T>
T* allocate(size_t count) {
  void* data = nullptr;
  require(cudaMalloc(&data, std::max<size_t>(count * sizeof(T), 16)), "cudaMalloc");
  return static_cast<T*>(data);
}

template <class T>
T* upload(const std::vector<T>& values) {
  T* data = allocate<T>(values.size());
  require(cudaMemcpy(data, values.data(), values.size() * sizeof(T), cudaMemcpyHostToDevice), "cudaMemcpy");
  return data;
}

void free_all(std::initializer_list<const void*> arrays) {
  for (const void* array : arrays) cudaFree(const_cast<void*>(array));
}

template <class T>
std::vector<T> download(const T* data, size_t count) {
  std::vector<T> values(count);
  require(cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
  return values;
}

__global__ void fill_random(uint32_t* words, size_t count, uint32_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    uint32_t v = static_cast<uint32_t>(i) * 0x9e3779b9u + seed;
    v = (v ^ v >> 16) * 0x85ebca6bu;
    v = (v ^ v >> 13) * 0xc2b2ae35u;
    words[i] = v ^ v >> 16;
  }
}

__global__ void read_all(const uint4* data, size_t count, uint32_t* out) {
  uint32_t sum = 0;
  const size_t stride = size_t{gridDim.x} * blockDim.x;
  size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x;
  for (; i + 3 * stride < count; i += 4 * stride) {
    uint4 v[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) v[j] = __ldcs(data + i + j * stride);
#pragma unroll
    for (int j = 0; j < 4; ++j) sum += v[j].x ^ v[j].y ^ v[j].z ^ v[j].w;
  }
  if (sum == 0x12345678u) *out = sum;
}

/// Seconds of one graph of `launches`, median over replays.
double graph_seconds(cudaStream_t stream, const std::function<void()>& launches) {
  cudaGraph_t graph;
  cudaGraphExec_t exec;
  require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "capture");
  launches();
  require(cudaStreamEndCapture(stream, &graph), "capture");
  require(cudaGraphInstantiate(&exec, graph, 0), "instantiate");
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  std::vector<double> times;
  for (int i = 0; i < kReplays + 1; ++i) {
    cudaEventRecord(begin, stream);
    require(cudaGraphLaunch(exec, stream), "launch");
    cudaEventRecord(end, stream);
    require(cudaStreamSynchronize(stream), "replay");
    float ms = 0;
    cudaEventElapsedTime(&ms, begin, end);
    if (i > 0) times.push_back(ms * 1e-3);
  }
  cudaGraphExecDestroy(exec);
  cudaGraphDestroy(graph);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  std::sort(times.begin(), times.end());
  return times[times.size() / 2];
}

double measure_read_rate(cudaStream_t stream) {
  const size_t bytes = kRotationBytes;
  auto* data = allocate<uint4>(bytes / 16);
  fill_random<<<1024, 256>>>(reinterpret_cast<uint32_t*>(data), bytes / 4, 7);
  auto* out = allocate<uint32_t>(1);
  double best = 1e9;
  for (const int blocks : {132 * 4, 132 * 8, 132 * 16}) {
    best = std::min(best, graph_seconds(stream, [&] { read_all<<<blocks, 512, 0, stream>>>(data, bytes / 16, out); }));
  }
  cudaFree(data);
  cudaFree(out);
  return static_cast<double>(bytes) / best;
}

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
        worst = error >= worst ? error : std::isnan(error) ? INFINITY : worst;
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
        worst = error >= worst ? error : std::isnan(error) ? INFINITY : worst;
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

struct Bench {
  cudaStream_t stream;
  double read_rate;
  std::string card;
  int failures = 0;

  void row(const std::string& what, double seconds, double bytes, double error, double bound) {
    const bool right = error <= bound;
    failures += !right;
    std::printf("%s,%s,%.2f,%.1f,%.2e,%s\n", card.c_str(), what.c_str(), seconds * 1e6,
                100 * bytes / seconds / read_rate, error, right ? "ok" : "WRONG");
    std::fflush(stdout);
  }

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

  /// Causal attention of a prompt, queries and outputs in float.
  void attention(int32_t rows, int64_t query_heads, int64_t heads, int64_t dim, DType cache, Precision precision) {
    const int64_t tile = KvCacheView::kTile, tiles = (rows + tile - 1) / tile, width = query_heads * dim;
    const size_t tile_elements = static_cast<size_t>(2 * heads * dim * tile), elements = tile_elements * tiles;
    std::mt19937 engine(5);
    std::normal_distribution<float> normal;
    std::vector<float> q(static_cast<size_t>(rows * width)), held(elements);
    for (float& value : q) value = normal(engine);
    std::vector<__half> half(elements);
    for (size_t i = 0; i < elements; ++i) {
      half[i] = __float2half(normal(engine));
      held[i] = __half2float(half[i]);
    }
    const auto* bytes =
        cache == DType::f32 ? reinterpret_cast<char*>(upload(held)) : reinterpret_cast<char*>(upload(half));
    std::vector<const void*> table;
    for (int64_t i = 0; i < tiles; ++i)
      table.push_back(bytes + static_cast<size_t>(i) * tile_elements * (cache == DType::f32 ? 4 : 2));
    std::vector<int32_t> positions(static_cast<size_t>(rows));
    std::iota(positions.begin(), positions.end(), 0);
    const void** device_table = upload(table);
    auto* table_of = upload(std::vector<void*>{device_table});
    auto* segment = upload(std::vector<RowRange>{{0, rows}});
    auto* position = upload(positions);
    float* device_q = upload(q);
    auto* y = allocate<float>(q.size());
    cudaMemset(y, 0xff, q.size() * 4);
    AttentionArgs args{
        .batch = {.segments = segment, .positions = position, .count = 1, .max_rows = rows, .total_rows = rows},
        .q = {.data = device_q, .stride = width},
        .y = {.data = y, .stride = width},
        .query_heads = query_heads,
        .scale = 1 / std::sqrt(static_cast<float>(dim)),
        .cache = {.heads = heads, .head_dim = dim, .padded_dim = dim, .dtype = cache, .tiles = table_of},
        .precision = precision};
    const size_t workspace_bytes = attention_workspace(args);
    auto* workspace = allocate<char>(workspace_bytes);
    args.workspace = {.data = workspace, .bytes = workspace_bytes};
    constexpr int kLaunches = 10;
    const double seconds = graph_seconds(stream, [&] {
      for (int i = 0; i < kLaunches; ++i) require(cuda::attention(args, stream), "attention");
    });
    const auto got = download(y, q.size());
    double worst = 0;
    for (int64_t t = 0; t < rows; t += 1 + rows / 7) {
      for (int64_t h = 0; h < query_heads; h += 1 + query_heads / 3) {
        const int64_t kv = h / (query_heads / heads);
        const auto in_cache = [&](int64_t p, int64_t of_head, int64_t at) {
          return double{
              held[static_cast<size_t>(p / tile) * tile_elements + static_cast<size_t>(of_head * dim * tile + at)]};
        };
        std::vector<double> score(static_cast<size_t>(t + 1));
        for (int64_t p = 0; p <= t; ++p) {
          double dot = 0;
          for (int64_t i = 0; i < dim; ++i)
            dot += q[static_cast<size_t>(t * width + h * dim + i)] * in_cache(p, kv, i * tile + p % tile);
          score[static_cast<size_t>(p)] = dot * args.scale;
        }
        const double largest = *std::max_element(score.begin(), score.end());
        double total = 0;
        for (double& value : score) total += value = std::exp(value - largest);
        for (int64_t i = 0; i < dim; ++i) {
          double sum = 0, size = 0;
          for (int64_t p = 0; p <= t; ++p) {
            const double term = score[static_cast<size_t>(p)] / total * in_cache(p, heads + kv, p % tile * dim + i);
            sum += term;
            size += std::fabs(term);
          }
          const double error = std::fabs(got[static_cast<size_t>(t * width + h * dim + i)] - sum) / size;
          worst = error >= worst ? error : std::isnan(error) ? INFINITY : worst;
        }
      }
    }
    const std::string what = "attention " + std::to_string(query_heads) + "/" + std::to_string(heads) + " heads of " +
                             std::to_string(dim) + ",M=" + std::to_string(rows) + "," +
                             (cache == DType::f32 ? "f32 cache" : "f16 cache") +
                             (precision == Precision::fast ? " fast" : " exact");
    const size_t moved = 2 * q.size() * 4 + elements * (cache == DType::f32 ? 4 : 2);
    row(what, seconds / kLaunches, static_cast<double>(moved), worst, precision == Precision::fast ? 0x1p-8 : 1e-5);
    free_all({bytes, device_table, table_of, segment, position, device_q, y, workspace});
  }
};

}  // namespace

struct Options {
  bool outliers = true;
  bool attention_only = false;
  int64_t rows = 0, cols = 0;  ///< this shape only
  int64_t tokens = 0;          ///< this number of tokens only
};

int main(int argc, char** argv) {
  Options options;
  for (int i = 1; i < argc; ++i) {
    long long rows, cols;
    if (!std::strcmp(argv[i], "--no-outliers")) options.outliers = false;
    if (!std::strcmp(argv[i], "--attention")) options.attention_only = true;
    if (!std::strcmp(argv[i], "--tokens") && i + 1 < argc) options.tokens = std::atoll(argv[++i]);
    if (std::sscanf(argv[i], "%lldx%lld", &rows, &cols) == 2) options.rows = rows, options.cols = cols;
  }
  cudaDeviceProp properties;
  require(cudaGetDeviceProperties(&properties, 0), "no GPU");
  Bench bench{.stream = nullptr, .read_rate = 0, .card = properties.name};
  require(cudaStreamCreate(&bench.stream), "stream");
  if (!open_cublas()) std::fprintf(stderr, "gpu_bench: no cuBLAS: prefill runs on the project's own kernels\n");
  bench.read_rate = measure_read_rate(bench.stream);
  std::printf("card,what,tokens,x,us,percent of R,error,check\n%s,read rate R,,,%.3f TB/s,,,\n", properties.name,
              bench.read_rate * 1e-12);
  for (const auto& [query_heads, heads, dim] :
       {std::tuple<int64_t, int64_t, int64_t>{32, 4, 64}, {32, 32, 128}, {32, 8, 128}}) {
    if (options.rows) break;
    for (const DType cache : {DType::f32, DType::f16}) {
      for (const Precision precision : {Precision::fast, Precision::exact}) {
        bench.attention(2048, query_heads, heads, dim, cache, precision);
      }
    }
  }
  std::vector<std::pair<int64_t, int64_t>> shapes = {{8192, 8192},  {4096, 4096}, {11008, 4096},
                                                     {50280, 768},  {3072, 768},  {768, 1536},
                                                     {4096, 11008}, {80, 1536},   {1536, 48}};
  if (options.rows) shapes = {{options.rows, options.cols}};
  for (const auto& [rows, cols] : shapes) {
    if (options.attention_only) break;
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
    if (options.attention_only) break;
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
  std::printf("%d wrong answers\n", bench.failures);
  return bench.failures == 0 ? 0 : 1;
}
