// The warps that turn bytes into tiles of binary16.

#pragma once

#include <climits>

#include "kernels/cuda/tile_gemm_shared.cuh"

namespace hxq::cuda::tiles {

template <int kN, bool kTwoLevels>
class Decoder {
 public:
  using Shared = TileShared<kN, kTwoLevels>;

  __device__ Decoder(const TileGemmParameters& p, Shared& shared, const CUtensorMap& x)
      : p_(p), shared_(shared), x_map_(x), ahead_(p.plan) {
#pragma unroll 1
    for (int i = 0; i < Shared::kBytes; ++i) ask_for_bytes(i);
  }

  __device__ void run() {
    for (Cursor at(p_.plan); !at.done(); at.next_unit()) {
      start_tile(at.row, at.chunk);
#pragma unroll 1
      for (int chunk = at.chunk; chunk < at.end; ++chunk) decode_chunk(chunk * kCols, at.token);
    }
  }

 private:
  /// A thread has 16 columns, piece threadIdx.x % 4, of some rows of the tile.
  static constexpr int kDecoders = decoders_for(kN);
  static constexpr int kPieces = kRows / (kDecoders / 4);

  __device__ static int row_of(int k) { return static_cast<int>(threadIdx.x) / 4 + k * (kDecoders / 4); }

  /// Of a row's outliers the next one, relative to the tile's first, and its column: most chunks have none of the row.
  struct RowOutliers {
    uint32_t next, end;
    int col;
  };

  __device__ unsigned char* slot(int place, int k) const {
    return shared_.bytes[place] + (threadIdx.x + k * kDecoders) * 16;
  }

  /// Of the next chunk, which may be another tile's, the bytes that the thread decodes.
  __device__ void ask_for_bytes(int place) {
    const CodebookWeight& w = p_.weight;
    const int64_t col = ahead_.chunk * kCols + static_cast<int>(threadIdx.x) % 4 * 16;
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      const int64_t row = ahead_.row + row_of(k);
      if (!ahead_.done() && row < w.rows && col < w.cols) {
        copy_async<16>(slot(place, k), static_cast<const unsigned char*>(w.indices) + row * w.cols + col);
      }
    }
    end_copy_group();
    ahead_.advance();
  }

