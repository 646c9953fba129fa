// The GEMV of grouped matrices, 1 to 8 tokens. A block of 16 warps owns adjacent rows. A warp takes tiles of 16 rows
// and 128 columns, whose bytes it copies to slots of its own some tiles ahead. A lane looks its levels up as BF16
// numbers, two at once of up to 4 bits, and finds them where `mma.sync` wants its left operand. Levels of more bits are
// two numbers. x is three, without loss, which are three columns of the right operand: so the products are those of
// floats. Sums over 32 columns are multiplied with their scale and added in float.

#include <algorithm>

#include "kernels/cuda/grouped_tiles.cuh"

namespace hxq::cuda {
namespace {

using namespace grouped;

/// Brings x to shared memory in parts, and leaves sums over it that rows need beside their weights.
template <int kBits>
__device__ inline void bring_x(const Parameters& p, const GroupedProduct& product, unsigned char* to) {
  const auto thread = static_cast<int>(threadIdx.x);
  const GroupedWeight& weight = product.weight;
  const int cols = static_cast<int>(weight.cols), plane = plane_bytes(cols);
  const int rank = product.low_rank_product ? 0 : weight.rank;
  float squares = 0, along[kGroupedGemvRank] = {};
#pragma unroll 1
  for (int token = 0; token < p.tokens; ++token, to += kXParts * plane) {
#pragma unroll 1
    for (int col = thread * 4; col < cols; col += kThreads * 4) {
      float x[4];
      const int64_t at = token * p.input.x.stride + col;
      if (p.x_is_aligned && p.input.x.dtype == DType::f32) {
        *reinterpret_cast<float4*>(x) =
            *reinterpret_cast<const float4*>(static_cast<const float*>(p.input.x.data) + at);
      } else {
#pragma unroll
        for (int i = 0; i < 4; ++i) x[i] = load_element(p.input.x.data, p.input.x.dtype, at + i);
      }
      if (p.input.norm_weight) {
        const float4 w = *reinterpret_cast<const float4*>(p.input.norm_weight + col);
        squares += x[0] * x[0] + x[1] * x[1] + x[2] * x[2] + x[3] * x[3];
        x[0] *= w.x, x[1] *= w.y, x[2] *= w.z, x[3] *= w.w;
      }
#pragma unroll
      for (int n = 0; n < kGroupedGemvRank; ++n) {
        if (n >= rank) break;
        const float4 v = *reinterpret_cast<const float4*>(weight.low_rank_vt + n * cols + col);
        along[n] += x[0] * v.x + x[1] * v.y + x[2] * v.z + x[3] * v.w;
      }
#pragma unroll
      for (int part = 0; part < kXParts; ++part) {
        alignas(8) __nv_bfloat162 pairs[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          pairs[i] = __floats2bfloat162_rn(x[2 * i], x[2 * i + 1]);
          const float2 taken = __bfloat1622float2(pairs[i]);
          x[2 * i] -= taken.x, x[2 * i + 1] -= taken.y;
        }
        *reinterpret_cast<uint2*>(to + part * plane + 2 * col) = *reinterpret_cast<const uint2*>(pairs);
      }
    }
  }
  auto& shared = shared_of<kBits>();
  if (p.input.norm_weight) {
    squares = sum_lanes<32>(squares);
    if (thread % 32 == 0) shared.squares[thread / 32] = squares;
  }
#pragma unroll
  for (int n = 0; n < kGroupedGemvRank; ++n) {
    if (n >= rank) break;
    const float sum = sum_lanes<32>(along[n]);
    if (thread % 32 == 0) shared.low_rank[n][thread / 32] = sum;
  }
}

__device__ inline float sum_of_warps(const float (&by_warp)[kWarps]) {
  float sum = 0;
#pragma unroll
  for (const float value : by_warp) sum += value;
  return sum;
}

/// Adds up what the warps left behind for the block's rows, and writes y. As many lanes as warps share a row.
template <int kBits>
__device__ inline void finish(const Parameters& p, const GroupedProduct& product, int64_t first_row, int rows,
                              const GroupedShare& share) {
  const auto& shared = shared_of<kBits>();
  const auto* partials = reinterpret_cast<const float*>(dynamic_shared + partials_at<kBits>());
  const int warp = static_cast<int>(threadIdx.x) % kWarps, rank = product.weight.rank;
  float factor = 1;
  if (p.input.norm_weight) {
    const float mean = __fdividef(sum_lanes<kWarps>(shared.squares[warp]), static_cast<float>(product.weight.cols));
    factor = rsqrtf(mean + p.input.eps);
  }
#pragma unroll 1
  for (int first = 0; first < rows * p.tokens; first += kThreads / kWarps) {
    const int i = first + static_cast<int>(threadIdx.x) / kWarps;
    const int token = i / rows, row = i - token * rows, tile = row / 16;
    const int64_t at = first_row + row;
    float sum = 0;
    if (i < rows * p.tokens) {
      const int begin = max(tile * share.steps, share.begin(warp));
      if (begin < min((tile + 1) * share.steps, share.begin(warp + 1))) {
        sum = partials[16 * (p.tokens * GroupedShare::place(tile, warp) + token) + row % 16];
      }
#pragma unroll 1
      for (int n = warp; n < rank; n += kWarps) {
        const float along =
            product.low_rank_product ? product.low_rank_product[token * rank + n] : sum_of_warps(shared.low_rank[n]);
        sum += product.weight.low_rank_u[at * rank + n] * along;
      }
    }
    sum = factor * sum_lanes<kWarps>(sum);
    if (i >= rows * p.tokens || warp > 0) continue;
    if (product.bias) sum += product.bias[at];
    if (product.accumulate) sum += load_at(product.y, token, at);
    store_at(product.y, token, at, sum);
  }
}

/// Only since 9.0 does a kernel begin before its predecessor ends: before, a block has a multiprocessor for itself.
constexpr int limit(int registers) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
  return 128;
#else
  return registers;
#endif
}

template <int kBits, int kMmas, int kRegisters>
__global__ void __maxnreg__(limit(kRegisters)) grouped_gemv_kernel(const __grid_constant__ Parameters p) {
  int number = 0;
  while (number + 1 < p.parts && static_cast<int>(blockIdx.x) >= p.part[number + 1].first_block) ++number;
  const GroupedProduct& product = p.part[number].product;
  const int block = static_cast<int>(blockIdx.x) - p.part[number].first_block;
  const int64_t first_row = p.part[number].share.begin(block);
  const int rows = p.part[number].share.count(block);
  const GroupedShare share(rows, static_cast<int>(product.weight.cols));
  Worker<kBits, kMmas, kRegisters> worker(p, product.weight, first_row, rows, share);
  worker.start();
  LevelTable<kBits>::fill(product.weight.levels);
  if (threadIdx.x < kScales) shared_of<kBits>().scale[threadIdx.x] = __ldg(product.weight.scale_levels + threadIdx.x);
  __syncthreads();  // the tables are there
  bool x_is_there = false;
#pragma unroll 1
  while (!x_is_there || worker.left() > 0) {
    // Successors may begin when all bytes are on their way; their own then come while this kernel ends.
    if (worker.left() <= kAhead) let_successors_begin();
    worker.next(x_is_there);
    if (x_is_there) continue;
    __syncthreads();  // nobody reads any more what lies where x comes
    wait_for_predecessors();
    bring_x<kBits>(p, product, dynamic_shared + x_at<kBits>(rows, p.tokens));
    __syncthreads();
    x_is_there = true;
  }
  __syncthreads();
  finish<kBits>(p, product, first_row, rows, share);
}

bool is_power_of_two(int64_t n) { return n > 0 && (n & (n - 1)) == 0; }

/// Gives every product its blocks. Returns the most rows of a block.
int share_rows(std::span<const GroupedProduct> products, Parameters& p, int& all_blocks) {
  int64_t rows[kMaxFusedProducts], blocks[kMaxFusedProducts];
  for (size_t i = 0; i < products.size(); ++i) rows[i] = products[i].weight.rows;
  const int64_t most = current_device().multiprocessors;
  share_blocks({rows, products.size()}, products.size() == 1 ? std::min(most, rows[0]) : most, blocks);
  int most_rows = 0;
  all_blocks = 0;
  for (size_t i = 0; i < products.size(); ++i) {
    p.part[i] = {.product = products[i], .share = {rows[i], blocks[i]}, .first_block = all_blocks};
    all_blocks += static_cast<int>(blocks[i]);
    most_rows = std::max(most_rows, p.part[i].share.count(0));
  }
  return most_rows;
}

template <int kBits>
size_t shared_bytes(int rows, int cols, int64_t tokens) {
  return x_at<kBits>(rows, static_cast<int>(tokens)) +
         static_cast<size_t>(plane_bytes(cols)) * kXParts * static_cast<size_t>(tokens);
}

/// Calls `body` with the number of bits as a constant.
template <class Body>
auto with_bits(int bits, const Body& body) {
  switch (bits) {
    case 3:
      return body.template operator()<3>();
    case 4:
      return body.template operator()<4>();
    case 5:
      return body.template operator()<5>();
    case 6:
      return body.template operator()<6>();
    case 7:
      return body.template operator()<7>();
    default:
      return body.template operator()<8>();
  }
}

template <int kBits>
Status launch_bits(Parameters& p, int rows, int blocks, Stream stream) {
  const int cols = static_cast<int>(p.part[0].product.weight.cols);
  const size_t bytes = shared_bytes<kBits>(rows, cols, p.tokens);
  // Of a multiprocessor's memory the system takes 1 KB for each block.
  const size_t half = static_cast<size_t>(current_device().shared_bytes + 1024) / 2 - 1024;
  const bool few = takes_few_registers();
  const LaunchShape shape{.grid = dim3(static_cast<unsigned>(blocks)),
                          .block = dim3(kThreads),
                          .shared_bytes = few && bytes <= half ? half + 1024 : bytes};
  if (p.tokens > kMmaTokens) {
    return launch(grouped_gemv_kernel<kBits, kGroupedGemvTokens / kMmaTokens, 128>, shape, stream, p);
  }
  return few ? launch(grouped_gemv_kernel<kBits, 1, kFewRegisters>, shape, stream, p)
             : launch(grouped_gemv_kernel<kBits, 1, kManyRegisters>, shape, stream, p);
}

/// As many as shared memory has room for.
int64_t most_tokens(std::span<const GroupedProduct> products) {
  Parameters p;
  int blocks = 0;
  const int rows = share_rows(products, p, blocks);
  const GroupedWeight& first = products[0].weight;
  const auto most = static_cast<size_t>(current_device().shared_bytes);
  int64_t tokens = kGroupedGemvTokens;
  const auto fits = [&]<int kBits>() {
    return shared_bytes<kBits>(rows, static_cast<int>(first.cols), tokens) <= most;
  };
  while (tokens > 0 && !with_bits(first.bits, fits)) tokens /= 2;
  return tokens;
}

}  // namespace

