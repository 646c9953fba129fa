// The warps that bring what a layer's products need to shared memory, while others multiply: some bring what is stored
// of matrices, others tables of levels, vectors and states.

#pragma once

#include "kernels/cuda/mamba_spread_parts.cuh"

namespace hxq::cuda::mamba_spread_parts {

/// What threads of both kinds have in common.
template <int kKind>
class Bringer : protected Block {
 protected:
  __device__ explicit Bringer(const Parameters& parameters) : Block(parameters) {}

  __device__ static int thread() { return static_cast<int>(threadIdx.x) - Plan::kWorkers - kKind * Plan::kBringers; }
  __device__ static void sync() { asm volatile("bar.sync %0, %1;" ::"n"(2 + kKind), "n"(Plan::kBringers) : "memory"); }
  /// Arrives when the thread's copies are there.
  __device__ void arrive_with_copies(Barrier i) const {
    asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(hopper::shared_address(barrier(i)))
                 : "memory");
  }
  __device__ static void copy_array(uint32_t to, const void* from, int bytes) {
#pragma unroll 1
    for (int i = thread() * 16; i < bytes; i += Plan::kBringers * 16) {
      copy_async<16>(dynamic_shared + to + i, static_cast<const unsigned char*>(from) + i);
    }
  }
};

/// Bytes of weights, and outliers.
class MatrixBringer : Bringer<0> {
 public:
  __device__ explicit MatrixBringer(const Parameters& parameters) : Bringer(parameters) {}

  /// Of a first layer, what no kernel writes.
  __device__ void begin() const {
    copy_in(0);
    arrive_with_copies(kInThere);
    copy_row_begins(0);
    copy_row_begins(1);
    wait_for_all();
    copy_outliers(0);
    copy_x_and_dt(0);
    copy_out(0);
    wait_for_all();
    make_lists(0);
    hopper::arrive(barrier(kListsThere));
  }

  __device__ void run() const {
#pragma unroll 1
    for (int number = 0; number < p.layers; ++number) {
      const int next = number + 1;
      arrive_with_copies(kXThere);
      if (next == p.layers) break;  // nobody waits for this thread any more
      wait(kInFree, number);
      copy_in(next);
      arrive_with_copies(kInThere);
      wait(kXFree, number);  // so what is known of layers was brought
      copy_outliers(next);
      copy_row_begins(next + 1);
      end_copy_group();
      copy_x_and_dt(next);
      end_copy_group();
      wait_for_copies<1>();
      sync();
      make_lists(next);
      hopper::arrive(barrier(kListsThere));
      wait(kOutFree, number);
      copy_out(next);
      sync();
    }
    wait_for_all();
  }

 private:
  __device__ static void wait_for_all() {
    end_copy_group();
    wait_for_copies<0>();
    sync();
  }

  __device__ uint32_t* row_begins_of(int number, int product) const {
    return reinterpret_cast<uint32_t*>(dynamic_shared + plan.begins_at +
                                       (number % 2 * kProducts + product) * Plan::kRowBeginsBytes);
  }
  __device__ uint32_t* outliers_of(int product) const {
    return reinterpret_cast<uint32_t*>(dynamic_shared + plan.outliers_at) + product * 2 * Plan::kListed;
  }
  /// Calls `body(product, rows)`.
  template <class Body>
  __device__ void each_product(int number, const Body& body) const {
    if (number >= p.layers) return;
    body(kIn, rows(kIn));
    body(kX, rows(kX));
    body(kDt, rows(kDt));
    body(kOut, rows(kOut));
  }
  /// Where the outliers of the block's rows begin.
  __device__ void copy_row_begins(int number) const {
    each_product(number, [&](int product, const Rows& own_rows) {
      const uint32_t* from = layer(number).matrix[product].outlier_row_begin;
      if (from == nullptr) return;
#pragma unroll 1
      for (int row = thread(); row <= own_rows.count; row += Plan::kBringers) {
        copy_async<4>(row_begins_of(number, product) + row, from + own_rows.first + row);
      }
    });
  }
  /// Once that is known, the outliers.
  __device__ void copy_outliers(int number) const {
    each_product(number, [&](int product, const Rows& own_rows) {
      const Matrix& matrix = layer(number).matrix[product];
      if (matrix.outlier_row_begin == nullptr) return;
      const uint32_t* begins = row_begins_of(number, product);
      const uint32_t first = begins[0], count = min(begins[own_rows.count] - first, uint32_t{Plan::kListed});
      uint32_t* to = outliers_of(product);
#pragma unroll 1
      for (auto i = static_cast<uint32_t>(thread()); i < count; i += Plan::kBringers) {
        copy_async<4>(to + i, matrix.outlier_col + first + i);
        copy_async<4>(to + Plan::kListed + i, matrix.outlier_change + first + i);
      }
    });
  }
  /// Once they are there.
  __device__ void make_lists(int number) const {
    each_product(number, [&](int product, const Rows& own_rows) {
      uint32_t* begins = begins_of(number, product);
      if (layer(number).matrix[product].outlier_row_begin == nullptr) {
        if (thread() <= Plan::kRanges) begins[thread()] = 0;
        return;
      }
      const uint32_t *all = row_begins_of(number, product), *outliers = outliers_of(product);
      uint2* list = list_of(number, product);
      const uint32_t first = all[0];
      if (thread() == 0) begins[Plan::kRanges + 1] = first;
      if (thread() <= Plan::kRanges) begins[thread()] = all[own_rows.begin(thread())] - first;
#pragma unroll 1
      for (int row = thread(); row < own_rows.count; row += Plan::kBringers) {
        int in_range = row % own_rows.of_warp;
        if (own_rows.of_half > 0 && in_range >= own_rows.of_half) in_range -= own_rows.of_half;
        const uint32_t end = min(all[row + 1] - first, uint32_t{Plan::kListed});
#pragma unroll 1
        for (uint32_t i = all[row] - first; i < end; ++i) {
          const int col = static_cast<int>(outliers[i]) - first_col(product);
          const bool is_own = col >= 0 && col < cols(product);
          list[i] = make_uint2(is_own ? static_cast<uint32_t>(in_range << 16 | col) : kNoOutlier,
                               outliers[Plan::kListed + i]);
        }
      }
    });
  }

