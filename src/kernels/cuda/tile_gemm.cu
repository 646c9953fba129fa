// The codebook product for many tokens on Hopper. One or two warpgroups decode the bytes of a chunk of weights (128
// rows, 64 columns) to a tile of binary16 in shared memory and put the outliers in place; two others multiply the tile
// before with x, which the copy engine brings. One block a multiprocessor, which takes units of work in turn
// (tile_gemm_plan.h).

#include <algorithm>
#include <utility>

#include "kernels/cuda/hopper_tiles.cuh"
#include "kernels/cuda/tensor_map.h"
#include "kernels/cuda/tile_decoder.cuh"
#include "kernels/cuda/tile_gemm.cuh"

namespace hxq::cuda {
namespace {

using namespace tiles;

/// A warpgroup's half of the tiles' rows. Of each eight tokens a lane has those at lane % 4 * 2 and one further, of its
/// warp's 16 rows those at lane / 4 and 8 further.
template <int kN, bool kTwoLevels>
class Multiplier {
 public:
  using Shared = TileShared<kN, kTwoLevels>;

  __device__ Multiplier(const TileGemmParameters& p, Shared& shared)
      : p_(p), shared_(shared), thread_(static_cast<int>(threadIdx.x) - decoders_for(kN)), half_(thread_ / kGroup) {}

  __device__ void run() {
    for (Cursor at(p_.plan); !at.done(); at.next_unit()) {
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) sum_[i] = 0;
#pragma unroll 1
      for (int chunk = at.chunk; chunk < at.end; ++chunk) multiply_chunk(chunk > at.chunk);
      hopper::wait_for_products();
      leave(before_);
      finish(at);
    }
  }

 private:
  __device__ void leave(int stage) {
    if (thread_ % 32 == 0) hopper::arrive(&shared_.empty[stage]);
  }

  __device__ void multiply_chunk(bool follows) {
    hopper::wait(&shared_.full[stage_.index], stage_.parity);
    uint64_t weights[Shared::kLevels];
#pragma unroll
    for (int level = 0; level < Shared::kLevels; ++level) {
      weights[level] = hopper::operand_of(shared_.weights[stage_.index][level][half_]);
    }
    const uint64_t x = hopper::operand_of(shared_.x[stage_.index]);
    hopper::fence_products();
#pragma unroll
    for (int k = 0; k < kCols / 16; ++k) {
#pragma unroll
      for (int level = 0; level < Shared::kLevels; ++level) {
        hopper::multiply_tiles_async<kN>(sum_, weights[level] + k * hopper::kOperandStep, x + k * hopper::kOperandStep);
      }
    }
    hopper::commit_products();
    if (follows) {
      hopper::wait_for_products_but_last();
      leave(before_);
    }
    before_ = stage_.index;
    stage_.advance();
  }

  __device__ void finish(const Cursor& at) {
    if (p_.plan.splits == 1) return write(at);
    const auto part_of = [&](int64_t of) { return p_.partial_sums + of * (kN / 2) * kMultipliers + thread_; };
    float* own = part_of(at.unit);
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) own[i * kMultipliers] = sum_[i];
    __threadfence();
    group_barrier<2, kMultipliers>();
    if (thread_ == 0) shared_.arrived = atomicAdd(p_.counters + at.tile, 1u);
    group_barrier<2, kMultipliers>();
    if (shared_.arrived != static_cast<uint32_t>(p_.plan.splits) - 1) return;
    __threadfence();
#pragma unroll
    for (int i = 0; i < kN / 2; ++i) sum_[i] = 0;
    for (int split = 0; split < p_.plan.splits; ++split) {
      const float* part = part_of(at.tile * p_.plan.splits + split);
#pragma unroll
      for (int i = 0; i < kN / 2; ++i) sum_[i] += __ldcg(part + i * kMultipliers);
    }
    write(at);
  }

  /// Sum i of a thread is of its first row or of the one 8 further, and of token i / 4 * 8 + i % 2 from its first.
  __device__ static constexpr int row_step(int i) { return i % 4 / 2 * 8; }

  __device__ int64_t first_row(const Cursor& at) const { return at.row + thread_ / 32 * 16 + thread_ % 32 / 4; }
  __device__ int64_t first_token(const Cursor& at) const { return at.token + thread_ % 4 * 2; }

