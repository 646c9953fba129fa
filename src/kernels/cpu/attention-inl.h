// Rotary positions, attention over a tiled cache and gated activations.

#pragma once

#include "kernels/attention.h"
#include "kernels/cpu/mamba-inl.h"
#include "kernels/cpu/math-inl.h"
#include "kernels/cpu/ops.h"

namespace hxq::kernels::cpu {
namespace {

constexpr int64_t kKeys = KvCacheView::kTile;

struct CacheF32 {
  typedef float Element;
  static VecF load_vec(const Element* from) { return load(from); }
  static void store_vec(Element* to, VecF v) { store(to, v); }
};

struct CacheF16 {
  typedef uint16_t Element;
  static VecF load_vec(const Element* from) { return load_f16(from); }
  static void store_vec(Element* to, VecF v) { store_f16(to, v); }
};

/// n <= kLanes floats of both halves of a head at element i, rotated by the token's angles.
struct Halves {
  VecF low;
  VecF high;
};

inline Halves rotated(const float* x, const float* table, int64_t half, int64_t i, int64_t n) {
  const VecF low = load_lanes(x + i, n);
  const VecF high = load_lanes(x + half + i, n);
  const VecF cos = load_lanes(table + i, n);
  const VecF sin = load_lanes(table + half + i, n);
  return {low * cos - high * sin, high * cos + low * sin};
}

/// Elements [i, i + n) of a key to its column of the tile.
template <class Type>
void put_key(VecF v, int64_t i, int64_t n, typename Type::Element* column) {
  typename Type::Element lane[HXQ_LANES];
  Type::store_vec(lane, v);
  for (int64_t j = 0; j < n; ++j) column[(i + j) * kKeys] = lane[j];
}

/// The tiles of a segment's cache; a tile's values lie behind its keys.
inline std::byte* const* tiles_of(const KvCacheView& cache, int64_t segment) {
  return static_cast<std::byte* const*>(cache.tiles[segment]);
}

inline int64_t elements_before_values(const KvCacheView& cache) { return cache.heads * cache.padded_dim * kKeys; }

template <class Type>
void cache_token(const ExtendCacheArgs& args, int64_t segment, int64_t t, const float* table) {
  typedef typename Type::Element Element;
  const KvCacheView& cache = args.cache;
  auto* tile = reinterpret_cast<Element*>(tiles_of(cache, segment)[args.batch.position[t] / kKeys]);
  const int64_t slot = args.batch.position[t] % kKeys;
  const int64_t half = cache.head_dim / 2;
  for (int64_t head = 0; head < cache.heads; ++head) {
    const int64_t begin = head * cache.padded_dim * kKeys;
    const float* k = args.k + t * args.kv_stride + head * cache.head_dim;
    const float* v = args.v + t * args.kv_stride + head * cache.head_dim;
    Element* column = tile + begin + slot;
    Element* row = tile + elements_before_values(cache) + begin + slot * cache.padded_dim;
    for (int64_t i = 0; table && i < half; i += kLanes) {
      const int64_t n = lanes_at(i, half);
      const Halves key = rotated(k, table, half, i, n);
      put_key<Type>(key.low, i, n, column);
      put_key<Type>(key.high, half + i, n, column);
    }
    for (int64_t i = 0; !table && i < cache.head_dim; i += kLanes) {
      const int64_t n = lanes_at(i, cache.head_dim);
      put_key<Type>(load_lanes(k + i, n), i, n, column);
    }
    // A whole vector fits: rows are padded, and what load_lanes adds are the zeros that belong there.
    for (int64_t i = 0; i < cache.head_dim; i += kLanes) {
      Type::store_vec(row + i, load_lanes(v + i, lanes_at(i, cache.head_dim)));
    }
  }
}

void rotate_queries(const ExtendCacheArgs& args, int64_t t, const float* table) {
  const int64_t half = args.cache.head_dim / 2;
  for (int64_t head = 0; head < args.query_heads; ++head) {
    float* q = args.q + t * args.q_stride + head * args.cache.head_dim;
    for (int64_t i = 0; i < half; i += kLanes) {
      const int64_t n = lanes_at(i, half);
      const Halves query = rotated(q, table, half, i, n);
      store_lanes(q + i, query.low, n);
      store_lanes(q + half + i, query.high, n);
    }
  }
}

void extend_cache(const ExtendCacheArgs& args, int64_t segment, int64_t begin, int64_t end) {
  for (int64_t t = begin; t < end; ++t) {
    const float* table = args.rotary_table ? args.rotary_table + t * args.cache.head_dim : nullptr;
    if (table) rotate_queries(args, t, table);
    if (args.cache.dtype == DType::f16) {
      cache_token<CacheF16>(args, segment, t, table);
    } else {
      cache_token<CacheF32>(args, segment, t, table);
    }
  }
}

/// A product with kRows rows of `a` and kVectors vectors of `b`, in registers:
///     c[r, v] = keep[r] * c[r, v] + sum_d a[r, d] * b[d, v]        keep null: c is not read
/// Every element is one sum over d in order, whatever kRows and kVectors are.
template <class Type, int kRows, int kVectors>
inline void multiply_block(const float* a, int64_t a_stride, const typename Type::Element* b, int64_t b_stride,
                           int64_t depth, float* c, int64_t c_stride, const float* keep) {
  VecF sum[kRows][kVectors] = {};
  if (keep) {
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] = load(c + r * c_stride + v * kLanes) * keep[r];
    }
  }
  for (int64_t d = 0; d < depth; ++d) {
    VecF column[kVectors];
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) column[v] = Type::load_vec(b + d * b_stride + v * kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRows; ++r) {
      const VecF factor = splat(a[r * a_stride + d]);
#pragma GCC unroll 4
      for (int v = 0; v < kVectors; ++v) sum[r][v] += factor * column[v];
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < kVectors; ++v) store(c + r * c_stride + v * kLanes, sum[r][v]);
  }
}