  /// Columns [0, cols) of adjacent rows: eight threads have a row.
  __device__ static void copy_block(uint32_t to, const unsigned char* from, int64_t stride, int rows, int pitch,
                                    int cols) {
#pragma unroll 1
    for (int row = thread() / 8; row < rows; row += Plan::kBringers / 8) {
#pragma unroll 1
      for (int col = thread() % 8 * 16; col < cols; col += 128) {
        copy_async<16>(dynamic_shared + to + row * pitch + col, from + row * stride + col);
      }
    }
  }
  __device__ void copy_in(int number) const {
    const Rows own_rows = rows(kIn);
    copy_array(plan.bytes_at[kIn], layer(number).matrix[kIn].indices + int64_t{own_rows.first} * plan.hidden,
               own_rows.count * plan.hidden);
  }
  __device__ void copy_x_and_dt(int number) const {
    const Matrix* matrix = layer(number).matrix;
    copy_block(plan.bytes_at[kX], matrix[kX].indices + first_channel, plan.inner, plan.x_rows(), plan.channels, own);
    copy_array(plan.bytes_at[kDt], matrix[kDt].indices + int64_t{first_channel} * plan.rank, own * plan.rank);
  }
  __device__ void copy_out(int number) const {
    const Rows own_rows = rows(kOut);
    copy_block(plan.bytes_at[kOut],
               layer(number).matrix[kOut].indices + int64_t{own_rows.first} * plan.inner + first_channel, plan.inner,
               own_rows.count, plan.channels, own);
  }
};

/// Tables of levels, vectors and states, and what is known of layers.
template <int kTokens>
class VectorBringer : Bringer<1> {
 public:
  __device__ explicit VectorBringer(const Parameters& parameters) : Bringer<1>(parameters) {}

  /// What is known of the first layers; others read it, too.
  __device__ void prepare() const {
    for (int i = 0; i < 3; ++i) bring_layer(i);
  }
  /// Of a first layer, what no kernel writes.
  __device__ void begin() {
    level_[kIn] = level_of(0, kIn);
    ask_for_levels(0);
    copy_norm(0);
    copy_vectors(0);
    fill(1, level_[kIn]);
    if (p.layers > 1) level_[kIn] = level_of(1, kIn);
    arrive_with_copies(kInThere);
    hopper::arrive(barrier(kInThere));
    fill(0, level_[kX]);
  }

  __device__ void run() {
    copy_states(0);
#pragma unroll 1
    for (int number = 0; number < p.layers; ++number) {
      const int next = number + 1;
      arrive_with_copies(kXThere);
      wait(kInFree, number);
      fill(1, level_[kDt]);
      hopper::arrive(barrier(kXThere));
      wait(kXFree, number);  // so the hidden state before this layer is there
      fill(0, level_[kOut]);
      hopper::arrive(barrier(kOutThere));
      fill(1, level_[kIn]);
      copy_norm(next);
      arrive_with_copies(kInThere);
      hopper::arrive(barrier(kInThere));
      ask_for_levels(next);
      if (next + 1 < p.layers) level_[kIn] = level_of(next + 1, kIn);
      store_states(number - 1);
      sync();
      bring_layer(number + 3);
      wait(kOutFree, number);
      fill(0, level_[kX]);
      wait(kScanFree, number);
      copy_vectors(next);
      copy_states(next);
      sync();
    }
    wait(kXFree, p.layers);
    store_states(p.layers - 1);
  }