  /// Calls `visit(element of y, sum)` for the thread's part of a tile; `T` is the type of y.
  template <class T, class Visit>
  __device__ void visit_y(const Cursor& at, const Visit& visit) {
    const int64_t row = first_row(at), token = first_token(at);
    T* y = static_cast<T*>(p_.y.data) + token * p_.y.stride + row;
    const auto rows_left = static_cast<int>(min(p_.weight.rows - row, int64_t{kRows}));
    auto tokens_left = static_cast<int>(min(p_.tokens - token, int64_t{kN}));
#pragma unroll
    for (int i = 0; i < kN / 2; i += 4) {
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        if (k % 2 < tokens_left && row_step(k) < rows_left) visit(y[k % 2 * p_.y.stride + row_step(k)], i + k);
      }
      y += 8 * p_.y.stride;
      tokens_left -= 8;
      asm volatile("" : "+l"(y), "+r"(tokens_left));  // else all addresses are worked out ahead, and spilled
    }
  }
  template <class Visit>
  __device__ void visit_y(const Cursor& at, const Visit& visit) {
    if (p_.y.dtype == DType::f32) return visit_y<float>(at, visit);
    if (p_.y.dtype == DType::bf16) return visit_y<__nv_bfloat16>(at, visit);
    visit_y<__half>(at, visit);
  }

  /// Takes the scales of weights and x out of the sums.
  __device__ void scale_sums(const Cursor& at) {
    const float weight_scale = tile_scale_of(p_.weight);
    const float* scale = p_.scales + first_token(at);
    auto tokens_left = static_cast<int>(min(p_.tokens - first_token(at), int64_t{kN}));
#pragma unroll
    for (int i = 0; i < kN / 2; i += 4) {
#pragma unroll
      for (int k = 0; k < 4; ++k) sum_[i + k] *= k % 2 < tokens_left ? weight_scale * scale[k % 2] : 0.0f;
      scale += 8;
      tokens_left -= 8;
      asm volatile("" : "+l"(scale), "+r"(tokens_left));
    }
  }

  __device__ void add_low_rank_term(const Cursor& at) {
    const int64_t row = first_row(at), token = first_token(at);
    const int rank = p_.weight.rank;
#pragma unroll 1
    for (int n = 0; n < rank; ++n) {
      const auto u_of = [&](int64_t r) { return r < p_.weight.rows ? p_.weight.low_rank_u[r * rank + n] : 0.0f; };
      const float u[2] = {u_of(row), u_of(row + 8)};
      const float* product = p_.low_rank_product + token * rank + n;
      auto tokens_left = static_cast<int>(min(p_.tokens - token, int64_t{kN}));
#pragma unroll
      for (int i = 0; i < kN / 2; i += 4) {
#pragma unroll
        for (int k = 0; k < 4; ++k) {
          if (k % 2 < tokens_left) sum_[i + k] = fmaf(u[row_step(k) / 8], product[k % 2 * rank], sum_[i + k]);
        }
        product += 8 * rank;
        tokens_left -= 8;
        asm volatile("" : "+l"(product), "+r"(tokens_left));
      }
    }
  }

  __device__ void write(const Cursor& at) {
    scale_sums(at);
    add_low_rank_term(at);
    const int64_t row = first_row(at);
    const auto bias_of = [&](int64_t r) { return p_.bias && r < p_.weight.rows ? p_.bias[r] : 0.0f; };
    const float bias[2] = {bias_of(row), bias_of(row + 8)};
    if (p_.accumulate) {
      visit_y(at, [&]<class T>(T& y, int i) {
        y = static_cast<T>(static_cast<float>(y) + sum_[i] + bias[row_step(i) / 8]);
      });
    } else {
      visit_y(at, [&]<class T>(T& y, int i) { y = static_cast<T>(sum_[i] + bias[row_step(i) / 8]); });
    }
  }

  const TileGemmParameters& p_;
  Shared& shared_;
  const int thread_, half_;
  hopper::RingPlace<Shared::kStages> stage_;
  int before_ = 0;
  float sum_[kN / 2];
};

