#include "kernels/gradients/codebook_gradients.h"

#include <algorithm>

#include "codec/codebook/index_packing.h"
#include "kernels/gradients/ops.h"

namespace hxq::kernels {
namespace {

/// Rows of g^T x whose sums per codeword are made apart and then added in order, so that the team does not matter.
constexpr int64_t kParts = 16;

/// Adds g^T x of one weight row, [cols], to the sums of its codewords.
void add_row(const CodebookMatrix& weight, int64_t row, const float* product, double* sums) {
  const int64_t codes = weight.cols / weight.d;
  const Sidecar& sidecar = weight.sidecar;
  size_t outlier = sidecar.first_of(row);
  for (int64_t c = 0; c < weight.cols; ++c) {
    if (outlier < sidecar.row.size() && sidecar.row[outlier] == row && sidecar.col[outlier] == c) {
      ++outlier;
      continue;
    }
    const int64_t code = index_at(weight.layout, weight.indices, row * codes + c / weight.d);
    sums[code * weight.d + c % weight.d] += static_cast<double>(product[c]);
  }
}

/// Sums of kParts parts, [kParts, k * d] in doubles, in the team's memory.
double* clear_sums(const CodebookMatrix& weight, const CpuContext& context) {
  const int64_t size = int64_t{weight.k} * weight.d;
  float* memory = context.shared(Scratch::kPackedInput, 2 * kParts * size);
  auto* sums = reinterpret_cast<double*>(memory);
  if (context.measures) return sums;
  const Range mine = context.team.share(kParts);
  std::fill(sums + mine.begin * size, sums + mine.end * size, 0.0);
  return sums;
}

void finish_sums(const CodebookMatrix& weight, const double* sums, float* gradient, const CpuContext& context) {
  context.team.barrier();
  const int64_t size = int64_t{weight.k} * weight.d;
  const Range mine = context.team.share(size);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    double sum = 0;
    for (int64_t part = 0; part < kParts; ++part) sum += sums[part * size + i];
    gradient[i] = static_cast<float>(sum);
  }
  context.team.barrier();
}

}  // namespace

void codebook_gradient(const CodebookMatrix& weight, const CodebookGradientArgs& args,
                       const CpuContext& context) noexcept {
  const gradients::Ops& ops = gradients::ops_of(context.target);
  double* sums = clear_sums(weight, context);
  float* product = context.own(weight.cols);
  if (context.measures) return;
  context.team.barrier();
  const Range mine = context.team.share(kParts);
  for (int64_t part = mine.begin; part < mine.end; ++part) {
    for (int64_t row = weight.rows * part / kParts; row < weight.rows * (part + 1) / kParts; ++row) {
      std::fill_n(product, weight.cols, 0.0f);
      for (int64_t t = 0; t < args.tokens; ++t) {
        ops.add_scaled(args.g[t * weight.rows + row], args.x + t * weight.cols, product, weight.cols);
      }
      for (size_t c = 0; c < weight.channel_scales.size(); ++c) product[c] /= weight.channel_scales[c];
      add_row(weight, row, product, sums + part * weight.k * weight.d);
    }
  }
  finish_sums(weight, sums, args.gradient, context);
}

void gather_codebook_gradient(const CodebookMatrix& weight, const GatherGradientArgs& args,
                              const CpuContext& context) noexcept {
  double* sums = clear_sums(weight, context);
  float* scaled = context.own(weight.cols);
  if (context.measures) return;
  context.team.barrier();
  const Range mine = context.team.share(kParts);
  for (int64_t part = mine.begin; part < mine.end; ++part) {
    for (int64_t i = args.count * part / kParts; i < args.count * (part + 1) / kParts; ++i) {
      const float* g = args.g + i * weight.cols;
      for (size_t c = 0; c < weight.channel_scales.size(); ++c) scaled[c] = g[c] / weight.channel_scales[c];
      add_row(weight, args.ids[i], weight.channel_scales.empty() ? g : scaled, sums + part * weight.k * weight.d);
    }
  }
  finish_sums(weight, sums, args.gradient, context);
}

}  // namespace hxq::kernels
