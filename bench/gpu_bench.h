// What the programs that time CUDA kernels share: memory, graphs of launches, rows for results.csv.

#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <initializer_list>
#include <string>
#include <vector>

#include "kernels/cuda/types.h"

namespace hxq::cuda::bench {

inline constexpr size_t kRotationBytes = size_t{2} << 30;
inline constexpr int kReplays = 9;

inline void require(cudaError_t error, const char* what) {
  if (error == cudaSuccess) return;
  std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(error));
  std::exit(1);
}
inline void require(Status status, const char* what) { require(static_cast<cudaError_t>(status), what); }

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

inline void free_all(std::initializer_list<const void*> arrays) {
  for (const void* array : arrays) cudaFree(const_cast<void*>(array));
}

template <class T>
std::vector<T> download(const T* data, size_t count) {
  std::vector<T> values(count);
  require(cudaMemcpy(values.data(), data, count * sizeof(T), cudaMemcpyDeviceToHost), "cudaMemcpy");
  return values;
}

static __global__ void fill_random(uint32_t* words, size_t count, uint32_t seed) {
  for (size_t i = blockIdx.x * size_t{blockDim.x} + threadIdx.x; i < count; i += size_t{gridDim.x} * blockDim.x) {
    uint32_t v = static_cast<uint32_t>(i) * 0x9e3779b9u + seed;
    v = (v ^ v >> 16) * 0x85ebca6bu;
    v = (v ^ v >> 13) * 0xc2b2ae35u;
    words[i] = v ^ v >> 16;
  }
}

static __global__ void read_all(const uint4* data, size_t count, uint32_t* out) {
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
inline double graph_seconds(cudaStream_t stream, const std::function<void()>& launches) {
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

inline double measure_read_rate(cudaStream_t stream) {
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

/// The larger of two errors; what is not a number is infinitely wrong.
inline double worse(double worst, double error) { return std::isnan(error) ? INFINITY : std::max(worst, error); }

/// Prints rows for results.csv.
struct Rows {
  cudaStream_t stream = nullptr;
  double read_rate = 0;
  std::string card;
  int failures = 0;

  /// On the first GPU; measures R.
  Rows() {
    cudaDeviceProp properties;
    require(cudaGetDeviceProperties(&properties, 0), "no GPU");
    require(cudaStreamCreate(&stream), "stream");
    card = properties.name;
    read_rate = measure_read_rate(stream);
    std::printf("card,what,tokens,x,us,percent of R,error,check\n%s,read rate R,,,%.3f TB/s,,,\n", card.c_str(),
                read_rate * 1e-12);
  }

  void row(const std::string& what, double seconds, double bytes, double error, double bound) {
    const bool right = error <= bound;
    failures += !right;
    std::printf("%s,%s,%.2f,%.1f,%.2e,%s\n", card.c_str(), what.c_str(), seconds * 1e6,
                100 * bytes / seconds / read_rate, error, right ? "ok" : "WRONG");
    std::fflush(stdout);
  }

  /// Says how many rows were wrong; the exit status of the program.
  int finish() const {
    std::printf("%d wrong answers\n", failures);
    return failures == 0 ? 0 : 1;
  }
};

}  // namespace hxq::cuda::bench
