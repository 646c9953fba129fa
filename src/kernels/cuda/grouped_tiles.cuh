// Tiles of grouped matrices for the GEMV: how a warp copies them, looks their levels up and multiplies them.

#pragma once

#include <cstddef>

#include "kernels/cuda/codebook_lookup.cuh"
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/grouped_gemv.cuh"
#include "kernels/cuda/grouped_plan.h"
#include "kernels/cuda/tensor_core.cuh"

namespace hxq::cuda::grouped {

constexpr int kWarps = GroupedShare::kWarps, kThreads = kWarps * 32;
constexpr int kScales = 256;
constexpr int kXParts = 3;     ///< BF16 numbers of an element of x
constexpr int kMmaTokens = 2;  ///< whose parts are the columns of one product
constexpr int kAhead = 2;      ///< tiles of a warp on their way

struct Part {
  GroupedProduct product;
  BlockShare share;
  int first_block;
};

struct Parameters {
  FusedInput input;
  int tokens;
  bool x_is_aligned;  ///< rows of F32 can be read 16 bytes at a time
  int group_shift;    ///< groups are of 32 << group_shift columns
  int parts;
  Part part[kMaxFusedProducts];
};

/// Shared memory: this, the slots of each warp, partial sums, x.
template <int kBits>
struct GroupedShared {
  alignas(1024) unsigned char table[GroupedTile<kBits>::kTableBytes];
  float scale[kScales];
  float squares[kWarps];                     ///< of x, by warp
  float low_rank[kGroupedGemvRank][kWarps];  ///< x times Vt, likewise
};
template <int kBits>
struct Slot {
  unsigned char tile[GroupedTile<kBits>::kBytes];
  uint32_t scales[GroupedTile<kBits>::kRows];  ///< a word of each row
};

/// x as BF16 numbers, [token][part][column], rows apart so that few lie in the same banks.
HXQ_HOST_DEVICE constexpr int plane_bytes(int cols) { return 2 * cols + 64; }

template <int kBits>
HXQ_HOST_DEVICE constexpr size_t slots_at() {
  return sizeof(GroupedShared<kBits>);
}
template <int kBits>
HXQ_HOST_DEVICE constexpr size_t partials_at() {
  return slots_at<kBits>() + sizeof(Slot<kBits>) * kWarps * kAhead;
}
template <int kBits>
HXQ_HOST_DEVICE size_t x_at(int rows, int tokens) {
  return partials_at<kBits>() + sizeof(float) * 16 * GroupedShare::places(rows) * tokens;
}

template <int kBits>
__device__ inline GroupedShared<kBits>& shared_of() {
  return *reinterpret_cast<GroupedShared<kBits>*>(dynamic_shared);
}

/// Entries are words: two adjacent levels, or the two parts of one, the larger in the upper half.
template <int kBits>
class LevelTable {
  using Tile = GroupedTile<kBits>;
  static constexpr int kItems = (Tile::kEntries * 8 + kThreads - 1) / kThreads;  ///< of 16 bytes, for a thread

 public:
  __device__ LevelTable() {
    if (__cvta_generic_to_shared(dynamic_shared) != kDynamicStart) __trap();
    // As a special register it needs no mask, which otherwise would be applied with each lookup.
    asm("mov.u32 %0, %%laneid;" : "=r"(lane_));
    lane_ *= 4;
  }

  __device__ static void fill(const float* levels) {
#pragma unroll
    for (int i = 0; i < kItems; ++i) {
      const int item = static_cast<int>(threadIdx.x) + i * kThreads, entry = item / 8;
      if (item >= Tile::kEntries * 8) break;
      const float level = __ldg(levels + Tile::index_of(entry, 0));
      const float other = Tile::kFieldCols == 2 ? __ldg(levels + Tile::index_of(entry, 1)) : level;
      const __nv_bfloat16 upper = __float2bfloat16_rn(other);
      const __nv_bfloat16 lower = __float2bfloat16_rn(Tile::kFieldCols == 2 ? level : level - __bfloat162float(upper));
      const uint32_t word = static_cast<uint32_t>(__bfloat16_as_ushort(upper)) << 16 | __bfloat16_as_ushort(lower);
      *reinterpret_cast<uint4*>(dynamic_shared + item * 16) = make_uint4(word, word, word, word);
    }
  }

