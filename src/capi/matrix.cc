#include <fmt/format.h>

#include <algorithm>

#include "capi/arguments.h"
#include "capi/handles.h"
#include "io/half.h"
#include "kernels/cpu/codebook_prepared.h"
#include "kernels/cpu/prepare.h"
#include "kernels/gradients/codebook_gradients.h"
#include "kernels/gradients/gradients.h"

using namespace hxq;
using namespace hxq::capi;
using hxq::kernels::CpuMatrix;

namespace {

/// Rows [count, cols] of F32, F16 or BF16 as contiguous floats: the caller's own, or widened into `memory`.
const float* floats_of(const hxq_rows& rows, DType dtype, int64_t count, int64_t cols, int64_t stride,
                       std::vector<float>& memory) {
  if (dtype == DType::f32 && stride == cols) return static_cast<const float*>(rows.data);
  float* to = reserve(memory, count * cols, "the input as floats");
  for (int64_t r = 0; r < count; ++r, to += cols) {
    const auto* bits = static_cast<const uint16_t*>(rows.data) + r * stride;
    if (dtype == DType::f32) {
      std::copy_n(static_cast<const float*>(rows.data) + r * stride, cols, to);
    } else if (dtype == DType::f16) {
      std::transform(bits, bits + cols, to, float_from_f16);
    } else {
      std::transform(bits, bits + cols, to, float_from_bf16);
    }
  }
  return memory.data();
}

/// Rows that a kernel writes as floats and that end up as the caller's dtype.
class Output {
 public:
  /// The rows [count, cols] of `rows`; what they are called, for messages.
  Output(const char* name, const hxq_output_rows& rows, int64_t count, int64_t cols)
      : rows_(rows),
        dtype_(float_dtype_of(rows.dtype)),
        stride_(stride_of(name, rows.stride, count, cols)),
        cols_(cols) {
    if (count * cols > 0) require_rows(name, rows.data, dtype_);
  }

  /// Whether a kernel that writes contiguous rows can write to the caller's.
  bool direct() const { return dtype_ == DType::f32 && stride_ == cols_; }
  bool direct_with_stride() const { return dtype_ == DType::f32; }
  int64_t stride() const { return stride_; }
  float* floats(int64_t first = 0) const { return static_cast<float*>(rows_.data) + first * stride_; }

  /// Stores rows [first, first + count) that were computed as contiguous floats.
  void store(const float* from, int64_t first, int64_t count) const {
    for (int64_t r = first; r < first + count; ++r, from += cols_) {
      auto* bits = static_cast<uint16_t*>(rows_.data) + r * stride_;
      if (dtype_ == DType::f32) {
        std::copy_n(from, cols_, static_cast<float*>(rows_.data) + r * stride_);
      } else if (dtype_ == DType::f16) {
        std::transform(from, from + cols_, bits, f16_from_float);
      } else {
        std::transform(from, from + cols_, bits, bf16_from_float);
      }
    }
  }

 private:
  const hxq_output_rows& rows_;
  DType dtype_;
  int64_t stride_;
  int64_t cols_;
};

constexpr const char* kOutputFloats = "the output as floats";

int64_t work_of(const CpuMatrix& matrix, int64_t tokens) { return matrix.rows() * matrix.cols() * tokens; }

/// The ids as kernels take them.
const int32_t* checked_ids(const CpuMatrix& matrix, int64_t count, const int64_t* ids, std::vector<int32_t>& memory) {
  int32_t* rows = reserve(memory, count, "a copy of the ids");
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= matrix.rows()) {
      throw InvalidArgument(fmt::format("id {} is {}, outside the {} rows of the matrix", i, ids[i], matrix.rows()));
    }
    rows[i] = static_cast<int32_t>(ids[i]);
  }
  return rows;
}

const CpuMatrix& checked(const hxq_context* context, const hxq_matrix* matrix) {
  require_pointers({{"context", context}, {"matrix", matrix}});
  matrix->value->finish();
  return *matrix->value;
}

