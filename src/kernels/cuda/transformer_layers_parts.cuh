// What the kernel of a transformer's layers is given, and what all threads of a block know.

#pragma once

#include "kernels/cuda/codebook_lookup.cuh"
#include "kernels/cuda/hopper.cuh"
#include "kernels/cuda/numbered_words.cuh"
#include "kernels/cuda/transformer_layers_plan.h"

namespace hxq::cuda::transformer_parts {

using Plan = TransformerPlan;
using Rows = TransformerRows;
using enum Plan::Stage;

struct Matrix {
  const unsigned char* indices;
  const float* codebook;
  const uint32_t* outlier_row_begin;
  const uint32_t* outlier_col;
  const float* outlier_change;
  const float* bias;
  int k;
};

struct Layer {
  Matrix matrix[kTransformerProducts];
  const float* norm_weight[2];  ///< before attention, and before the MLP
  void* const* tiles;           ///< of the sequence's cache: its first element
  void* const* inverse_frequency;
};

static_assert(sizeof(Layer) <= Plan::kLayerBytes && sizeof(Layer) % 4 == 0);

struct Parameters {
  Plan plan;
  int64_t window;
  float scale, eps;
  Activation activation;
  const RowRange* segment;
  const int32_t* positions;
  float* h;
  int64_t h_stride;
  uint64_t* words;  ///< that blocks exchange
  uint32_t* epoch;  ///< layers that ran before
  int layers;
  Layer layer[kMostTransformerLayers];
};
static_assert(sizeof(Parameters) <= 32 * 1024 - 4);  // of a kernel

using Memory = TransformerMemory;
using Tables = LevelTables<Memory::kTablesAt>;

__device__ inline Memory& memory() { return *reinterpret_cast<Memory*>(dynamic_shared); }

/// What is added to a row's sum, before a norm and after it.
struct Added {
  float outliers, bias;
};

/// What all threads of a block know.
struct Block {
  static constexpr int kTile = KvCacheView::kTile;

  const Parameters& p;
  const Plan& plan;

  __device__ explicit Block(const Parameters& parameters) : p(parameters), plan(memory().plan) {}

  __device__ static int block() { return static_cast<int>(blockIdx.x); }
  __device__ static int thread() { return static_cast<int>(thread_of_block()); }
  __device__ static int warp() { return static_cast<int>(thread_of_block() / 32); }
  __device__ static int lane() { return static_cast<int>(thread_of_block() % 32); }
  /// Of the warps that multiply.
  __device__ static void sync() { asm volatile("bar.sync 1, %0;" ::"n"(Plan::kWorkers) : "memory"); }
  __device__ static const Rows& rows(int matrix) { return memory().rows[matrix]; }
  /// Of a stage, of all matrices.
  __device__ static int count_of(int stage) {
    const int first = Plan::first_matrix(stage);
    int count = rows(first).count;
    for (int i = 1; i < Plan::matrices(stage); ++i) count += rows(first + i).count;
    return count;
  }
  /// Of one of the block's rows, by warps.
  __device__ float* sums_of(int stage, int row) const {
    return memory().sums + (stage % 2 * plan.most_rows + row) * Plan::kSumPitch;
  }
  __device__ Added& added_to(int row) const {
    return reinterpret_cast<Added*>(memory().sums + 2 * plan.most_rows * Plan::kSumPitch)[row];
  }
  /// Of the stage, but for a norm's common factor.
  __device__ float* shared_x() const {
    return reinterpret_cast<float*>(dynamic_shared + plan.high_at + plan.high_bytes);
  }
  __device__ static const TransformerToken& token() { return memory().token; }
  /// For `token()`, by one thread when the predecessors have ended.
  __device__ TransformerToken find_token() const {
    const RowRange segment = *p.segment;
    if (segment.begin >= segment.end) return {.row = -1};
    TransformerToken token = {.row = segment.begin, .position = p.positions[segment.begin]};
    if (p.window > 0) token.first = static_cast<int>(max(token.position + 1 - p.window, int64_t{0}));
    token.tiles = token.position / kTile + 1 - token.first / kTile;
    token.splits = plan.splits(token.tiles);
    return token;
  }
  /// Of number `task` of the parts of attention that blocks take in turn.
  __device__ TransformerPart part_of(int task) const {
    const int splits = token().splits, tiles = token().tiles, first = token().first / kTile;
    const int head = task / splits, split = task % splits;
    return {head, head / (plan.heads / plan.kv_heads), split, first + tiles * split / splits,
            first + tiles * (split + 1) / splits};
  }
  __device__ static std::byte* const* tiles_of(int number) {
    return static_cast<std::byte* const*>(layer(number).tiles[0]);
  }
  /// Of the token in the hidden state.
  __device__ float* h(int col) const { return p.h + token().row * p.h_stride + col; }

  /// What warps wait for. XThere: x is in shared memory, and so are sums of its squares. AddedThere: what is added to
  /// rows is, and x has been read. LayerDone: nobody needs to know of the layer any more. LayerThere: it is known where
  /// all of the layer lies. CacheThere: so it is where its keys and values are, of layers in turn. Tables and chunks of
  /// the ring are there, or free again.
  enum Barrier {
    kXThere,
    kAddedThere,
    kLayerDone,
    kLayerThere,
    kCacheThere = kLayerThere + Plan::kLayersThere,
    kTableThere = kCacheThere + 2,
    kTableFree = kTableThere + 2,
    kChunkThere = kTableFree + 2,
    kChunkFree = kChunkThere + Plan::kMostChunks,
    kBarriers = kChunkFree + Plan::kMostChunks
  };
  static_assert(sizeof(Memory::barriers) / 8 >= kBarriers);
  __device__ static constexpr int arrivals_of(int i) {
    return i == kXThere || i == kTableFree || i == kTableFree + 1 || i >= kChunkFree ? Plan::kWarps : 1;
  }

  __device__ static uint64_t* barrier(uint32_t i) { return &memory().barriers[i]; }
  /// Until the barrier has been completed `use + 1` times.
  __device__ static void wait(uint32_t i, uint32_t use) { hopper::wait(barrier(i), use % 2); }
  /// When all of the warp come here.
  __device__ static void arrive_as_warp(uint32_t i) {
    __syncwarp();
    if (lane() == 0) hopper::arrive(barrier(i));
  }

  /// When it is known.
  __device__ static const Layer& layer(int number) {
    return *reinterpret_cast<const Layer*>(memory().layers[number % Plan::kLayersThere]);
  }
  __device__ static void wait_for_layer(int number) {
    wait(kLayerThere + number % Plan::kLayersThere, number / Plan::kLayersThere);
  }

  /// What lies at `at` of the ring, in shared memory.
  __device__ uint32_t place_of(uint32_t at) const {
    return at < plan.low_bytes ? plan.low_at + at : plan.high_at + at - plan.low_bytes;
  }
};

}  // namespace hxq::cuda::transformer_parts
