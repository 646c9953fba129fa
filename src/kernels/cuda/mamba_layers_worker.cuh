// What the kernel of Mamba's layers does of a layer.

#pragma once

#include "kernels/cuda/mamba_layers_block.cuh"
#include "kernels/cuda/mamba_layers_products.cuh"

namespace hxq::cuda::mamba_layers_parts {

/// What a thread does of a block's work.
template <int kTokenTiles, bool kTwoParts>
class Worker : Block {
  using Operand = mamba_layers_parts::Operand<kTokenTiles, kTwoParts>;
  static constexpr int kParts = kTwoParts ? 2 : 1;

 public:
  __device__ explicit Worker(const Parameters& p)
      : Block(p), exchanges_(p.plan), fetcher_(p, first_channel_, own_), products_(p) {}

  /// Before the predecessors have ended.
  __device__ void prepare() {
    bring_layer(0, warp());
    bring_layer(1, warp() - 1);
    bring_layer(2, warp() - 2);
    clear();
    if (threadIdx.x == 0) exchanges_.init();
    find_rows();
    __syncthreads();  // layers are there, and what is copied next was cleared
    fetcher_.start();
    next_level_ = level_of(0, Plan::kIn);
    fill_table();
    ask_for_states(0);
    ask_for_vectors(0);
    wait_for_copies<0>();
    hopper::cluster_barrier();  // all blocks run, and what is written here is there
  }

  __device__ void run() {
    load_hidden();
    __syncthreads();
#pragma unroll 1
    for (layer_ = 0; layer_ < p_.layers; ++layer_) {
      ask_for_past_and_outliers();
      ask_for_layer(layer_ + 1);
      ask_for_states(layer_ + 1);
      if (layer_ > 0) exchanges_.wait(Plan::kHidden, layer_ - 1);
      if (threadIdx.x == 0) exchanges_.expect(p_.plan, block_, tokens_);
      normalize();
      __syncthreads();
      multiply<Plan::kIn>();
      wait_for_copies<0>();
      __syncthreads();  // the sums are there
      fill_table();
      convolve();
      __syncthreads();  // u is there
      multiply<Plan::kX>();
      float ahead[Plan::kStates];
      ask_for_state(first_token_, ahead);
      __syncthreads();
      fill_table();
      exchanges_.wait(Plan::kXParts, layer_);
      share_dbc();
      exchanges_.wait(Plan::kDbc, layer_);
      multiply<Plan::kDt>();
      __syncthreads();  // the sums are there
      fill_table();
      scan(ahead);
      __syncthreads();  // y is there
      ask_for_vectors(layer_ + 1);
      bring_layer(layer_ + 3, Plan::kWarps - 1 - warp());
      multiply<Plan::kOut>();
      wait_for_copies<0>();
      __syncthreads();
      fill_table();
      exchanges_.wait(Plan::kOutParts, layer_);
      add_up_hidden();
    }
    hopper::cluster_barrier();  // nobody reads any more what this block has
  }

 private:
  template <int kPhase>
  __device__ void multiply() {
    next_level_ = level_of(kPhase == Plan::kOut ? layer_ + 1 : layer_, (kPhase + 1) % Plan::kPhases);
    products_.template multiply<kPhase>(fetcher_, [&](int tile, const auto& sum) { leave<kPhase>(tile, sum); });
  }

  /// The thread's half entry of the table of a product.
  __device__ float level_of(int layer, int phase) const {
    if (layer >= p_.layers) return 0;
    const Matrix& matrix = layer_at(layer).matrix[phase];
    const int entry = static_cast<int>(threadIdx.x) / 2;
    return entry < matrix.k ? __ldg(matrix.codebook + entry) : 0.0f;
  }

  /// Nobody looks up any more, or not yet.
  __device__ void fill_table() const {
    const int entry = static_cast<int>(threadIdx.x) / 2;
    const uint32_t word = to_tf32(next_level_);
#pragma unroll
    for (int i = 0; i < 4; ++i) {  // adjacent entries begin with another copy each: they lie in the same banks
      const int copy = static_cast<int>(threadIdx.x) % 2 * 4 + (i + entry) % 4;
      *reinterpret_cast<uint4*>(dynamic_shared + Plan::kTableAt + entry * 256 + copy * 16) =
          make_uint4(word, word, word, word);
    }
  }

