// Layers of Mamba-1 for one token of one or two sequences, as one kernel on all of the GPU. Clusters of blocks share
// the rows of in_proj, and tell each other what comes of them through device memory. All else between the projections
// each cluster does by itself for all channels, a block for some, so that what those need of each other they write to
// each other's shared memory; of out_proj a cluster has some rows, and all get what comes of them through device memory
// again (mamba_spread_plan.h). Four exchanges a layer, two of which are within a cluster.
//
// What passes through device memory are words of a value and the number of the layer that wrote it: who needs it reads
// until the number is right. Before a word is written again, who reads it has said something that depends on it, and
// the writer has heard it: so one place is enough.
//
// Levels are looked up while a warp would wait for x; multiplying is then a few instructions. Products are sums in
// float.

#include "kernels/cuda/mamba_spread.cuh"
#include "kernels/cuda/mamba_spread_bringer.cuh"
#include "kernels/cuda/mamba_spread_worker.cuh"

namespace hxq::cuda {
namespace {

using namespace mamba_spread_parts;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL) || !defined(__CUDA_ARCH__)

/// All threads start with 128, and share them anew.
constexpr int kWorkerRegisters = 192, kBringerRegisters = 64;

__device__ void init_barriers(const Block& block) {
#pragma unroll
  for (int i = 0; i < Block::kBarriers; ++i) hopper::init_barrier(block.barrier(i), arrivals_of(i));
  hopper::fence_barriers();
}

template <int kTokens, bool kIsWide>
__global__ void __launch_bounds__(Plan::kThreads, 1) mamba_spread_kernel(const __grid_constant__ Parameters p) {
  if (hopper::shared_address(dynamic_shared + Plan::kTablesAt) % Plan::kTablesBytes != 0) __trap();
  let_successors_begin();
  if (threadIdx.x == 0) init_barriers(Block(p));
  if (threadIdx.x >= Plan::kWorkers + Plan::kBringers) {
    hopper::shrink_registers<kBringerRegisters>();
    VectorBringer<kTokens> bringer(p);
    bringer.prepare();
    hopper::cluster_barrier();
    bringer.begin();
    wait_for_predecessors();
    bringer.run();
  } else if (threadIdx.x >= Plan::kWorkers) {
    hopper::shrink_registers<kBringerRegisters>();
    const MatrixBringer bringer(p);
    hopper::cluster_barrier();
    bringer.begin();
    wait_for_predecessors();
    bringer.run();
  } else {
    hopper::grow_registers<kWorkerRegisters>();
    Worker<kTokens, kIsWide> worker(p);
    worker.prepare();
    hopper::cluster_barrier();
    wait_for_predecessors();
    worker.run();
  }
}

#else

template <int kTokens, bool kIsWide>
__global__ void mamba_spread_kernel(const __grid_constant__ Parameters) {
  __trap();  // built for another GPU
}

#endif

template <int kTokens>
Status launch_spread(const Parameters& p, Stream stream) {
  const auto start = [&](auto kernel) {
    return launch(kernel,
                  {.grid = dim3(static_cast<unsigned>(p.plan.blocks())),
                   .block = dim3(Plan::kThreads),
                   .shared_bytes = p.plan.bytes,
                   .cluster = Plan::kBlocks,
                   .cooperative = true},
                  stream, p);
  };
  if constexpr (kTokens == 1) {
    if (p.plan.is_wide) return start(mamba_spread_kernel<1, true>);
  }
  return start(mamba_spread_kernel<kTokens, false>);
}

}  // namespace

Status mamba_spread(const Parameters& p, Stream stream) noexcept {
  return p.plan.tokens == 1 ? launch_spread<1>(p, stream) : launch_spread<2>(p, stream);
}

}  // namespace hxq::cuda
