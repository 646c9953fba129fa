// What products with matrices of any codec share on the host: their low-rank term, what makes their x, and parts of
// what they are given.

#pragma once

#include "kernels/cuda/attention.h"
#include "kernels/cuda/dense.cuh"
#include "kernels/cuda/device.cuh"
#include "kernels/cuda/linear.h"
#include "kernels/cuda/sequence.h"

namespace hxq::cuda {

/// Of workspace for x Vt^T.
template <class Weight>
size_t low_rank_bytes(const Weight& weight, int64_t tokens) {
  return round_up<256>(static_cast<size_t>(weight.rank * tokens) * sizeof(float));
}

/// product [tokens, rank] = (x / input_scales) Vt^T. `input_scales`: [cols], or null.
template <class Weight>
Status multiply_vt(const Weight& weight, const LinearArgs& args, const float* input_scales, float* product,
                   Stream stream) {
  const DenseWeight vt{.rows = weight.rank, .cols = weight.cols, .dtype = DType::f32, .data = weight.low_rank_vt};
  const LinearArgs inner{
      .x = args.x, .y = {.data = product, .stride = weight.rank, .dtype = DType::f32}, .tokens = args.tokens};
  return dense_linear(vt, inner, input_scales, stream);
}

/// Makes x if anything is to: where the source says, or at `y`.
inline Status make_x(const XSource& source, Stream stream, const Output* y = nullptr) {
  if (source.norm) {
    RmsNormArgs norm = *source.norm;
    if (y) norm.y = *y;
    return rms_norm(norm, stream);
  }
  if (source.activation) {
    GatedActivationArgs activation = *source.activation;
    if (y) activation.y = *y;
    return gated_activation(activation, stream);
  }
  return Status::ok;
}

/// `args` of tokens [first, first + count).
inline LinearArgs part_of(const LinearArgs& args, int64_t first, int64_t count) {
  LinearArgs part = args;
  part.x.data = static_cast<const char*>(args.x.data) + first * args.x.stride * element_bytes(args.x.dtype);
  part.y.data = static_cast<char*>(args.y.data) + first * args.y.stride * element_bytes(args.y.dtype);
  part.tokens = count;
  return part;
}

/// What `linear` of one of several products is given.
inline LinearArgs args_of(const FusedProduct& product, LinearArgs args) {
  args.y = product.y;
  args.bias = product.bias;
  args.accumulate = product.accumulate;
  return args;
}

}  // namespace hxq::cuda
