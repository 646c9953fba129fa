#include "codec/outlier_changes.h"

#include <mutex>
#include <vector>

#include "codec/codebook.h"
#include "codec/index_packing.h"

namespace hxq {
namespace {

std::vector<OutlierChange> changes_of(const CodebookMatrix& matrix) {
  const Sidecar& sidecar = matrix.sidecar;
  std::vector<OutlierChange> changes;
  changes.reserve(sidecar.value.size());
  for (size_t row = 0; row + 1 < sidecar.row_begin.size(); ++row) {
    for (size_t i = sidecar.row_begin[row]; i < sidecar.row_begin[row + 1]; ++i) {
      const int64_t flat = static_cast<int64_t>(row) * matrix.cols + sidecar.col[i];
      const int64_t index = index_at(matrix.layout, matrix.indices, flat / matrix.d);
      const float level = matrix.codebook[static_cast<size_t>(index * matrix.d + flat % matrix.d)];
      changes.push_back({static_cast<uint32_t>(row), sidecar.col[i], sidecar.value[i] - level});
    }
  }
  return changes;
}

}  // namespace

struct OutlierChanges::Known {
  std::once_flag once = {};
  std::vector<OutlierChange> changes = {};
};

OutlierChanges::OutlierChanges() : known_(std::make_unique<Known>()) {}
OutlierChanges::OutlierChanges(const OutlierChanges&) : OutlierChanges() {}
OutlierChanges& OutlierChanges::operator=(const OutlierChanges&) { return *this = OutlierChanges(); }
OutlierChanges::OutlierChanges(OutlierChanges&&) noexcept = default;
OutlierChanges& OutlierChanges::operator=(OutlierChanges&&) noexcept = default;
OutlierChanges::~OutlierChanges() = default;

std::span<const OutlierChange> OutlierChanges::of(const CodebookMatrix& matrix) const noexcept {
  std::call_once(known_->once, [&] { known_->changes = changes_of(matrix); });
  return known_->changes;
}

}  // namespace hxq