template <int kN, bool kTwoLevels>
__global__ void __launch_bounds__(decoders_for(kN) + kMultipliers, 1)
    tile_gemm_kernel(const __grid_constant__ CUtensorMap x, const __grid_constant__ TileGemmParameters p) {
#ifdef __CUDA_ARCH_FEAT_SM90_ALL
  constexpr int kDecoders = decoders_for(kN);
  using Shared = TileShared<kN, kTwoLevels>;
  static_assert(sizeof(Shared) <= 227 * 1024);
  auto& shared = *reinterpret_cast<Shared*>(dynamic_shared);
  if (threadIdx.x == 0) {
    for (int i = 0; i < Shared::kStages; ++i) {
      hopper::init_barrier(&shared.full[i], kDecoders / 32 + 1);
      hopper::init_barrier(&shared.empty[i], kMultipliers / 32);
    }
    hopper::fence_barriers();
  }
  const TableFill<kDecoders + kMultipliers> fill(p.weight.codebook, p.weight.k);
  const float per_scale = 1.0f / tile_scale_of(p.weight);
  fill.store([&](float level) { return __uint_as_float(two_halves(level * per_scale)); });
  __syncthreads();
  if (threadIdx.x < kDecoders) {
    Decoder<kN, kTwoLevels> decoder(p, shared, x);
    let_successors_begin();
    wait_for_predecessors();
    decoder.run();
  } else {
    wait_for_predecessors();
    Multiplier<kN, kTwoLevels>(p, shared).run();
  }
#endif
}

constexpr int kScaleThreads = 512;

/// x / channel_scales as binary16, with a power of two for each token, which is a block; counters as zeros.
__global__ void __launch_bounds__(kScaleThreads)
    scale_kernel(const __grid_constant__ Input x, int64_t cols, const float* channel_scales, __half* out, float* scales,
                 uint32_t* counters, int64_t tiles) {
  __shared__ float shared[32];
  let_successors_begin();
  wait_for_predecessors();
  const int64_t token = blockIdx.x;
  for (int64_t i = token * kScaleThreads + threadIdx.x; i < tiles; i += int64_t{gridDim.x} * kScaleThreads) {
    counters[i] = 0;
  }
  float run[16];
  const auto load = [&](int64_t col) {
    load_run(x.data, x.dtype, token * x.stride + col, 16, run);
    for (int i = 0; channel_scales && i < 16; ++i) run[i] /= channel_scales[col + i];
  };
  float largest = 0;
  for (int64_t col = threadIdx.x * 16; col < cols; col += 16 * kScaleThreads) {
    load(col);
#pragma unroll
    for (int i = 0; i < 16; ++i) largest = fmaxf(largest, fabsf(run[i]));
  }
  const float scale = scale_for(max_block(largest, shared));
  if (threadIdx.x == 0) scales[token] = scale;
  const float inverse = 1.0f / scale;
  for (int64_t col = threadIdx.x * 16; col < cols; col += 16 * kScaleThreads) {
    if (cols > 16 * kScaleThreads) load(col);  // else the run is there
    __half2 halves[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) halves[i] = __floats2half2_rn(run[2 * i] * inverse, run[2 * i + 1] * inverse);
    auto* to = reinterpret_cast<uint4*>(out + token * cols + col);
    to[0] = reinterpret_cast<const uint4*>(halves)[0];
    to[1] = reinterpret_cast<const uint4*>(halves)[1];
  }
}

template <int kN, bool kTwoLevels>
Status launch_tiles(const TileGemmParameters& p, const void* x, Stream stream) {
  CUtensorMap x_map;
  const int64_t cols = p.weight.cols;
  if (!make_tensor_map({.data = x, .rows = p.tokens, .cols = cols, .stride = cols, .box_rows = kN}, &x_map)) {
    return Status::not_supported;
  }
  return launch(tile_gemm_kernel<kN, kTwoLevels>,
                {.grid = dim3(static_cast<unsigned>(p.plan.blocks)),
                 .block = dim3(decoders_for(kN) + kMultipliers),
                 .shared_bytes = sizeof(TileShared<kN, kTwoLevels>)},
                stream, x_map, p);
}