/// Operands of `multiply_block` for any number of rows and a width of whole vectors.
template <class Type>
struct Product {
  const float* a;
  int64_t a_stride;
  const typename Type::Element* b;
  int64_t b_stride;
  int64_t depth;
  float* c;
  int64_t c_stride;
  int64_t width;
  const float* keep;

  template <int kRows, int kVectors>
  void rows_at(int64_t row) const {
    const float* from = a + row * a_stride;
    const float* kept = keep ? keep + row : nullptr;
    float* to = c + row * c_stride;
    int64_t at = 0;
    for (; at + kVectors * kLanes <= width; at += kVectors * kLanes) {
      multiply_block<Type, kRows, kVectors>(from, a_stride, b + at, b_stride, depth, to + at, c_stride, kept);
    }
    for (; at < width; at += kLanes) {
      multiply_block<Type, kRows, 1>(from, a_stride, b + at, b_stride, depth, to + at, c_stride, kept);
    }
  }

  void run(int64_t rows) const {
    int64_t row = 0;
    if constexpr (kLanes == 16) {  // 32 registers
      for (; row + 8 <= rows; row += 8) rows_at<8, 2>(row);
    }
    for (; row + 4 <= rows; row += 4) rows_at<4, 2>(row);
    for (; row + 2 <= rows; row += 2) rows_at<2, 4>(row);
    for (; row < rows; ++row) rows_at<1, 4>(row);
  }
};

inline float max_lanes(VecF v) {
  float lane[HXQ_LANES];
  __builtin_memcpy(lane, &v, sizeof v);
  for (int64_t width = kLanes / 2; width > 0; width /= 2) {
    for (int64_t i = 0; i < width; ++i) lane[i] = lane[i] < lane[i + width] ? lane[i + width] : lane[i];
  }
  return lane[0];
}