  /// Columns and vectors that there are not stay zero.
  __device__ void clear() const {
    const Plan& plan = p_.plan;
    const auto clear = [&](uint32_t at, int bytes) {
      auto* to = reinterpret_cast<uint4*>(dynamic_shared + at);
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x); i < bytes / 16; i += Plan::kThreads) to[i] = make_uint4(0, 0, 0, 0);
    };
    clear(plan.u_at, plan.tiling[Plan::kX].units * kTokenTiles * kParts * 2048);
    clear(plan.dt_at, plan.tiling[Plan::kDt].units * kTokenTiles * kParts * 2048);
    clear(plan.vectors_at, Plan::kVectors * plan.channels * 4);
    clear(plan.bc_at, plan.tokens * 2 * Plan::kStates * 4);
  }

  /// All of the hidden state, and the block's own rows.
  __device__ void load_hidden() const {
    const Operand x(p_.plan.x_at);
#pragma unroll 1
    for (int token = warp(); token < tokens_; token += Plan::kWarps) {
      if (!is_there(token)) continue;
      const float* from = hidden_of(token);
#pragma unroll 2
      for (int col = lane() * 4; col < p_.plan.hidden; col += 128) {
        *x.raw4(token, col) = make_float4(from[col], from[col + 1], from[col + 2], from[col + 3]);
      }
    }
    const int even = p_.plan.even_tokens(), count = p_.plan.own_hidden_of(block_) * even;
#pragma unroll 1
    for (int at = static_cast<int>(threadIdx.x); at < count; at += Plan::kThreads) {
      const int row = p_.plan.even_row(at), token = at - row * even;
      floats(p_.plan.h_at)[at] = is_there(token) ? hidden_of(token)[block_ * p_.plan.own_hidden + row] : 0.0f;
    }
  }

  /// Each warp has a token: the norm of its hidden state, which lies there, becomes x of in_proj.
  __device__ void normalize() const {
    const int token = warp();
    if (!is_there(token)) return;
    const Plan& plan = p_.plan;
    const Operand x(plan.x_at);
    constexpr int kSteps = Plan::kMostHidden / 128;
    const int units = plan.tiling[Plan::kIn].units;
    const int in_unit =
        lane() % 4 * 16 + lane() / 4 % 4 * 4;  // lanes of a quarter of a warp read few times the same banks
    float4 v[kSteps];
    float sum = 0;
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int unit = 2 * i + lane() / 16, col = unit * Plan::kUnitCols + in_unit;
      v[i] = col < plan.hidden ? *x.raw4(token, col) : make_float4(0, 0, 0, 0);
      sum = fmaf(v[i].x, v[i].x, fmaf(v[i].y, v[i].y, fmaf(v[i].z, v[i].z, fmaf(v[i].w, v[i].w, sum))));
    }
    const float scale = rsqrtf(sum_lanes<32>(sum) / static_cast<float>(plan.hidden) + p_.eps);
