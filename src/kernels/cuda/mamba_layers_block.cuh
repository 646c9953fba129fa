// What a block of the kernel of Mamba's layers has of a layer, and how it comes.

#pragma once

#include "kernels/cuda/mamba_layers_memory.cuh"

namespace hxq::cuda::mamba_layers_parts {

/// Which sequences, channels and rows a block and a thread have, and what is brought of a layer beside weights.
class Block {
 protected:
  using Plan = MambaLayersPlan;

  __device__ explicit Block(const Parameters& p)
      : p_(p),
        block_(static_cast<int>(hopper::block_in_cluster())),
        first_sequence_(static_cast<int>(blockIdx.x) / Plan::kBlocks * p.plan.tokens),
        tokens_(min(p.plan.tokens, p.sequences - first_sequence_)),
        first_channel_(min(block_ * p.plan.channels, p.plan.inner)),
        own_(min(p.plan.channels, p.plan.inner - first_channel_)),
        channel_(warp() / p.plan.chunk_warps * 32 + lane()),
        first_token_(channel_ < own_ ? warp() % p.plan.chunk_warps : Plan::kMostTokens) {}

  __device__ const SharedLayer& layer() const { return layer_at(layer_); }
  __device__ SharedLayer& layer_at(int number) const { return shared_layer(p_.plan, number); }
  __device__ float* past_state_of(int number, int token) const {
    return static_cast<float*>(layer_at(number).state_of[0][token]) + first_channel_;
  }
  __device__ float* state_of(int number, int token) const {
    return static_cast<float*>(layer_at(number).state_of[1][token]) + first_channel_;
  }
  __device__ int& row_of(int token) const {
    return reinterpret_cast<int*>(dynamic_shared + p_.plan.barriers_at + 8 * Plan::kExchanges)[token];
  }
  __device__ bool is_there(int token) const { return token < tokens_ && row_of(token) >= 0; }

  /// Of the sequences' tokens.
  __device__ void find_rows() const {
    if (threadIdx.x < Plan::kMostTokens) {
      int row = -1;
      if (static_cast<int>(threadIdx.x) < tokens_) {
        const RowRange segment = p_.segments[first_sequence_ + threadIdx.x];
        row = segment.begin < segment.end ? segment.begin : -1;
      }
      row_of(static_cast<int>(threadIdx.x)) = row;
    }
  }

  /// Puts what is known of a layer into shared memory; one warp, of number 0, does.
  __device__ void bring_layer(int number, int warp) const {
    if (warp != 0 || number >= p_.layers) return;
    auto* to = reinterpret_cast<uint32_t*>(static_cast<Layer*>(&layer_at(number)));
    const auto* from = reinterpret_cast<const uint32_t*>(&p_.layer[number]);
#pragma unroll 1
    for (int i = lane(); i < static_cast<int>(sizeof(Layer) / 4); i += 32) to[i] = from[i];
    const int token = lane() % Plan::kMostTokens, kind = lane() / Plan::kMostTokens;
    void* const* states = kind == 0 ? p_.layer[number].conv_states : p_.layer[number].states;
    if (token < tokens_) layer_at(number).state_of[kind][token] = states[first_sequence_ + token];
    const int rows = lane();
    if (rows >= Plan::kRowRanges) return;
    const uint32_t* begins = p_.layer[number].matrix[Plan::phase_of(rows)].outlier_row_begin;
    uint32_t first = 0, end = 0;
    if (const int count = p_.plan.count_of(rows, block_); begins && count > 0) {
      begins += p_.plan.first_of(rows, block_);
      first = __ldg(begins), end = __ldg(begins + count);
    }
    layer_at(number).first_outlier[rows] = first;
    layer_at(number).outlier_end[rows] = end;
  }

