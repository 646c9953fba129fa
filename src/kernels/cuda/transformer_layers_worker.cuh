// The warps that multiply: each has some columns of all rows of the block.

#pragma once

#include "kernels/cuda/activated.cuh"
#include "kernels/cuda/transformer_layers_attention.cuh"

namespace hxq::cuda::transformer_parts {

/// `kInnerSteps`: how often all threads take four columns of a row of elements inside the MLP, at most.
template <int kInnerSteps>
class Worker : Block {
 public:
  __device__ explicit Worker(const Parameters& parameters) : Block(parameters), number_(*p.epoch) {}

  __device__ void run() {
    const Rows& own = rows(kOutput);
    if (thread() < own.count) memory().hidden[thread()] = *h(own.first + thread());
#pragma unroll 1
    for (layer_ = 0; layer_ < p.layers; ++layer_) {
      ++number_;
      wait_for_layer(layer_);
#pragma unroll 1
      for (int stage = 0; stage < kMlpOut; ++stage) {
        multiply<1, false>(stage);
        finish(stage);
        if (stage == kAttentionIn) Attention(p).run(layer_, number_);
      }
      multiply<kInnerSteps, true>(kMlpOut);
      finish(kMlpOut);
    }
    if (block() == 0 && thread() == 0) *p.epoch = number_;  // all blocks have read it
  }

 private:
  /// The thread's columns: four from here on, and others of each further step.
  __device__ static int col(int step) { return step * Plan::kStepCols + thread() * 4; }
  /// The warp's.
  __device__ static int warp_col(int step) { return step * Plan::kStepCols + warp() * 128; }
  /// Uses of the barriers of a stage.
  __device__ int use(int stage) const { return layer_ * kStages + stage; }

  /// The first levels of a stage are looked up before x is there.
  template <int kCount, bool kIsInner>
  __device__ void multiply(int stage) {
    constexpr int kRows = Plan::rows_at_once(kCount), kSums = next_power(kRows), kLanesEach = 32 / kSums;
    const int cols = plan.cols(stage);
    float* sums = sums_of(stage, 0) + warp();
    float x[kCount][4] = {};
    bool has_x = false;
#pragma unroll 1
    for (int i = 0; i < Plan::matrices(stage); ++i) {
      const Rows own = rows(Plan::first_matrix(stage) + i);
      if (own.count == 0) continue;
      const uint32_t table = matrix_ % 2;
      wait(kTableThere + table, matrix_ / 2);
      const uint32_t base = kDynamicStart + Memory::kTablesAt + table * 128 + static_cast<uint32_t>(lane()) * 4;
#pragma unroll 1
      for (int first = 0; first < own.count; first += kRows) {
        const int count = own.count - first;
        const uint32_t place = chunk_ % Plan::kMostChunks;
        wait(kChunkThere + place, chunk_ / Plan::kMostChunks);
        const unsigned char* bytes = dynamic_shared + memory().places[place];
        float level[kRows][kCount][4];
        look_up(bytes, base, cols, level);
        arrive_as_warp(kChunkFree + place);
        ++chunk_;
        if (!has_x) bring_x<kIsInner>(stage, x);
        has_x = true;
        float sum[kSums] = {};
#pragma unroll
        for (int s = 0; s < kCount; ++s) {
#pragma unroll
          for (int r = 0; r < kRows; ++r) {
#pragma unroll
            for (int j = 0; j < 4; ++j) sum[r] = fmaf(level[r][s][j], x[s][j], sum[r]);
          }
        }
        const float value = sum_each<32, kSums>(sum);
        const int r = lane() / kLanesEach;
        if (lane() % kLanesEach == 0 && r < min(kRows, count)) sums[(own.at + first + r) * Plan::kSumPitch] = value;
      }
      arrive_as_warp(kTableFree + table);
      ++matrix_;
    }
  }

