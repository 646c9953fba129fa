// Prefill rows times a grouped matrix on matrix tiles (tiles_amx-inl.h), with weights of GroupedView.

#pragma once

#include "kernels/cpu/grouped_levels_avx512-inl.h"
#include "kernels/cpu/tiles_amx-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// Where the lower or upper byte of each of 64 columns is in Levels64.
struct LevelBytes {
  alignas(64) uint8_t at[64];

  explicit constexpr LevelBytes(int upper) : at() {
    for (int c = 0; c < 64; ++c) at[c] = static_cast<uint8_t>(c % 16 / 8 * 64 + c / 16 * 16 + c % 8 * 2 + upper);
  }
};
constexpr LevelBytes kLowerBytes(0), kUpperBytes(1);

template <class Table, int kGroups>
struct GroupedTiles {
  const GroupedView& weight;

  struct Decoder {
    const GroupedView& weight;
    Table table;
    BlockGroups<kGroups> by;
    __m512i lower, upper;
    int64_t row, rows, ahead, ahead_apart;

    HXQ_ALWAYS_INLINE explicit Decoder(const GroupedTiles& of)
        : weight(of.weight),
          table(of.weight),
          by(of.weight),
          lower(_mm512_load_si512(kLowerBytes.at)),
          upper(_mm512_load_si512(kUpperBytes.at)) {}

    HXQ_ALWAYS_INLINE void begin(int64_t first, int64_t count, RowsAhead rows_ahead) {
      row = first;
      rows = count;
      ahead = rows_ahead.first;
      ahead_apart = rows_ahead.apart;
    }

    HXQ_ALWAYS_INLINE void decode(int64_t block, int part, uint8_t* to) const {
      constexpr int64_t kRows = kTile / kParts;
      const int64_t col = block * kBlock, begin = part * kRows, end = begin + kRows < rows ? begin + kRows : rows;
      const int64_t at = col / 8 * Table::kBits;
      const uint8_t* later = weight.packed + (ahead + part * ahead_apart) * weight.row_bytes + kRows * at;
      _mm_prefetch(reinterpret_cast<const char*>(later), _MM_HINT_T0);
      for (int64_t i = begin; i < end; ++i) {
        const int64_t r = row + i;
        uint8_t rest[kGroups];
        const VecF scale =
            by.look_up(weight.row[r].scale_words, by.codes(weight.scales + r * weight.groups, col, rest));
        const __m512i packed = load_packed<Table::kBits>(weight.packed + r * weight.row_bytes + at, weight.cols - col);
        const Levels64 level = scaled(table.look_up(table.spread(packed)), scale);
        _mm512_store_si512(to + i * kBlock, _mm512_permutex2var_epi8(level.half[0], upper, level.half[1]));
        _mm512_store_si512(to + kTileBytes + i * kBlock, _mm512_permutex2var_epi8(level.half[0], lower, level.half[1]));
      }
    }
  };

  int64_t first_outlier_of(int64_t) const { return 0; }

  int64_t finish(int64_t outlier, int64_t row, int64_t rows, const float*, VecF* y) const {
    for (int64_t i = 0; i < rows; ++i) y[i] *= splat(weight.row[row + i].unit);
    return outlier;
  }
};

bool supports_grouped_tiles(const GroupedView& weight) {
  return has_integer_groups(weight) && weight.cols <= kMostTileCols;
}

void pack_grouped_tiles(const GroupedView& weight, const LinearArgs& args, int64_t first, float* panel) {
  pack_tile_x(weight, args, first, {0, 1}, panel);
}

void grouped_tile_gemm(const GroupedView& weight, const LinearArgs& args, const float* packed, int64_t begin,
                       int64_t end, float* memory) {
  with_grouped_form(weight, [&]<class Table, int kGroups>() {
    using Rows = GroupedTiles<Table, kGroups>;
    TileProduct<Rows>{Rows{weight}, args, weight.cols, packed, tile_x_floats(weight), {}, TileMemory(memory)}.multiply(
        begin, end);
  });
}

constexpr const auto& kGroupedTileGemm =
    kTileGemm<GroupedView, tile_x_floats<GroupedView>, pack_grouped_tiles, grouped_tile_gemm>;

}  // namespace
}  // namespace hxq::kernels::cpu
