// Layers of Mamba-1 for one token of each of several sequences, as one kernel. Sequences need nothing of each other: a
// cluster of blocks has some of them, through all layers, and what its blocks have to tell each other they write to
// each other's shared memory, where barriers count the bytes (mamba_layers_plan.h). So nothing waits for all of the
// GPU, no block waits for more than the bytes it needs, and the bytes of the next product come while this one is
// multiplied.
//
// Weights are the left operand of tensor cores, looked up from their bytes straight into registers, in TF32 as in
// skinny_gemm.cu. A layer:
//     norm, in_proj, convolution, x_proj over a block's own channels; its sums go to the owners of rows
//     an owner adds them up, and tells all: dt, B and C
//     dt_proj, scan, out_proj over own channels; its sums go to the owners of rows
//     an owner adds them up, and tells all: the new hidden state
// Each block owns rows of x_proj, so it sends something to all blocks only after it got something of all: what lies at
// a place has been read by then, and no exchange needs a second place.

#include <algorithm>

#include "kernels/cuda/mamba_layers.h"
#include "kernels/cuda/mamba_layers_worker.cuh"
#include "kernels/cuda/mamba_spread.cuh"

namespace hxq::cuda {
namespace {

using namespace mamba_layers_parts;

#if __CUDA_ARCH__ >= 900 || !defined(__CUDA_ARCH__)

template <int kTokenTiles, bool kTwoParts>
__global__ void __launch_bounds__(MambaLayersPlan::kThreads, 1)
    mamba_layers_kernel(const __grid_constant__ Parameters p) {
  // Lookups take the lower 16 bits of an address from the index: the table begins where they are zero.
  if (hopper::shared_address(dynamic_shared + MambaLayersPlan::kTableAt) % MambaLayersPlan::kTableBytes != 0) __trap();
  let_successors_begin();
  Worker<kTokenTiles, kTwoParts> worker(p);
  worker.prepare();
  wait_for_predecessors();
  worker.run();
}

#else

template <int kTokenTiles, bool kTwoParts>
__global__ void mamba_layers_kernel(const __grid_constant__ Parameters) {
  __trap();  // built for another GPU
}

#endif

bool is_readable(const CodebookWeight& weight, int64_t rows, int64_t cols, Precision precision) {
  return weight.rows == rows && weight.cols == cols && weight.d == 1 && weight.index_bits == 8 && weight.k <= 256 &&
         !weight.channel_scales && weight.rank == 0 && is_aligned(weight.indices, 16) &&
         weight.level_scale > 0 &&  // all are finite: columns that are not there may get any of them, times 0
         (precision == Precision::fast || weight.levels_fit_half);
}

/// What is copied 16 bytes at a time.
bool are_aligned(const MambaLayer& layer) {
  const MambaStepArgs& step = layer.step;
  for (const float* vector : {layer.norm_weight, layer.in_bias, step.conv.weight, step.conv.bias, step.scan.a,
                              step.scan.d, step.scan.dt_bias}) {
    if (!is_aligned(vector, 16)) return false;
  }
  return true;
}

/// A place in shared memory for a vector that a layer has not keeps what the layer before had there.
bool have_the_same_vectors(const MambaLayer& a, const MambaLayer& b) {
  const auto same = [](const float* x, const float* y) { return (x == nullptr) == (y == nullptr); };
  return same(a.in_bias, b.in_bias) && same(a.step.conv.bias, b.step.conv.bias) && same(a.step.scan.d, b.step.scan.d) &&
         same(a.step.scan.dt_bias, b.step.scan.dt_bias);
}

bool fits(const MambaLayer& layer, const MambaLayer& first, Precision precision) {
  const ConvArgs& conv = layer.step.conv;
  const ScanArgs& scan = layer.step.scan;
  const int64_t hidden = first.in_proj.cols, inner = first.out_proj.cols, rank = first.step.dt_proj.cols;
  return conv.channels == inner && scan.channels == inner && scan.state_size == MambaLayersPlan::kStates &&
         conv.width == MambaLayersPlan::kTaps && conv.state_rows == conv.width - 1 && are_aligned(layer) &&
         have_the_same_vectors(layer, first) && is_readable(layer.in_proj, 2 * inner, hidden, precision) &&
         is_readable(layer.step.x_proj, rank + 2 * scan.state_size, inner, precision) &&
         is_readable(layer.step.dt_proj, inner, rank, precision) &&
         is_readable(layer.out_proj, hidden, inner, precision);
}

MambaLayersPlan plan_of(const MambaLayersArgs& args) {
  const MambaLayer& first = args.layers[0];
  const int room = current_device().clusters[MambaLayersPlan::kBlocks];
  return plan_mamba_layers(first.in_proj.cols, first.out_proj.cols, first.step.dt_proj.cols, args.batch.count,
                           args.precision == Precision::exact ? 2 : 1, room);
}

Matrix matrix_of(const CodebookWeight& weight) {
  return {.indices = static_cast<const unsigned char*>(weight.indices),
          .codebook = weight.codebook,
          .outlier_row_begin = weight.outlier_row_begin,
          .outlier_col = weight.outlier_col,
          .outlier_change = weight.outlier_change,
          .k = weight.k};
}

Layer layer_of(const MambaLayer& layer) {
  const MambaStepArgs& step = layer.step;
  return {
      .matrix = {matrix_of(layer.in_proj), matrix_of(step.x_proj), matrix_of(step.dt_proj), matrix_of(layer.out_proj)},
      .norm_weight = layer.norm_weight,
      .in_bias = layer.in_bias,
      .conv_weight = step.conv.weight,
      .conv_bias = step.conv.bias,
      .a = step.scan.a,
      .d = step.scan.d,
      .dt_bias = step.scan.dt_bias,
      .out_bias = layer.out_bias,
      .conv_states = step.conv.states,
      .states = step.scan.states};
}

/// A plan for all of the GPU; no clusters: there is none.
MambaSpreadPlan spread_plan_of(const MambaLayersArgs& args) {
  if (!args.exchange) return {};
  const MambaLayer& first = args.layers[0];
  return plan_mamba_spread(first.in_proj.cols, first.out_proj.cols, first.step.dt_proj.cols, args.batch.count,
                           current_device().clusters[MambaSpreadPlan::kBlocks]);
}
static_assert(kMambaExchangeBytes == sizeof(uint64_t) * MambaSpreadPlan::kExchangeWords);

/// Launches so many layers at a time as a kernel takes.
template <class P, class Launch>
Status launch_each(const MambaLayersArgs& args, P& p, const Launch& launch) {
  p.segments = args.batch.segments;
  p.h = static_cast<float*>(args.h.data);
  p.h_stride = args.h.stride;
  p.eps = args.eps;
  p.sequences = args.batch.count;
  Status status = Status::ok;
  for (int64_t first = 0; first < args.count && status == Status::ok; first += kMostMambaLayers) {
    p.layers = static_cast<int>(std::min<int64_t>(args.count - first, kMostMambaLayers));
    for (int i = 0; i < p.layers; ++i) p.layer[i] = layer_of(args.layers[first + i]);
    status = launch();
  }
  return status;
}

Status spread_layers(const MambaLayersArgs& args, const MambaSpreadPlan& plan, Stream stream) {
  auto* words = static_cast<uint64_t*>(args.exchange);
  mamba_spread_parts::Parameters p{.plan = plan};
  p.epoch = reinterpret_cast<uint32_t*>(words);
  p.xz = words + MambaSpreadPlan::kEpochWords;
  p.hidden = p.xz + MambaSpreadPlan::kXzWords;
  return launch_each(args, p, [&] { return mamba_spread(p, stream); });
}

template <int kTokenTiles, bool kTwoParts>
Status launch_layers(const Parameters& p, Stream stream) {
  return launch(mamba_layers_kernel<kTokenTiles, kTwoParts>,
                {.grid = dim3(static_cast<unsigned>(p.plan.clusters * MambaLayersPlan::kBlocks)),
                 .block = dim3(MambaLayersPlan::kThreads),
                 .shared_bytes = p.plan.bytes,
                 .cluster = MambaLayersPlan::kBlocks},
                stream, p);
}

}  // namespace

bool supports_mamba_layers(const MambaLayersArgs& args) noexcept {
  const int capability = current_device().compute_capability;
  if (capability != 90 || args.count < 1 || args.h.dtype != DType::f32 || args.batch.max_rows != 1) return false;
  const auto all_fit = [&](Precision precision) {
    return std::all_of(args.layers, args.layers + args.count,
                       [&](const MambaLayer& layer) { return fits(layer, args.layers[0], precision); });
  };
  if (spread_plan_of(args).clusters > 0) return all_fit(Precision::fast);  // levels may be any
  return args.batch.count > 1 && plan_of(args).clusters > 0 && all_fit(args.precision);
}

Status mamba_layers(const MambaLayersArgs& args, Stream stream) noexcept {
  if (!supports_mamba_layers(args)) return Status::invalid_value;
  if (const MambaSpreadPlan plan = spread_plan_of(args); plan.clusters > 0) return spread_layers(args, plan, stream);
  Parameters p{.plan = plan_of(args)};
  return launch_each(args, p, [&] {
    if (p.plan.parts == 2) return launch_layers<1, true>(p, stream);
    return p.plan.token_tiles == 2 ? launch_layers<2, false>(p, stream) : launch_layers<1, false>(p, stream);
  });
}

}  // namespace hxq::cuda
