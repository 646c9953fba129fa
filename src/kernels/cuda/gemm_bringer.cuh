// Brings what the warpgroups of gemm.cu multiply.

#pragma once

#include "kernels/cuda/gemm_shared.cuh"

namespace hxq::cuda::gemm {

/// Brings bytes of weights and x, in the order in which they are multiplied. One thread.
template <int kN, int kRowGroups, bool kAligned>
class Bringer {
 public:
  __device__ Bringer(const Parameters& p, const Part& part)
      : p_(p), part_(part), tile_(p.cluster() - part.first_cluster) {
    start_tile();
  }

  /// Before predecessors have ended: what they do not write.
  __device__ void bring_first_weights() {
    Place at = place_;
    for (; early_ < L::kStages && early_ < last_ - step_; ++early_, at.advance()) {
      hopper::arrive_and_expect_bytes(L::full(at.index), kBytes);
      bring_weights(at.index, step_ + early_);
    }
  }

  /// The rest of a tile, and what the ring can take of the next.
  __device__ void bring_tile() {
    while (step_ < last_) bring_step();
    tile_ += part_.clusters;
    start_tile();
    for (int i = 0; L::kKeepsRing && i < L::kStages && step_ < last_; ++i) bring_step();
  }

 private:
  using L = Layout<kN, kRowGroups>;
  using Place = hopper::RingPlace<L::kStages>;
  static constexpr uint32_t kBytes = kAligned ? L::kStageBytes : L::kKGroups * L::kXBytes;

  __device__ void start_tile() {
    const auto split = static_cast<int>(hopper::block_in_cluster());
    step_ = p_.plan.first_step(split);
    last_ = tile_ < part_.tiles ? p_.plan.first_step(split + 1) : step_;
    row_ = static_cast<int>(p_.plan.first_row(tile_));
  }

  __device__ void bring_step() {
    if (early_ > 0) {
      --early_;
    } else {
      hopper::wait(L::empty(place_.index), place_.parity ^ 1);  // passes in the first round
      hopper::arrive_and_expect_bytes(L::full(place_.index), kBytes);
      bring_weights(place_.index, step_);
    }
    const int64_t chunk = p_.plan.token_tile(tile_) * p_.plan.padded_chunks() + step_ * L::kKGroups;
    hopper::copy_bulk(L::x(place_.index), static_cast<const char*>(p_.x.packed) + chunk * L::kXBytes,
                      L::kKGroups * L::kXBytes, L::full(place_.index));
    ++step_;
    place_.advance();
  }

  __device__ void bring_weights(int stage, int step) const {
    if constexpr (kAligned) {
#pragma unroll
      for (int q = 0; q < L::kKGroups; ++q) {
        hopper::copy_box(L::weights(stage) + q * L::kBoxBytes, part_.map, (step * L::kKGroups + q) * kChunkCols, row_,
                         L::full(stage));
      }
    }
  }

  const Parameters& p_;
  const Part& part_;
  int64_t tile_;
  int step_, last_, row_;
  int early_ = 0;  ///< steps whose weights were asked for beforehand
  Place place_;
};

}  // namespace hxq::cuda::gemm
