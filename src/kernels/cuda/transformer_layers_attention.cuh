// Attention of a token: a block has a query head with a part of the positions.

#pragma once

#include "kernels/cuda/kv_cache.cuh"
#include "kernels/cuda/transformer_layers_parts.cuh"

namespace hxq::cuda::transformer_parts {

/// What all workers of a block do together, two tiles of the cache at a time. A warp multiplies 32 keys with some of
/// their elements, and then adds up some elements of some values.
class Attention : Block {
 public:
  __device__ explicit Attention(const Parameters& parameters) : Block(parameters) {}

  /// Of the query, key and value of the layer, whose words have that number.
  __device__ void run(int layer, uint32_t number) const {
    if (block() >= plan.heads * token().splits) return;
    wait(kCacheThere + layer % 2, layer / 2);
#pragma unroll 1
    for (int task = block(); task < plan.heads * token().splits; task += plan.blocks) {
      attend(layer, task == block() ? memory().part : part_of(task), number);
    }
  }

 private:
  using Part = TransformerPart;
  static constexpr int kTogether = 4;  ///< loads of four elements of a thread on their way

  __device__ std::byte* keys(int layer, const Part& part, int tile) const {
    const auto i = static_cast<uint32_t>(tile - memory().part.begin);
    std::byte* there = i < 2 ? memory().tiles[layer % 2][i] : tiles_of(layer)[tile];
    return there + part.kv_head * kTile * plan.padded_dim * plan.element_bytes;
  }
  __device__ std::byte* values(int layer, const Part& part, int tile) const {
    return keys(layer, part, tile) + plan.kv_heads * kTile * plan.padded_dim * plan.element_bytes;
  }
  /// The token's own position is the last: its key and value come from where they were made.
  __device__ bool has_token(const Part& part) const { return part.end * kTile > token().position; }

