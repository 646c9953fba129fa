// Matrix tiles (AMX-INT8): 16 weight rows times up to 16 tokens, 64 columns at a time, in bytes. A weight that is a
// 16-bit integer is 256 high + low; x is rounded to whole numbers (kTileQuantization), which are 65536 x2 + 256 x1 +
// x0, each a signed byte. Sums of products of bytes are exact over all columns, so that a token's product is the same
// in any company:
//
//     2^24 high x2 + 2^16 (high x1 + low x2) + 2^8 (high x0 + low x1) + low x0
//
// Instructions are in assembly since neither g++ 12 nor clang 14 orders its intrinsics after the stores that make what
// they read.

#pragma once

#include "kernels/cpu/gemm-inl.h"
#include "kernels/cpu/quantize-inl.h"
#include "kernels/cpu/quantize_avx512-inl.h"

namespace hxq::kernels::cpu {
namespace {

constexpr int64_t kTile = 16;                   // rows of a tile, and tokens
constexpr int64_t kTileBytes = kTile * kBlock;  // of 64 columns
constexpr int64_t kPlanesOfWeights = 2, kPlanesOfX = 3;
constexpr int64_t kPowers = 4;  // of 256 that are summed apart
constexpr int64_t kStepBytes = kPlanesOfWeights * kTileBytes;

/// Sums of two products stay below 2^31: high is down to -128, low up to 255, x0 and x1 down to -128.
constexpr int64_t kMostTileCols = kTileQuantization.block;
static_assert(kMostTileCols * (128 * 128 + 255 * 128) < int64_t{1} << 31);

/// Numbers of the tile registers.
enum Tile : int { kPower3, kPower2, kPower1, kPower0, kHigh, kLow, kX, kOtherX, kTiles };

template <Tile kTo>
HXQ_ALWAYS_INLINE void load_tile(const void* from, int64_t stride) {
  asm volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTo) : "memory");
}
template <Tile kFrom>
HXQ_ALWAYS_INLINE void store_tile(void* to, int64_t stride) {
  asm volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kFrom) : "memory");
}
template <Tile kTo>
HXQ_ALWAYS_INLINE void zero_tile() {
  asm volatile("tilezero %%tmm%c0" : : "i"(kTo));
}
/// kTo += a tile of signed bytes times one of signed bytes.
template <Tile kTo, Tile kW, Tile kWith>
HXQ_ALWAYS_INLINE void add_signed_products() {
  asm volatile("tdpbssd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kTo), "i"(kW), "i"(kWith));
}
/// The same of bytes without a sign.
template <Tile kTo, Tile kW, Tile kWith>
HXQ_ALWAYS_INLINE void add_unsigned_products() {
  asm volatile("tdpbusd %%tmm%c2, %%tmm%c1, %%tmm%c0" : : "i"(kTo), "i"(kW), "i"(kWith));
}

/// Sums lie in memory as [kPowers, kTile, kTile].
template <Tile kPower>
HXQ_ALWAYS_INLINE void store_sums(float* sums) {
  store_tile<kPower>(sums + kPower * kTile * kTile, kTile * sizeof(float));
}
template <Tile kPower>
HXQ_ALWAYS_INLINE void take_sums(float* sums) {
  store_sums<kPower>(sums);
  zero_tile<kPower>();
}

/// Blocks from one tile store to the next, at most: one that comes 2,048 cycles after the one before takes 900
/// (measured on a Xeon 6), as if what stores tiles had been switched off.
constexpr int64_t kStoreEvery = 4;

/// The shapes of all tiles for a number of tokens, as long as this lives.
class TileShapes {
 public:
  explicit TileShapes(int64_t width) {
    struct alignas(64) {
      uint8_t palette = 1, start_row = 0, reserved[14] = {};
      uint16_t row_bytes[16] = {};
      uint8_t rows[16] = {};
    } shapes;
    for (int tile = 0; tile < kTiles; ++tile) {
      shapes.row_bytes[tile] = static_cast<uint16_t>(tile == kHigh || tile == kLow ? kBlock : 4 * width);
      shapes.rows[tile] = kTile;
    }
    asm volatile("ldtilecfg %0" : : "m"(shapes));
  }
  TileShapes(const TileShapes&) = delete;
  TileShapes& operator=(const TileShapes&) = delete;
  ~TileShapes() { asm volatile("tilerelease"); }
};

/// x of up to kTile tokens: [kTile] the power of two that sums of a token are multiplied by, then [blocks, kPlanesOfX
/// (x2 first), kTile, width], each four columns of a token.
constexpr int64_t kTileHead = kTile;
inline int64_t width_of(int64_t tokens) { return tokens < kTile ? tokens : kTile; }
inline int64_t panel_tokens_left(const LinearArgs& args, int64_t first) {
  return args.tokens - first < kTile ? args.tokens - first : kTile;
}
inline int64_t tile_panel_floats(int64_t cols, int64_t width) {
  return kTileHead + blocks_of(cols) * kPlanesOfX * kTile * width;
}

/// Where column i of 64 is after bytes of four vectors of 16 columns were put into one, a byte of each in turn.
struct alignas(64) MixedColumns {
  uint8_t at[kBlock];

  constexpr MixedColumns() : at{} {
    for (int64_t i = 0; i < kBlock; ++i) at[i] = static_cast<uint8_t>(i % kLanes * 4 + i / kLanes);
  }
};
constexpr MixedColumns kMixedColumns;

/// The planes of 64 columns of one token times 2^shift; zeros past the last.
HXQ_ALWAYS_INLINE void round_to_planes(const float* x, int64_t cols, VecF shift, uint8_t (*planes)[kBlock]) {
  const __m512i bias = _mm512_set1_epi32(0x808080);  // makes signed bytes of what is carried
  const auto digits_at = [&](int64_t col) {
    const VecF part = _mm512_scalef_ps(columns_of(x + col, cols - col), shift);
    return _mm512_xor_si512(_mm512_add_epi32(_mm512_cvtps_epi32(part), bias), bias);
  };
  const __m512i a = digits_at(0), b = digits_at(16), c = digits_at(32), d = digits_at(48);
  const auto put = [&](int64_t plane, __m512i byte0, __m512i byte1, __m512i byte2, __m512i byte3) {
    const __m512i lower = _mm512_mask_blend_epi8(0x2222222222222222, byte0, byte1);
    const __m512i upper = _mm512_mask_blend_epi8(0x8888888888888888, byte2, byte3);
    const __m512i mixed = _mm512_mask_blend_epi16(0xaaaaaaaa, lower, upper);
    _mm512_store_si512(planes[plane], _mm512_permutexvar_epi8(_mm512_load_si512(kMixedColumns.at), mixed));
  };
  put(0, _mm512_srli_epi32(a, 16), _mm512_srli_epi32(b, 8), c, _mm512_slli_epi32(d, 8));
  put(1, _mm512_srli_epi32(a, 8), b, _mm512_slli_epi32(c, 8), _mm512_slli_epi32(d, 16));
  put(2, a, _mm512_slli_epi32(b, 8), _mm512_slli_epi32(c, 16), _mm512_slli_epi32(d, 24));
}

/// The power of two that makes whole numbers of up to 0x7f7f7f, three signed bytes, of one token's x. NaN if x is not
/// finite; sums are then NaN, too.
inline float shift_of(const float* x, int64_t cols) {
  VecF largest = {};
  for (int64_t col = 0; col < cols; col += kLanes) largest = larger_magnitude(largest, columns_of(x + col, cols - col));
  const float most = largest_lane(largest);
  if (!(most <= __FLT_MAX__)) return __builtin_nanf("");
  if (most == 0) return 0;
  const float exponent = _mm512_getexp_ps(splat(most))[0];
  const bool is_above = _mm512_scalef_ps(splat(most), splat(22 - exponent))[0] > 0x7f7f7f;
  return 22 - exponent - (is_above ? 1 : 0);
}

/// Packs x of the tokens from `first` on. `unit`: what the integers of the weights are in units of, a power of two.
void pack_tile_panel(const LinearArgs& args, int64_t first, int64_t cols, float unit, Piece piece, float* panel) {
  const int64_t x_stride = args.x_stride, tokens = panel_tokens_left(args, first), width = width_of(args.tokens);
  const int64_t begin = piece.index * blocks_of(cols) / piece.count * kBlock;
  const int64_t end = (piece.index + 1) * blocks_of(cols) / piece.count * kBlock;
  if (begin == end && piece.index > 0) return;
  const float* x = args.x + first * x_stride;
  float shift[kTile] = {};
  for (int64_t t = 0; t < tokens; ++t) shift[t] = shift_of(x + t * x_stride, cols);
  if (piece.index == 0) store(panel, splat(_mm512_getexp_ps(splat(unit))[0]) - load(shift));
  panel += kTileHead + begin / kBlock * kPlanesOfX * kTile * width;

  alignas(64) uint8_t planes[kTile][kPlanesOfX][kBlock];
  for (int64_t col = begin; col < end; col += kBlock) {
    for (int64_t t = 0; t < tokens; ++t) {
      round_to_planes(x + t * x_stride + col, cols - col, splat(shift[t]), planes[t]);
    }
    for (int64_t plane = 0; plane < kPlanesOfX; ++plane, panel += kTile * width) {
      if (width == 1) {
        store(panel, load(planes[0][plane]));
        continue;
      }
      VecF rows[HXQ_LANES] = {};
      for (int64_t t = 0; t < tokens; ++t) rows[t] = load(planes[t][plane]);
      transpose(rows);
      for (int64_t i = 0; i < kTile; ++i) store_first(panel + i * width, rows[i], width);
    }
  }
}

/// Adds the products of 64 columns: weights as [high, low][kTile, kBlock], x as in a panel. Calls `meanwhile(part)` for
/// each of kParts: what it does runs beside the multiplications. `sums`, unless it is null: where the sums of the rows
/// before go, each right before its tile is used again. Its products, which the store waits for, have ended by then.
constexpr int kParts = 4;
template <class Meanwhile>
HXQ_ALWAYS_INLINE void multiply_block(const uint8_t* weights, const float* x, int64_t width, float* sums,
                                      Meanwhile meanwhile) {
  const int64_t plane = kTile * width, stride = 4 * width;
  load_tile<kHigh>(weights, kBlock);
  load_tile<kX>(x, stride);
  if (sums) take_sums<kPower3>(sums);
  add_signed_products<kPower3, kHigh, kX>();
  meanwhile(0);
  load_tile<kLow>(weights + kTileBytes, kBlock);
  load_tile<kOtherX>(x + plane, stride);
  if (sums) take_sums<kPower2>(sums);
  add_unsigned_products<kPower2, kLow, kX>();
  add_signed_products<kPower2, kHigh, kOtherX>();
  meanwhile(1);
  if (sums) take_sums<kPower1>(sums);
  add_unsigned_products<kPower1, kLow, kOtherX>();
  load_tile<kX>(x + 2 * plane, stride);
  meanwhile(2);
  add_signed_products<kPower1, kHigh, kX>();
  meanwhile(3);
  if (sums) take_sums<kPower0>(sums);
  add_unsigned_products<kPower0, kLow, kX>();
}

/// Blocks that are decoded before they are multiplied: a tile load waits for stores that are under way. It also waits
/// for those that have its address in the lower 12 bits, as with an even number of blocks.
constexpr int64_t kBlocksAhead = 3;

/// What a thread works in.
struct TileMemory {
  static constexpr int64_t kSums = kPowers * kTile * kTile;

  float* sums;       // [kPowers, kTile, kTile], whole numbers
  uint8_t* weights;  // [blocks_kept, kStepBytes], a ring

  explicit TileMemory(float* memory) : sums(memory), weights(reinterpret_cast<uint8_t*>(memory + kSums)) {}

  /// Row tiles that are multiplied with a panel before the next panel: they stay in the second-level cache.
  static int64_t row_tiles(int64_t cols, int64_t tokens) {
    const int64_t fit = (int64_t{1} << 20) / (blocks_of(cols) * kStepBytes);
    return tokens <= 4 * kTile || fit < 1 ? 1 : fit > 16 ? 16 : fit;
  }

  /// Those of the row tiles that other panels wait for, and those ahead.
  static int64_t blocks_kept(int64_t cols, int64_t tokens) {
    const int64_t wait = tokens <= kTile ? 1 : row_tiles(cols, tokens) * blocks_of(cols);
    return wait + kBlocksAhead;
  }

  /// Never less for more tokens.
  static int64_t floats(int64_t cols, int64_t tokens) {
    return kSums + blocks_kept(cols, tokens) * kStepBytes / static_cast<int64_t>(sizeof(float));
  }
};

/// Products, of sums of the powers, the highest first.
HXQ_ALWAYS_INLINE VecF join_powers(const VecF (&power)[kPowers], VecF exponent) {
  VecF sum = {};
#pragma GCC unroll 4
  for (const VecF& of : power) {
    sum = _mm512_fmadd_ps(sum, splat(256), _mm512_cvtepi32_ps(_mm512_castps_si512(of)));
  }
  return _mm512_scalef_ps(sum, exponent);
}

/// x in floats, for outliers: token t of column c is at[c * stride + t]. `apart`: from panel to panel.
struct TileColumns {
  const float* at;
  int64_t stride, apart;
};

/// Rows that are asked for from memory while a tile is decoded: each part asks for kTile / kParts rows in sequence,
/// that of part 0 from `first` on, the others' `apart` rows from each other.
struct RowsAhead {
  int64_t first, apart;
};

/// Brings a part of a block of weights to the first-level cache: blocks that other panels wait for have left it, and a
/// tile load waits for stores until they are there.
HXQ_ALWAYS_INLINE void ask_to_write(uint8_t* block, int part) {
  constexpr int64_t kBytes = kTileBytes / kParts;
  for (int64_t at = part * kBytes; at < (part + 1) * kBytes; at += kBlock) {
    asm volatile("prefetchw %0" : : "m"(block[at]));
    asm volatile("prefetchw %0" : : "m"(block[kTileBytes + at]));
  }
}

/// Row tiles of rows [begin, end) in the order in which they are decoded. Where each is multiplied with all panels
/// before the next, they are taken from kParts streams in turn, as far apart as possible, see gemv_rows-inl.h.
struct TileOrder {
  int64_t begin, end;
  int64_t at_once;   ///< that are multiplied with a panel before the next panel
  int64_t apart;     ///< rows of a stream
  int64_t streamed;  ///< row tiles of streams; those after them are in sequence
  int64_t count;

  TileOrder(int64_t first, int64_t last, int64_t row_tiles)
      : begin(first),
        end(last),
        at_once(row_tiles),
        apart(row_tiles == 1 ? (end - begin) / (kParts * kTile) * kTile : 0),
        streamed(kParts * apart / kTile),
        count((end - begin + kTile - 1) / kTile) {}

  int64_t stream(int64_t tile) const { return tile < streamed ? tile % kParts : kParts; }
  int64_t row(int64_t tile) const {
    return begin + (tile < streamed ? tile % kParts * apart + tile / kParts * kTile : tile * kTile);
  }
  int64_t rows(int64_t tile) const { return end - row(tile) < kTile ? end - row(tile) : kTile; }
  RowsAhead ahead(int64_t tile) const {
    if (tile >= streamed) return {row(tile) + kTile, kTile / kParts};
    return {begin + (tile / kParts + 1) * kTile + tile % kParts * (kTile / kParts), apart};
  }
};

/// The product with tiles of a matrix. `Rows`:
///     Decoder(of)
///         begin(row, rows, ahead)       goes to the rows of a tile
///         decode(block, part, to)       64 columns of a part of them to [high, low][kTile, kBlock]
///     first_outlier_of(row)             the first outlier from a row on
///     finish(outlier, row, rows, columns, y)
///                                       makes products of sums, [kTile][tokens]; returns the first outlier after that
template <class Rows>
struct TileProduct {
  const Rows& of;
  const LinearArgs& args;
  int64_t cols;
  const float* packed;  ///< panels of kTile tokens
  int64_t panel_floats;
  TileColumns columns;
  TileMemory memory;
  int64_t width = width_of(args.tokens), blocks = blocks_of(cols);
  uint8_t* ring_end = memory.weights + TileMemory::blocks_kept(cols, args.tokens) * kStepBytes;

  const float* panel(int64_t t) const { return packed + t / kTile * panel_floats; }

  HXQ_ALWAYS_INLINE uint8_t* next_in_ring(uint8_t* at) const {
    at += kStepBytes;
    return at == ring_end ? memory.weights : at;
  }
  HXQ_ALWAYS_INLINE uint8_t* previous_in_ring(uint8_t* at) const {
    return (at == memory.weights ? ring_end : at) - kStepBytes;
  }
  uint8_t* after_in_ring(uint8_t* at, int64_t count) const {
    return memory.weights + (at - memory.weights + count * kStepBytes) % (ring_end - memory.weights);
  }

  /// Decodes the blocks of all row tiles, one after the other.
  struct Decoding {
    const TileProduct& product;
    const TileOrder& order;
    typename Rows::Decoder decoder{product.of};
    int64_t tile = 0, block = 0;
    uint8_t* to = product.memory.weights;
    uint8_t* later = product.after_in_ring(to, 2);

    HXQ_ALWAYS_INLINE Decoding(const TileProduct& of_product, const TileOrder& of_order)
        : product(of_product), order(of_order) {
      decoder.begin(order.row(0), order.rows(0), order.ahead(0));
    }
    HXQ_ALWAYS_INLINE bool is_done() const { return tile == order.count; }
    HXQ_ALWAYS_INLINE void decode(int part) const {
      decoder.decode(block, part, to);
      if (product.args.tokens > kTile) ask_to_write(later, part);
    }
    HXQ_ALWAYS_INLINE void end_block() {
      to = product.next_in_ring(to);
      later = product.next_in_ring(later);
      if (++block < product.blocks) return;
      block = 0;
      if (++tile < order.count) decoder.begin(order.row(tile), order.rows(tile), order.ahead(tile));
    }
  };

  /// Sums of the rows of a tile with the panel from token t on, which wait to become y.
  struct Unfinished {
    int64_t t, row, rows = 0;
    const int64_t* outlier;  ///< the first of the tile
    int64_t* next_outlier;   ///< where the first after it is put
  };

  __attribute__((noinline)) void finish(const Unfinished& tile) const {
    const VecF exponent = load(panel(tile.t));
    constexpr int64_t kApart = kTile * kTile;
    VecF y[HXQ_LANES];
    for (int64_t i = 0; i < kTile; ++i) {
      const float* sums = memory.sums + i * kTile;
      const VecF power[] = {load(sums), load(sums + kApart), load(sums + 2 * kApart), load(sums + 3 * kApart)};
      y[i] = join_powers(power, exponent);
    }
    *tile.next_outlier = of.finish(*tile.outlier, tile.row, tile.rows, columns.at + tile.t / kTile * columns.apart, y);
    LinearArgs part = args;
    part.y += tile.t * args.y_stride;
    part.tokens = panel_tokens_left(args, tile.t);
    put_block(y, part, 0, tile.row, tile.rows);
  }

  /// Leaves the products of a row tile, whose blocks begin at `first`, with a panel in the tiles: from the last block
  /// on if `backwards`. Meanwhile blocks ahead are decoded, unless that is done or those of this row tile were decoded
  /// for another panel, and the sums before are stored and finished.
  HXQ_ALWAYS_INLINE void multiply_tile(const float* x, uint8_t* first, bool backwards, bool decodes, Decoding& decoding,
                                       Unfinished& last) const {
    const int64_t step = (backwards ? -1 : 1) * kPlanesOfX * kTile * width;
    uint8_t* from = backwards ? after_in_ring(first, blocks - 1) : first;
    if (backwards) x -= (blocks - 1) * step;
    float* sums = memory.sums;
    for (int64_t block = 0; block < blocks; ++block, x += step) {
      if (decodes && !decoding.is_done()) {
        multiply_block(
            from, x, width, sums, [&](int part) __attribute__((always_inline)) { decoding.decode(part); });
        decoding.end_block();
      } else {
        multiply_block(from, x, width, sums, [](int) {});
      }
      from = backwards ? previous_in_ring(from) : next_in_ring(from);
      sums = nullptr;
      if (last.rows > 0 && (block == 1 || block == blocks - 1)) {
        finish(last);
        last.rows = 0;
      } else if (block % kStoreEvery == kStoreEvery - 1) {
        store_tile<kHigh>(memory.sums, kBlock);  // its only purpose is not to be late
      }
    }
  }

  /// y of rows [begin, end).
  void multiply(int64_t begin, int64_t end) const {
    if (begin == end) return;
    const TileShapes shapes(width);
    const TileOrder order(begin, end, TileMemory::row_tiles(cols, args.tokens));
    int64_t outlier[kParts + 1], following = 0;
    for (int64_t g = 0; g <= kParts; ++g) outlier[g] = of.first_outlier_of(begin + g * order.apart);
    Decoding decoding(*this, order);
    for (int64_t i = 0; i < kBlocksAhead && !decoding.is_done(); ++i, decoding.end_block()) {
      for (int part = 0; part < kParts; ++part) decoding.decode(part);
    }
    Unfinished last;
    // What was read last is still in the first-level cache: so panels, and their blocks, are read to and fro.
    const int64_t panels = (args.tokens + kTile - 1) / kTile;
    bool from_last_panel = false;
    uint8_t* from = memory.weights;
    for (int64_t first = 0, end_tile; first < order.count; first = end_tile) {
      end_tile = order.count - first < order.at_once ? order.count : first + order.at_once;
      uint8_t* const from_first = from;
      for (int64_t pass = 0; pass < panels; ++pass) {
        const int64_t t = (from_last_panel ? panels - 1 - pass : pass) * kTile;
        from = from_first;
        for (int64_t tile = first; tile < end_tile; ++tile) {
          const bool decodes = pass == 0, backwards = !decodes && (tile - first + pass) % 2 == 1;
          multiply_tile(panel(t) + kTileHead, from, backwards, decodes, decoding, last);
          from = after_in_ring(from, blocks);
          int64_t* const kept = outlier + order.stream(tile);
          const bool is_last = tile + 1 == end_tile && pass + 1 == panels;
          last = {t, order.row(tile), order.rows(tile), tile == first ? kept : &following, is_last ? kept : &following};
        }
      }
      from_last_panel = !from_last_panel;
    }
    store_sums<kPower3>(memory.sums);
    store_sums<kPower2>(memory.sums);
    store_sums<kPower1>(memory.sums);
    store_sums<kPower0>(memory.sums);
    finish(last);
  }
};

/// Floats of a panel of x, as Gemv and IntegerGemm want them, and of a thread's memory.
template <class View>
int64_t tile_x_floats(const View& weight) {
  return tile_panel_floats(weight.cols, kTile);
}
template <class View>
int64_t tile_memory_floats(const View& weight, int64_t tokens) {
  return TileMemory::floats(weight.cols, tokens);
}

template <class View>
void pack_tile_x(const View& weight, const LinearArgs& args, int64_t first, Piece piece, float* panel) {
  pack_tile_panel(args, first, weight.cols, weight.planes_scale, piece, panel);
}

template <class View, auto kPanelFloats, auto kPackPanel, auto kMultiply>
constexpr IntegerGemm<View> kTileGemm{.panel_tokens = kTile,
                                      .panel_floats = kPanelFloats,
                                      .pack_panel = kPackPanel,
                                      .tile_rows = kTile,
                                      .memory_floats = tile_memory_floats<View>,
                                      .multiply = kMultiply};

}  // namespace
}  // namespace hxq::kernels::cpu
