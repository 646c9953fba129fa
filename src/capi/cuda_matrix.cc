#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <vector>

#include "capi/cuda_call.h"
#include "codec/codec.h"
#include "kernels/cuda_device/codebook_weight.h"

using namespace hxq;
using namespace hxq::capi;

struct hxq_cuda_matrix {
  cuda::CodebookWeight weight = {};
  bool is_placed = false;
  std::vector<std::byte> arrays = {};                                      // until they are placed
  std::vector<std::function<void(const std::byte* arrays)>> setters = {};  // of the weight's fields
};

namespace {

constexpr size_t kAlignment = 256;

/// Appends values to a matrix's arrays; its field gets their address when that is known.
template <class T>
void append(hxq_cuda_matrix& matrix, const T*& field, std::span<const T> values) {
  if (values.empty()) return;
  const size_t begin = (matrix.arrays.size() + kAlignment - 1) / kAlignment * kAlignment;
  matrix.arrays.resize(begin + values.size_bytes());
  std::memcpy(matrix.arrays.data() + begin, values.data(), values.size_bytes());
  matrix.setters.emplace_back(
      [&field, begin](const std::byte* arrays) { field = reinterpret_cast<const T*>(arrays + begin); });
}

const cuda::CodebookWeight& placed(const hxq_cuda_matrix* matrix) {
  require_pointers({{"matrix", matrix}});
  require(matrix->is_placed, "the matrix has not been placed on a GPU");
  return matrix->weight;
}

/// Rows [count, cols] to read, checked.
cuda::Input input(const char* name, const hxq_rows* rows, int64_t count, int64_t cols) {
  const hxq_rows& given = not_null(rows, name);
  const DType dtype = float_dtype_of(given.dtype);
  const int64_t stride = stride_of(name, given.stride, count, cols);
  if (count * cols > 0) require_pointers({{name, given.data}});
  return {.data = given.data, .stride = stride, .dtype = dtype};
}

cuda::Output output(const char* name, const hxq_output_rows* rows, int64_t count, int64_t cols) {
  const hxq_output_rows& given = not_null(rows, name);
  const DType dtype = float_dtype_of(given.dtype);
  const int64_t stride = stride_of(name, given.stride, count, cols);
  if (count * cols > 0) require_pointers({{name, given.data}});
  return {.data = given.data, .stride = stride, .dtype = dtype};
}

void require_tokens(const cuda::CodebookWeight& weight, int64_t tokens) {
  require_count("tokens", tokens, weight.cols);
  require_count("tokens", tokens, weight.rows);
}

void clear_gradient(const CudaCall& on, const cuda::CodebookWeight& weight, float* gradient) {
  const auto entries = static_cast<size_t>(weight.k) * static_cast<size_t>(weight.d);
  on.check(on.kernels().clear(gradient, entries * sizeof(float), on.stream()), "clearing a gradient");
}

}  // namespace

hxq_status hxq_cuda_check(int32_t device) {
  return guard("opening a GPU", [&] {
    require(device >= 0, "the device's number is negative");
    const cuda::Kernels& kernels = kernels::cuda_library();
    kernels::check_gpu(kernels, device);
    hxq_cuda_call call{.device = device};
    const CudaCall on(&call);
    on.kernels().open_cublas();  // without it the kernels multiply prompts themselves
  });
}

hxq_status hxq_cuda_matrix_create(const char* name, const hxq_tensor* parts, size_t count, int64_t rows, int64_t cols,
                                  hxq_cuda_matrix** matrix) {
  return guard("reading a matrix", [&] {
    require_pointers({{"matrix", matrix}});
    const Checkpoint checkpoint = checkpoint_of(name, parts, count);
    const auto stored = read_matrix(checkpoint, name, matrix_shape_of(rows, cols));
    require_parts_of(*stored->codec, parts, count);
    if (stored->codec != &kCodebookCodec) {
      throw Error(
          fmt::format("{}: matrices of codec '{}' have no kernels for NVIDIA GPUs: keep the module on the CPU, "
                      "or make it dense first",
                      name, stored->codec->id));
    }
    auto made = std::make_unique<hxq_cuda_matrix>();
    kernels::describe(static_cast<const CodebookMatrix&>(*stored), made->weight,
                      [&](auto& field, auto values) { append(*made, field, values); });
    *matrix = made.release();
  });
}

void hxq_cuda_matrix_destroy(hxq_cuda_matrix* matrix) { delete matrix; }

hxq_status hxq_cuda_matrix_arrays(const hxq_cuda_matrix* matrix, const void** data, size_t* bytes) {
  return guard("describing a matrix", [&] {
    require_pointers({{"matrix", matrix}, {"data", data}, {"bytes", bytes}});
    require(!matrix->is_placed, "the matrix has been placed already");
    *data = matrix->arrays.data();
    *bytes = matrix->arrays.size();
  });
}

