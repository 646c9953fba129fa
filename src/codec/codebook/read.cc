#include "codec/codebook/read.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <limits>
#include <optional>
#include <utility>

#include "codec/codebook/index_packing.h"
#include "codec/module_parts.h"

namespace hxq {
namespace {

/// What codebook and indices say of the matrix.
struct Geometry {
  int32_t k = 0;
  int32_t d = 1;
  IndexLayout layout = IndexLayout::u8;
  int64_t count = 0;  // indices
  Shape shape = {};   // [rows, cols], or [rows * cols] for flat indices
};

Geometry read_geometry(const ModuleParts& parts) {
  Geometry geometry;
  const TensorView& codebook = parts.get("codebook");
  const size_t rank = codebook.shape.size();
  if (rank != 1 && rank != 2) {
    parts.fail("codebook", fmt::format("shape is {}, expected [k] or [k, d]", to_string(codebook.shape)));
  }
  constexpr int64_t kMax = 65536;
  if (codebook.shape[0] > kMax || (rank == 2 && codebook.shape[1] > kMax)) {
    parts.fail("codebook", fmt::format("shape is {}, expected at most {} codewords", to_string(codebook.shape), kMax));
  }
  geometry.k = static_cast<int32_t>(codebook.shape[0]);
  geometry.d = rank == 2 ? static_cast<int32_t>(codebook.shape[1]) : 1;

  const TensorView& indices = parts.get("indices");
  const bool bytes = indices.dtype == DType::u8;
  if (!bytes && indices.dtype != DType::u16 && indices.dtype != DType::i16) {
    parts.fail("indices", fmt::format("dtype is {}, expected U8, U16 or I16", name_of(indices.dtype)));
  }
  const int64_t stored = indices.size();
  if (bytes && indices.shape.size() == 1 && geometry.k > 256) {
    if (stored % 3 != 0) parts.fail("indices", fmt::format("{} bytes are not pairs of 12-bit indices", stored));
    geometry.layout = IndexLayout::packed12;
    geometry.count = stored / 3 * 2;
  } else {
    geometry.layout = bytes ? IndexLayout::u8 : IndexLayout::u16;
    geometry.count = stored;
    if (indices.shape.size() != 2) {
      parts.fail("indices", fmt::format("shape is {}, expected [rows, columns]", to_string(indices.shape)));
    }
    geometry.shape = {indices.shape[0]};
  }
  int64_t elements = 0;
  if (__builtin_mul_overflow(geometry.count, geometry.d, &elements)) parts.fail("indices", "matrix is too large");
  if (geometry.shape.empty()) {
    geometry.shape = {elements};
  } else {
    geometry.shape.push_back(indices.shape[1] * geometry.d);
  }
  return geometry;
}

/// The shape of a matrix of that many elements, from whatever else is stored with it.
Shape shape_from_neighbours(const ModuleParts& parts, int64_t elements) {
  const auto with_cols = [&](int64_t cols) { return elements % cols == 0 ? Shape{elements / cols, cols} : Shape{}; };
  const auto fits = [&](const Shape& shape) { return shape.size() == 2 && element_count(shape) == elements; };
  for (const std::string& exact : {std::string(parts.module()), parts.key("weight")}) {
    if (const TensorView* copy = parts.find_tensor(exact); copy != nullptr && fits(copy->shape)) return copy->shape;
  }
  Shape shape;
  if (const TensorView* vt = parts.find("svd_Vt"); vt != nullptr && vt->shape.size() == 2) {
    shape = with_cols(vt->shape[1]);
  } else if (const TensorView* scales = parts.find("channel_scales")) {
    shape = with_cols(scales->size());
  } else if (const TensorView* bias = parts.find("bias"); bias != nullptr && elements % bias->size() == 0) {
    shape = {bias->size(), elements / bias->size()};
  }
  return shape.empty() ? Shape{elements} : shape;
}

Shape matrix_shape(const ModuleParts& parts, const Geometry& geometry, const Shape& expected) {
  const Shape wanted = as_matrix(expected);
  Shape shape = geometry.shape;
  if (shape.size() == 1) {
    if (wanted.empty()) {
      shape = shape_from_neighbours(parts, shape[0]);
    } else if (element_count(wanted) == shape[0]) {
      shape = wanted;
    } else {
      parts.fail("indices", fmt::format("holds {} weights, expected {}", shape[0], to_string(expected)));
    }
  }
  if (shape.size() != 2) {
    parts.fail("indices", "is packed flat and nothing stored tells rows from columns: the shape must be given");
  }
  parts.require_matrix("indices", shape, expected);
  if (shape[1] % geometry.d != 0) {
    parts.fail("indices", fmt::format("matrix {} cannot be made of codewords of {}", to_string(shape), geometry.d));
  }
  return shape;
}

void check_indices(const ModuleParts& parts, const Geometry& geometry, std::span<const std::byte> indices) {
  if (geometry.layout == IndexLayout::u8 && geometry.k >= 256) return;
  const auto k = static_cast<uint32_t>(geometry.k);
  if (largest_index(geometry.layout, indices, geometry.count) < k) return;
  for (int64_t i = 0; i < geometry.count; ++i) {
    const uint32_t index = index_at(geometry.layout, indices, i);
    if (index < k) continue;
    parts.fail("indices", fmt::format("index {} is {}, expected less than {}", i, index, k),
               index_bytes(geometry.layout, i));
  }
}

struct Outlier {
  int64_t position;
  float value;
};

/// The sidecar as stored, sorted by position; of equal positions the last one stored.
std::vector<Outlier> read_outliers(const ModuleParts& parts, int64_t elements) {
  const std::string_view positions_name =
      parts.find("sidecar_positions") != nullptr ? "sidecar_positions" : "sidecar_indices";
  const TensorView* positions = parts.find(positions_name);
  if (positions == nullptr && parts.find("sidecar_values") == nullptr) return {};
  const std::vector<float> values = parts.floats("sidecar_values");
  if (positions == nullptr) parts.fail("sidecar_positions", "is missing, but sidecar_values is there");
  if (positions->dtype != DType::i64) {
    parts.fail(positions_name, fmt::format("dtype is {}, expected I64", name_of(positions->dtype)));
  }
  if (positions->size() != static_cast<int64_t>(values.size())) {
    parts.fail(positions_name, fmt::format("{} positions for {} values", positions->size(), values.size()));
  }
  std::vector<Outlier> outliers(values.size());
  for (size_t i = 0; i < values.size(); ++i) {
    int64_t position;
    std::memcpy(&position, positions->bytes.data() + i * sizeof(position), sizeof(position));
    if (position < 0 || position >= elements) {
      parts.fail(positions_name, fmt::format("position {} is outside the matrix of {} weights", position, elements),
                 i * sizeof(position));
    }
    outliers[i] = {position, values[i]};
  }
  std::ranges::stable_sort(outliers, {}, &Outlier::position);
  std::vector<Outlier> kept;
  kept.reserve(outliers.size());
  for (const Outlier& outlier : outliers) {
    if (!kept.empty() && kept.back().position == outlier.position) kept.pop_back();
    kept.push_back(outlier);
  }
  return kept;
}

Sidecar read_sidecar(const ModuleParts& parts, int64_t rows, int64_t cols) {
  const std::vector<Outlier> outliers = read_outliers(parts, rows * cols);
  Sidecar sidecar;
  if (outliers.empty()) return sidecar;
  constexpr int64_t kMost = std::numeric_limits<uint32_t>::max();
  if (std::max({rows, cols, static_cast<int64_t>(outliers.size())}) > kMost) {
    parts.fail("sidecar_values", "too many values, or rows or columns of the matrix");
  }
  sidecar.row.reserve(outliers.size());
  sidecar.col.reserve(outliers.size());
  sidecar.value.reserve(outliers.size());
  for (const Outlier& outlier : outliers) {
    sidecar.row.push_back(static_cast<uint32_t>(outlier.position / cols));
    sidecar.col.push_back(static_cast<uint32_t>(outlier.position % cols));
    sidecar.value.push_back(outlier.value);
  }
  return sidecar;
}

std::vector<float> read_channel_scales(const ModuleParts& parts, int64_t cols) {
  if (!parts.find("channel_scales")) return {};
  parts.require_shape("channel_scales", {cols});
  std::vector<float> scales = parts.floats("channel_scales");
  if (const auto zero = std::ranges::find(scales, 0.0f); zero != scales.end()) {
    parts.fail("channel_scales", fmt::format("value {} is 0", zero - scales.begin()));
  }
  return scales;
}

}  // namespace

Shape codebook_matrix_shape(const Checkpoint& checkpoint, std::string_view module) {
  const ModuleParts parts(checkpoint, module);
  const Shape shape = read_geometry(parts).shape;
  return shape.size() == 1 ? shape_from_neighbours(parts, shape[0]) : shape;
}

CodebookMatrix read_codebook_matrix(const Checkpoint& checkpoint, std::string_view module, const Shape& expected) {
  const ModuleParts parts(checkpoint, module);
  const Geometry geometry = read_geometry(parts);
  const Shape shape = matrix_shape(parts, geometry, expected);
  CodebookMatrix matrix;
  matrix.rows = shape[0];
  matrix.cols = shape[1];
  matrix.k = geometry.k;
  matrix.d = geometry.d;
  matrix.layout = geometry.layout;
  matrix.indices = parts.get("indices").bytes;
  check_indices(parts, geometry, matrix.indices);
  matrix.codebook = parts.floats("codebook");
  matrix.sidecar = read_sidecar(parts, matrix.rows, matrix.cols);
  matrix.low_rank = read_low_rank(parts, matrix.rows, matrix.cols);
  matrix.channel_scales = read_channel_scales(parts, matrix.cols);
  return matrix;
}

}  // namespace hxq