int64_t grouped_gemv_tokens(const GroupedWeight& w) noexcept {
  constexpr int64_t kMostCols = 1 << 16;
  const bool fits = w.rows > 0 && w.cols % 128 == 0 && w.cols <= kMostCols && w.group % 32 == 0 &&
                    is_power_of_two(w.group) && w.groups() % 4 == 0 && w.level_parts > 0 &&
                    (w.bits > 4 || w.level_parts == 1) && is_aligned(w.indices, 16) && is_aligned(w.scales, 4) &&
                    is_aligned(w.low_rank_vt, 16);
  if (!fits) return 0;
  const GroupedProduct product{.weight = w};
  return most_tokens({&product, 1});
}

bool supports_fused_linear(const FusedInput& input, const GroupedProduct* products, int64_t count) noexcept {
  if (count < 1 || count > kMaxFusedProducts || !is_activation(input.x.dtype) || !is_aligned(input.x.data, 16) ||
      !is_aligned(input.norm_weight, 16)) {
    return false;
  }
  const bool fit = std::all_of(products, products + count, [&](const GroupedProduct& product) {
    const GroupedWeight &weight = product.weight, &first = products[0].weight;
    return weight.rank <= kGroupedGemvRank && is_activation(product.y.dtype) && weight.cols == first.cols &&
           weight.bits == first.bits && weight.group == first.group && grouped_gemv_tokens(weight) > 0;
  });
  return fit && most_tokens({products, static_cast<size_t>(count)}) > 0;
}

Status fused_linear(const FusedInput& input, const GroupedProduct* products, int64_t count, Stream stream) noexcept {
  if (!supports_fused_linear(input, products, count)) return Status::invalid_value;
  return grouped_gemv(input, 1, {products, static_cast<size_t>(count)}, stream);
}

Status grouped_gemv(const FusedInput& input, int64_t tokens, std::span<const GroupedProduct> products,
                    Stream stream) noexcept {
  Parameters p{.input = input,
               .tokens = static_cast<int>(tokens),
               .x_is_aligned = is_aligned(input.x.data, 16) && input.x.stride % 4 == 0,
               .parts = static_cast<int>(products.size())};
  while (int64_t{32} << p.group_shift < products[0].weight.group) ++p.group_shift;
  int blocks = 0;
  const int most_rows = share_rows(products, p, blocks);
  return with_bits(products[0].weight.bits,
                   [&]<int kBits>() { return launch_bits<kBits>(p, most_rows, blocks, stream); });
}

}  // namespace hxq::cuda
