// x for the tensor-core product: rounded to binary16 in one or two parts, its columns permuted (packed_x.h). A block
// has eight tokens and a part of their columns; the blocks of a cluster tell each other their largest elements.

#include <cooperative_groups.h>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/pack_x.cuh"

namespace hxq::cuda {
namespace {

constexpr int kTokens = 8;  ///< of a block: a warp each
constexpr int kThreads = kTokens * 32;
constexpr int kRowBytes = 2048;  ///< of a token, in shared memory at once
constexpr int kGapBytes = 32;    ///< between tokens, which begin in different banks
constexpr int kMostBlocks = 8;   ///< of a cluster

struct Parameters {
  Input x;
  const float* channel_scales;
  int64_t tokens;
  int64_t cols;
  GemmPlan plan;
  PackedX out;
};

template <class T>
struct Shared {
  T rows[kTokens][(kRowBytes + kGapBytes) / sizeof(T)];
  float largest[kMostBlocks][kTokens];
  float inverse_scale[kTokens];
};

// Most of it runs once, from cold instruction memory: loops stay loops.
// `kDivides`: by channel scales.
template <class T, bool kDivides>
class Packer {
 public:
  /// Of a block's place in its cluster, all in 32 bits: longer divisions would be half of the kernel's instructions.
  __device__ Packer(const Parameters& p, Shared<T>& shared, unsigned blocks, unsigned rank)
      : p_(p),
        shared_(shared),
        token_(int64_t{blockIdx.x / blocks} * kTokens),
        begin_(static_cast<unsigned>(p.plan.padded_chunks()) * rank / blocks),
        end_(static_cast<unsigned>(p.plan.padded_chunks()) * (rank + 1) / blocks) {}

  /// The largest element of the warp's token in the block's columns.
  __device__ float find_largest() {
    float largest = 0;
#pragma unroll 1
    for (int64_t chunk = begin_; chunk < end_; chunk += kTileChunks) largest = fmaxf(largest, load_tile(chunk));
    return max_lanes(largest);
  }

  __device__ void store() {
    const bool is_loaded = end_ - begin_ <= kTileChunks;
#pragma unroll 1
    for (int64_t chunk = begin_; chunk < end_; chunk += kTileChunks) {
      if (!is_loaded) {
        __syncthreads();
        load_tile(chunk);
        __syncthreads();
      }
      const auto chunks = static_cast<int>(min(end_ - chunk, int64_t{kTileChunks}));
      store_packed(chunk, chunks);
      if (p_.out.transposed) store_transposed(chunk, chunks);
    }
  }

 private:
  static constexpr int kTileChunks = kRowBytes / sizeof(T) / kChunkCols;

  /// Brings the warp's token, from chunk `chunk` on, to shared memory; what does not exist as zeros. Its largest
  /// element.
  __device__ float load_tile(int64_t chunk) {
    const int64_t token = token_ + threadIdx.x / 32;
    const T* x = static_cast<const T*>(p_.x.data) + token * p_.x.stride;
    T* row = shared_.rows[threadIdx.x / 32];
    const int64_t begin = chunk * kChunkCols, end = min(end_ * kChunkCols, begin + kTileChunks * kChunkCols);
    const int64_t last = token < p_.tokens ? p_.cols : 0;
    float largest = 0;
    if (reinterpret_cast<uintptr_t>(x) % 16 == 0 && !kDivides && last >= end) {
      constexpr int kVector = 16 / sizeof(T), kStep = 32 * kVector;
#pragma unroll 1
      for (int64_t col = begin + threadIdx.x % 32 * kVector; col < end; col += 2 * kStep) {
        uint4 raw[2] = {};  // both are on their way at once
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (col + i * kStep < end) raw[i] = *reinterpret_cast<const uint4*>(x + col + i * kStep);
        }
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          if (col + i * kStep < end) *reinterpret_cast<uint4*>(row + (col - begin) + i * kStep) = raw[i];
#pragma unroll
          for (int k = 0; k < kVector; ++k) {
            largest = fmaxf(largest, fabsf(static_cast<float>(reinterpret_cast<const T*>(&raw[i])[k])));
          }
        }
      }
      return largest;
    }
#pragma unroll 1
    for (int64_t col = begin + threadIdx.x % 32; col < end; col += 32) {
      const T v = col < last ? x[col] : static_cast<T>(0.0f);
      row[col - begin] = v;
      largest = fmaxf(largest, fabsf(scaled(static_cast<float>(v), col)));
    }
    return largest;
  }