/// The running softmax of one query.
struct SoftmaxRow {
  float* score;    // [kKeys], replaced by e^(score - maximum), 0 outside of [begin, end)
  float* maximum;  ///< of all scores so far
  float* sum;      // [kLanes], of all e^(score - maximum) so far
};

/// Takes in a tile of scores; returns what earlier results are to be multiplied with.
inline float advance_softmax(const SoftmaxRow& row, int64_t begin, int64_t end) {
  VecI lane;
  for (int i = 0; i < kLanes; ++i) lane[i] = i;
  if (begin > 0 || end < kKeys) {
    const VecF kMasked = splat(-__builtin_inff());
    for (int64_t i = 0; i < kKeys; i += kLanes) {
      const VecI key = lane + static_cast<int32_t>(i);
      const VecI seen = (key >= static_cast<int32_t>(begin)) & (key < static_cast<int32_t>(end));
      store(row.score + i, seen ? load(row.score + i) : kMasked);
    }
  }
  VecF top = splat(*row.maximum);
  for (int64_t i = 0; i < kKeys; i += kLanes) top = larger(top, load(row.score + i));
  const float maximum = max_lanes(top);
  const float keep = maximum == *row.maximum ? 1.0f : vec_exp(splat(*row.maximum - maximum))[0];
  VecF sum = load(row.sum) * keep;
  for (int64_t i = 0; i < kKeys; i += kLanes) {
    const VecF weight = vec_exp(load(row.score + i) - maximum);
    sum += weight;
    store(row.score + i, weight);
  }
  store(row.sum, sum);
  *row.maximum = maximum;
  return keep;
}

/// Work memory of `attend` for a number of rows.
struct AttentionWork {
  AttentionWork(float* memory, const KvCacheView& cache, int64_t rows)
      : query(memory),
        score(query + rows * cache.head_dim),
        result(score + rows * kKeys),
        sum(result + rows * cache.padded_dim),
        maximum(sum + rows * kLanes),
        keep(maximum + rows) {}

  static int64_t floats(const KvCacheView& cache, int64_t rows) {
    return rows * (cache.head_dim + kKeys + cache.padded_dim + kLanes + 2);
  }

  float* query;    // [rows, head_dim], scaled
  float* score;    // [rows, kKeys]
  float* result;   // [rows, padded_dim]
  float* sum;      // [rows, kLanes]
  float* maximum;  // [rows]
  float* keep;     // [rows]
};

int64_t attention_floats(const KvCacheView& cache, int64_t rows) { return AttentionWork::floats(cache, rows); }

/// Rows of one key-value head: row r is query head r % group of the segment's row r / group.
class RowsOfHead {
 public:
  RowsOfHead(const AttentionArgs& args, int64_t segment, int64_t kv_head)
      : args_(args),
        group_(args.query_heads / args.cache.heads),
        first_row_(args.batch.segment[segment].begin),
        first_head_(kv_head * group_) {}

  int64_t position(int64_t row) const { return args_.batch.position[first_row_ + row / group_]; }
  /// The first position the row sees.
  int64_t window_begin(int64_t row) const {
    const int64_t begin = position(row) - args_.window + 1;
    return args_.window > 0 && begin > 0 ? begin : 0;
  }
  const float* query(int64_t row) const { return args_.q + (first_row_ + row / group_) * args_.q_stride + offset(row); }
  float* result(int64_t row) const { return args_.y + (first_row_ + row / group_) * args_.y_stride + offset(row); }

 private:
  int64_t offset(int64_t row) const { return (first_head_ + row % group_) * args_.cache.head_dim; }

  const AttentionArgs& args_;
  int64_t group_;
  int64_t first_row_;
  int64_t first_head_;
};

inline int64_t clamp_to_tile(int64_t key) { return key < 0 ? 0 : key > kKeys ? kKeys : key; }

