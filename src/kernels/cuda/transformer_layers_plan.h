#pragma once

#include <vector_types.h>

#include <algorithm>
#include <cstdint>
#include <iterator>

#include "kernels/cuda/host_device.h"
#include "kernels/cuda/transformer_layers.h"

/// How a token of one sequence goes through layers of a transformer on all of a GPU.
///
/// Each block has adjacent rows of every product. A layer has four stages, between which all blocks tell each other
/// what they have found out, and one more exchange around attention, of which a block has a head's part of the
/// positions.
namespace hxq::cuda {

/// Adjacent rows that a block has of a matrix.
struct TransformerRows {
  int first, count;
  int at;  ///< its first row's place among the block's rows of the stage
};

struct TransformerPlan {
  static constexpr int kWarps = 16;             ///< that multiply
  static constexpr int kWorkers = kWarps * 32;  ///< threads; others bring what they need
  static constexpr int kThreads = kWorkers + 4 * 32;
  static constexpr int kLanesOfRow = 4;           ///< that add up what the warps found
  static constexpr int kStepCols = 4 * kWorkers;  ///< of a row that all warps take at a time
  static constexpr int kMostSteps = 5;
  static constexpr int kMostSplits = 4;   ///< of positions
  static constexpr int kSumPitch = 20;    ///< of the warps' parts of a row's sum
  static constexpr int kMostChunks = 16;  ///< in the ring that weights come through
  static constexpr int kLayersThere = 4;  ///< of which is known where all lies
  static constexpr int kLayerBytes = 432;
  static constexpr int kPartKeys = 2 * KvCacheView::kTile;   ///< that attention takes at a time
  static constexpr int kKeyQuarters = kWorkers / kPartKeys;  ///< of a key's blocks of 16 elements, each some warps'

  enum Stage { kAttentionIn, kAttentionOut, kMlpIn, kMlpOut, kStages };

  /// Rows of hidden or query elements take one step of kStepCols; for how many of those inside the MLP there are
  /// kernels. Wider rows are read faster by products that are kernels of their own.
  static constexpr int kFewInnerSteps = 3, kManyInnerSteps = 5;

  int hidden, heads, kv_heads, head_dim, inner;
  int padded_dim, element_bytes;  ///< of the cache
  int inner_steps;                ///< kFewInnerSteps or kManyInnerSteps
  int blocks;                     ///< 0: there is no plan
  int most_splits;
  int most_rows;  ///< of a block in a stage

  // Words that blocks exchange, from the start of the exchange.
  int qkv_at;       ///< [queries + 2 * keys]
  int attended_at;  ///< [most_splits, queries]
  int weights_at;   ///< of splits, [most_splits, heads, 2]: the largest score, and the sum of weights relative to it
  int middle_at;    ///< [hidden]: the hidden state before the MLP; from 0 on it is that after it
  int gated_at;     ///< [inner]
  int words;

  /// Two pieces of shared memory that are a ring, through which weights come: a few rows after the other.
  uint32_t low_at, low_bytes, high_at, high_bytes;

  HXQ_HOST_DEVICE int queries() const { return heads * head_dim; }
  HXQ_HOST_DEVICE int keys() const { return kv_heads * head_dim; }
  HXQ_HOST_DEVICE int cols(int stage) const {
    return stage == kAttentionOut ? queries() : stage == kMlpOut ? inner : hidden;
  }
  /// Rows that a warp looks up at once, and that come together: so many that their levels fit in registers.
  HXQ_HOST_DEVICE static constexpr int rows_at_once(int steps) { return steps == 1 ? 8 : steps == 3 ? 3 : 2; }
  HXQ_HOST_DEVICE int rows_at_once_of(int stage) const { return rows_at_once(stage == kMlpOut ? inner_steps : 1); }