  __device__ float scaled(float x, int64_t col) const {
    return kDivides && col < p_.cols ? x / p_.channel_scales[col] : x;
  }

  /// 16 bytes of a chunk's row a thread: eight places, pairs of which are neighbours.
  __device__ void store_packed(int64_t chunk, int chunks) {
    const int tokens = p_.plan.tile_tokens();
    const int piece = static_cast<int>(threadIdx.x) % 8, token = static_cast<int>(threadIdx.x) / 8 % kTokens;
    const int slot = static_cast<int>(token_ & (tokens - 1)) + token;  // a power of two
    const float inverse = shared_.inverse_scale[token];
    const int64_t chunk_halves = int64_t{p_.plan.columns} * kChunkCols;
    auto* out = static_cast<__half*>(p_.out.packed) +
                ((token_ >> (__ffs(tokens) - 1)) * p_.plan.padded_chunks() + chunk) * chunk_halves;
#pragma unroll 1
    for (int c = static_cast<int>(threadIdx.x) / (8 * kTokens); c < chunks; c += kThreads / (8 * kTokens)) {
      __half2 upper[4], lower[4];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const int at = c * kChunkCols + packed_col(8 * piece + 2 * k);
        const int64_t col = chunk * kChunkCols + at;
        const float first = scaled(static_cast<float>(shared_.rows[token][at]), col) * inverse;
        const float second = scaled(static_cast<float>(shared_.rows[token][at + 1]), col + 1) * inverse;
        upper[k] = __floats2half2_rn(first, second);
        lower[k] = __floats2half2_rn((first - __low2float(upper[k])) * (1 / kLowPartScale),
                                     (second - __high2float(upper[k])) * (1 / kLowPartScale));
      }
      __half* to = out + c * chunk_halves;
      *reinterpret_cast<uint4*>(to + packed_offset(slot, 8 * piece)) = *reinterpret_cast<const uint4*>(upper);
      if (p_.plan.parts == 2) {
        *reinterpret_cast<uint4*>(to + packed_offset(slot + tokens, 8 * piece)) =
            *reinterpret_cast<const uint4*>(lower);
      }
    }
  }

  __device__ void store_transposed(int64_t chunk, int chunks) {
#pragma unroll 1
    for (int i = static_cast<int>(threadIdx.x); i < chunks * kChunkCols; i += kThreads) {
      const int64_t col = chunk * kChunkCols + i;
      if (col >= p_.cols) return;
      float v[kTokens];
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        v[t] = scaled(static_cast<float>(shared_.rows[t][i]), col) * shared_.inverse_scale[t];
      }
      const int64_t at = col * p_.plan.padded_tokens() + token_;
      if (p_.plan.parts == 2) {
        auto* to = reinterpret_cast<float4*>(static_cast<float*>(p_.out.transposed) + at);
        to[0] = make_float4(v[0], v[1], v[2], v[3]);
        to[1] = make_float4(v[4], v[5], v[6], v[7]);
      } else {
        __half2 halves[4];
#pragma unroll
        for (int t = 0; t < 4; ++t) halves[t] = __floats2half2_rn(v[2 * t], v[2 * t + 1]);
        *reinterpret_cast<uint4*>(static_cast<__half*>(p_.out.transposed) + at) =
            *reinterpret_cast<const uint4*>(halves);
      }
    }
  }

  const Parameters& p_;
  Shared<T>& shared_;
  const int64_t token_, begin_, end_;
};