template <class Type>
void attend_rows(const AttentionArgs& args, int64_t segment, int64_t kv_head, int64_t row_begin, int64_t row_end,
                 float* memory) {
  typedef typename Type::Element Element;
  const KvCacheView& cache = args.cache;
  const RowsOfHead source(args, segment, kv_head);
  std::byte* const* tiles = tiles_of(cache, segment);
  const int64_t rows = row_end - row_begin;
  const AttentionWork work(memory, cache, rows);
  for (int64_t r = 0; r < rows; ++r) {
    const float* q = source.query(row_begin + r);
    for (int64_t i = 0; i < cache.head_dim; ++i) work.query[r * cache.head_dim + i] = q[i] * args.scale;
    for (int64_t i = 0; i < cache.padded_dim; ++i) work.result[r * cache.padded_dim + i] = 0;
    for (int64_t i = 0; i < kLanes; ++i) work.sum[r * kLanes + i] = 0;
    work.maximum[r] = -__FLT_MAX__;
  }

  const int64_t end = source.position(row_end - 1) + 1;
  for (int64_t tile = source.window_begin(row_begin) / kKeys; tile * kKeys < end; ++tile) {
    const int64_t base = tile * kKeys;
    const Element* keys = reinterpret_cast<const Element*>(tiles[tile]) + kv_head * cache.padded_dim * kKeys;
    const Element* values = keys + elements_before_values(cache);
    Product<Type>{.a = work.query,
                  .a_stride = cache.head_dim,
                  .b = keys,
                  .b_stride = kKeys,
                  .depth = cache.head_dim,
                  .c = work.score,
                  .c_stride = kKeys,
                  .width = kKeys,
                  .keep = nullptr}
        .run(rows);
    for (int64_t r = 0; r < rows; ++r) {
      work.keep[r] = advance_softmax({work.score + r * kKeys, work.maximum + r, work.sum + r * kLanes},
                                     clamp_to_tile(source.window_begin(row_begin + r) - base),
                                     clamp_to_tile(source.position(row_begin + r) + 1 - base));
    }
    Product<Type>{.a = work.score,
                  .a_stride = kKeys,
                  .b = values,
                  .b_stride = cache.padded_dim,
                  .depth = clamp_to_tile(end - base),
                  .c = work.result,
                  .c_stride = cache.padded_dim,
                  .width = cache.padded_dim,
                  .keep = work.keep}
        .run(rows);
  }

  for (int64_t r = 0; r < rows; ++r) {
    const float scale = 1.0f / sum_lanes(load(work.sum + r * kLanes));
    float* y = source.result(row_begin + r);
    for (int64_t i = 0; i < cache.head_dim; ++i) y[i] = work.result[r * cache.padded_dim + i] * scale;
  }
}

void attend(const AttentionArgs& args, int64_t segment, int64_t kv_head, int64_t begin, int64_t end, float* memory) {
  if (args.cache.dtype == DType::f16) {
    attend_rows<CacheF16>(args, segment, kv_head, begin, end, memory);
  } else {
    attend_rows<CacheF32>(args, segment, kv_head, begin, end, memory);
  }
}

template <VecF (*kFunction)(VecF)>
void gate_rows(const GatedActivationArgs& args, int64_t begin, int64_t end) {
  for (int64_t t = 0; t < args.tokens; ++t) {
    const float* gate = args.gate + t * args.x_stride;
    const float* up = args.up + t * args.x_stride;
    float* y = args.y + t * args.y_stride;
    for (int64_t i = begin; i < end; i += kLanes) {
      const int64_t n = lanes_at(i, end);
      store_lanes(y + i, kFunction(load_lanes(gate + i, n)) * load_lanes(up + i, n), n);
    }
  }
}

void gated_activation(const GatedActivationArgs& args, int64_t begin, int64_t end) {
  args.activation == Activation::gelu ? gate_rows<vec_gelu>(args, begin, end) : gate_rows<vec_silu>(args, begin, end);
}

}  // namespace
}  // namespace hxq::kernels::cpu
