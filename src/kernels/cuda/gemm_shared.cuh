// What the warps of the product for few tokens (gemm.cu) share: its parameters, and where things lie in shared memory.

#pragma once

#include "kernels/cuda/codebook_lookup.cuh"
#include "kernels/cuda/gemm_plan.h"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/pack_x.cuh"

namespace hxq::cuda::gemm {

/// One of the matrices.
struct Part {
  CUtensorMap map;  ///< of its bytes, where rows are aligned
  FusedProduct product;
  float inverse_level_scale;
  int64_t tiles;
  int64_t first_cluster, clusters;
};

struct Parameters {
  PackedX x;
  int64_t tokens;
  GemmPlan plan;
  int64_t count;
  Part parts[kMaxFusedProducts];

  __device__ int64_t cluster() const { return blockIdx.x / plan.splits; }
  /// What the block's cluster works on.
  __device__ const Part& part() const {
    int i = 0;
    while (i + 1 < count && cluster() >= parts[i + 1].first_cluster) ++i;
    return parts[i];
  }
};

inline constexpr int kGroup = 128;  ///< threads of a warpgroup

inline constexpr int kAdders = 96;  ///< threads that add up outliers

/// What they need of shared memory.
template <int kPieceBytes>
struct OutlierMemory {
  alignas(16) unsigned char x[2][kPieceBytes];
  float change[2][kAdders];
  uint32_t row_begin[257];
  uint64_t full[2];
};

/// Where things lie in shared memory, as addresses: the table wants a multiple of its size.
template <int kN, int kRowGroups>
struct Layout {
  static constexpr int kWarpgroups = kGemmWarpgroups;
  static constexpr int kKGroups = kWarpgroups / kRowGroups;
  static constexpr int kMultipliers = kWarpgroups * kGroup;
  static constexpr int kThreads = kMultipliers + kGroup;  ///< the last ones bring what the others multiply
  /// Registers that a thread starts with. Few tokens leave room on the multiprocessor for the kernel that packs x.
  static constexpr int kRegisters = kN <= 32 ? 80 : 96;
  // These are shared anew.
  static constexpr int kMultiplierRegisters = kN <= 32 ? 88 : kN <= 64 ? 104 : 112;
  static constexpr int kBringerRegisters = 5 * kRegisters - 4 * kMultiplierRegisters;
  static constexpr int kBoxBytes = kRowGroups * 64 * kChunkCols;  ///< of one chunk of the tile's rows
  static constexpr int kXBytes = kN * kChunkCols * 2;             ///< of one chunk of packed x
  static constexpr int kStageBytes = kKGroups * (kBoxBytes + kXBytes);
  static constexpr uint32_t kStart = 1024;  ///< of dynamic shared memory
  static constexpr uint32_t kTable = 131072, kTableBytes = 65536;
  static constexpr uint32_t kBarriers = kTable + kTableBytes;
  static constexpr int kSumBytes = kMultipliers * (kN / 2) * 4;  ///< of all warpgroups
  /// Few tokens: sums have memory of their own, and the next tile may come while they are added up.
  static constexpr bool kKeepsRing = kN <= 16;
  static constexpr int kRoom = kTable - kStart;
  static constexpr int kRingRoom = kKeepsRing ? kRoom - kSumBytes : kRoom;
  static constexpr int kStages = kRingRoom / kStageBytes;
  static_assert(kStages >= 3);
  static constexpr uint32_t kSums = kKeepsRing ? kTable - kSumBytes : kStart;
  /// Sums that are added up at once: all, or half of each token tile.
  static constexpr int kRounds = kSumBytes > kRoom ? 2 : 1;
  static constexpr uint32_t kOutliers = kBarriers + 2 * kStages * sizeof(uint64_t);
  static constexpr int kPieceBytes = kN <= 32 ? 4096 : 12288;
  using Outliers = OutlierMemory<kPieceBytes>;
  static constexpr size_t kDynamicBytes = kOutliers - kStart + sizeof(Outliers);

  __device__ static unsigned char* at(uint32_t address) { return dynamic_shared + (address - kStart); }
  __device__ static unsigned char* weights(int stage) { return at(kStart) + stage * kStageBytes; }
  __device__ static unsigned char* x(int stage) { return weights(stage) + kKGroups * kBoxBytes; }
  __device__ static uint64_t* full(int stage) { return reinterpret_cast<uint64_t*>(at(kBarriers)) + stage; }
  __device__ static uint64_t* empty(int stage) { return full(stage) + kStages; }
};

}  // namespace hxq::cuda::gemm
