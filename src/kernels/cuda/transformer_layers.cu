// Layers of a transformer for one token of one sequence, as one kernel on all of the GPU. A block has adjacent rows of
// every product (transformer_layers_plan.h), and for attention a query head with a part of the positions. Between
// products blocks tell each other through device memory what they have found out: words of a value and the number of
// the layer that wrote it, which who needs it reads until the number is right. Before a word is written again, who
// reads it has said something that depends on it, and the writer has heard it: so one place is enough.
//
// Weights come through a ring in shared memory, without regard to what blocks wait for. The warps that multiply have
// some columns each, of all of the block's rows, so that a thread needs few elements of x, which it reads from where
// other blocks wrote them. A norm's common factor is applied to sums. All is float.

#include "kernels/cuda/transformer_layers.h"
#include "kernels/cuda/transformer_layers_helpers.cuh"
#include "kernels/cuda/transformer_layers_worker.cuh"

namespace hxq::cuda {
namespace {

using namespace transformer_parts;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)

template <int kInnerSteps>
__global__ void __launch_bounds__(Plan::kThreads, 1) transformer_layers_kernel(const __grid_constant__ Parameters p) {
  if (hopper::shared_address(dynamic_shared) != kDynamicStart) __trap();
  let_successors_begin();
  if (threadIdx.x == 0) {
    memory().plan = p.plan;
#pragma unroll 1
    for (int i = 0; i < Block::kBarriers; ++i) hopper::init_barrier(Block::barrier(i), Block::arrivals_of(i));
    hopper::fence_barriers();
  }
  wait_for_predecessors();
  if (threadIdx.x == 0) {
    memory().token = Block(p).find_token();
    for (int i = 0; i < kTransformerProducts; ++i) memory().rows[i] = p.plan.rows(i, Block::block());
    if (Block::token().row >= 0) memory().part = Block(p).part_of(Block::block());
  }
  __syncthreads();
  if (Block::token().row < 0) return;
  switch (threadIdx.x / 32 - Plan::kWarps) {
    case 0:
      return Adder(p).run();
    case 1:
      return TableBringer(p).run();
    case 2:
      return Scout(p).run();
    case 3: {
      if (threadIdx.x % 32 == 0) WeightBringer(p).run();
      return;
    }
    default:
      return Worker<kInnerSteps>(p).run();
  }
}

#else

template <int kInnerSteps>
__global__ void transformer_layers_kernel(const __grid_constant__ Parameters) {
  __trap();  // built for another GPU
}

#endif

bool is_readable(const CodebookWeight& weight, int64_t rows, int64_t cols) {
  return weight.rows == rows && weight.cols == cols && weight.d == 1 && weight.index_bits == 8 && weight.k <= 256 &&
         weight.rank == 0 && weight.channel_scales == nullptr && weight.level_scale > 0 &&
         is_aligned(weight.indices, 16);
}

TransformerPlan plan_of(const TransformerLayersArgs& args) {
  const TransformerLayer& first = args.layers[0];
  const KvCacheView& cache = first.attention.cache;
  return plan_transformer_layers(first.weight[kQuery].cols, first.attention.query_heads, cache,
                                 first.weight[kGate].rows, current_device().multiprocessors);
}

bool fits(const TransformerLayer& layer, const TransformerLayer& first, const TransformerPlan& plan) {
  const AttentionStepArgs &own = layer.attention, &other = first.attention;
  const KvCacheView& cache = own.cache;
  const auto is_matrix = [&](TransformerProduct product, int rows, int cols) {
    return is_readable(layer.weight[product], rows, cols);
  };
  return own.query_heads == plan.heads && cache.heads == plan.kv_heads && cache.head_dim == plan.head_dim &&
         cache.padded_dim == other.cache.padded_dim && cache.dtype == other.cache.dtype && own.scale == other.scale &&
         own.window == other.window && layer.activation == first.activation && is_aligned(layer.norm_weight, 16) &&
         is_aligned(layer.mlp_norm_weight, 16) && is_matrix(kQuery, plan.queries(), plan.hidden) &&
         is_matrix(kKey, plan.keys(), plan.hidden) && is_matrix(kValue, plan.keys(), plan.hidden) &&
         is_matrix(kOutput, plan.hidden, plan.queries()) && is_matrix(kGate, plan.inner, plan.hidden) &&
         is_matrix(kUp, plan.inner, plan.hidden) && is_matrix(kDown, plan.hidden, plan.inner);
}

Layer layer_of(const TransformerLayer& layer) {
  Layer there = {.norm_weight = {layer.norm_weight, layer.mlp_norm_weight},
                 .tiles = layer.attention.cache.tiles,
                 .inverse_frequency = layer.attention.inverse_frequency};
  for (int i = 0; i < kTransformerProducts; ++i) {
    const CodebookWeight& weight = layer.weight[i];
    there.matrix[i] = {.indices = static_cast<const unsigned char*>(weight.indices),
                       .codebook = weight.codebook,
                       .outlier_row_begin = weight.outlier_row_begin,
                       .outlier_col = weight.outlier_col,
                       .outlier_change = weight.outlier_change,
                       .bias = layer.bias[i],
                       .k = weight.k};
  }
  return there;
}

template <int kInnerSteps>
Status launch_layers(const Parameters& p, Stream stream) {
  return launch(transformer_layers_kernel<kInnerSteps>,
                {.grid = dim3(static_cast<unsigned>(p.plan.blocks)),
                 .block = dim3(Plan::kThreads),
                 .shared_bytes = Memory::kBytes,
                 .cooperative = true},
                stream, p);
}

}  // namespace

bool supports_transformer_layers(const TransformerLayersArgs& args) noexcept {
  if (current_device().compute_capability != 90 || args.count < 1 || args.h.dtype != DType::f32 ||
      args.batch.count != 1 || args.batch.max_rows != 1 || args.exchange == nullptr || !is_aligned(args.exchange, 16) ||
      !is_aligned(args.h.data, 16) || args.h.stride % 4 != 0) {
    return false;
  }
  const TransformerPlan plan = plan_of(args);
  return plan.blocks > 0 && std::all_of(args.layers, args.layers + args.count, [&](const TransformerLayer& layer) {
           return fits(layer, args.layers[0], plan);
         });
}

Status transformer_layers(const TransformerLayersArgs& args, Stream stream) noexcept {
  if (!supports_transformer_layers(args)) return Status::invalid_value;
  const AttentionStepArgs& attention = args.layers[0].attention;
  auto* words = static_cast<uint64_t*>(args.exchange);
  Parameters p{.plan = plan_of(args),
               .window = attention.window,
               .scale = attention.scale,
               .eps = args.eps,
               .activation = args.layers[0].activation,
               .segment = args.batch.segments,
               .positions = args.batch.positions,
               .h = static_cast<float*>(args.h.data),
               .h_stride = args.h.stride,
               .words = words + 2,
               .epoch = reinterpret_cast<uint32_t*>(words)};
  Status status = Status::ok;
  for (int64_t first = 0; first < args.count && status == Status::ok; first += kMostTransformerLayers) {
    p.layers = static_cast<int>(std::min<int64_t>(args.count - first, kMostTransformerLayers));
    for (int i = 0; i < p.layers; ++i) p.layer[i] = layer_of(args.layers[first + i]);
    status = p.plan.inner_steps == Plan::kFewInnerSteps ? launch_layers<Plan::kFewInnerSteps>(p, stream)
                                                        : launch_layers<Plan::kManyInnerSteps>(p, stream);
  }
  return status;
}

}  // namespace hxq::cuda