  HXQ_HOST_DEVICE int first_of(int rows, int block) const {
    return static_cast<int>(static_cast<uint32_t>(rows) * static_cast<uint32_t>(block) / static_cast<uint32_t>(blocks));
  }
  HXQ_HOST_DEVICE static int first_matrix(int stage) {
    return stage == kAttentionIn ? kQuery : stage == kAttentionOut ? kOutput : stage == kMlpIn ? kGate : kDown;
  }
  HXQ_HOST_DEVICE static int matrices(int stage) { return stage == kAttentionIn ? 3 : stage == kMlpIn ? 2 : 1; }
  HXQ_HOST_DEVICE static int stage_of(int matrix) {
    return matrix < kOutput ? kAttentionIn : matrix == kOutput ? kAttentionOut : matrix < kDown ? kMlpIn : kMlpOut;
  }
  /// There may be none.
  HXQ_HOST_DEVICE TransformerRows rows(int matrix, int block) const {
    const int stage = stage_of(matrix), i = matrix - first_matrix(stage);
    if (stage == kAttentionIn) {  // one after the other
      const int begin = i == 0 ? 0 : queries() + (i - 1) * keys(), size = i == 0 ? queries() : keys();
      const int all = queries() + 2 * keys(), low = first_of(all, block), high = first_of(all, block + 1);
      const int first = low > begin ? low : begin, end = high < begin + size ? high : begin + size;
      return {first - begin, end > first ? end - first : 0, first - low};
    }
    const int all = stage == kMlpIn ? inner : hidden, first = first_of(all, block);
    const int count = first_of(all, block + 1) - first;
    return {first, count, i * count};
  }

  /// Parts that the positions of so many tiles are cut into. Of several each has two tiles or more but for the first
  /// ones; where a block has several heads, they are whole.
  HXQ_HOST_DEVICE int splits(int tiles) const {
    const int most = (tiles + 1) / 2;
    return most < most_splits ? most : most_splits;
  }
};

/// The sequence's token, and the positions that it sees.
struct TransformerToken {
  int row;  ///< -1: there is none
  int position;
  int first;   ///< that it sees
  int tiles;   ///< of the cache, from the one that has the first on
  int splits;  ///< parts that attention cuts them into
};

inline constexpr int kMostHiddenRows = 128;  ///< of a block

/// What a block has of attention: a query head with tiles of the cache.
struct TransformerPart {
  int head, kv_head, split;
  int begin, end;
};

/// Where rows of weights come to in the ring.
struct TransformerRing {
  int chunk = 0;    ///< the next
  uint32_t at = 0;  ///< behind the last

  /// Where the next chunk begins: in one of the two pieces as a whole.
  HXQ_HOST_DEVICE uint32_t take(const TransformerPlan& plan, uint32_t bytes) {
    bytes = (bytes + 127) / 128 * 128;
    if (at < plan.low_bytes && at + bytes > plan.low_bytes) at = plan.low_bytes;
    if (at + bytes > plan.low_bytes + plan.high_bytes) at = bytes <= plan.low_bytes ? 0 : plan.low_bytes;
    const uint32_t start = at;
    at += bytes;
    ++chunk;
    return start;
  }
};

/// What lies in shared memory below the tables of levels, before the first slots of the ring.
struct TransformerMemory {
  TransformerPlan plan;  ///< not among the parameters, from which all that follows would be kept in registers
  TransformerToken token;
  TransformerPart part;  ///< the block's first
  alignas(16) uint64_t barriers[2 * TransformerPlan::kMostChunks + 16];
  TransformerRows rows[kTransformerProducts];
  float hidden[kMostHiddenRows];  ///< the hidden state, of the block's rows
  float norm;                     ///< what a norm multiplies the stage's rows with
  /// Of chunks in the ring: where they lie in shared memory, and where if the ring went on and on.
  uint32_t places[TransformerPlan::kMostChunks], starts[TransformerPlan::kMostChunks];
  alignas(16) unsigned char layers[TransformerPlan::kLayersThere][TransformerPlan::kLayerBytes];
  float2 rotation[2][kMaxHeadDim / 2];                 ///< of layers in turn
  std::byte* tiles[2][2];                              ///< likewise, the first of the part
  alignas(16) float squares[TransformerPlan::kWarps];  ///< sums of those of x
  // Of attention: the query, key and value of the token, rotated; scores, of two parts of the keys in turn; sums of
  // values, by groups of keys.
  alignas(16) float q[kMaxHeadDim], k[kMaxHeadDim], v[kMaxHeadDim];
  alignas(16) float scores[2][TransformerPlan::kKeyQuarters][TransformerPlan::kPartKeys];
  alignas(16) float values[TransformerPlan::kWarps * 64];
  float own_score;            ///< of the token's own key
  alignas(16) float sums[1];  ///< of stages in turn, [2, most_rows, kSumPitch], by warps; and then [most_rows] Added