#pragma unroll
    for (int i = 0; i < kSteps; ++i) {
      const int unit = 2 * i + lane() / 16, col = unit * Plan::kUnitCols + in_unit;
      if (unit >= units) continue;
      float4 weight = make_float4(0, 0, 0, 0);  // of columns that there are not
      if (col < plan.hidden) weight = *reinterpret_cast<const float4*>(floats(plan.norm_at) + col);
      x.put4(token, col,
             make_float4(v[i].x * scale * weight.x, v[i].y * scale * weight.y, v[i].z * scale * weight.z,
                         v[i].w * scale * weight.w));
    }
  }

  /// Puts the sums of a tile of a product where they are needed next.
  template <int kPhase>
  __device__ void leave(int tile, const float (&sum)[kTokenTiles][4]) const {
    const Plan& plan = p_.plan;
    const int row = tile * Plan::kTileRows + lane() / 4, token = lane() % 4 * 2;
    const int group = plan.tiling[kPhase].first_unit_of(warp());
    if constexpr (kPhase == Plan::kIn || kPhase == Plan::kDt) {
      const int pitch = kPhase == Plan::kIn ? plan.in_pitch() : plan.delta_pitch();
      float* to =
          floats(kPhase == Plan::kIn ? plan.sums_at : plan.delta_at) + (group * plan.tokens + token) * pitch + row;
#pragma unroll
      for (int n = 0; n < kTokenTiles; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
          const int further = n * Plan::kTileTokens + i;
          if (token + further >= tokens_) continue;
          to[further * pitch] = sum[n][i];
          to[further * pitch + 8] = sum[n][2 + i];
        }
      }
    } else {
      constexpr bool kIsX = kPhase == Plan::kX;
      const int own = kIsX ? plan.own_rows : plan.own_hidden, even = plan.even_tokens();
      const int from = kIsX ? block_ * plan.tiling[kPhase].col_groups() + group : block_;
      const float* first = floats(kIsX ? plan.parts_at : plan.out_at) + from * even * own + token;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        int in_owner = row + half * 8;
        if (in_owner >= plan.rows_of(kPhase)) continue;
        const int owner = kIsX ? plan.row_owner(in_owner) : plan.hidden_owner(in_owner);
        in_owner -= owner * own;
        const uint32_t there = hopper::address_in_block(first + in_owner * even, static_cast<uint32_t>(owner));
        const uint32_t barrier = exchanges_.barrier_of(owner, kIsX ? Plan::kXParts : Plan::kOutParts);
#pragma unroll
        for (int n = 0; n < kTokenTiles; ++n) {
          if (token + n * Plan::kTileTokens >= even) continue;
          hopper::store_there(there + n * Plan::kTileTokens * 4, make_float2(sum[n][half * 2], sum[n][half * 2 + 1]),
                              barrier);
        }
      }
    }
  }

  /// What a row's outliers make of x that the block has.
  __device__ float own_outliers(Plan::Rows rows, int row, const Operand& x, int token) const {
    float sum = 0;
    each_outlier(rows, row, 0, 1, [&](int col, float change) { sum = fmaf(change, x.get(token, col), sum); });
    return sum;
  }
  /// An element of x of x_proj or out_proj, whose columns are channels of all blocks. It is where it was until this
  /// block has told all others of its sums.
  __device__ float x_of_others(int token, int col) const {
    const int owner = p_.plan.channel_owner(col);
    return Operand(p_.plan.u_at).get_there(owner, token, col - owner * p_.plan.channels);
  }
  /// What outliers add to a pair of tokens of a row of out_proj; all threads call it. Elements of other blocks are
  /// slow, so all are asked for at once.
  __device__ float2 out_outliers(bool is_real, int row, int token) const {
    const Plan& plan = p_.plan;
    const int even = plan.even_tokens();
    const int room = (Plan::kBlocks << plan.tiling[Plan::kX].col_groups_log2) * plan.own_rows;
    const uint32_t first = layer().first_outlier[Plan::kOwnOfOut];
    const auto count = static_cast<int>(layer().outlier_end[Plan::kOwnOfOut] - first);
    const uint32_t* begins = begins_of(Plan::kOwnOfOut) + row;
    float* products = floats(plan.parts_at);
    float2 sum = make_float2(0, 0);
#pragma unroll 1
    for (int base = 0; base < count; base += room) {
      const int end = min(base + room, count);
      if (base > 0) __syncthreads();
#pragma unroll 1
      for (int i = static_cast<int>(threadIdx.x); i < (end - base) * even; i += Plan::kThreads) {
        const int at = plan.even_row(i);
        with_outlier(Plan::kOwnOfOut, base + at,
                     [&](int col, float change) { products[i] = change * x_of_others(i - at * even, col); });
      }
      __syncthreads();
      if (!is_real) continue;
      const int row_end = min(static_cast<int>(begins[1] - first), end);
#pragma unroll 1
      for (int i = max(static_cast<int>(begins[0] - first), base); i < row_end; ++i) {
        const float2 product = *reinterpret_cast<const float2*>(products + (i - base) * even + token);
        sum.x += product.x, sum.y += product.y;
      }
    }
    return sum;
  }

  /// The thread's channel of its tokens.
  __device__ void convolve() const {
    if (first_token_ >= tokens_) return;
    const Plan& plan = p_.plan;
    const Operand x_operand(plan.x_at), u_operand(plan.u_at);
    float tap[Plan::kTaps];  // the last one is that of the token itself
#pragma unroll
    for (int j = 0; j < Plan::kTaps; ++j) tap[j] = vector(Plan::kFilter + j);
    const float bias = vector(Plan::kConvBias), x_bias = vector(Plan::kXBias), z_bias = vector(Plan::kZBias);
#pragma unroll 1
    for (int token = first_token_; token < tokens_; token += plan.chunk_warps) {
      if (!is_there(token)) continue;
      float x = x_bias + own_outliers(Plan::kXOfIn, channel_, x_operand, token);
      float z = z_bias + own_outliers(Plan::kZOfIn, channel_, x_operand, token);
      const float* from = kept_at(token);
#pragma unroll 4
      for (int group = 0; group < plan.tiling[Plan::kIn].col_groups(); ++group) {
        x += from[0];
        z += from[plan.channels];
        from += plan.tokens * plan.in_pitch();
      }
      float sum = fmaf(tap[Plan::kTaps - 1], x, bias);
      auto* state = past_state_of(layer_, token) + channel_;
      const float* past = past_of(token);
#pragma unroll
      for (int j = 0; j < Plan::kTaps - 1; ++j) {
        const float value = past[j * plan.channels];
        sum = fmaf(tap[j], value, sum);
        if (j > 0) state[(j - 1) * plan.inner] = value;
      }
      state[(Plan::kTaps - 2) * plan.inner] = x;
      const float u = silu(sum);
      kept_at(token)[0] = u;
      kept_at(token)[plan.channels] = z;
      u_operand.put(token, channel_, u);
    }
  }

  /// Sums of x_proj: a block finishes its own rows, and tells all.
  __device__ void share_dbc() const {
    const Plan& plan = p_.plan;
    const int even = plan.even_tokens(), count = even * plan.own_rows, first_row = block_ * plan.own_rows;
    const int from = Plan::kBlocks * plan.tiling[Plan::kX].col_groups();
#pragma unroll 1
    for (int first = static_cast<int>(threadIdx.x) / 32 * 32; first < 4 * count; first += Plan::kThreads) {
      const int i = first + lane(), at = i / 4, row = plan.even_row(at), token = at - row * even;
      float sum = 0;
      if (at < count) {
#pragma unroll 8
        for (int j = i % 4; j < from; j += 4) sum += floats(plan.parts_at)[j * count + at];
        if (first_row + row < plan.x_rows()) {
          each_outlier(Plan::kOwnOfX, row, i % 4, 4,
                       [&](int col, float change) { sum = fmaf(change, x_of_others(token, col), sum); });
        }
      }
      sum += __shfl_xor_sync(kAllLanes, sum, 1);
      sum += __shfl_xor_sync(kAllLanes, sum, 2);
      if (i % 4 == 0 && at < count) floats(plan.own_at)[at] = sum;
    }
    __syncthreads();
    const int to = warp();
    const uint32_t barrier = exchanges_.barrier_of(to, Plan::kDbc);
#pragma unroll 1
    for (int at = lane(); at < count; at += 32) {
      const int in_own = plan.even_row(at), token = at - in_own * even, row = first_row + in_own;
      if (token >= tokens_ || row >= plan.x_rows()) continue;
      const float value = floats(plan.own_at)[at];
      if (row < plan.rank) {
        Operand(plan.dt_at).put_there(to, token, row, value, barrier);
      } else {
        const float* there = floats(plan.bc_at) + token * 2 * Plan::kStates + row - plan.rank;
        hopper::store_there(hopper::address_in_block(there, static_cast<uint32_t>(to)), value, barrier);
      }
    }
  }

  /// States of the thread's channel.
  __device__ void ask_for_state(int token, float (&h)[Plan::kStates]) const {
    const bool real = is_there(token);
    const float* from = real ? state_of(layer_, token) + channel_ : nullptr;
#pragma unroll
    for (int n = 0; n < Plan::kStates; ++n) h[n] = real ? from[n * p_.plan.inner] : 0.0f;
  }

  /// The thread's channel of its tokens: u becomes y. `ahead`: states of the first of them.
  __device__ void scan(float (&ahead)[Plan::kStates]) const {
    if (first_token_ >= tokens_) return;
    const Plan& plan = p_.plan;
    float a[Plan::kStates];
#pragma unroll
    for (int n = 0; n < Plan::kStates; ++n) a[n] = vector(Plan::kRates + n) * kLog2E;
    const float skip = vector(Plan::kSkip), start = vector(Plan::kDtBias);
#pragma unroll 1
    for (int token = first_token_; token < tokens_; token += plan.chunk_warps) {
      float h[Plan::kStates];
#pragma unroll
      for (int n = 0; n < Plan::kStates; ++n) h[n] = ahead[n];
      ask_for_state(token + plan.chunk_warps, ahead);
      if (!is_there(token)) continue;
      const float u = kept_at(token)[0], z = kept_at(token)[plan.channels];
      const float outliers = own_outliers(Plan::kOfDt, channel_, Operand(plan.dt_at), token);
      const float step = softplus(start + outliers + floats(plan.delta_at)[token * plan.delta_pitch() + channel_]);
      const float added = step * u;
      const auto* bc = reinterpret_cast<const float4*>(floats(plan.bc_at) + token * 2 * Plan::kStates);
      auto* to = state_of(layer_, token) + channel_;
      float y = skip * u;
#pragma unroll
      for (int q = 0; q < Plan::kStates / 4; ++q) {
        const float4 b = bc[q], c = bc[Plan::kStates / 4 + q];
        const float bs[] = {b.x, b.y, b.z, b.w}, cs[] = {c.x, c.y, c.z, c.w};
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const int n = 4 * q + j;
          h[n] = fmaf(fast_exp2(step * a[n]), h[n], added * bs[j]);
          to[n * plan.inner] = h[n];
          y = fmaf(h[n], cs[j], y);
        }
      }
      Operand(plan.u_at).put(token, channel_, y * silu(z));
    }
  }

  /// The block's own rows of the hidden state, which go to all.
  __device__ void add_up_hidden() const {
    const Plan& plan = p_.plan;
    const bool last = layer_ + 1 == p_.layers;
    const int at = static_cast<int>(threadIdx.x) * 2, row = plan.even_row(at), token = at - row * plan.even_tokens();
    const bool is_real = row < plan.own_hidden_of(block_);
    float2 sum = out_outliers(is_real, row, token);
    if (is_real) {
      const int in_hidden = block_ * plan.own_hidden + row;
      const float bias = layer().out_bias ? __ldg(layer().out_bias + in_hidden) : 0.0f;
      auto* own = reinterpret_cast<float2*>(floats(plan.h_at) + at);
      sum.x += own->x + bias, sum.y += own->y + bias;
      const float* from = floats(plan.out_at) + at;
#pragma unroll
      for (int block = 0; block < Plan::kBlocks; ++block) {
        const float2 part = *reinterpret_cast<const float2*>(from + block * plan.even_tokens() * plan.own_hidden);
        sum.x += part.x, sum.y += part.y;
      }
      *own = sum;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        if (!is_there(token + i)) continue;
        if (last) {
          hidden_of(token + i)[in_hidden] = i == 0 ? sum.x : sum.y;
        } else {
          floats(plan.stage_at)[(token + i) * plan.stage_pitch() + row] = i == 0 ? sum.x : sum.y;
        }
      }
    }
    if (last) return;
    __syncthreads();  // all rows are there
    const int to = warp(), quads = plan.own_hidden / 4;
    const uint32_t barrier = exchanges_.barrier_of(to, Plan::kHidden);
    const uint32_t there = hopper::address_in_block(dynamic_shared, static_cast<uint32_t>(to));
#pragma unroll 2
    for (int i = lane(); i < tokens_ * quads; i += 32) {
      const int token = plan.quad_token(i), row = (i - token * quads) * 4, col = block_ * plan.own_hidden + row;
      if (col >= plan.hidden) continue;
      const float4 value = *reinterpret_cast<const float4*>(floats(plan.stage_at) + token * plan.stage_pitch() + row);
      const auto at = reinterpret_cast<unsigned char*>(Operand(plan.x_at).raw4(token, col)) - dynamic_shared;
      hopper::store_there(there + static_cast<uint32_t>(at), value, barrier);
    }
  }

  Exchanges exchanges_;
  Fetcher fetcher_;
  Products<kTokenTiles, kTwoParts> products_;
  float next_level_ = 0;  ///< of the table that comes next
};

}  // namespace hxq::cuda::mamba_layers_parts