  /// Brings the outliers of the tile's rows and finds those from chunk `chunk` on.
  __device__ void start_tile(int64_t row, int chunk) {
    const CodebookWeight& w = p_.weight;
    if (!w.outlier_row_begin) {
#pragma unroll
      for (int k = 0; k < kPieces; ++k) outliers_[k] = {.next = 0, .end = 0, .col = INT_MAX};
      return;
    }
    group_barrier<1, kDecoders>();  // nobody reads those of the tile before
    first_outlier_ = w.outlier_row_begin[row];
    for (int i = static_cast<int>(threadIdx.x); i <= kRows; i += kDecoders) {
      shared_.outlier_row_begin[i] = w.outlier_row_begin[min(row + i, w.rows)] - first_outlier_;
    }
    const uint32_t count = w.outlier_row_begin[min(row + kRows, w.rows)] - first_outlier_;
    for (uint32_t i = threadIdx.x; i < min(count, uint32_t{kReadyOutliers}); i += kDecoders) {
      shared_.outlier_col[i] = w.outlier_col[first_outlier_ + i];
      shared_.outlier_change[i] = w.outlier_change[first_outlier_ + i];
    }
    group_barrier<1, kDecoders>();
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      RowOutliers& o = outliers_[k];
      o = {.next = shared_.outlier_row_begin[row_of(k)], .end = shared_.outlier_row_begin[row_of(k) + 1]};
      o.col = outlier_col(o);
      while (o.col < chunk * kCols) skip(o);
    }
  }

  __device__ int outlier_col(const RowOutliers& o) const {
    if (o.next >= o.end) return INT_MAX;
    return static_cast<int>(o.next < kReadyOutliers ? shared_.outlier_col[o.next]
                                                    : p_.weight.outlier_col[first_outlier_ + o.next]);
  }
  __device__ void skip(RowOutliers& o) const {
    ++o.next;
    o.col = outlier_col(o);
  }

  __device__ void decode_chunk(int col, int token) {
    hopper::wait(&shared_.empty[stage_.index], stage_.parity ^ 1);
    if (threadIdx.x == 0) {
      uint64_t* barrier = &shared_.full[stage_.index];
      hopper::arrive_and_expect_bytes(barrier, Shared::kXTile);
      hopper::copy_box(shared_.x[stage_.index], x_map_, col, token, barrier);
    }
    wait_for_copies<Shared::kBytes - 1>();
    uint4 bytes[kPieces];
#pragma unroll
    for (int k = 0; k < kPieces; ++k) bytes[k] = *reinterpret_cast<const uint4*>(slot(place_.index, k));
#pragma unroll
    for (int k = 0; k < kPieces; ++k) {
      store_piece(bytes[k], k);
      place_outliers(k, col);
    }
    hopper::fence_tiles();
    __syncwarp();
    if (threadIdx.x % 32 == 0) hopper::arrive(&shared_.full[stage_.index]);
    ask_for_bytes(place_.index);
    stage_.advance();
    place_.advance();
  }

  /// Where the 16 bytes lie that hold column `col` of the thread's k-th row.
  __device__ unsigned char* place_of(int level, int k, int col) const {
    const auto row = static_cast<uint32_t>(row_of(k));
    return shared_.weights[stage_.index][level][0] + row * (kCols * 2) +
           (static_cast<uint32_t>(col) / 8 ^ row % 8) * 16;
  }

  __device__ void store_piece(const uint4& bytes, int k) {
    const uint32_t words[4] = {bytes.x, bytes.y, bytes.z, bytes.w};
    uint32_t high[8], low[kTwoLevels ? 8 : 1];
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const uint32_t first = __float_as_uint(table_.look_up(words[i / 2], i % 2 * 2));
      const uint32_t second = __float_as_uint(table_.look_up(words[i / 2], i % 2 * 2 + 1));
      high[i] = __byte_perm(first, second, 0x5410);
      if constexpr (kTwoLevels) low[i] = __byte_perm(first, second, 0x7632);
    }
    const int col = static_cast<int>(threadIdx.x) % 4 * 16;
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      *reinterpret_cast<uint4*>(place_of(0, k, col + 8 * i)) =
          make_uint4(high[4 * i], high[4 * i + 1], high[4 * i + 2], high[4 * i + 3]);
      if constexpr (kTwoLevels) {
        *reinterpret_cast<uint4*>(place_of(1, k, col + 8 * i)) =
            make_uint4(low[4 * i], low[4 * i + 1], low[4 * i + 2], low[4 * i + 3]);
      }
    }
  }

  /// Of the row's outliers in this chunk the thread changes those among its own columns.
  __device__ void place_outliers(int k, int first_col) {
    RowOutliers& o = outliers_[k];
#pragma unroll 1
    for (; o.col < first_col + kCols; skip(o)) {
      const int col = o.col - first_col;
      if (col / 16 != static_cast<int>(threadIdx.x) % 4) continue;
      const float change =
          o.next < kReadyOutliers ? shared_.outlier_change[o.next] : p_.weight.outlier_change[first_outlier_ + o.next];
      auto* high = reinterpret_cast<__half*>(place_of(0, k, col)) + col % 8;
      float value = __half2float(*high) + change / tile_scale_of(p_.weight);
      if constexpr (kTwoLevels) {
        auto* low = reinterpret_cast<__half*>(place_of(1, k, col)) + col % 8;
        value += __half2float(*low);
        *low = __float2half_rn(value - __half2float(__float2half_rn(value)));
      }
      *high = __float2half_rn(value);
    }
  }

  const TileGemmParameters& p_;
  Shared& shared_;
  const CUtensorMap& x_map_;
  const SmallTable table_;
  Cursor ahead_;  ///< whose bytes are asked for next
  hopper::RingPlace<Shared::kBytes> place_;
  hopper::RingPlace<Shared::kStages> stage_;
  uint32_t first_outlier_ = 0;
  RowOutliers outliers_[kPieces];
};

}  // namespace hxq::cuda::tiles
