// What becomes of the sums of a tile of tile_gemm.cu.

#pragma once

#include "kernels/cuda/tile_gemm_shared.cuh"

namespace hxq::cuda::tiles {

/// Adds up what the blocks have of a tile, and writes it. Sums go through shared memory (x is not there any more), so
/// that a warp writes rows of y, and so that the rest is loops: each instruction that runs for the first time has to be
/// fetched from afar, and a block runs them once.
template <int kN, bool kPlaces>
class TileSums {
 public:
  __device__ TileSums(const Parameters& p, const Cursor& at) : p_(p), at_(at) {}

  __device__ void finish(float (&sum)[kN / 2]) {
    if (!kPlaces && p_.weight.outlier_row_begin) add_outliers(sum);
    group_barrier<1, kMultipliers>();  // nobody multiplies with x
    keep(sum);
    if (p_.plan.joins) {
      hopper::cluster_barrier();
      const int begin = at_.split * (kN / 2);
      if (p_.plain_y) return write_plainly<true>(begin, kN / 2);
      add_splits(begin, kN / 2);
      return write(begin, kN / 2);
    }
    group_barrier<1, kMultipliers>();
    if (p_.plan.splits > 1) {
      if (!join_splits()) return;
      add_splits(0, kN);
    }
    if (p_.plain_y) {
      write_plainly<false>(0, kN);
    } else {
      write(0, kN);
    }
    hopper::fence_tiles();
    __syncwarp();
    tell_bringers(p_.plan, L::drained());
  }

 private:
  using L = Layout<kN>;
  static constexpr int kWarps = kMultipliers / 32;
  static constexpr int kAtOnce = kN <= 64 ? 4 : 8;  ///< tokens of a warp that are on their way
  static_assert(L::kXStages * L::kXStageBytes >= kRows * kN * 4 && kN / 2 % (kAtOnce * kWarps) == 0);

  __device__ static int thread() { return static_cast<int>(threadIdx.x); }
  __device__ static int lane() { return thread() % 32; }

  /// Sum i of a thread of the warpgroups is of its own row of the tile, or of the one 8 further, and of this token or
  /// of the one i / 4 * 8 + i % 2 further.
  __device__ static int own_token() { return lane() % 4 * 2; }

  /// The sum of a row and a token of the tile. Lanes that keep sums of different tokens find different banks.
  __device__ static float* place(int token, int row) {
    return reinterpret_cast<float*>(L::x(0)) + token * kRows + (row ^ token / 2 % 4 * 8);
  }

  __device__ void add_outliers(float (&sum)[kN / 2]) const {
    group_barrier<3, kMultipliers + gemm::kAdders>();  // they are added up
    const int begin = p_.plan.first_outlier_row(at_.split), end = p_.plan.first_outlier_row(at_.split + 1);
    const float* from = p_.x.outlier_sums + (at_.outlier_sums_place() * kRows + own_row()) * kN + own_token();
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row = own_row() + 8 * half;
      if (row < begin || row >= end) continue;
#pragma unroll
      for (int i = 0; i < kN / 8; ++i) {
        const float2 added = *reinterpret_cast<const float2*>(from + half * 8 * kN + i * 8);
        sum[4 * i + 2 * half] += added.x;
        sum[4 * i + 2 * half + 1] += added.y;
      }
    }
  }

