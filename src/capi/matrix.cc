#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

#include "capi/handles.h"
#include "codec/codebook/encode.h"
#include "compress/policy.h"
#include "io/half.h"
#include "kernels/cpu/codebook_prepared.h"
#include "kernels/cpu/prepare.h"
#include "kernels/gradients/codebook_gradients.h"
#include "kernels/gradients/gradients.h"

using namespace hxq;
using namespace hxq::capi;
using hxq::kernels::PreparedMatrix;

namespace {

/// `count` numbers of `dtype`, rows of `cols` that are `stride` apart, as contiguous floats in `memory`.
const float* widen(const void* from, DType dtype, int64_t rows, int64_t cols, int64_t stride,
                   std::vector<float>& memory) {
  memory.resize(static_cast<size_t>(rows * cols));
  const auto* bits = static_cast<const uint16_t*>(from);
  for (int64_t r = 0; r < rows; ++r) {
    float* to = memory.data() + r * cols;
    const uint16_t* row = bits + r * stride;
    if (dtype == DType::f16) {
      std::transform(row, row + cols, to, float_from_f16);
    } else {
      std::transform(row, row + cols, to, float_from_bf16);
    }
  }
  return memory.data();
}

void narrow(const float* from, DType dtype, int64_t rows, int64_t cols, void* to, int64_t stride) {
  auto* bits = static_cast<uint16_t*>(to);
  for (int64_t r = 0; r < rows; ++r) {
    const float* row = from + r * cols;
    if (dtype == DType::f16) {
      std::transform(row, row + cols, bits + r * stride, f16_from_float);
    } else {
      std::transform(row, row + cols, bits + r * stride, bf16_from_float);
    }
  }
}

/// Where a kernel writes floats that are to end up as `dtype` at `out`.
float* output_for(void* out, DType dtype, int64_t size, std::vector<float>& memory) {
  if (dtype == DType::f32) return static_cast<float*>(out);
  memory.resize(static_cast<size_t>(size));
  return memory.data();
}

int64_t work_of(const PreparedMatrix& matrix, int64_t tokens) { return matrix.rows() * matrix.cols() * tokens; }

/// The ids as kernels take them.
const int32_t* checked_ids(const PreparedMatrix& matrix, int64_t count, const int64_t* ids,
                           std::vector<int32_t>& memory) {
  memory.resize(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i) {
    if (ids[i] < 0 || ids[i] >= matrix.rows()) {
      throw InvalidArgument(fmt::format("id {} is {}, outside the {} rows of the matrix", i, ids[i], matrix.rows()));
    }
    memory[static_cast<size_t>(i)] = static_cast<int32_t>(ids[i]);
  }
  return memory.data();
}

const CodebookMatrix& codebook_of(const hxq_matrix* handle) {
  const auto* matrix = dynamic_cast<const kernels::cpu::PreparedCodebook*>(handle->value.get());
  require(matrix != nullptr, "the matrix has no codebook");
  return matrix->stored();
}

void check_tokens(int64_t tokens) {
  if (tokens < 0) throw InvalidArgument(fmt::format("{} tokens", tokens));
}

}  // namespace

hxq_status hxq_matrix_create(const char* name, const hxq_tensor* parts, size_t count, int64_t rows, int64_t cols,
                             hxq_matrix** matrix) {
  return guard([&] {
    TensorMap tensors;
    for (size_t i = 0; i < count; ++i) {
      require(parts[i].name != nullptr, "a part of a matrix has no name");
      tensors.emplace(fmt::format("{}.{}", name, parts[i].name), capi::view_of(parts[i]));
    }
    if ((rows == 0) != (cols == 0) || rows < 0 || cols < 0) {
      throw InvalidArgument(fmt::format("shape is [{}, {}]", rows, cols));
    }
    const Checkpoint checkpoint = Checkpoint::over(std::move(tensors));
    const Shape expected = rows > 0 ? Shape{rows, cols} : Shape{};
    auto stored = read_matrix(checkpoint, name, expected);
    StoredForm form = stored->codec->describe(checkpoint, name);
    *matrix = new hxq_matrix{kernels::cpu::prepare(std::move(stored)), std::move(form)};
  });
}