  /// Entry number `field` of a lane's 8 columns. In the order of the calls: many are asked for before the first is
  /// used.
  __device__ uint32_t entry(uint32_t low, uint32_t high, int field) const {
    uint32_t word;
    asm volatile("ld.shared.u32 %0, [%1 + %2];"
                 : "=r"(word)
                 : "r"(Tile::entry_offset(low, high, field) | lane_), "n"(kDynamicStart));
    return word;
  }

 private:
  uint32_t lane_;
};

/// A warp's tiles: copied ahead, multiplied, summed up.
template <int kBits, int kMmas, int kRegisters>
class Worker {
  using Tile = GroupedTile<kBits>;
  static constexpr int kLevelParts = 3 - Tile::kFieldCols;
  /// Halves of a chunk whose 8 entries or more are asked for together.
  static constexpr int kHalves = Tile::kFieldCols;
  static constexpr uint32_t kSlotBytes = sizeof(Slot<kBits>), kScalesAt = offsetof(Slot<kBits>, scales);

 public:
  __device__ Worker(const Parameters& p, const GroupedWeight& weight, int64_t first_row, int rows,
                    const GroupedShare& share)
      : p_(p),
        steps_(share.steps),
        first_slot_(static_cast<uint32_t>(slots_at<kBits>()) + warp() * kAhead * kSlotBytes),
        slot_(first_slot_),
        plane_pitch_(static_cast<uint32_t>(plane_bytes(static_cast<int>(weight.cols)))) {
    const int first = share.begin(warp()), tile = first / steps_;
    left_ = share.begin(warp() + 1) - first;
    row_tile_ = tile;
    copied_step_ = step_ = first - tile * steps_;
    rows_to_copy_ = rows - tile * Tile::kRows;
    indices_ = static_cast<const unsigned char*>(weight.indices) + first_row * row_bytes();
    scales_ = weight.scales + first_row * groups();
    const int row = tile * Tile::kRows;
    ahead_ = static_cast<uint32_t>((row + Tile::copy_row(lane())) * row_bytes() + copied_step_ * Tile::kRowBytes +
                                   Tile::copy_byte(lane()));
    scales_ahead_ = static_cast<uint32_t>((row + lane()) * groups());
    x_ = static_cast<uint32_t>(x_at<kBits>(rows, p.tokens)) + lane() / 4 * plane_pitch_ + 2 * Tile::lane_col(lane());
  }

  __device__ int left() const { return left_; }

  /// Asks for the bytes of the warp's first tile, if there is one.
  __device__ void start() { copy(left_ > 0, first_slot_); }

  /// Multiplies the next tile. Before x is there: any bytes, of which nothing is kept, so that the instructions are
  /// there when it is.
  __device__ void next(bool x_is_there) {
    wait_for_copies<kAhead - 1>();
    __syncwarp();
    const uint32_t slot = x_is_there ? slot_ : first_slot_ + kSlotBytes;
    multiply(slot);
    __syncwarp();
    copy(left_ > (x_is_there ? kAhead : kAhead - 1), slot);
    if (!x_is_there) return clear();
    slot_ = slot_ == first_slot_ ? first_slot_ + kSlotBytes : first_slot_;
    if (++step_ < steps_ && --left_ > 0) return;
    left_ -= step_ == steps_;
    leave_sums();
    step_ = 0, ++row_tile_;
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % 32; }
  /// Where registers are short not kept in one, nor is anything that is made of it.
  __device__ static int own_lane() {
    if constexpr (kBits <= 4 || (kBits == 8 && kRegisters > kFewRegisters)) return lane();
    int number;
    asm volatile("mov.u32 %0, %%laneid;" : "=r"(number));
    return number;
  }
  __device__ static int warp() { return static_cast<int>(threadIdx.x) / 32; }
  __device__ int row_bytes() const { return steps_ * Tile::kRowBytes; }
  __device__ int groups() const { return (steps_ * Tile::kChunks + (1 << p_.group_shift) - 1) >> p_.group_shift; }
  template <class T>
  __device__ static const T& at(uint32_t offset) {
    return *reinterpret_cast<const T*>(dynamic_shared + offset);
  }
  __device__ void copy(bool exists, uint32_t slot) {
    if (exists) {
      const int own = own_lane();
      const int row = Tile::copy_row(own);
      unsigned char* const to = dynamic_shared + slot;
#pragma unroll
      for (int i = 0; i < Tile::kCopies; ++i) {
        if (Tile::copy_byte(own) >= Tile::kRowBytes || row + i * Tile::kCopyRows >= rows_to_copy_) continue;
        copy_async<16>(to + (row + i * Tile::kCopyRows) * Tile::kPitch + Tile::copy_byte(own),
                       indices_ + (ahead_ + static_cast<uint32_t>(i * Tile::kCopyRows * row_bytes())));
      }
      if (own < min(rows_to_copy_, Tile::kRows)) {
        copy_async<4>(
            to + kScalesAt + 4 * own,
            scales_ + (scales_ahead_ + static_cast<uint32_t>(4 * scale_word_of(copied_step_, p_.group_shift))));
      }
      ahead_ += Tile::kRowBytes;
      if (++copied_step_ == steps_) {
        copied_step_ = 0;
        rows_to_copy_ -= Tile::kRows;
        ahead_ += static_cast<uint32_t>((Tile::kRows - 1) * row_bytes());
        scales_ahead_ += static_cast<uint32_t>(Tile::kRows * groups());
      }
    }
    end_copy_group();
  }
  __device__ void clear() {
#pragma unroll
    for (int m = 0; m < kMmas; ++m) {
#pragma unroll
      for (int i = 0; i < 4; ++i) total_[m][i] = 0;
    }
  }