template <bool kTwoLevels>
Status launch_levels(const TileGemmParameters& p, const void* x, Stream stream) {
  switch (p.plan.columns) {
    case 16:
      return launch_tiles<16, kTwoLevels>(p, x, stream);
    case 32:
      return launch_tiles<32, kTwoLevels>(p, x, stream);
    case 64:
      return launch_tiles<64, kTwoLevels>(p, x, stream);
    case 128:
      return launch_tiles<128, kTwoLevels>(p, x, stream);
    default:
      return launch_tiles<256, kTwoLevels>(p, x, stream);
  }
}

TileGemmPlan plan_of(const CodebookWeight& weight, int64_t tokens) {
  return plan_tile_gemm(weight.rows, weight.cols, tokens, current_device().multiprocessors);
}

size_t scaled_x_bytes(const CodebookWeight& weight, int64_t tokens) {
  return round_up<1024>(static_cast<size_t>(tokens * weight.cols) * 2);
}
size_t scales_bytes(int64_t tokens) { return round_up<1024>(static_cast<size_t>(tokens) * sizeof(float)); }
/// Enough for tiles of any width.
size_t counters_bytes(const CodebookWeight& weight, int64_t tokens) {
  const int64_t tiles = ceil_div<int64_t>(weight.rows, kRows) * ceil_div<int64_t>(tokens, 16);
  return round_up<1024>(static_cast<size_t>(tiles) * sizeof(uint32_t));
}

bool supports_tiles(const CodebookWeight& weight) {
  return weight.d == 1 && weight.index_bits == 8 && weight.k <= 256 && weight.fits_tiles && weight.rows > 0 &&
         weight.cols > 0 && weight.cols % 16 == 0 && reinterpret_cast<uintptr_t>(weight.indices) % 16 == 0 &&
         current_device().compute_capability == 90;
}

}  // namespace

bool supports_tile_gemm(const CodebookWeight& weight, const LinearArgs& args) noexcept {
  const bool keeps_all = args.x.dtype != DType::f32 && !weight.channel_scales && weight.levels_fit_half;
  return supports_tiles(weight) && args.tokens >= least_tile_tokens(weight) &&
         (args.precision == Precision::fast || keeps_all);
}

size_t tile_gemm_workspace(const CodebookWeight& weight, int64_t tokens) noexcept {
  if (!supports_tiles(weight) || tokens < least_tile_tokens(weight)) return 0;
  // Where splits share tiles, units are no more than blocks, whatever the number of tokens.
  const auto blocks = static_cast<size_t>(current_device().multiprocessors);
  const size_t sums = blocks * (TileGemmPlan::kMostColumns / 2) * kMultipliers * sizeof(float);
  return scaled_x_bytes(weight, tokens) + scales_bytes(tokens) + counters_bytes(weight, tokens) + sums;
}

Status tile_gemm(const CodebookWeight& weight, const LinearArgs& args, const float* low_rank_product,
                 Stream stream) noexcept {
  const TileGemmPlan plan = plan_of(weight, args.tokens);
  char* memory = static_cast<char*>(args.workspace.data);
  const auto take = [&](size_t bytes) { return std::exchange(memory, memory + bytes); };
  auto* x = reinterpret_cast<__half*>(take(scaled_x_bytes(weight, args.tokens)));
  auto* scales = reinterpret_cast<float*>(take(scales_bytes(args.tokens)));
  auto* counters = reinterpret_cast<uint32_t*>(take(counters_bytes(weight, args.tokens)));
  const Status status =
      launch(scale_kernel, {.grid = dim3(static_cast<unsigned>(args.tokens)), .block = dim3(kScaleThreads)}, stream,
             args.x, weight.cols, weight.channel_scales, x, scales, counters, plan.row_tiles * plan.token_tiles);
  if (status != Status::ok) return status;
  const TileGemmParameters p{.weight = weight,
                             .y = args.y,
                             .bias = args.bias,
                             .low_rank_product = low_rank_product,
                             .tokens = args.tokens,
                             .accumulate = args.accumulate,
                             .plan = plan,
                             .scales = scales,
                             .partial_sums = reinterpret_cast<float*>(memory),
                             .counters = counters};
  return args.precision == Precision::exact ? launch_levels<true>(p, x, stream) : launch_levels<false>(p, x, stream);
}

}  // namespace hxq::cuda
