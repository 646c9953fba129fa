// Which kernel multiplies: one short chooser for each kind of matrix.

#include <algorithm>

#include "kernels/cuda/any_codebook.cuh"
#include "kernels/cuda/batch_gemv.cuh"
#include "kernels/cuda/dense.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/linear_parts.cuh"
#include "kernels/cuda/prefill.cuh"
#include "kernels/cuda/skinny_gemm.cuh"
#include "kernels/cuda/tile_gemm.cuh"

namespace hxq::cuda {
namespace {

bool are_valid(const LinearArgs& args) {
  return args.tokens >= 0 && is_activation(args.x.dtype) && is_activation(args.y.dtype);
}

bool is_best_in_panels(const CodebookWeight& weight, const LinearArgs& args) {
  return supports_prefill(weight, args) &&
         !(supports_tile_gemm(weight, args) && tile_gemm_beats_panels(weight, args.tokens));
}

}  // namespace

size_t linear_workspace(const CodebookWeight& weight, int64_t tokens) noexcept {
  const size_t own = low_rank_bytes(weight, tokens) +
                     std::max(codebook_gemm_workspace(weight, tokens), tile_gemm_workspace(weight, tokens));
  return std::max(own, prefill_workspace(weight, tokens));
}

size_t linear_workspace(const DenseWeight&, int64_t) noexcept { return 0; }

Status linear(const CodebookWeight& weight, const LinearArgs& args, Stream stream) noexcept {
  if (!are_valid(args) || args.workspace.bytes < linear_workspace(weight, args.tokens)) return Status::invalid_value;
  if (args.tokens == 0 || weight.rows == 0) return Status::ok;
  FusedProduct one{.weight = weight, .y = args.y, .bias = args.bias, .accumulate = args.accumulate};
  if (is_best_in_panels(weight, args)) return prefill_products(args, {}, {&one, 1}, stream);
  float* product = nullptr;
  LinearArgs rest = args;
  const bool in_gemv = args.tokens == 1 && weight.rank <= kGemvMaxRank && supports_codebook_gemv(weight);
  if (weight.rank > 0 && !in_gemv) {
    product = static_cast<float*>(args.workspace.data);
    const size_t used = low_rank_bytes(weight, args.tokens);
    rest.workspace = {.data = static_cast<char*>(args.workspace.data) + used, .bytes = args.workspace.bytes - used};
    if (const Status status = multiply_vt(weight, args, weight.channel_scales, product, stream); status != Status::ok)
      return status;
  }
  one.low_rank_product = product;
  if (supports_batch_gemv(weight, args)) return batch_gemv(rest, {&one, 1}, stream);
  if (supports_skinny_gemm(weight, args)) return skinny_gemm(rest, {&one, 1}, stream);
  if (supports_tile_gemm(weight, args)) return tile_gemm(weight, rest, product, stream);
  if (args.tokens > 1 && supports_codebook_gemm(weight)) return codebook_gemm(rest, &one, 1, stream);
  if (!supports_codebook_gemv(weight)) return any_codebook_linear(weight, rest, product, stream);
  for (int64_t t = 0; t < args.tokens; ++t) {
    const LinearArgs part = part_of(args, t, 1);
    FusedProduct of_token = one;
    of_token.y = part.y;
    if (product) of_token.low_rank_product = product + t * weight.rank;
    if (const Status status = codebook_gemv({.x = part.x}, {&of_token, 1}, stream); status != Status::ok) {
      return status;
    }
  }
  return Status::ok;
}

Status joint_linear(const LinearArgs& args, const XSource& source, const FusedProduct* products, int64_t count,
                    Stream stream) noexcept {
  if (count < 1 || count > kMaxFusedProducts || !are_valid(args)) return Status::invalid_value;
  bool together = args.tokens > 1, in_panels = true;
  CodebookWeight all = products[0].weight;  // as large as all of them
  all.rows = 0;
  for (int64_t i = 0; i < count; ++i) {
    const CodebookWeight& weight = products[i].weight;
    if (weight.cols != all.cols) return Status::invalid_value;
    all.rows += weight.rows;
    if (!is_activation(products[i].y.dtype)) return Status::invalid_value;
    const bool has_room = weight.rows > 0 && args.workspace.bytes >= linear_workspace(weight, args.tokens);
    together &= has_room && supports_joint_gemm(weight, args.precision);
    in_panels &= has_room && is_best_in_panels(weight, args_of(products[i], args));
  }
  if (in_panels) return prefill_products(args, source, {products, static_cast<size_t>(count)}, stream);
  Status status = make_x(source, stream);
  if (status != Status::ok) return status;
  if (together && supports_batch_gemv(all, args)) {
    return batch_gemv(args, {products, static_cast<size_t>(count)}, stream);
  }
  if (together && supports_skinny_gemm(all, args)) {
    return skinny_gemm(args, {products, static_cast<size_t>(count)}, stream);
  }
  constexpr int64_t kMostJointTokens = 64;  // so few want one launch for all of them
  const bool apart = (count == 1 || args.tokens > kMostJointTokens) && supports_tile_gemm(all, args);
  if (together && !supports_prefill(all, args) && !apart) {
    return codebook_gemm(args, products, count, stream);
  }
  for (int64_t i = 0; i < count && status == Status::ok; ++i) {
    status = linear(products[i].weight, args_of(products[i], args), stream);
  }
  return status;
}

Status linear(const DenseWeight& weight, const LinearArgs& args, Stream stream) noexcept {
  if (!are_valid(args) || !is_activation(weight.dtype)) return Status::invalid_value;
  if (args.tokens == 0 || weight.rows == 0) return Status::ok;
  return dense_linear(weight, args, nullptr, stream);
}

}  // namespace hxq::cuda