  /// Brings what is stored of a layer to the second-level cache: each block a share of the bytes of weights, and one of
  /// the cluster the rest.
  __device__ void ask_for_layer(int number) const {
    if (number >= p_.layers || warp() != Plan::kWarps - 1) return;
    const Plan& plan = p_.plan;
    const Layer& next = layer_at(number);
    const int phase = lane() % Plan::kPhases, item = lane() / Plan::kPhases;
    const Matrix& matrix = next.matrix[phase];
    const int64_t rows = plan.rows_of(phase), cols = plan.cols_of(phase);
    if (item == 0) {
      const int64_t share = ceil_div<int64_t>(rows * cols, int64_t{16} * gridDim.x) * 16, begin = share * blockIdx.x;
      prefetch_array(matrix.indices + begin, min(share, rows * cols - begin));
    }
    if (block_ != Plan::kBlocks - 1) return;
    if (item == 1) prefetch_array(matrix.codebook, matrix.k * 4);
    if (item == 2 && matrix.outlier_row_begin) {
      prefetch_array(matrix.outlier_row_begin, 4 * (rows + 1));
      const int64_t count = __ldg(matrix.outlier_row_begin + rows);
      prefetch_array(matrix.outlier_col, 4 * count);
      prefetch_array(matrix.outlier_change, 4 * count);
    }
    const int64_t inner = 4 * plan.inner, hidden = 4 * plan.hidden;
    if (item == 3 && phase < 2) prefetch_array(phase == 0 ? next.norm_weight : next.out_bias, hidden);
    if (item == 3 && phase == 2) prefetch_array(next.in_bias, 2 * inner);
    if (item == 4) prefetch_array(phase == 0 ? next.conv_bias : phase == 1 ? next.d : next.dt_bias, inner);
    if (item == 5 && phase == 0) prefetch_array(next.conv_weight, inner * Plan::kTaps);
    if (item == 5 && phase == 1) prefetch_array(next.a, inner * Plan::kStates);
  }

  /// Brings the states of a layer's sequences to the second-level cache.
  __device__ void ask_for_states(int number) const {
    if (number >= p_.layers || channel_ - lane() >= own_) return;
#pragma unroll 1
    for (int token = warp() % p_.plan.chunk_warps; token < tokens_; token += p_.plan.chunk_warps) {
      if (!is_there(token)) continue;
      const int row = lane() - Plan::kStates;
      const bool is_state = row < 0;
      if (is_state ? lane() >= Plan::kStates : row >= Plan::kTaps - 1) continue;
      const float* states = is_state ? state_of(number, token) : past_state_of(number, token);
      prefetch(states + (is_state ? lane() : row) * p_.plan.inner + channel_ - lane());
    }
  }

  /// Asks for the block's vectors, and the weights of the norm.
  __device__ void ask_for_vectors(int number) const {
    if (number >= p_.layers) return;
    const Layer& next = layer_at(number);
    const int inner = p_.plan.inner;
#pragma unroll 1
    for (int i = warp(); i < Plan::kVectors; i += Plan::kWarps) {
      const float* from = i < Plan::kConvBias    ? next.conv_weight + i * inner
                          : i == Plan::kConvBias ? next.conv_bias
                          : i == Plan::kXBias    ? next.in_bias
                          : i == Plan::kZBias    ? (next.in_bias ? next.in_bias + inner : nullptr)
                          : i == Plan::kSkip     ? next.d
                          : i == Plan::kDtBias   ? next.dt_bias
                                                 : next.a + (i - Plan::kRates) * inner;
      if (from && lane() * 4 < own_) {
        copy_async<16>(floats(p_.plan.vectors_at) + i * p_.plan.channels + lane() * 4,
                       from + first_channel_ + lane() * 4);
      }
    }
    const int col = static_cast<int>(threadIdx.x) * 4;
    if (col < p_.plan.hidden) copy_async<16>(floats(p_.plan.norm_at) + col, next.norm_weight + col);
    end_copy_group();
  }

