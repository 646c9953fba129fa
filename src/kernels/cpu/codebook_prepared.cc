#include "kernels/cpu/codebook_prepared.h"

#include <new>

#include "codec/codebook/index_packing.h"
#include "hxq/error.h"
#include "kernels/codebook_view.h"

namespace hxq::kernels::cpu {
namespace {

std::vector<OutlierChange> changes_of(const CodebookMatrix& matrix) {
  const Sidecar& sidecar = matrix.sidecar;
  std::vector<OutlierChange> changes;
  try {
    changes.reserve(sidecar.value.size());
  } catch (const std::bad_alloc&) {
    throw OutOfMemory("the outliers of a matrix", sidecar.value.size() * sizeof(OutlierChange));
  }
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

PreparedCodebook::PreparedCodebook(std::unique_ptr<const CodebookMatrix> stored)
    : CpuMatrix(*stored), stored_(std::move(stored)) {
  if (stored_->d == 1) planes_ = make_planes(stored_->codebook);
}

void PreparedCodebook::finish() const {
  std::call_once(changes_once_, [&] { changes_ = changes_of(*stored_); });
}

void PreparedCodebook::linear(const LinearArgs& args, const CpuContext& context) const noexcept {
  kernels::linear(*this, args, context);
}

void PreparedCodebook::gather_rows(const int32_t* ids, int64_t count, float* out,
                                   const CpuContext& context) const noexcept {
  kernels::gather_rows(*this, ids, count, out, context);
}

void PreparedCodebook::decode_rows(int64_t begin, int64_t end, float* out, const CpuContext& context) const noexcept {
  if (context.measures) return;
  const Range mine = context.team.share(end - begin);
  float* to = out + mine.begin * cols();
  if (stored_->low_rank.rank > 0) {
    stored_->decode_rows(begin + mine.begin, begin + mine.end,
                         {to, static_cast<size_t>((mine.end - mine.begin) * cols())});
  } else {
    ops_of(context.target)
        .decode_codebook(view_of(*this), begin + mine.begin, mine.end - mine.begin, 0, cols(), to, cols());
  }
  context.team.barrier();
}

std::unique_ptr<const CpuMatrix> prepare_codebook(std::unique_ptr<const StoredMatrix> stored) {
  const auto* matrix = static_cast<const CodebookMatrix*>(stored.release());
  return std::make_unique<PreparedCodebook>(std::unique_ptr<const CodebookMatrix>(matrix));
}

}  // namespace hxq::kernels::cpu
