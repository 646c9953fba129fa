// The warps that bring what others multiply with, and what is added to sums.

#pragma once

#include "kernels/cuda/transformer_layers_attention.cuh"

namespace hxq::cuda::transformer_parts {

/// A block's rows of matrices, one after the other, as all of its warps come to them.
struct Cursor {
  int layer = 0, matrix = -1;

  /// False behind the last.
  __device__ bool advance(int layers) {
    do {
      if (++matrix == kTransformerProducts) matrix = 0, ++layer;
      if (layer == layers) return false;
    } while (Block::rows(matrix).count == 0);
    return true;
  }
  __device__ const Rows& rows() const { return Block::rows(matrix); }
  __device__ const Matrix& weight() const {
    Block::wait_for_layer(layer);
    return Block::layer(layer).matrix[matrix];
  }
};

/// A thread that brings bytes of weights.
class WeightBringer : Block {
 public:
  __device__ explicit WeightBringer(const Parameters& parameters) : Block(parameters) {}

  __device__ void run() const {
    uint64_t policy;  // so that what is small stays in the second-level cache
    asm("createpolicy.fractional.L2::evict_first.b64 %0, 1.0;" : "=l"(policy));
    TransformerRing ring;
    uint32_t end = 0;  // of what was written, if the ring went on and on
    int oldest = 0;    // chunk that is not known to be free
    for (Cursor at; at.advance(p.layers);) {
      const int stage = Plan::stage_of(at.matrix), cols = plan.cols(stage), most = plan.rows_at_once_of(stage);
      const unsigned char* from = at.weight().indices + int64_t{at.rows().first} * cols;
#pragma unroll 1
      for (int first = 0; first < at.rows().count; first += most) {
        const auto bytes = static_cast<uint32_t>(min(most, at.rows().count - first) * cols);
        const uint32_t all = plan.low_bytes + plan.high_bytes, before = ring.at;
        const int number = ring.chunk;
        const uint32_t start = ring.take(plan, bytes), begin = end + (start >= before ? start : start + all) - before;
        end = begin + ring.at - start;
        while (oldest < number &&
               (number - oldest == Plan::kMostChunks || end - memory().starts[oldest % Plan::kMostChunks] > all)) {
          wait(kChunkFree + oldest % Plan::kMostChunks, oldest / Plan::kMostChunks);
          ++oldest;
        }
        memory().starts[number % Plan::kMostChunks] = begin;
        memory().places[number % Plan::kMostChunks] = place_of(start);
        uint64_t* there = barrier(kChunkThere + number % Plan::kMostChunks);
        hopper::arrive_and_expect_bytes(there, bytes);
        hopper::copy_bulk(dynamic_shared + place_of(start), from + int64_t{first} * cols, bytes, there, policy);
      }
    }
  }
};

/// A warp that fills the two tables of levels in turn.
class TableBringer : Block {
 public:
  __device__ explicit TableBringer(const Parameters& parameters) : Block(parameters) {}

  __device__ void run() {
    Cursor next;
    bool has_next = next.advance(p.layers);
    if (has_next) load(next);
#pragma unroll 1
    for (int number = 0; has_next; ++number) {
      float level[kEntries];
#pragma unroll
      for (int i = 0; i < kEntries; ++i) level[i] = next_[i];
      has_next = next.advance(p.layers);
      if (has_next) load(next);
      if (number >= 2) wait(kTableFree + number % 2, number / 2 - 1);
#pragma unroll
      for (int i = 0; i < kEntries; ++i) {
        const float entry[1] = {level[i]};
        Tables::fill(number % 2, lane() + 32 * i, entry);
      }
      arrive_as_warp(kTableThere + number % 2);
    }
  }

 private:
  static constexpr int kEntries = 256 / 32;

  __device__ void load(const Cursor& at) {
    const Matrix& matrix = at.weight();
#pragma unroll
    for (int i = 0; i < kEntries; ++i) {
      const int entry = lane() + 32 * i;
      next_[i] = entry < matrix.k ? __ldg(matrix.codebook + entry) : 0.0f;
    }
  }

