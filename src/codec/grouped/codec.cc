#include "codec/grouped/codec.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <utility>

#include "codec/grouped/matrix.h"
#include "codec/module_parts.h"

namespace hxq {
namespace {

using Kind = PartSpec::Kind;

constexpr PartSpec kParts[] = {
    {"grouped_indices", Kind::needed}, {"grouped_levels", Kind::needed},
    {"grouped_scales", Kind::needed},  {"grouped_scale_levels", Kind::needed},
    {"grouped_shape", Kind::needed},   {"svd_U", Kind::optional},
    {"svd_s", Kind::optional},         {"svd_Vt", Kind::optional},
};

constexpr int64_t kMinLevels = 8, kMaxLevels = 256;

/// What the parts' shapes and `grouped_shape` say of the matrix.
struct Geometry {
  int64_t rows = 0, cols = 0, group = 0;
  int64_t rank = 0;  ///< of the low-rank term
};

/// The number of elements of a part that is a list.
int64_t length(const ModuleParts& parts, std::string_view part) {
  const Shape& shape = parts.get(part).shape;
  if (shape.size() != 1) parts.fail(part, fmt::format("shape is {}, expected one dimension", to_string(shape)));
  return shape[0];
}

Geometry read_geometry(const ModuleParts& parts) {
  constexpr int64_t kMax = std::numeric_limits<int32_t>::max();
  const int64_t k = length(parts, "grouped_levels");
  if (k < kMinLevels || k > kMaxLevels || (k & (k - 1)) != 0) {
    parts.fail("grouped_levels", fmt::format("{} levels, expected 8, 16, 32, 64, 128 or 256", k));
  }
  // The rank of a low-rank term is a third number, so that those who know of no term refuse what has one.
  const TensorView& shape = parts.get("grouped_shape", DType::i64);
  const bool has_term = shape.shape == Shape{3};
  if (!has_term) parts.require_shape("grouped_shape", {2});
  int64_t stated[3] = {};
  std::memcpy(stated, shape.bytes.data(), (has_term ? 3 : 2) * sizeof(int64_t));
  const auto [cols, group, rank] = stated;
  if (cols < 1 || cols > kMax) {
    parts.fail("grouped_shape", fmt::format("{} columns, expected 1 to {}", cols, kMax), 0);
  }
  if (group < 8 || group > kMax || group % 8 != 0) {
    parts.fail("grouped_shape", fmt::format("groups of {} columns, expected a multiple of 8", group), sizeof(int64_t));
  }
  const TensorView& packed = parts.get("grouped_indices", DType::u8);
  if (packed.shape.size() != 2) {
    parts.fail("grouped_indices", fmt::format("shape is {}, expected [rows, bytes]", to_string(packed.shape)));
  }
  const int64_t rows = packed.shape[0];
  const int bits = static_cast<int>(std::bit_width(static_cast<uint64_t>(k))) - 1;
  parts.require_shape("grouped_indices", {rows, GroupedMatrix::packed_bytes(cols, bits)});
  parts.require_shape("grouped_scales", {rows, GroupedMatrix::groups_of(cols, group)});
  parts.require_matrix("grouped_indices", {rows, cols}, {});
  if (has_term && rank < 1) {
    parts.fail("grouped_shape", fmt::format("a term of rank {}, expected 1 or more", rank), 2 * sizeof(int64_t));
  }
  for (const std::string_view factor : {"svd_U", "svd_s", "svd_Vt"}) {
    if (!has_term && parts.find(factor))
      parts.fail("grouped_shape", fmt::format("states no rank, but {} is there", factor));
  }
  if (has_term) parts.require_shape("svd_s", {rank});
  return {rows, cols, group, rank};
}

/// Every scale is a number of a scale level, and every weight that can be made of them is finite.
void check_scales(const ModuleParts& parts, const GroupedMatrix& matrix) {
  const auto magnitude = [](float value) { return std::fabs(value); };
  const float level = std::ranges::max(matrix.levels, {}, magnitude);
  const float scale = std::ranges::max(matrix.scale_levels, {}, magnitude);
  if (!std::isfinite(level * scale)) {
    parts.fail("grouped_scale_levels", fmt::format("{} times the level {} overflows", scale, level));
  }
  const size_t count = matrix.scale_levels.size();
  if (count == kMaxLevels) return;
  const auto bad = std::ranges::find_if(matrix.scales, [&](std::byte s) { return static_cast<size_t>(s) >= count; });
  if (bad == matrix.scales.end()) return;
  const auto at = static_cast<uint64_t>(bad - matrix.scales.begin());
  parts.fail("grouped_scales", fmt::format("scale {} is {}, expected less than {}", at, static_cast<int>(*bad), count),
             at);
}

void check_padding(const ModuleParts& parts, const GroupedMatrix& matrix) {
  const int used = static_cast<int>(matrix.cols * matrix.bits() % 8);  // bits of a row's last byte
  if (used == 0) return;
  for (int64_t row = 0; row < matrix.rows; ++row) {
    const int64_t at = (row + 1) * matrix.row_bytes() - 1;
    if (static_cast<int>(matrix.packed[static_cast<size_t>(at)]) >> used == 0) continue;
    parts.fail("grouped_indices", fmt::format("row {} has bits set after its last index, expected zeros", row),
               static_cast<uint64_t>(at));
  }
}

Shape shape(const Checkpoint& checkpoint, std::string_view module) {
  const Geometry geometry = read_geometry(ModuleParts(checkpoint, module));
  return {geometry.rows, geometry.cols};
}

std::unique_ptr<const StoredMatrix> read(const Checkpoint& checkpoint, std::string_view module, const Shape& expected) {
  const ModuleParts parts(checkpoint, module);
  const Geometry geometry = read_geometry(parts);
  parts.require_matrix("grouped_indices", {geometry.rows, geometry.cols}, expected);
  auto matrix = std::make_unique<GroupedMatrix>();
  matrix->rows = geometry.rows;
  matrix->cols = geometry.cols;
  matrix->group = geometry.group;
  matrix->levels = parts.floats("grouped_levels");
  if (const int64_t count = length(parts, "grouped_scale_levels"); count > kMaxLevels) {
    parts.fail("grouped_scale_levels", fmt::format("{} values, expected at most {}", count, kMaxLevels));
  }
  matrix->scale_levels = parts.floats("grouped_scale_levels");
  matrix->packed = parts.get("grouped_indices").bytes;
  matrix->scales = parts.get("grouped_scales", DType::u8).bytes;
  check_scales(parts, *matrix);
  check_padding(parts, *matrix);
  matrix->low_rank = read_low_rank(parts, matrix->rows, matrix->cols);
  return matrix;
}

StoredForm describe(const Checkpoint& checkpoint, std::string_view module) {
  const ModuleParts parts(checkpoint, module);
  const Geometry geometry = read_geometry(parts);
  const int64_t k = length(parts, "grouped_levels");
  StoredForm form{.text = fmt::format("{} levels, groups of {}", k, geometry.group),
                  .dtype = DType::u8,
                  .facts = {{"codewords", k}, {"group", geometry.group}, {"low_rank", geometry.rank}}};
  if (geometry.rank > 0) form.text += fmt::format(" + rank {}", geometry.rank);
  return form;
}

}  // namespace

void GroupedMatrix::decode_rows(int64_t begin, int64_t end, std::span<float> out) const noexcept {
  const int width = bits();
  const auto byte = [this](int64_t at) { return static_cast<size_t>(packed[static_cast<size_t>(at)]); };
  for (int64_t r = begin; r < end; ++r) {
    for (int64_t c = 0; c < cols; ++c) {
      const int64_t at = r * row_bytes() + c * width / 8;
      const int64_t shift = c * width % 8;
      const size_t following = shift + width > 8 ? byte(at + 1) : 0;
      const size_t index = ((byte(at) | following << 8) >> shift) & (levels.size() - 1);
      const auto scale = static_cast<size_t>(scales[static_cast<size_t>(r * groups() + c / group)]);
      out[static_cast<size_t>((r - begin) * cols + c)] = scale_levels[scale] * levels[index];
    }
    if (low_rank.rank > 0) {
      add_low_rank(low_rank, r, out.subspan(static_cast<size_t>((r - begin) * cols), static_cast<size_t>(cols)));
    }
  }
}

std::vector<float> GroupedMatrix::weight_levels() const {
  std::vector<size_t> uses(scale_levels.size());
  for (const std::byte scale : scales) ++uses[static_cast<size_t>(scale)];
  std::vector<std::pair<float, size_t>> sizes;  // magnitude, groups
  for (size_t i = 0; i < uses.size(); ++i) sizes.emplace_back(std::fabs(scale_levels[i]), uses[i]);
  std::ranges::sort(sizes);
  size_t below = 0, median = 0;
  while (median + 1 < sizes.size() && 2 * (below + sizes[median].second) < scales.size()) {
    below += sizes[median++].second;
  }
  std::vector<float> scaled = levels;
  for (float& level : scaled) level *= sizes[median].first;
  std::ranges::sort(scaled);
  return scaled;
}

int64_t GroupedMatrix::bytes_read() const noexcept {
  const size_t tables = sizeof(float) * (levels.size() + scale_levels.size());
  return static_cast<int64_t>(packed.size() + scales.size() + tables) + low_rank.bytes();
}

constinit const Codec kGroupedCodec = {
    .id = "grouped", .parts = kParts, .shape = shape, .read = read, .describe = describe};

}  // namespace hxq