/// Of a matrix that `checked` was called for.
const CodebookMatrix& codebook_of(const hxq_matrix* handle) {
  const auto* matrix = dynamic_cast<const kernels::cpu::PreparedCodebook*>(handle->value.get());
  require(matrix != nullptr, "the matrix has no codebook");
  return matrix->stored();
}

}  // namespace

hxq_status hxq_matrix_create(const char* name, const hxq_tensor* parts, size_t count, int64_t rows, int64_t cols,
                             hxq_matrix** matrix) {
  return guard("reading a matrix", [&] {
    require_pointers({{"matrix", matrix}});
    const Checkpoint checkpoint = checkpoint_of(name, parts, count);
    auto stored = read_matrix(checkpoint, name, matrix_shape_of(rows, cols));
    require_parts_of(*stored->codec, parts, count);
    StoredForm form = stored->codec->describe(checkpoint, name);
    *matrix = new hxq_matrix{kernels::cpu::prepare(std::move(stored)), std::move(form)};
  });
}

void hxq_matrix_destroy(hxq_matrix* matrix) { delete matrix; }

hxq_status hxq_matrix_get_info(const hxq_matrix* handle, hxq_matrix_info* info) {
  return guard("describing a matrix", [&] {
    require_pointers({{"matrix", handle}, {"info", info}});
    const CpuMatrix& matrix = *handle->value;
    const auto fact = [&](std::string_view name) {
      const auto found = std::ranges::find(handle->form.facts, name, &Fact::name);
      return found == handle->form.facts.end() ? 0 : found->value;
    };
    *info = {.rows = matrix.rows(),
             .cols = matrix.cols(),
             .codewords = static_cast<int32_t>(fact("codewords")),
             .vector_dim = static_cast<int32_t>(fact("vector_dim")),
             .outliers = handle->form.outliers,
             .rank = fact("low_rank"),
             .bytes = matrix.bytes_read()};
  });
}

hxq_status hxq_linear(hxq_context* context, const hxq_matrix* handle, const hxq_linear_args* given) {
  return guard("multiplying", [&] {
    const CpuMatrix& matrix = checked(context, handle);
    const hxq_linear_args& call = not_null(given, "args");
    const int64_t tokens = call.tokens;
    require_count("tokens", tokens, matrix.cols());
    require_count("tokens", tokens, matrix.rows());
    const Phase phase = phase_of(call.phase);
    const Precision precision = precision_of(call.precision);
    const DType from = float_dtype_of(call.x.dtype);
    const int64_t x_stride = stride_of("x", call.x.stride, tokens, matrix.cols());
    const Output y("y", call.y, tokens, matrix.rows());
    if (tokens == 0) return;
    require_rows("x", call.x.data, from);
    require_aligned({{"bias", call.bias}});
    kernels::LinearArgs args{.x = static_cast<const float*>(call.x.data),
                             .x_stride = x_stride,
                             .tokens = tokens,
                             .phase = phase,
                             .bias = call.bias};
    if (from != DType::f32) {
      args.x = floats_of(call.x, from, tokens, matrix.cols(), x_stride, context->input);
      args.x_stride = matrix.cols();
    }
    args.y = y.direct_with_stride() ? y.floats() : reserve(context->output, tokens * matrix.rows(), kOutputFloats);
    args.y_stride = y.direct_with_stride() ? y.stride() : matrix.rows();
    run(
        *context, work_of(matrix, tokens), [&](const kernels::CpuContext& c) { matrix.linear(args, c); }, precision);
    if (!y.direct_with_stride()) y.store(args.y, 0, tokens);
  });
}