  float next_[kEntries];
};

/// A warp that finds out where all of a layer lies and brings what is small nearer, a layer before it is asked for:
/// reads wait for long behind the weights that are on their way.
class Scout : Block {
 public:
  __device__ explicit Scout(const Parameters& parameters) : Block(parameters) {}

  __device__ void run() const {
#pragma unroll 1
    for (int i = 0; i < Plan::kLayersThere; ++i) bring_layer(i);
    prepare(0);
#pragma unroll 1
    for (int number = 0; number < p.layers; ++number) {
      if (number > 0) {
        wait(kLayerDone, number - 1);
        bring_layer(number - 1 + Plan::kLayersThere);
      }
      prepare(number + 1);
    }
  }

 private:
  static constexpr int kMostTiles = 8;

  __device__ void bring_layer(int number) const {
    if (number >= p.layers) return;
    const int place = number % Plan::kLayersThere;
    const auto* from = reinterpret_cast<const uint32_t*>(&p.layer[number]);
    auto* to = reinterpret_cast<uint32_t*>(memory().layers[place]);
#pragma unroll 1
    for (int i = lane(); i < static_cast<int>(sizeof(Layer) / 4); i += 32) to[i] = from[i];
    arrive_as_warp(kLayerThere + place);
  }

  __device__ void prepare(int number) const {
    if (number >= p.layers) return;
    wait_for_layer(number);
    find_cache(number);
    arrive_as_warp(kCacheThere + number % 2);
    prefetch_cache(number);
    prefetch_vectors(number);
#pragma unroll 1
    for (int matrix = 0; matrix < kTransformerProducts; ++matrix) prefetch_rows(number, matrix);
  }

  __device__ static void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }
  template <class T>
  __device__ static void prefetch(const T* from, int64_t count) {
    const auto begin = reinterpret_cast<uintptr_t>(from) / 128 * 128, end = reinterpret_cast<uintptr_t>(from + count);
#pragma unroll 1
    for (uintptr_t at = begin + lane() * 128; at < end; at += 32 * 128) prefetch(reinterpret_cast<const void*>(at));
  }

  __device__ void find_cache(int number) const {
    const auto frequency = layer(number).inverse_frequency;
    const float* frequencies = frequency ? static_cast<const float*>(frequency[0]) : nullptr;
#pragma unroll 1
    for (int i = lane(); i < plan.head_dim / 2; i += 32) {
      memory().rotation[number % 2][i] =
          frequencies ? rotation_of(token().position, frequencies[i]) : make_float2(1, 0);
    }
    const TransformerPart& part = memory().part;
    if (lane() < 2 && part.begin + lane() < part.end) {
      memory().tiles[number % 2][lane()] = tiles_of(number)[part.begin + lane()];
    }
  }
  /// Of the block's first part, as much as the second-level cache has room for beside what others bring.
  __device__ void prefetch_cache(int number) const {
    if (block() >= plan.heads * token().splits) return;
    const TransformerPart& part = memory().part;
    const int64_t bytes = int64_t{kTile} * plan.padded_dim * plan.element_bytes;
#pragma unroll 1
    for (int tile = part.begin; tile < min(part.end, part.begin + kMostTiles); ++tile) {
      const std::byte* keys = tiles_of(number)[tile] + part.kv_head * bytes;
      prefetch(keys, bytes);
      prefetch(keys + plan.kv_heads * bytes, bytes);
    }
  }
  /// What all blocks read: each brings some of it.
  __device__ void prefetch_vectors(int number) const {
    const Layer& own = layer(number);
    const int first = plan.first_of(plan.hidden, block()), count = plan.first_of(plan.hidden, block() + 1) - first;
    for (const float* weight : own.norm_weight) prefetch(weight + first, count);
    if (block() < kTransformerProducts) prefetch(own.matrix[block()].codebook, own.matrix[block()].k);
  }
  __device__ static void prefetch_rows(int number, int product) {
    const Rows& own = rows(product);
    if (own.count == 0) return;
    const Matrix& matrix = layer(number).matrix[product];
    if (matrix.bias) prefetch(matrix.bias + own.first, own.count);
    if (matrix.outlier_row_begin == nullptr) return;
    prefetch(matrix.outlier_row_begin + own.first, own.count + 1);
    const uint32_t begin = __ldg(matrix.outlier_row_begin + own.first);
    const uint32_t end = __ldg(matrix.outlier_row_begin + own.first + own.count);
    prefetch(matrix.outlier_col + begin, end - begin);
    prefetch(matrix.outlier_change + begin, end - begin);
  }
};