  __device__ void keep(const float (&sum)[kN / 2]) const {
    float* to = place(own_token(), own_row());
    float* const further = place(own_token(), own_row() + 8);
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) (i % 4 < 2 ? to : further)[(i / 4 * 8 + i % 2) * kRows] = sum[i];
    if (thread() < kN) L::scales()[thread()] = p_.x.scales[at_.first_token() + thread()] * p_.scale;
  }

  /// A lane's four adjacent rows of a token.
  __device__ static float4& kept(int token) { return *reinterpret_cast<float4*>(place(token, 4 * lane())); }
  __device__ float4* part(int split, int token) const {
    const int64_t first = (at_.tile() * p_.plan.splits + split) * kN;
    return reinterpret_cast<float4*>(p_.partial_sums) + (first + token) * (kRows / 4) + lane();
  }

  /// Gives away the sums. Whether all other blocks of the tile have done so before.
  __device__ bool join_splits() const {
#pragma unroll 4
    for (int token = thread() / 32; token < kN; token += kWarps) __stcg(part(at_.split, token), kept(token));
    __threadfence();
    group_barrier<1, kMultipliers>();
    uint32_t& arrived = L::arrived();
    if (thread() == 0) arrived = atomicAdd(p_.counters + at_.tile(), 1u);
    group_barrier<1, kMultipliers>();
    __threadfence();
    return arrived == static_cast<uint32_t>(p_.plan.splits) - 1;
  }

  __device__ static void add(float4& sum, const float4& more) {
    sum.x += more.x, sum.y += more.y, sum.z += more.z, sum.w += more.w;
  }

  /// What another block has of a token.
  __device__ float4 fetch(int split, int token) const {
    return p_.plan.joins ? hopper::load_from_block(&kept(token), static_cast<uint32_t>(split))
                         : __ldcg(part(split, token));
  }

  /// Of `tokens` tokens from `begin` on, in the order of the splits.
  __device__ void add_splits(int begin, int tokens) const {
#pragma unroll 1
    for (int first = begin + thread() / 32; first < begin + tokens; first += kAtOnce * kWarps) {
      float4 sum[kAtOnce] = {};
#pragma unroll 1
      for (int split = 0; split < p_.plan.splits; ++split) {
#pragma unroll
        for (int u = 0; u < kAtOnce; ++u) {
          const int token = first + u * kWarps;
          add(sum[u], split == at_.split ? kept(token) : fetch(split, token));
        }
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) kept(first + u * kWarps) = sum[u];
    }
  }

  /// Where y is plain, several tokens at once. `kJoins`: with what the other block of the cluster has.
  template <bool kJoins>
  __device__ void write_plainly(int begin, int count) const {
    const int64_t row = at_.first_row() + 4 * lane(), first_token = at_.first_token();
    if (row >= p_.weight.rows) return;
    const int end = static_cast<int>(min(p_.tokens - first_token, int64_t{begin + count}));
    const float4 bias = p_.bias ? *reinterpret_cast<const float4*>(p_.bias + row) : float4{};
    float* const y = static_cast<float*>(p_.y.data) + first_token * p_.y.stride + row;
#pragma unroll 1
    for (int first = begin + thread() / 32; first < end; first += kAtOnce * kWarps) {
      float4 sum[kAtOnce];
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        sum[u] = kJoins ? fetch(1 - at_.split, first + u * kWarps) : kept(first + u * kWarps);
      }
#pragma unroll
      for (int u = 0; u < kAtOnce; ++u) {
        const int token = first + u * kWarps;
        const float scale = L::scales()[token];
        if (kJoins) add(sum[u], kept(token));
        if (token >= end) break;
        *reinterpret_cast<float4*>(y + token * p_.y.stride) =
            make_float4(fmaf(sum[u].x, scale, bias.x), fmaf(sum[u].y, scale, bias.y), fmaf(sum[u].z, scale, bias.z),
                        fmaf(sum[u].w, scale, bias.w));
      }
    }
  }

  __device__ void write(int begin, int count) const {
    const int64_t row = at_.first_row() + 4 * lane(), first_token = at_.first_token();
    const int rows = static_cast<int>(min(p_.weight.rows - row, int64_t{4}));
    const int end = static_cast<int>(min(p_.tokens - first_token, int64_t{begin + count}));
    if (rows <= 0) return;
    float bias[4];
#pragma unroll
    for (int r = 0; r < 4; ++r) bias[r] = p_.bias && r < rows ? p_.bias[row + r] : 0.0f;
#pragma unroll 1
    for (int token = begin + thread() / 32; token < end; token += kWarps) {
      write_four(first_token + token, row, rows, kept(token), L::scales()[token], bias);
    }
  }

  __device__ void write_four(int64_t token, int64_t row, int rows, const float4& sum, float scale,
                             const float (&bias)[4]) const {
    float value[4] = {sum.x, sum.y, sum.z, sum.w};
#pragma unroll
    for (int r = 0; r < 4; ++r) value[r] *= scale;
    const int rank = p_.weight.rank;
#pragma unroll 1
    for (int n = 0; n < rank; ++n) {
      const float product = p_.low_rank_product[token * rank + n];
#pragma unroll
      for (int r = 0; r < 4; ++r) {
        if (r < rows) value[r] = fmaf(p_.weight.low_rank_u[(row + r) * rank + n], product, value[r]);
      }
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) value[r] += bias[r];
    if (p_.y_is_aligned && rows == 4 && !p_.accumulate) {
      const int64_t at = token * p_.y.stride + row;
      if (p_.y.dtype == DType::f32) {
        *reinterpret_cast<float4*>(static_cast<float*>(p_.y.data) + at) =
            make_float4(value[0], value[1], value[2], value[3]);
      } else {
        uint2 halves;
        if (p_.y.dtype == DType::bf16) {
          const __nv_bfloat162 low = __floats2bfloat162_rn(value[0], value[1]);
          const __nv_bfloat162 high = __floats2bfloat162_rn(value[2], value[3]);
          halves = {reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high)};
        } else {
          const __half2 low = __floats2half2_rn(value[0], value[1]), high = __floats2half2_rn(value[2], value[3]);
          halves = {reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high)};
        }
        *reinterpret_cast<uint2*>(static_cast<uint16_t*>(p_.y.data) + at) = halves;
      }
      return;
    }
#pragma unroll
    for (int r = 0; r < 4; ++r) {
      if (r >= rows) break;
      if (p_.accumulate) value[r] += load_at(p_.y, token, row + r);
      store_at(p_.y, token, row + r, value[r]);
    }
  }

  const Parameters& p_;
  const Cursor& at_;
};

}  // namespace hxq::cuda::tiles
