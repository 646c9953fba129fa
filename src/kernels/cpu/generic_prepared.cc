#include "kernels/cpu/generic_prepared.h"

#include <algorithm>

#include "kernels/input_transform.h"

namespace hxq::kernels::cpu {
namespace {

/// Weights of a panel: 2 MB of floats, which stay in the caches until they are multiplied.
constexpr int64_t kPanelWeights = int64_t{1} << 19;

}  // namespace

void GenericMatrix::linear(const LinearArgs& args, const CpuContext& context) const noexcept {
  if (args.tokens == 0) return;
  const LinearArgs whole = transform_input(stored_->transform(), args, context);
  const int64_t panel_rows = std::min(rows(), std::max<int64_t>(16, kPanelWeights / std::max<int64_t>(1, cols())));
  float* panel = context.shared(Scratch::kDecodedPanel, panel_rows * cols());
  for (int64_t begin = 0; begin < rows(); begin += panel_rows) {
    const int64_t end = std::min(begin + panel_rows, rows());
    decode_rows(begin, end, panel, context);
    LinearArgs part = whole;
    part.y += begin;
    if (part.bias != nullptr) part.bias += begin;
    const DenseMatrix decoded{
        .rows = end - begin, .cols = cols(), .dtype = DType::f32, .data = reinterpret_cast<const std::byte*>(panel)};
    kernels::linear(decoded, part, context);
  }
}

void GenericMatrix::gather_rows(const int32_t* ids, int64_t count, float* out,
                                const CpuContext& context) const noexcept {
  if (context.measures) return;
  const Range mine = context.team.share(count);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    decode_dense_rows(*stored_, ids[i], ids[i] + 1, {out + i * cols(), static_cast<size_t>(cols())});
  }
  context.team.barrier();
}

void GenericMatrix::decode_rows(int64_t begin, int64_t end, float* out, const CpuContext& context) const noexcept {
  if (context.measures) return;
  const Range mine = context.team.share(end - begin);
  stored_->decode_rows(begin + mine.begin, begin + mine.end,
                       {out + mine.begin * cols(), static_cast<size_t>((mine.end - mine.begin) * cols())});
  context.team.barrier();
}

}  // namespace hxq::kernels::cpu