hxq_status hxq_linear_transposed(hxq_context* context, const hxq_matrix* handle, int64_t tokens, const hxq_rows* given,
                                 const hxq_output_rows* out) {
  return guard("multiplying with the transpose", [&] {
    const CpuMatrix& matrix = checked(context, handle);
    const hxq_rows& g = not_null(given, "g");
    require_count("tokens", tokens, matrix.cols());
    require_count("tokens", tokens, matrix.rows());
    const DType from = float_dtype_of(g.dtype);
    const int64_t g_stride = stride_of("g", g.stride, tokens, matrix.rows());
    const Output dx("dx", not_null(out, "dx"), tokens, matrix.cols());
    if (tokens == 0) return;
    require_rows("g", g.data, from);
    const float* gradient = floats_of(g, from, tokens, matrix.rows(), g_stride, context->input);
    float* floats = dx.direct() ? dx.floats() : reserve(context->output, tokens * matrix.cols(), kOutputFloats);
    run(*context, work_of(matrix, tokens), [&](const kernels::CpuContext& c) {
      kernels::linear_transposed(matrix, {.g = gradient, .dx = floats, .tokens = tokens}, c);
    });
    if (!dx.direct()) dx.store(floats, 0, tokens);
  });
}

hxq_status hxq_codebook_gradient(hxq_context* context, const hxq_matrix* handle, int64_t tokens, const float* x,
                                 const float* g, float* gradient) {
  return guard("computing a codebook's gradient", [&] {
    const CpuMatrix& matrix = checked(context, handle);
    require_count("tokens", tokens, matrix.cols());
    require_count("tokens", tokens, matrix.rows());
    require_pointers({{"gradient", gradient}});
    if (tokens > 0) require_pointers({{"x", x}, {"g", g}});
    const CodebookMatrix& codebook = codebook_of(handle);
    run(*context, work_of(matrix, tokens), [&](const kernels::CpuContext& c) {
      kernels::codebook_gradient(codebook, {.x = x, .g = g, .tokens = tokens, .gradient = gradient}, c);
    });
  });
}

hxq_status hxq_gather_rows(hxq_context* context, const hxq_matrix* handle, int64_t count, const int64_t* ids,
                           const hxq_output_rows* rows) {
  return guard("decoding rows", [&] {
    const CpuMatrix& matrix = checked(context, handle);
    require_count("count", count, matrix.cols());
    const Output out("out", not_null(rows, "out"), count, matrix.cols());
    if (count == 0) return;
    require_pointers({{"ids", ids}});
    const int32_t* chosen = checked_ids(matrix, count, ids, context->ids);
    float* floats = out.direct() ? out.floats() : reserve(context->output, count * matrix.cols(), kOutputFloats);
    run(*context, count * matrix.cols(),
        [&](const kernels::CpuContext& c) { matrix.gather_rows(chosen, count, floats, c); });
    if (!out.direct()) out.store(floats, 0, count);
  });
}

hxq_status hxq_gather_gradient(hxq_context* context, const hxq_matrix* handle, int64_t count, const int64_t* ids,
                               const float* g, float* gradient) {
  return guard("computing a codebook's gradient", [&] {
    const CpuMatrix& matrix = checked(context, handle);
    require_count("count", count, matrix.cols());
    require_pointers({{"gradient", gradient}});
    if (count > 0) require_pointers({{"ids", ids}, {"g", g}});
    const CodebookMatrix& codebook = codebook_of(handle);
    const int32_t* rows = checked_ids(matrix, count, ids, context->ids);
    run(*context, count * matrix.cols(), [&](const kernels::CpuContext& c) {
      kernels::gather_codebook_gradient(codebook, {.ids = rows, .g = g, .count = count, .gradient = gradient}, c);
    });
  });
}

hxq_status hxq_decode(hxq_context* context, const hxq_matrix* handle, const hxq_output_rows* rows) {
  return guard("decoding a matrix", [&] {
    const CpuMatrix& matrix = checked(context, handle);
    const Output out("out", not_null(rows, "out"), matrix.rows(), matrix.cols());
    constexpr int64_t kRows = 256;
    for (int64_t first = 0; first < matrix.rows(); first += kRows) {
      const int64_t count = std::min(kRows, matrix.rows() - first);
      float* floats = out.direct() ? out.floats(first) : reserve(context->output, count * matrix.cols(), kOutputFloats);
      run(*context, count * matrix.cols(),
          [&](const kernels::CpuContext& c) { matrix.decode_rows(first, first + count, floats, c); });
      if (!out.direct()) out.store(floats, first, count);
    }
  });
}