  /// Adds the products of the tile in a slot.
  __device__ void multiply(uint32_t slot) {
    const int own = own_lane();
    const uint32_t row = slot + Tile::lane_row(own) * Tile::kPitch + Tile::lane_byte(0, own);
    const uint32_t scales_at = slot + kScalesAt + 4 * Tile::lane_row(own);
    const auto shift = static_cast<uint32_t>(Tile::lane_shift(own));
    const uint32_t scales[2] = {at<uint32_t>(scales_at), at<uint32_t>(scales_at + 32)};
    const uint32_t x = x_ + step_ * (2 * Tile::kCols);
    uint32_t low[2], high[2] = {};
    read_chunk(row, 0, shift, low, high);
#pragma unroll
    for (int chunk = 0; chunk < Tile::kChunks; ++chunk) {
      // The byte of the word times the size of an entry.
      const int rotation = 8 * scale_byte_of(step_, chunk, p_.group_shift) - 2;
      float scale[2];
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const uint32_t of_chunk = __funnelshift_r(scales[i], scales[i], rotation) & 0x3fc;
        scale[i] = at<float>(static_cast<uint32_t>(offsetof(GroupedShared<kBits>, scale)) + of_chunk);
      }
      float sum[kMmas][4] = {};
#pragma unroll
      for (int first = 0; first < 2; first += kHalves) {
        uint32_t a[kHalves][kLevelParts][4];
        look_up(low, high, first, a);
        if (first + kHalves == 2 && chunk + 1 < Tile::kChunks) read_chunk(row, chunk + 1, shift, low, high);
#pragma unroll
        for (int m = 0; m < kMmas; ++m) {
          if (m > 0 && m * kMmaTokens >= p_.tokens) break;
          if (kMmas > 1 || first == 0) bring_x(x + 2 * chunk * Tile::kChunkCols, m);
#pragma unroll
          for (int half = 0; half < kHalves; ++half) {
            const bool is_first = first + half == 0;
#pragma unroll
            for (int n = kLevelParts - 1; n >= 0; --n) {
              multiply_add_bf16(sum[m], a[half][n], is_first ? b_.x : b_.z, is_first ? b_.y : b_.w);
            }
          }
        }
      }
#pragma unroll
      for (int m = 0; m < kMmas; ++m) {
#pragma unroll
        for (int i = 0; i < 4; ++i) total_[m][i] = fmaf(scale[i / 2], sum[m][i], total_[m][i]);
      }
    }
  }