template <class T, bool kDivides>
__global__ void __launch_bounds__(kThreads, 5) pack_kernel(const __grid_constant__ Parameters p) {
#if __CUDA_ARCH__ >= 900  // clusters
  __shared__ __align__(16) Shared<T> shared;
  const auto cluster = cooperative_groups::this_cluster();
  const unsigned blocks = cluster.num_blocks(), warp = threadIdx.x / 32;
  let_successors_begin();
  if (blocks > 1) cluster.sync();  // all blocks run: they may be written to
  wait_for_predecessors();
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < p.out.counter_count; i += gridDim.x * kThreads) {
    p.out.counters[i] = 0;
  }
  Packer<T, kDivides> packer(p, shared, blocks, cluster.block_rank());
  const float own = packer.find_largest();
  if (threadIdx.x % 32 < blocks) {
    *cluster.map_shared_rank(&shared.largest[cluster.block_rank()][warp], threadIdx.x % 32) = own;
  }
  cluster.sync();
  if (threadIdx.x < kTokens) {
    float largest = 0;
    for (unsigned b = 0; b < blocks; ++b) largest = fmaxf(largest, shared.largest[b][threadIdx.x]);
    const float scale = scale_for(largest);
    shared.inverse_scale[threadIdx.x] = inverse_of_scale(scale);
    if (cluster.block_rank() == 0) p.out.scales[int64_t{blockIdx.x / blocks} * kTokens + threadIdx.x] = scale;
  }
  __syncthreads();
  packer.store();
#endif
}

struct Sizes {
  size_t packed, scales, transposed, outlier_sums;
};

Sizes sizes_of(int64_t padded_cols, int64_t columns, int64_t tokens, int64_t sums) {
  return {.packed = round_up<1024>(static_cast<size_t>(padded_cols * columns) * 2),
          .scales = round_up<1024>(static_cast<size_t>(tokens) * 4),
          .transposed = round_up<1024>(static_cast<size_t>(padded_cols * tokens) * 4),
          .outlier_sums = round_up<1024>(static_cast<size_t>(sums) * 4)};
}

}  // namespace

size_t packed_x_bytes(int64_t cols, int64_t tokens, int64_t clusters) noexcept {
  const int64_t padded_cols = (ceil_div(cols, int64_t{kChunkCols}) + 3) * kChunkCols;
  const Sizes sizes =
      sizes_of(padded_cols, most_columns(tokens, 2), most_columns(tokens, 1), clusters * most_tile_values(tokens));
  return sizes.packed + sizes.scales + sizes.transposed + sizes.outlier_sums;
}

PackedX place_packed_x(const GemmPlan& plan, bool outliers, const Workspace& workspace) noexcept {
  const Sizes sizes = sizes_of(plan.padded_chunks() * kChunkCols, plan.token_tiles * plan.columns, plan.padded_tokens(),
                               plan.clusters * plan.tile_rows() * plan.tile_tokens());
  auto* memory = static_cast<char*>(workspace.data);
  PackedX x{.packed = memory};
  x.scales = reinterpret_cast<float*>(memory += sizes.packed);
  if (!outliers) return x;
  x.transposed = memory += sizes.scales;
  x.outlier_sums = reinterpret_cast<float*>(memory + sizes.transposed);
  return x;
}

Status pack_x(const LinearArgs& args, const CodebookWeight& weight, const GemmPlan& plan, const PackedX& x,
              Stream stream) noexcept {
  const int64_t parts = ceil_div(plan.padded_chunks() * kChunkCols * element_bytes(args.x.dtype), int64_t{kRowBytes});
  const int blocks = static_cast<int>(parts < kMostBlocks ? parts : kMostBlocks);
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(blocks * (plan.padded_tokens() / kTokens))),
                          .block = dim3(kThreads),
                          .cluster = blocks};
  const Parameters parameters{.x = args.x,
                              .channel_scales = weight.channel_scales,
                              .tokens = args.tokens,
                              .cols = weight.cols,
                              .plan = plan,
                              .out = x};
  const auto launch_for = [&]<class T>(const T&) {
    return weight.channel_scales ? launch(pack_kernel<T, true>, shape, stream, parameters)
                                 : launch(pack_kernel<T, false>, shape, stream, parameters);
  };
  if (args.x.dtype == DType::f32) return launch_for(float{});
  if (args.x.dtype == DType::bf16) return launch_for(__nv_bfloat16{});
  return launch_for(__half{});
}

}  // namespace hxq::cuda