/// A warp that finds out what is added to sums of rows: outliers and biases. Some lanes share a row.
class Adder : Block {
 public:
  __device__ explicit Adder(const Parameters& parameters) : Block(parameters) {}

  __device__ void run() const {
#pragma unroll 1
    for (int number = 0; number < p.layers; ++number) {
      wait_for_layer(number);
#pragma unroll 1
      for (int stage = 0; stage < kStages; ++stage) add(number, stage);
    }
  }

 private:
  static constexpr int kTogether = 8;  ///< outliers that a lane asks for at once

  struct Range {
    uint32_t begin, end;
  };

  __device__ void add(int number, int stage) const {
    const int count = count_of(stage), lanes = count <= 8 ? 4 : count <= 16 ? 2 : 1;
#pragma unroll 1
    for (int first = 0; first < count; first += 32 / lanes) {
      const int row = first + lane() / lanes;
      int product = Plan::first_matrix(stage);
      const int last = product + Plan::matrices(stage) - 1;
      while (product < last && row >= rows(product + 1).at) ++product;
      const int in_matrix = rows(product).first + row - rows(product).at;
      const Matrix& matrix = layer(number).matrix[product];
      const float bias = row < count && matrix.bias ? __ldg(matrix.bias + in_matrix) : 0.0f;
      Range range = {0, 0};
      if (row < count && matrix.outlier_row_begin) {
        range = {__ldg(matrix.outlier_row_begin + in_matrix), __ldg(matrix.outlier_row_begin + in_matrix + 1)};
        range.begin += static_cast<uint32_t>(lane() % lanes);
      }
      uint32_t col[kTogether];
      float change[kTogether];
      load_outliers(matrix, range, lanes, col, change);
      if (first == 0) begin(number, stage);
      float sum = multiply_outliers(col, change);
#pragma unroll 1
      while (range.begin < range.end) {
        load_outliers(matrix, range, lanes, col, change);
        sum += multiply_outliers(col, change);
      }
      __syncwarp();
      sum = sum_lanes(sum, lanes);
      if (lane() % lanes == 0 && row < count) added_to(row) = {sum, bias};
    }
    arrive_as_warp(kAddedThere);
  }

  /// Waits for x, which workers write when they have done with the stage before.
  __device__ void begin(int number, int stage) const {
    wait(kXThere, number * kStages + stage);
    if (stage == kAttentionIn) {
      wait(kCacheThere + number % 2, number / 2);  // the scout waits already: it would miss a second layer
      if (number > 0 && lane() == 0) hopper::arrive(barrier(kLayerDone));
    }
    float norm = 1;
    if (stage == kAttentionIn || stage == kMlpIn) {
      const float squares = sum_lanes<32>(lane() < Plan::kWarps ? memory().squares[lane()] : 0.0f);
      norm = rsqrtf(squares / static_cast<float>(plan.hidden) + p.eps);
    }
    if (lane() == 0) memory().norm = norm;
  }

  /// Every so many lanes' outlier of the range, which becomes shorter.
  __device__ static void load_outliers(const Matrix& matrix, Range& range, int lanes, uint32_t (&col)[kTogether],
                                       float (&change)[kTogether]) {
#pragma unroll
    for (int i = 0; i < kTogether; ++i, range.begin += static_cast<uint32_t>(lanes)) {
      col[i] = 0, change[i] = 0;
      if (range.begin >= range.end) continue;
      col[i] = __ldg(matrix.outlier_col + range.begin);
      change[i] = __ldg(matrix.outlier_change + range.begin);
    }
  }
  __device__ float multiply_outliers(const uint32_t (&col)[kTogether], const float (&change)[kTogether]) const {
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      if (change[i] != 0) sum = fmaf(change[i], shared_x()[col[i]], sum);
    }
    return sum;
  }
};

}  // namespace hxq::cuda::transformer_parts
