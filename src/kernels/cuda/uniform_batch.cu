#include "kernels/cuda/device.cuh"
#include "kernels/cuda/uniform_batch.h"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 256;

/// Offsets in bytes of what is made.
struct Layout {
  size_t pointers, segments, matrix, bytes;  ///< of the tables
  size_t zeros, all;                         ///< states of zeros, and the workspace's size: twice the tables, zeros
};

Layout layout_of(const UniformBatchArgs& args) {
  Layout at{};
  const auto count = static_cast<size_t>(args.count);
  at.segments = round_up<256>(count * sizeof(void*));
  at.matrix = at.segments + round_up<256>(count * sizeof(RowRange));
  const int64_t floats = args.matrix ? args.matrix_rows * args.matrix_cols : 0;
  at.bytes = at.matrix + round_up<256>(static_cast<size_t>(floats) * sizeof(float));
  at.zeros = 2 * at.bytes;
  at.all = at.zeros + (args.states ? 0 : round_up<256>(count * static_cast<size_t>(args.state_size) * sizeof(float)));
  return at;
}

__global__ void __launch_bounds__(kThreads)
    tables_kernel(const __grid_constant__ UniformBatchArgs p, const __grid_constant__ Layout at, float* states) {
  let_successors_begin();
  wait_for_predecessors();
  auto* memory = static_cast<unsigned char*>(p.workspace.data);
  auto* pointers = reinterpret_cast<void**>(memory + at.pointers);
  auto* segments = reinterpret_cast<RowRange*>(memory + at.segments);
  auto* matrix = reinterpret_cast<float*>(memory + at.matrix);
  const int64_t first = int64_t{blockIdx.x} * kThreads + threadIdx.x, step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = first; i < p.count; i += step) {
    pointers[i] = states + i * p.state_size;
    segments[i] = {.begin = static_cast<int32_t>(i * p.tokens), .end = static_cast<int32_t>((i + 1) * p.tokens)};
  }
  for (int64_t i = first; p.matrix && i < p.matrix_rows * p.matrix_cols; i += step) {
    const float value = p.matrix[i % p.matrix_rows * p.matrix_cols + i / p.matrix_rows];
    matrix[i] = p.matrix_is_log ? -expf(value) : value;
  }
}

}  // namespace

size_t uniform_batch_workspace(const UniformBatchArgs& args) noexcept { return layout_of(args).all; }

Status make_uniform_batch(const UniformBatchArgs& args, UniformBatch& made, Stream stream) noexcept {
  const Layout at = layout_of(args);
  if (args.count < 0 || args.tokens < 0 || args.workspace.bytes < at.all) return Status::invalid_value;
  auto* memory = static_cast<unsigned char*>(args.workspace.data);
  float* states = args.states ? args.states : reinterpret_cast<float*>(memory + at.zeros);
  const auto on = static_cast<cudaStream_t>(stream);
  if (!args.states) {
    const cudaError_t error = cudaMemsetAsync(states, 0, at.all - at.zeros, on);
    if (error != cudaSuccess) return status_of(error);
  }
  const int64_t items = args.matrix ? args.matrix_rows * args.matrix_cols : args.count;
  const int64_t blocks = ceil_div<int64_t>(items, kThreads);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(blocks < 1     ? 1
                                                             : blocks < 128 ? blocks
                                                                            : 128)),
                          .block = dim3(kThreads)};
  if (const Status status = launch(tables_kernel, shape, stream, args, at, states); status != Status::ok) return status;
  unsigned char* tables = memory + at.bytes;
  const cudaError_t error = cudaMemcpyAsync(tables, memory, at.bytes, cudaMemcpyDeviceToDevice, on);
  made = {.batch = {.segments = reinterpret_cast<const RowRange*>(tables + at.segments),
                    .count = args.count,
                    .max_rows = args.tokens,
                    .total_rows = args.count * args.tokens},
          .states = reinterpret_cast<void* const*>(tables + at.pointers),
          .matrix = args.matrix ? reinterpret_cast<const float*>(tables + at.matrix) : nullptr};
  return status_of(error);
}

}  // namespace hxq::cuda