  /// Levels of kHalves halves of a chunk, from `first` on, as left operands: of both rows, 4 of the lane's columns.
  __device__ void look_up(const uint32_t (&low)[2], const uint32_t (&high)[2], int first,
                          uint32_t (&a)[kHalves][kLevelParts][4]) const {
    constexpr int kFields = 2 / Tile::kFieldCols;  // of two columns
    uint32_t entries[kHalves][4][kFields];
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
#pragma unroll
        for (int f = 0; f < kFields; ++f) {
          entries[half][i][f] = table_.entry(low[i % 2], high[i % 2], ((first + half) * 2 + i / 2) * kFields + f);
        }
      }
    }
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        if constexpr (kFields == 1) {
          a[half][0][i] = entries[half][i][0];
        } else {  // the upper parts of two levels, and the lower ones
          a[half][0][i] = __byte_perm(entries[half][i][0], entries[half][i][1], 0x7632);
          a[half][1][i] = __byte_perm(entries[half][i][0], entries[half][i][1], 0x5410);
        }
      }
    }
  }

  /// The lane's part of a right operand, at `x` of the first tokens. Lanes whose column has no part of x keep what they
  /// have: nobody looks at what becomes of it.
  __device__ void bring_x(uint32_t x, int m) {
    const int plane = m * kMmaTokens * kXParts + lane() / 4;
    const uint32_t from = kDynamicStart + x + m * (kMmaTokens * kXParts) * plane_pitch_;
    const int exists = lane() < kMmaTokens * kXParts * 4 && plane < p_.tokens * kXParts;
    asm volatile("{\n .reg .pred p;\n setp.ne.s32 p, %5, 0;\n @p ld.shared.v4.u32 {%0, %1, %2, %3}, [%4];\n}"
                 : "+r"(b_.x), "+r"(b_.y), "+r"(b_.z), "+r"(b_.w)
                 : "r"(from), "r"(exists));
  }

  __device__ static void read_chunk(uint32_t row, int chunk, uint32_t shift, uint32_t (&low)[2], uint32_t (&high)[2]) {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      read(row + i * 8 * Tile::kPitch + (Tile::lane_byte(chunk, 0) - Tile::lane_byte(0, 0)), shift, low[i], high[i]);
    }
  }

  /// The bits of the lane's 8 columns.
  __device__ static void read(uint32_t from, uint32_t shift, uint32_t& low, uint32_t& high) {
    if constexpr (kBits == 8) {
      const uint2 both = at<uint2>(from);
      low = both.x, high = both.y;
    } else {
      uint32_t words[3] = {};
#pragma unroll
      for (int i = 0; i < Tile::kWords; ++i) words[i] = at<uint32_t>(from + 4 * i);
      low = Tile::kWords == 1 ? words[0] : __funnelshift_r(words[0], words[1], shift);
      high = __funnelshift_r(words[1], words[2], shift);
    }
  }

  /// The sums over the parts of x, of both of the lane's rows, to where `finish` finds them.
  __device__ void leave_sums() {
    const int quad = lane() % 4;
    float* const to = reinterpret_cast<float*>(dynamic_shared + partials_at<kBits>()) +
                      16 * p_.tokens * GroupedShare::place(row_tile_, warp()) + Tile::lane_row(lane());
#pragma unroll
    for (int m = 0; m < kMmas; ++m) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        // Columns 0 to 2 are one token, 3 to 5 another; a lane has columns 2 quad and 2 quad + 1.
        const float first = total_[m][2 * half], second = total_[m][2 * half + 1];
        const float one = quad == 0 ? first + second : quad == 1 ? first : 0.0f;
        const float other = quad == 1 ? second : quad == 2 ? first + second : 0.0f;
        const float sum_of_one = sum_lanes<4>(one), sum_of_other = sum_lanes<4>(other);
        const int token = m * kMmaTokens + quad;
        if (quad < kMmaTokens && token < p_.tokens) to[token * 16 + 8 * half] = quad == 0 ? sum_of_one : sum_of_other;
      }
    }
    clear();
  }

  const Parameters& p_;
  const LevelTable<kBits> table_;
  const int steps_;
  const uint32_t first_slot_;  ///< as all that follows in bytes from the start of shared memory
  uint32_t slot_;
  uint32_t x_;  ///< the lane's part of x
  const uint32_t plane_pitch_;
  int left_;  ///< tiles
  int row_tile_, step_, copied_step_, rows_to_copy_;
  const unsigned char* indices_;  ///< of the block's first row
  const uint8_t* scales_;
  uint32_t ahead_, scales_ahead_;  ///< what the lane copies next, and the scales of its row, from there
  uint4 b_ = {};                   ///< the right operand that was brought last
  float total_[kMmas][4] = {};
};

}  // namespace hxq::cuda::grouped
