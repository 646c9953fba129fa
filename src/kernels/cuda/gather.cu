#include "kernels/cuda/codebook_index.h"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/sequence.h"

namespace hxq::cuda {
namespace {

constexpr int kThreads = 256;

__global__ void __launch_bounds__(kThreads)
    gather_codebook_kernel(const __grid_constant__ CodebookWeight w, const __grid_constant__ GatherArgs p) {
  let_successors_begin();
  wait_for_predecessors();
  const int64_t id = p.ids[blockIdx.x];
  const auto* indices = static_cast<const uint8_t*>(w.indices);
  for (int64_t col = threadIdx.x; col < w.cols; col += kThreads) {
    float value = 0;
    if (id >= 0) {
      value = codebook_level(indices, w.index_bits, w.codebook, w.d, id * w.cols + col);
      if (w.outlier_row_begin) {
        for (uint32_t i = w.outlier_row_begin[id]; i < w.outlier_row_begin[id + 1]; ++i) {
          if (w.outlier_col[i] == col) value += w.outlier_change[i];
        }
      }
      for (int n = 0; n < w.rank; ++n)
        value = fmaf(w.low_rank_u[id * w.rank + n], w.low_rank_vt[n * w.cols + col], value);
      if (w.channel_scales) value /= w.channel_scales[col];
    }
    store_at(p.out, blockIdx.x, col, value);
  }
}

__global__ void __launch_bounds__(kThreads)
    gather_dense_kernel(const __grid_constant__ DenseWeight w, const __grid_constant__ GatherArgs p) {
  let_successors_begin();
  wait_for_predecessors();
  const int64_t id = p.ids[blockIdx.x];
  for (int64_t col = threadIdx.x; col < w.cols; col += kThreads) {
    store_at(p.out, blockIdx.x, col, id >= 0 ? load_element(w.data, w.dtype, id * w.cols + col) : 0.0f);
  }
}

__global__ void __launch_bounds__(kThreads) copy_rows_kernel(const __grid_constant__ CopyRowsArgs p) {
  let_successors_begin();
  wait_for_predecessors();
  const int64_t from = p.row ? int64_t{p.row[blockIdx.x]} : int64_t{blockIdx.x};
  for (int64_t col = threadIdx.x; col < p.cols; col += kThreads)
    store_at(p.to, blockIdx.x, col, load_at(p.from, from, col));
}

LaunchShape shape_of(const GatherArgs& args) {
  return {.grid = dim3(static_cast<unsigned>(args.count)), .block = dim3(kThreads)};
}

}  // namespace

Status gather_rows(const CodebookWeight& weight, const GatherArgs& args, Stream stream) noexcept {
  if (args.count == 0 || weight.cols == 0) return Status::ok;
  return launch(gather_codebook_kernel, shape_of(args), stream, weight, args);
}

Status gather_rows(const DenseWeight& weight, const GatherArgs& args, Stream stream) noexcept {
  if (args.count == 0 || weight.cols == 0) return Status::ok;
  return launch(gather_dense_kernel, shape_of(args), stream, weight, args);
}

Status copy_rows(const CopyRowsArgs& args, Stream stream) noexcept {
  if (args.rows == 0 || args.cols == 0) return Status::ok;
  return launch(copy_rows_kernel, {.grid = dim3(static_cast<unsigned>(args.rows)), .block = dim3(kThreads)}, stream,
                args);
}

}  // namespace hxq::cuda