void hxq_matrix_destroy(hxq_matrix* matrix) { delete matrix; }

hxq_status hxq_matrix_get_info(const hxq_matrix* handle, hxq_matrix_info* info) {
  return guard([&] {
    const PreparedMatrix& matrix = *handle->value;
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

hxq_status hxq_linear(hxq_context* context, const hxq_matrix* handle, int64_t tokens, const void* x, int32_t x_dtype,
                      int64_t x_stride, const float* bias, void* y, int32_t y_dtype, int64_t y_stride) {
  return guard([&] {
    const PreparedMatrix& matrix = *handle->value;
    const DType from = float_dtype_of(x_dtype);
    const DType to = float_dtype_of(y_dtype);
    check_tokens(tokens);
    if (tokens == 0) return;
    require(x_stride >= matrix.cols() || tokens == 1, "rows of x overlap");
    require(y_stride >= matrix.rows() || tokens == 1, "rows of y overlap");
    kernels::LinearArgs args{.x = static_cast<const float*>(x), .x_stride = x_stride, .tokens = tokens, .bias = bias};
    if (from != DType::f32) {
      args.x = widen(x, from, tokens, matrix.cols(), x_stride, context->input);
      args.x_stride = matrix.cols();
    }
    args.y = output_for(y, to, tokens * matrix.rows(), context->output);
    args.y_stride = to == DType::f32 ? y_stride : matrix.rows();
    run(*context, work_of(matrix, tokens), [&](const kernels::Context& c) { matrix.linear(args, c); });
    if (to != DType::f32) narrow(args.y, to, tokens, matrix.rows(), y, y_stride);
  });
}

hxq_status hxq_linear_transposed(hxq_context* context, const hxq_matrix* handle, int64_t tokens, const void* g,
                                 void* dx, int32_t dtype) {
  return guard([&] {
    const PreparedMatrix& matrix = *handle->value;
    const DType type = float_dtype_of(dtype);
    check_tokens(tokens);
    if (tokens == 0) return;
    const float* gradient = type == DType::f32 ? static_cast<const float*>(g)
                                               : widen(g, type, tokens, matrix.rows(), matrix.rows(), context->input);
    float* out = output_for(dx, type, tokens * matrix.cols(), context->output);
    run(*context, work_of(matrix, tokens), [&](const kernels::Context& c) {
      kernels::linear_transposed(matrix, {.g = gradient, .dx = out, .tokens = tokens}, c);
    });
    if (type != DType::f32) narrow(out, type, tokens, matrix.cols(), dx, matrix.cols());
  });
}

hxq_status hxq_codebook_gradient(hxq_context* context, const hxq_matrix* handle, int64_t tokens, const float* x,
                                 const float* g, float* gradient) {
  return guard([&] {
    check_tokens(tokens);
    const CodebookMatrix& matrix = codebook_of(handle);
    run(*context, work_of(*handle->value, tokens), [&](const kernels::Context& c) {
      kernels::codebook_gradient(matrix, {.x = x, .g = g, .tokens = tokens, .gradient = gradient}, c);
    });
  });
}

hxq_status hxq_gather_rows(hxq_context* context, const hxq_matrix* handle, int64_t count, const int64_t* ids, void* out,
                           int32_t dtype) {
  return guard([&] {
    const PreparedMatrix& matrix = *handle->value;
    const DType type = float_dtype_of(dtype);
    check_tokens(count);
    const int32_t* rows = checked_ids(matrix, count, ids, context->ids);
    float* floats = output_for(out, type, count * matrix.cols(), context->output);
    run(*context, count * matrix.cols(),
        [&](const kernels::Context& c) { matrix.gather_rows(rows, count, floats, c); });
    if (type != DType::f32) narrow(floats, type, count, matrix.cols(), out, matrix.cols());
  });
}

hxq_status hxq_gather_gradient(hxq_context* context, const hxq_matrix* handle, int64_t count, const int64_t* ids,
                               const float* g, float* gradient) {
  return guard([&] {
    check_tokens(count);
    const CodebookMatrix& matrix = codebook_of(handle);
    const int32_t* rows = checked_ids(*handle->value, count, ids, context->ids);
    run(*context, count * matrix.cols, [&](const kernels::Context& c) {
      kernels::gather_codebook_gradient(matrix, {.ids = rows, .g = g, .count = count, .gradient = gradient}, c);
    });
  });
}

hxq_status hxq_decode(hxq_context* context, const hxq_matrix* handle, void* out, int32_t dtype) {
  return guard([&] {
    const PreparedMatrix& matrix = *handle->value;
    const DType type = float_dtype_of(dtype);
    constexpr int64_t kRows = 256;
    for (int64_t first = 0; first < matrix.rows(); first += kRows) {
      const int64_t count = std::min(kRows, matrix.rows() - first);
      auto* at = static_cast<std::byte*>(out) + first * matrix.cols() * static_cast<int64_t>(size_of(type));
      float* floats = output_for(at, type, count * matrix.cols(), context->output);
      run(*context, count * matrix.cols(),
          [&](const kernels::Context& c) { matrix.decode_rows(first, first + count, floats, c); });
      if (type != DType::f32) narrow(floats, type, count, matrix.cols(), at, matrix.cols());
    }
  });
}

hxq_status hxq_would_compress(const char* role, const hxq_tensor* tensor, int32_t* answer) {
  return guard([&] {
    for (const Role known : {Role::embedding, Role::projection, Role::head}) {
      if (name_of(known) != role) continue;
      require(tensor->rank >= 0 && tensor->rank <= 4, "the tensor has more than 4 dimensions");
      const TensorView view{dtype_of(tensor->dtype), Shape(tensor->shape, tensor->shape + tensor->rank), {}};
      *answer = choose_codec(encoder_of({}), known, view.shape, view.dtype) != nullptr;
      return;
    }
    throw InvalidArgument(fmt::format("role is '{}', expected embedding, projection or head", role));
  });
}

hxq_status hxq_encode(const hxq_tensor* source, double sidecar_fraction, int32_t max_codewords, int32_t threads,
                      hxq_encoded** encoded, hxq_fidelity* fidelity) {
  return guard([&] {
    auto result = std::make_unique<hxq_encoded>();
    try {
      result->value =
          encode_codebook(capi::view_of(*source),
                          {.sidecar_fraction = sidecar_fraction, .max_codewords = max_codewords, .threads = threads});
    } catch (const Error& error) {
      throw Error(error.what(), {.tensor = source->name == nullptr ? "" : source->name});
    }
    if (fidelity != nullptr) {
      const Fidelity& f = result->value.fidelity;
      *fidelity = {f.snr_db(), f.cosine(), f.max_error, result->value.outliers};
    }
    *encoded = result.release();
  });
}

size_t hxq_encoded_count(const hxq_encoded* encoded) { return encoded->value.parts.size(); }

hxq_status hxq_encoded_part(const hxq_encoded* encoded, size_t i, hxq_tensor* part) {
  return guard([&] {
    const std::vector<EncodedPart>& parts = encoded->value.parts;
    require(i < parts.size(), "there are fewer parts");
    const EncodedPart& found = parts[i];
    *part = {.name = found.suffix.c_str(),
             .dtype = static_cast<int32_t>(found.dtype),
             .rank = static_cast<int32_t>(found.shape.size()),
             .shape = {},
             .data = found.bytes.data()};
    std::ranges::copy(found.shape, part->shape);
  });
}

void hxq_encoded_destroy(hxq_encoded* encoded) { delete encoded; }