  static constexpr uint32_t kStart = 1024, kTablesBytes = 65536, kTablesAt = kTablesBytes - kStart;
  static constexpr uint32_t kHighAt = kTablesAt + kTablesBytes;
  static constexpr uint32_t kBytes = 227 * 1024;  ///< a block has a multiprocessor for itself
};
static_assert(sizeof(TransformerMemory) < TransformerMemory::kTablesAt);
static_assert(TransformerPlan::kWarps == 4 * TransformerPlan::kLanesOfRow);
static_assert(TransformerPlan::kSumPitch >= TransformerPlan::kWarps && TransformerPlan::kSumPitch % 4 == 0);

inline TransformerPlan plan_transformer_layers(int64_t hidden, int64_t heads, const KvCacheView& cache, int64_t inner,
                                               int multiprocessors) {
  using P = TransformerPlan;
  P plan = {};
  const int64_t kv_heads = cache.heads, head_dim = cache.head_dim;
  constexpr int64_t kMostCols = int64_t{P::kStepCols} * P::kMostSteps;
  const auto is_width = [](int64_t cols) { return cols > 0 && cols % 16 == 0 && cols <= kMostCols; };
  if (heads < 1 || kv_heads < 1 || heads % kv_heads != 0 || head_dim < 4 || head_dim > kMaxHeadDim ||
      head_dim % 4 != 0 || heads > kMostCols || cache.padded_dim % 16 != 0 || cache.padded_dim < head_dim ||
      cache.padded_dim > kMaxHeadDim || (cache.dtype != DType::f32 && cache.dtype != DType::f16) || !is_width(hidden) ||
      !is_width(inner) || !is_width(heads * head_dim) || !is_width(kv_heads * head_dim) || multiprocessors < 1) {
    return plan;
  }
  plan.hidden = static_cast<int>(hidden);
  plan.heads = static_cast<int>(heads);
  plan.kv_heads = static_cast<int>(kv_heads);
  plan.head_dim = static_cast<int>(head_dim);
  plan.padded_dim = static_cast<int>(cache.padded_dim);
  plan.element_bytes = cache.dtype == DType::f32 ? 4 : 2;
  plan.inner = static_cast<int>(inner);
  const auto takes = [](int steps, int cols) { return cols <= steps * P::kStepCols; };
  if (!takes(1, std::max(plan.hidden, plan.queries())) || !takes(P::kManyInnerSteps, plan.inner)) return plan;
  plan.inner_steps = takes(P::kFewInnerSteps, plan.inner) ? P::kFewInnerSteps : P::kManyInnerSteps;
  // Each has rows of every product: so who has all that came of one knows that all have read what it was made of.
  plan.blocks = std::min({multiprocessors, plan.hidden, plan.inner, plan.queries() + 2 * plan.keys()});
  plan.most_splits = std::clamp(plan.blocks / plan.heads, 1, P::kMostSplits);

  plan.qkv_at = plan.hidden;
  plan.attended_at = plan.qkv_at + plan.queries() + 2 * plan.keys();
  plan.weights_at = plan.attended_at + plan.most_splits * plan.queries();
  plan.middle_at = plan.weights_at + 2 * plan.most_splits * plan.heads;
  plan.gated_at = plan.middle_at + plan.hidden;
  plan.words = plan.gated_at + plan.inner;

  int most_cols = 0, chunk = 0;
  for (int stage = 0; stage < P::kStages; ++stage) {
    const int cols = plan.cols(stage);
    most_cols = std::max(most_cols, cols);
    chunk = std::max(chunk, plan.rows_at_once_of(stage) * cols);
  }
  plan.most_rows = std::max({ceil_div(plan.queries() + 2 * plan.keys(), plan.blocks),
                             2 * ceil_div(plan.inner, plan.blocks), ceil_div(plan.hidden, plan.blocks)});
  const auto whole = [](size_t bytes) { return static_cast<uint32_t>((bytes + 127) / 128 * 128); };
  const uint32_t tables = TransformerMemory::kTablesAt, all = TransformerMemory::kBytes;
  plan.low_at = whole(sizeof(TransformerMemory) + sizeof(float) * (2 * P::kSumPitch + 2) * plan.most_rows);
  plan.high_at = TransformerMemory::kHighAt;
  plan.low_bytes = tables - std::min(plan.low_at, tables);
  // Behind the ring lies x, and where that is short, room for what is looked up of rows that are not there.
  const uint32_t behind = whole(std::max<size_t>(sizeof(float) * most_cols, chunk));
  plan.high_bytes = all - std::min(plan.high_at + behind, all);
  const bool fits = ceil_div(plan.hidden, plan.blocks) <= kMostHiddenRows && plan.low_bytes > 0 &&
                    plan.high_bytes >= 2 * whole(chunk) &&
                    (plan.words + 2) * sizeof(uint64_t) <= kTransformerExchangeBytes;
  if (!fits) plan.blocks = 0;
  return plan;
}

}  // namespace hxq::cuda