  /// Levels of a chunk's rows. Those of rows that are not there may be any.
  template <int kRows, int kCount>
  __device__ static void look_up(const unsigned char* bytes, uint32_t base, int cols,
                                 float (&level)[kRows][kCount][4]) {
#pragma unroll
    for (int s = 0; s < kCount; ++s) {
      if (s == 0 || warp_col(s) < cols) {
        const unsigned char* from = bytes + (col(s) < cols ? col(s) : 0);
        uint32_t word[kRows];
#pragma unroll
        for (int r = 0; r < kRows; ++r, from += cols) word[r] = *reinterpret_cast<const uint32_t*>(from);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int j = 0; j < 4; ++j) level[r][s][j] = Tables::look_up(base, word[r], j);
        }
      } else {  // x is zero; what has no value would keep a register all the time
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
#pragma unroll
          for (int j = 0; j < 4; ++j) level[r][s][j] = level[r][0][j];
        }
      }
    }
  }

  /// Adds up the block's rows and hands them on.
  __device__ void finish(int stage) const {
    constexpr int kLanes = Plan::kLanesOfRow;
    sync();
    wait(kAddedThere, use(stage));  // what follows may write x again
    const int count = count_of(stage);
#pragma unroll 1
    for (int first = 0; first < count; first += Plan::kWorkers / kLanes) {
      const int item = first + thread() / kLanes;
      const int row =
          stage == kMlpIn ? item % 2 * (count / 2) + item / 2 : item;  // a gate's, then what it lets through
      float y = 0;
      if (item < count) {
        const float4 part = *reinterpret_cast<const float4*>(sums_of(stage, row) + lane() % kLanes * 4);
        y = part.x + part.y + (part.z + part.w);
      }
      y = sum_lanes<kLanes>(y);
      if (item < count) y = fmaf(y + added_to(row).outliers, memory().norm, added_to(row).bias);
      const float next = __shfl_down_sync(kAllLanes, y, kLanes);
      if (item < count && lane() % kLanes == 0) hand_on(stage, row, y, next);
    }
  }
  /// `next`: what the next lanes have.
  __device__ void hand_on(int stage, int row, float y, float next) const {
    const int of_all = rows(Plan::first_matrix(stage)).first + row;
    int to = of_all;
    if (stage == kAttentionIn) {
      to = plan.qkv_at + plan.first_of(plan.queries() + 2 * plan.keys(), block()) + row;
    } else if (stage == kMlpIn) {
      if (row >= rows(kGate).count) return;
      y = activated(y, p.activation) * next;
      to += plan.gated_at;
    } else {
      y = memory().hidden[row] += y;
      if (stage == kAttentionOut) {
        to += plan.middle_at;
      } else if (layer_ + 1 == p.layers) {
        *h(of_all) = y;
        return;
      }
    }
    store_word(p.words + to, y, number_);
  }

  /// The thread's columns of x, but for a norm's common factor; they go to shared memory, too.
  template <bool kIsInner, int kCount>
  __device__ void bring_x(int stage, float (&x)[kCount][4]) const {
    const int cols = plan.cols(stage);
    float4 weight[kIsInner ? 1 : kCount] = {};
    const bool is_normed = !kIsInner && stage != kAttentionOut;
    if (is_normed) load_norm(layer(layer_).norm_weight[stage == kMlpIn], cols, weight);
    if constexpr (kIsInner) {
      wait_for_words(p.words + plan.gated_at, number_, cols, x);
    } else if (stage == kAttentionOut) {
      if (token().splits > 1) {
        join_attended(cols, x);
      } else {
        wait_for_words(p.words + plan.attended_at, number_, cols, x);
      }
    } else if (stage == kMlpIn) {
      wait_for_words(p.words + plan.middle_at, number_, cols, x);
    } else if (layer_ > 0) {
      wait_for_words(p.words, number_ - 1, cols, x);
    } else {
#pragma unroll
      for (int s = 0; s < kCount; ++s) {
        float4 own = make_float4(0, 0, 0, 0);
        if (col(s) < cols) own = *reinterpret_cast<const float4*>(h(col(s)));
        x[s][0] = own.x, x[s][1] = own.y, x[s][2] = own.z, x[s][3] = own.w;
      }
    }
    if constexpr (!kIsInner) {
      if (is_normed) apply_norm(weight, x);
    }
#pragma unroll
    for (int s = 0; s < kCount; ++s) {
      if (col(s) < cols) {
        *reinterpret_cast<float4*>(shared_x() + col(s)) = make_float4(x[s][0], x[s][1], x[s][2], x[s][3]);
      }
    }
    arrive_as_warp(kXThere);
  }

  template <int kCount>
  __device__ static void load_norm(const float* weights, int cols, float4 (&weight)[kCount]) {
#pragma unroll
    for (int s = 0; s < kCount; ++s) {
      weight[s] = __ldg(reinterpret_cast<const float4*>(weights + (col(s) < cols ? col(s) : 0)));
    }
  }
  template <int kCount>
  __device__ static void apply_norm(const float4 (&weight)[kCount], float (&x)[kCount][4]) {
    float squares = 0;
#pragma unroll
    for (int s = 0; s < kCount; ++s) {
#pragma unroll
      for (int j = 0; j < 4; ++j) squares = fmaf(x[s][j], x[s][j], squares);
      x[s][0] *= weight[s].x, x[s][1] *= weight[s].y, x[s][2] *= weight[s].z, x[s][3] *= weight[s].w;
    }
    squares = sum_lanes<32>(squares);
    if (lane() == 0) memory().squares[warp()] = squares;
  }

  /// Asks for the words of two steps at once until all are there.
  template <int kCount>
  __device__ static void wait_for_words(const uint64_t* words, uint32_t number, int cols, float (&x)[kCount][4]) {
#pragma unroll
    for (int first = 0; first < kCount; first += 2) {
      constexpr int kMost = kCount > 1 ? 2 : 1;
      WordPair pair[kMost][2];
      bool all_there;
      do {
        all_there = true;
#pragma unroll
        for (int s = 0; s < kMost; ++s) {
          if (first + s >= kCount) continue;
          const uint64_t* from = words + (col(first + s) < cols ? col(first + s) : 0);
          pair[s][0] = load_pair(from), pair[s][1] = load_pair(from + 2);
        }
#pragma unroll
        for (int s = 0; s < kMost; ++s) {
          if (first + s < kCount) all_there &= are_from(pair[s][0], number) && are_from(pair[s][1], number);
        }
      } while (!all_there);
#pragma unroll
      for (int s = 0; s < kMost; ++s) {
        if (first + s >= kCount) continue;
        const bool is_there = col(first + s) < cols;
        x[first + s][0] = is_there ? value_of(pair[s][0].first) : 0.0f;
        x[first + s][1] = is_there ? value_of(pair[s][0].second) : 0.0f;
        x[first + s][2] = is_there ? value_of(pair[s][1].first) : 0.0f;
        x[first + s][3] = is_there ? value_of(pair[s][1].second) : 0.0f;
      }
    }
  }

  /// What parts of the positions give, relative to each one's largest score; two parts are asked for at once.
  template <int kCount>
  __device__ void join_attended(int cols, float (&x)[kCount][4]) const {
    const int splits = token().splits;
#pragma unroll
    for (int s = 0; s < kCount; ++s) {
      const int from = col(s) < cols ? col(s) : 0;
      const uint64_t* words = p.words + plan.attended_at + from;
      const uint64_t* weights = p.words + plan.weights_at + from / plan.head_dim * 2;
      float sum[4] = {}, largest = -INFINITY, weight = 0;
#pragma unroll 1
      for (int first = 0; first < splits; first += 2) {
        WordPair part[2][3];
        bool all_there;
        do {
          all_there = true;
#pragma unroll
          for (int i = 0; i < 2; ++i) {
            const int split = min(first + i, splits - 1);
            part[i][0] = load_pair(words + split * plan.queries());
            part[i][1] = load_pair(words + split * plan.queries() + 2);
            part[i][2] = load_pair(weights + split * 2 * plan.heads);
          }
#pragma unroll
          for (int i = 0; i < 6; ++i) all_there &= are_from(part[i / 3][i % 3], number_);
        } while (!all_there);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const float own = first + i < splits ? value_of(part[i][2].first) : -INFINITY;
          const float most = fmaxf(largest, own);
          const float keep = largest == most ? 1.0f : __expf(largest - most);  // infinite ones, too
          const float factor = own == most ? 1.0f : __expf(own - most);
          largest = most;
          weight = fmaf(weight, keep, value_of(part[i][2].second) * factor);
          sum[0] = fmaf(sum[0], keep, value_of(part[i][0].first) * factor);
          sum[1] = fmaf(sum[1], keep, value_of(part[i][0].second) * factor);
          sum[2] = fmaf(sum[2], keep, value_of(part[i][1].first) * factor);
          sum[3] = fmaf(sum[3], keep, value_of(part[i][1].second) * factor);
        }
      }
#pragma unroll
      for (int j = 0; j < 4; ++j) x[s][j] = col(s) < cols ? __fdividef(sum[j], weight) : 0.0f;
    }
  }

  uint32_t number_;
  int layer_ = 0;
  uint32_t matrix_ = 0;  ///< matrices that were multiplied with: tables take turns
  uint32_t chunk_ = 0;   ///< the next
};

}  // namespace hxq::cuda::transformer_parts