hxq_status hxq_cuda_matrix_place(hxq_cuda_matrix* matrix, const void* indices, const void* arrays) {
  return guard("placing a matrix", [&] {
    require_pointers({{"matrix", matrix}, {"indices", indices}, {"arrays", arrays}});
    require(!matrix->is_placed, "the matrix has been placed already");
    matrix->weight.indices = indices;
    for (const auto& set : matrix->setters) set(static_cast<const std::byte*>(arrays));
    matrix->arrays = {};
    matrix->is_placed = true;
  });
}

hxq_status hxq_cuda_linear(hxq_cuda_call* call, const hxq_cuda_matrix* matrix, const hxq_linear_args* given) {
  return guard("multiplying", [&] {
    const cuda::CodebookWeight& weight = placed(matrix);
    CudaCall on(call);
    const hxq_linear_args& args = not_null(given, "args");
    require_tokens(weight, args.tokens);
    const Precision precision = precision_of(args.precision);
    if (!on.begins(on.kernels().codebook_linear_workspace(weight, args.tokens))) return;
    on.check(on.kernels().codebook_linear(
                 weight,
                 {.x = input("x", &args.x, args.tokens, weight.cols),
                  .y = output("y", &args.y, args.tokens, weight.rows),
                  .tokens = args.tokens,
                  .bias = args.bias,
                  .precision = precision == Precision::exact ? cuda::Precision::exact : cuda::Precision::fast,
                  .workspace = on.workspace()},
                 on.stream()),
             "a product");
  });
}

hxq_status hxq_cuda_linear_transposed(hxq_cuda_call* call, const hxq_cuda_matrix* matrix, int64_t tokens,
                                      const hxq_rows* g, const hxq_output_rows* dx) {
  return guard("multiplying with the transpose", [&] {
    const cuda::CodebookWeight& weight = placed(matrix);
    CudaCall on(call);
    require_tokens(weight, tokens);
    if (!on.begins(0)) return;
    on.check(
        on.kernels().linear_transposed(
            weight,
            {.g = input("g", g, tokens, weight.rows), .dx = output("dx", dx, tokens, weight.cols), .tokens = tokens},
            on.stream()),
        "a product with the transpose");
  });
}

hxq_status hxq_cuda_codebook_gradient(hxq_cuda_call* call, const hxq_cuda_matrix* matrix, int64_t tokens,
                                      const float* x, const float* g, float* gradient) {
  return guard("computing a codebook's gradient", [&] {
    const cuda::CodebookWeight& weight = placed(matrix);
    CudaCall on(call);
    require_tokens(weight, tokens);
    require_pointers({{"gradient", gradient}});
    if (tokens > 0) require_pointers({{"x", x}, {"g", g}});
    if (!on.begins(0)) return;
    clear_gradient(on, weight, gradient);
    on.check(on.kernels().codebook_gradient(weight,
                                            {.x = {.data = x, .stride = weight.cols, .dtype = DType::f32},
                                             .g = {.data = g, .stride = weight.rows, .dtype = DType::f32},
                                             .tokens = tokens,
                                             .gradient = gradient},
                                            on.stream()),
             "a codebook's gradient");
  });
}

hxq_status hxq_cuda_gather_rows(hxq_cuda_call* call, const hxq_cuda_matrix* matrix, int64_t count, const int32_t* ids,
                                const hxq_output_rows* out) {
  return guard("decoding rows", [&] {
    const cuda::CodebookWeight& weight = placed(matrix);
    CudaCall on(call);
    require_count("count", count, weight.cols);
    if (!on.begins(0) || count == 0) return;
    require_pointers({{"ids", ids}});
    on.check(on.kernels().codebook_gather_rows(
                 weight, {.ids = ids, .count = count, .out = output("out", out, count, weight.cols)}, on.stream()),
             "looking up rows");
  });
}

hxq_status hxq_cuda_gather_gradient(hxq_cuda_call* call, const hxq_cuda_matrix* matrix, int64_t count,
                                    const int32_t* ids, const float* g, float* gradient) {
  return guard("computing a codebook's gradient", [&] {
    const cuda::CodebookWeight& weight = placed(matrix);
    CudaCall on(call);
    require_count("count", count, weight.cols);
    require_pointers({{"gradient", gradient}});
    if (count > 0) require_pointers({{"ids", ids}, {"g", g}});
    if (!on.begins(0)) return;
    clear_gradient(on, weight, gradient);
    on.check(on.kernels().gather_gradient(weight,
                                          {.ids = ids,
                                           .count = count,
                                           .g = {.data = g, .stride = weight.cols, .dtype = DType::f32},
                                           .gradient = gradient},
                                          on.stream()),
             "a codebook's gradient");
  });
}

hxq_status hxq_cuda_decode(hxq_cuda_call* call, const hxq_cuda_matrix* matrix, const hxq_output_rows* out) {
  return guard("decoding a matrix", [&] {
    cuda::CodebookWeight weight = placed(matrix);
    CudaCall on(call);
    weight.channel_scales = nullptr;
    if (!on.begins(0)) return;
    on.check(on.kernels().decode_rows(
                 weight, {.rows = weight.rows, .out = output("out", out, weight.rows, weight.cols)}, on.stream()),
             "decoding a matrix");
  });
}