 private:
  __device__ void bring_layer(int number) const {
    if (number >= p.layers) return;
    constexpr int kWords = static_cast<int>(sizeof(Layer) / 4);
    if (thread() < kWords) {
      auto* to = reinterpret_cast<uint32_t*>(static_cast<Layer*>(&layer(number)));
      to[thread()] = reinterpret_cast<const uint32_t*>(&p.layer[number])[thread()];
    }
    const int i = thread() - 96;
    if (i >= 0 && i < 2 * kTokens) {
      const int token = i % kTokens;
      void* const* states = i < kTokens ? p.layer[number].conv_states : p.layer[number].states;
      layer(number).state_of[i / kTokens][token] = row_of(token) >= 0 ? states[token] : nullptr;
    }
  }
  static_assert(sizeof(Layer) / 4 <= 96 && 96 + 2 * kTokens <= Plan::kBringers);

  /// Two levels a thread.
  __device__ float2 level_of(int number, int product) const {
    const Matrix& matrix = layer(number).matrix[product];
    const int entry = 2 * thread();
    return make_float2(entry < matrix.k ? __ldg(matrix.codebook + entry) : 0.0f,
                       entry + 1 < matrix.k ? __ldg(matrix.codebook + entry + 1) : 0.0f);
  }
  /// But for in_proj, whose are asked for a layer before.
  __device__ void ask_for_levels(int number) {
    if (number >= p.layers) return;
#pragma unroll
    for (int product = kX; product < kProducts; ++product) level_[product] = level_of(number, product);
  }
  __device__ static void fill(int table, const float2& levels) {
    Tables::fill(table, 2 * thread(), {levels.x, levels.y});
  }

  /// Of the block's channels: a warp copies a vector.
  __device__ void copy_row(uint32_t to, int row, const float* from) const {
    const int col = lane() * 4;
    if (from && col < own) copy_async<16>(floats(to) + row * plan.pitch() + col, from + first_channel + col);
  }
  __device__ void copy_norm(int number) const {
    if (number >= p.layers) return;
    copy_array(plan.norm_at, layer(number).norm_weight, 4 * plan.hidden);
  }
  __device__ void copy_vectors(int number) const {
    if (number >= p.layers) return;
    const Layer& next = layer(number);
#pragma unroll 1
    for (int i = thread() / 32; i < Plan::kVectors; i += Plan::kBringers / 32) {
      const float* from = i < Plan::kConvBias    ? next.conv_weight + i * plan.inner
                          : i == Plan::kConvBias ? next.conv_bias
                          : i == Plan::kDtBias   ? next.dt_bias
                          : i == Plan::kSkip     ? next.d
                                                 : next.a + (i - Plan::kRates) * plan.inner;
      copy_row(plan.vectors_at, i, from);
    }
  }
  __device__ void copy_states(int number) const {
    if (number >= p.layers) return;
    each_state(number, [&](float* own, float* state) { copy_async<16>(own, state); });
  }
  /// Every cluster reads states, and one writes them: when all have read, which who has all of the hidden state knows.
  __device__ void store_states(int number) const {
    if (number < 0 || number % plan.clusters != cluster) return;
    each_state(number, [](float* own, float* state) {
      *reinterpret_cast<float4*>(state) = *reinterpret_cast<const float4*>(own);
    });
  }
  /// Calls `body(in shared memory, the sequence's)` for four adjacent channels of the block's states.
  template <class Body>
  __device__ void each_state(int number, const Body& body) const {
    constexpr int kRows = Plan::kTaps - 1 + Plan::kStates;
    const int col = lane() * 4;
    if (col >= own) return;
#pragma unroll 1
    for (int i = thread() / 32; i < kTokens * kRows; i += Plan::kBringers / 32) {
      const int token = i / kRows, row = i % kRows - (Plan::kTaps - 1);
      const bool is_past = row < 0;
      auto* state = static_cast<float*>(layer(number).state_of[is_past ? 0 : 1][token]);
      if (state == nullptr) continue;
      const int from = is_past ? row + Plan::kTaps - 1 : row;
      body((is_past ? past_of(number, token) : states_of(number, token)) + from * plan.pitch() + col,
           state + from * plan.inner + first_channel + col);
    }
  }

  float2 level_[kProducts] = {};
};

/// How often a use of a barrier is arrived at.
__device__ constexpr int arrivals_of(int barrier) {
  constexpr int kOfBringers[] = {0, 0, 3, 1, 3, 1};  // of kXParts, kOutParts, kInThere, kListsThere, kXThere, kOutThere
  return barrier <= Block::kOutParts   ? 1
         : barrier <= Block::kOutThere ? kOfBringers[barrier] * Plan::kBringers
                                       : Plan::kWarps;
}

}  // namespace hxq::cuda::mamba_spread_parts