  /// Asks for what the convolution remembers of the thread's channel, of which a thread reads its own copies alone, and
  /// for outliers, which are there after the product of in_proj.
  __device__ void ask_for_past_and_outliers() const {
    const Plan& plan = p_.plan;
#pragma unroll 1
    for (int token = first_token_; token < tokens_; token += plan.chunk_warps) {
      if (!is_there(token)) continue;
      const float* from = past_state_of(layer_, token) + channel_;
#pragma unroll
      for (int j = 0; j + 1 < Plan::kTaps; ++j) {
        copy_async<4>(past_of(token) + j * plan.channels, from + j * plan.inner);
      }
    }
#pragma unroll 1
    for (int rows = warp(); rows < 3 * Plan::kRowRanges; rows += Plan::kWarps) ask_for_outliers(rows / 3, rows % 3);
    end_copy_group();
  }
  /// A warp brings begins (0), columns (1) or changes (2).
  __device__ void ask_for_outliers(int rows, int what) const {
    const SharedLayer& own = layer();
    const Matrix& matrix = own.matrix[Plan::phase_of(rows)];
    if (own.outlier_end[rows] == own.first_outlier[rows]) return;
    const uint32_t first = own.first_outlier[rows];
    const int listed = min(static_cast<int>(own.outlier_end[rows] - first), Plan::kListed);
    const int count = what == 0 ? p_.plan.count_of(rows, block_) + 1 : listed;
    float* to = floats(p_.plan.lists_at) + (rows * 2 + what - 1) * Plan::kListed;
    const void* from = matrix.outlier_col + first;
    if (what == 0) {
      to = floats(p_.plan.begins_at) + p_.plan.begins_before(rows);
      from = matrix.outlier_row_begin + p_.plan.first_of(rows, block_);
    } else if (what == 2) {
      from = matrix.outlier_change + first;
    }
#pragma unroll 1
    for (int i = lane(); i < count; i += 32) copy_async<4>(to + i, static_cast<const float*>(from) + i);
  }

  /// Where the outliers of those rows begin, in the matrix.
  __device__ const uint32_t* begins_of(Plan::Rows rows) const {
    return reinterpret_cast<const uint32_t*>(floats(p_.plan.begins_at)) + p_.plan.begins_before(rows);
  }
  /// Calls `body(col, change)` for outlier `i` of those of the rows.
  template <class Body>
  __device__ void with_outlier(Plan::Rows rows, int i, const Body& body) const {
    const float* list = floats(p_.plan.lists_at) + rows * 2 * Plan::kListed;
    if (i < Plan::kListed) {
      body(static_cast<int>(__float_as_uint(list[i])), list[Plan::kListed + i]);
    } else {
      const Matrix& matrix = layer().matrix[Plan::phase_of(rows)];
      const uint32_t at = layer().first_outlier[rows] + static_cast<uint32_t>(i);
      body(static_cast<int>(__ldg(matrix.outlier_col + at)), __ldg(matrix.outlier_change + at));
    }
  }
  /// The same for each `step`-th of the outliers of one of the rows, from its `from`-th on.
  template <class Body>
  __device__ void each_outlier(Plan::Rows rows, int row, int from, int step, const Body& body) const {
    const uint32_t first = layer().first_outlier[rows];
    if (layer().outlier_end[rows] == first) return;
    const uint32_t* begins = begins_of(rows) + row;
    const auto end = static_cast<int>(begins[1] - first);
#pragma unroll 1
    for (int i = static_cast<int>(begins[0] - first) + from; i < end; i += step) with_outlier(rows, i, body);
  }
  __device__ float vector(int number) const { return floats(p_.plan.vectors_at)[number * p_.plan.channels + channel_]; }

  __device__ float* past_of(int token) const {
    return floats(p_.plan.past_at) + token * (Plan::kTaps - 1) * p_.plan.channels + channel_;
  }

  /// u, and `channels` behind it z, of the thread's channel.
  __device__ float* kept_at(int token) const { return floats(p_.plan.sums_at) + token * p_.plan.in_pitch() + channel_; }

  __device__ float* hidden_of(int token) const { return p_.h + int64_t{row_of(token)} * p_.h_stride; }

  const Parameters& p_;
  const int block_, first_sequence_, tokens_;
  const int first_channel_, own_;    ///< channels of the block
  const int channel_, first_token_;  ///< of the thread
  int layer_ = 0;
};

}  // namespace hxq::cuda::mamba_layers_parts
