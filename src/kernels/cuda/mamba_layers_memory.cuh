// What the kernel of Mamba's layers is given, and what its blocks have in shared memory.

#pragma once

#include "kernels/cuda/codebook_lookup.cuh"
#include "kernels/cuda/hopper_cluster.cuh"
#include "kernels/cuda/mamba_layers.h"
#include "kernels/cuda/mamba_layers_plan.h"
#include "kernels/cuda/tensor_core.cuh"

namespace hxq::cuda::mamba_layers_parts {

struct Matrix {
  const unsigned char* indices;
  const float* codebook;
  const uint32_t *outlier_row_begin, *outlier_col;
  const float* outlier_change;
  int k;
};

struct Layer {
  Matrix matrix[MambaLayersPlan::kPhases];
  const float *norm_weight, *in_bias, *conv_weight, *conv_bias, *a, *d, *dt_bias, *out_bias;
  void* const* conv_states;
  void* const* states;
};

struct Parameters {
  MambaLayersPlan plan;
  const RowRange* segments;  // [sequences]
  float* h;
  int64_t h_stride;
  float eps;
  int sequences, layers;
  Layer layer[kMostMambaLayers];
};
static_assert(sizeof(Parameters) <= 32 * 1024 - 4);  // of a kernel

/// A layer in shared memory: parameters of a kernel are read once a layer each, and come slowly.
struct SharedLayer : Layer {
  void* state_of[2][MambaLayersPlan::kMostTokens];  ///< of the cluster's tokens: of the convolution, and of the scan
  uint32_t first_outlier[MambaLayersPlan::kRowRanges], outlier_end[MambaLayersPlan::kRowRanges];  ///< of the block
  uint32_t unused[2];
};
static_assert(sizeof(SharedLayer) == MambaLayersPlan::kLayerBytes);

__device__ inline int warp() { return static_cast<int>(threadIdx.x) / 32; }
__device__ inline int lane() { return static_cast<int>(threadIdx.x) % 32; }
__device__ inline float* floats(uint32_t at) { return reinterpret_cast<float*>(dynamic_shared + at); }

__device__ inline SharedLayer& shared_layer(const MambaLayersPlan& plan, int number) {
  return reinterpret_cast<SharedLayer*>(dynamic_shared + plan.layers_at)[number % MambaLayersPlan::kLayersThere];
}

/// Brings the line of an address to the second-level cache.
__device__ inline void prefetch(const void* at) { asm volatile("prefetch.global.L2 [%0];" ::"l"(at)); }

/// Brings an array to the second-level cache, but for what lies before and behind whole 16 bytes.
__device__ inline void prefetch_array(const void* array, int64_t bytes) {
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(array) + 15) / 16 * 16;
  const uintptr_t end = (reinterpret_cast<uintptr_t>(array) + static_cast<uintptr_t>(bytes)) / 16 * 16;
  if (array == nullptr || end <= begin) return;
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(begin), "r"(static_cast<uint32_t>(end - begin)));
}

/// A product's x as lanes take it; an element in two parts is their sum.
template <int kTokenTiles, bool kTwoParts>
class Operand {
  static constexpr int kParts = kTwoParts ? 2 : 1;

 public:
  __device__ explicit Operand(uint32_t at) : at_(at) {}

  /// The 16 bytes of a unit that the lane takes first; the others are 32 places apart each.
  __device__ const uint4* lane_x(int unit, int token_tile, int part) const {
    return reinterpret_cast<const uint4*>(dynamic_shared + at_) +
           ((unit * kTokenTiles + token_tile) * kParts + part) * 128 + lane();
  }

  __device__ void put(int token, int col, float value) const {
    float* to = floats(at_) + place(token, col);
    float high, low;
    split(value, high, low);
    to[0] = high;
    if constexpr (kTwoParts) to[kPartFloats] = low;
  }
  /// Four adjacent columns, which are there as floats until they are put.
  __device__ float4* raw4(int token, int col) const {
    return reinterpret_cast<float4*>(floats(at_) + place(token, col));
  }
  __device__ void put4(int token, int col, const float4& value) const {
    float4 high, low;
    split(value.x, high.x, low.x), split(value.y, high.y, low.y);
    split(value.z, high.z, low.z), split(value.w, high.w, low.w);
    auto* to = reinterpret_cast<float4*>(floats(at_) + place(token, col));
    to[0] = high;
    if constexpr (kTwoParts) to[kPartFloats / 4] = low;
  }
  __device__ void put_there(int block, int token, int col, float value, uint32_t barrier) const {
    float high, low;
    split(value, high, low);
    const auto to = hopper::address_in_block(floats(at_) + place(token, col), static_cast<uint32_t>(block));
    hopper::store_there(to, high, barrier);
    if constexpr (kTwoParts) hopper::store_there(to + kPartFloats * 4, low, barrier);
  }

  __device__ float get(int token, int col) const {
    const float* from = floats(at_) + place(token, col);
    return kTwoParts ? from[0] + from[kPartFloats] : from[0];
  }
  __device__ float get_there(int block, int token, int col) const {
    const float* from = floats(at_) + place(token, col);
    const float high = hopper::load_there(hopper::address_in_block(from, static_cast<uint32_t>(block)));
    if constexpr (!kTwoParts) return high;
    return high + hopper::load_there(hopper::address_in_block(from + kPartFloats, static_cast<uint32_t>(block)));
  }

 private:
  static constexpr int kPartFloats = 512;

  __device__ static void split(float value, float& high, float& low) {
    high = __uint_as_float(to_tf32(value));
    low = kTwoParts ? __uint_as_float(to_tf32(value - high)) : 0.0f;
  }
  __device__ static int place(int token, int col) {
    const int unit_tile = col / 64 * kTokenTiles + token / 8;
    return unit_tile * kParts * kPartFloats + col % 16 / 4 * 128 + (token % 8 * 4 + col % 64 / 16) * 4 + col % 4;
  }

  uint32_t at_;
};

/// Barriers that count what the blocks of the cluster write to this one: each is used once a layer.
class Exchanges {
  using Plan = MambaLayersPlan;

 public:
  __device__ explicit Exchanges(const Plan& plan)
      : barriers_(reinterpret_cast<uint64_t*>(dynamic_shared + plan.barriers_at)) {}

  __device__ void init() const {
#pragma unroll 1
    for (int i = 0; i < Plan::kExchanges; ++i) hopper::init_barrier(barriers_ + i, 1);
    hopper::fence_barriers();
  }
  /// Of the next layer. Bytes that were faster are counted, too.
  __device__ void expect(const Plan& plan, int block, int tokens) const {
#pragma unroll 1
    for (int i = 0; i < Plan::kExchanges; ++i) {
      hopper::arrive_and_expect_bytes(barriers_ + i, plan.expected_bytes(i, block, tokens));
    }
  }
  /// What the exchange brings in that layer is there.
  __device__ void wait(Plan::Exchange exchange, int layer) const {
    hopper::wait(barriers_ + exchange, static_cast<uint32_t>(layer) % 2);
  }
  __device__ uint32_t barrier_of(int block, Plan::Exchange exchange) const {
    return hopper::address_in_block(barriers_ + exchange, static_cast<uint32_t>(block));
  }

 private:
  uint64_t* barriers_;
};

}  // namespace hxq::cuda::mamba_layers_parts
