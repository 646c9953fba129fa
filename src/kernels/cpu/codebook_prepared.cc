#include "kernels/cpu/codebook_prepared.h"

#include <algorithm>

#include "kernels/codebook_facts.h"
#include "kernels/codebook_view.h"

namespace hxq::kernels::cpu {
namespace {

int64_t most_outliers_of(std::span<const uint32_t> rows) {
  size_t most = 0;
  for (size_t begin = 0, end = 0; begin < rows.size(); ++begin) {
    while (end < rows.size() && rows[end] - rows[begin] < kOutlierRows) ++end;
    most = std::max(most, end - begin);
  }
  return static_cast<int64_t>(most);
}

}  // namespace

PreparedCodebook::PreparedCodebook(std::unique_ptr<const CodebookMatrix> stored)
    : CpuMatrix(*stored), stored_(std::move(stored)), most_outliers_(most_outliers_of(stored_->sidecar.row)) {
  if (stored_->d == 1) planes_ = make_planes(stored_->codebook);
}

void PreparedCodebook::finish() const {
  std::call_once(changes_once_, [&] { changes_ = kernels::outlier_changes(*stored_); });
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