  /// Four elements each, `pitch` apart from number `first` on, as far as `has(i)`, and else zeros.
  template <class Has>
  __device__ void load(const std::byte* from, int first, int pitch, const Has& has, float4 (&to)[kTogether]) const {
    if (plan.element_bytes == 4) {
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const auto* at = reinterpret_cast<const float4*>(from + (first + i * pitch) * 4);
        to[i] = has(i) ? *at : make_float4(0, 0, 0, 0);
      }
    } else {
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const auto* at = reinterpret_cast<const uint2*>(from + (first + i * pitch) * 2);
        const uint2 four = has(i) ? *at : make_uint2(0, 0);
        const float2 low = __half22float2(reinterpret_cast<const __half2&>(four.x));
        const float2 high = __half22float2(reinterpret_cast<const __half2&>(four.y));
        to[i] = make_float4(low.x, low.y, high.x, high.y);
      }
    }
  }
  __device__ void attend(int layer, const Part& part, uint32_t number) const {
    float4 key[kTogether], value[kTogether];  // asked for before the query is there
    load_keys(layer, part, part.begin, quarter(), key);
    load_values(layer, part, part.begin, 0, value);
    bring_token(layer, part, number);
    sync();
    float largest = -INFINITY, weight = 0;
    float4 sum = make_float4(0, 0, 0, 0);
    int turn = 0;
#pragma unroll 1
    for (int tile = part.begin; tile < part.end; tile += 2, turn ^= 1) {
      multiply_keys(layer, part, tile, turn, key);
      sync();
      float weights[4];
      const float keep = weigh(part, tile, turn, largest, weight, weights);
      sum.x *= keep, sum.y *= keep, sum.z *= keep, sum.w *= keep;
      add_values(layer, part, tile, weights, value, sum);
      if (tile + 2 < part.end) {
        load_keys(layer, part, tile + 2, quarter(), key);
        load_values(layer, part, tile + 2, 0, value);
      }
    }
    sum.x += __shfl_xor_sync(kAllLanes, sum.x, 16), sum.y += __shfl_xor_sync(kAllLanes, sum.y, 16);
    sum.z += __shfl_xor_sync(kAllLanes, sum.z, 16), sum.w += __shfl_xor_sync(kAllLanes, sum.w, 16);
    if (lane() < 16) *reinterpret_cast<float4*>(&memory().values[warp() * 64 + lane() * 4]) = sum;
    sync();
    hand_on(part, largest, weight, number);
  }

  /// The query, rotated and scaled, and the key and the value where this part has the token's position. One of those
  /// who have them writes them to the cache.
  __device__ void bring_token(int layer, const Part& part, uint32_t number) const {
    constexpr int kThreadsEach = kMaxHeadDim / 2;
    const int half = plan.head_dim / 2, kind = thread() / kThreadsEach, i = thread() % kThreadsEach;
    if (kind > 2 || (kind > 0 && !has_token(part))) return;
    float* own = kind == 0 ? memory().q : kind == 1 ? memory().k : memory().v;
    for (int pad = plan.head_dim + i; pad < plan.padded_dim; pad += kThreadsEach) own[pad] = 0;
    if (i >= half) return;
    const int first = kind == 0 ? part.head * plan.head_dim
                                : plan.queries() + (kind - 1) * plan.keys() + part.kv_head * plan.head_dim;
    const uint64_t* words = p.words + plan.qkv_at + first + i;
    uint64_t word[2];
    do {
      word[0] = load_word(words), word[1] = load_word(words + half);
    } while (!is_from(word[0], number) || !is_from(word[1], number));
    float2 pair = make_float2(value_of(word[0]), value_of(word[1]));
    if (kind < 2) pair = rotate(pair, memory().rotation[layer % 2][i]);
    if (kind == 0) {
      own[i] = p.scale * pair.x, own[i + half] = p.scale * pair.y;
      return;
    }
    if (plan.element_bytes == 2) pair = __half22float2(__float22half2_rn(pair));
    own[i] = pair.x, own[i + half] = pair.y;
    if (part.head % (plan.heads / plan.kv_heads) != 0) return;
    const int tile = token().position / kTile, at = token().position % kTile;
    std::byte* there = kind == 1 ? keys(layer, part, tile) : values(layer, part, tile);
    const int begin = kind == 1 ? at : at * plan.padded_dim, pitch = kind == 1 ? kTile : 1;
    const DType dtype = plan.element_bytes == 4 ? DType::f32 : DType::f16;
    store_element(there, dtype, begin + i * pitch, pair.x);
    store_element(there, dtype, begin + (i + half) * pitch, pair.y);
  }

  // Of keys a warp has 32, and every fourth block of 16 elements: a lane four keys, and four elements of the block.

  __device__ static int quarter() { return warp() / 4; }
  __device__ static int first_key() { return warp() % 4 * 32 + lane() % 8 * 4; }

  __device__ void load_keys(int layer, const Part& part, int tile, int dims, float4 (&key)[kTogether]) const {
    const int own_tile = tile + first_key() / kTile, first = dims * 16 + lane() / 8 * 4;
    const bool is_there = own_tile < part.end && first < plan.padded_dim;
    load(
        is_there ? keys(layer, part, own_tile) : nullptr, first * kTile + first_key() % kTile, kTile,
        [&](int) { return is_there; }, key);
  }
  __device__ void multiply_keys(int layer, const Part& part, int tile, int turn, float4 (&key)[kTogether]) const {
    float score[4] = {};
#pragma unroll 1
    for (int dims = quarter(); dims * 16 < plan.padded_dim; dims += 4) {
      if (dims != quarter()) load_keys(layer, part, tile, dims, key);
      const float4 q = *reinterpret_cast<const float4*>(&memory().q[dims * 16 + lane() / 8 * 4]);
      const float each[kTogether] = {q.x, q.y, q.z, q.w};
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        score[0] = fmaf(each[i], key[i].x, score[0]), score[1] = fmaf(each[i], key[i].y, score[1]);
        score[2] = fmaf(each[i], key[i].z, score[2]), score[3] = fmaf(each[i], key[i].w, score[3]);
      }
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      score[i] += __shfl_xor_sync(kAllLanes, score[i], 8);
      score[i] += __shfl_xor_sync(kAllLanes, score[i], 16);
    }
    if (lane() < 8) {
      *reinterpret_cast<float4*>(&memory().scores[turn][quarter()][first_key()]) =
          make_float4(score[0], score[1], score[2], score[3]);
    }
    if (warp() == 0 && tile == part.begin && has_token(part)) {
      float own = 0;
      for (int i = lane(); i < plan.head_dim; i += 32) own = fmaf(memory().q[i], memory().k[i], own);
      own = sum_lanes<32>(own);
      if (lane() == 0) memory().own_score = own;
    }
  }

  /// Every warp finds out the weights of all keys, four a lane. Returns what earlier sums are multiplied with.
  __device__ float weigh(const Part& part, int tile, int turn, float& largest, float& weight,
                         float (&weights)[4]) const {
    const int first = token().first, position = token().position, end = min(position + 1, part.end * kTile);
    float most = -INFINITY;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int i = lane() + 32 * j, at = tile * kTile + i;
      float score = 0;
#pragma unroll
      for (int k = 0; k < Plan::kKeyQuarters; ++k) score += memory().scores[turn][k][i];
      if (at == position) score = memory().own_score;
      weights[j] = at >= first && at < end ? score : -INFINITY;
      most = fmaxf(most, weights[j]);
    }
    most = fmaxf(largest, max_lanes(most));
    const float keep = largest == most ? 1.0f : __expf(largest - most);  // infinite ones, too
    float sum = 0;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      weights[j] = most == -INFINITY ? 0.0f : __expf(weights[j] - most);
      sum += weights[j];
    }
    largest = most;
    weight = weight * keep + sum_lanes<32>(sum);
    return keep;
  }

  // Of values a warp has a block of 64 elements, four a lane, and as many times eight keys as there are blocks: of
  // eight keys a lane has every other one.

  __device__ int value_blocks() const { return plan.padded_dim <= 64 ? 1 : plan.padded_dim <= 128 ? 2 : 4; }
  __device__ int value_block() const { return warp() % value_blocks(); }
  __device__ int first_element() const { return value_block() * 64 + lane() % 16 * 4; }
  __device__ int first_value(int eight) const { return warp() / value_blocks() * 8 * value_blocks() + eight * 8; }

  /// What the cache does not hold yet may be anything, and its weight is zero: it is read as zero.
  __device__ void load_values(int layer, const Part& part, int tile, int eight, float4 (&value)[kTogether]) const {
    const int own_tile = tile + first_value(eight) / kTile, key = first_value(eight) % kTile + lane() / 16;
    const bool is_there = own_tile < part.end && first_element() < plan.padded_dim;
    load(
        is_there ? values(layer, part, own_tile) : nullptr, key * plan.padded_dim + first_element(),
        2 * plan.padded_dim, [&](int i) { return is_there && own_tile * kTile + key + 2 * i < token().position; },
        value);
  }
  __device__ void add_values(int layer, const Part& part, int tile, const float (&weights)[4],
                             float4 (&value)[kTogether], float4& sum) const {
#pragma unroll 1
    for (int eight = 0; eight < value_blocks(); ++eight) {
      if (eight > 0) load_values(layer, part, tile, eight, value);
      const int first = first_value(eight), j = first / 32;  // of a warp alike
      const float weight = j == 0 ? weights[0] : j == 1 ? weights[1] : j == 2 ? weights[2] : weights[3];
#pragma unroll
      for (int i = 0; i < kTogether; ++i) {
        const int key = first + 2 * i + lane() / 16;
        float4 v = value[i];
        if (tile * kTile + key == token().position && first_element() < plan.padded_dim) {
          v = *reinterpret_cast<const float4*>(&memory().v[first_element()]);
        }
        const float own = __shfl_sync(kAllLanes, weight, key % 32);
        sum.x = fmaf(own, v.x, sum.x), sum.y = fmaf(own, v.y, sum.y);
        sum.z = fmaf(own, v.z, sum.z), sum.w = fmaf(own, v.w, sum.w);
      }
    }
  }

  /// Of several parts each gives its sums, with the largest score and the sum of weights.
  __device__ void hand_on(const Part& part, float largest, float weight, uint32_t number) const {
    const int splits = token().splits;
    if (thread() < plan.head_dim) {
      const int pitch = 64 * value_blocks();
      float sum = 0;
      for (int i = thread(); i < Plan::kWarps * 64; i += pitch) sum += memory().values[i];
      store_word(p.words + plan.attended_at + part.split * plan.queries() + part.head * plan.head_dim + thread(),
                 splits == 1 ? sum / weight : sum, number);
    }
    if (thread() == 0 && splits > 1) {
      uint64_t* to = p.words + plan.weights_at + 2 * (part.split * plan.heads + part.head);
      store_word(to, largest, number);
      store_word(to + 1, weight, number);
    }
  }
};

}  // namespace hxq::cuda::transformer_parts
