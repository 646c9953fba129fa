#include <cstring>
#include <functional>
#include <memory>
#include <span>
#include <variant>
#include <vector>

#include "capi/cuda_call.h"
#include "codec/codec.h"
#include "kernels/cuda_device/codebook_weight.h"
#include "kernels/cuda_device/grouped_weight.h"
#include "kernels/cuda_device/launchers.h"

using namespace hxq;
using namespace hxq::capi;

using CudaWeight = std::variant<cuda::CodebookWeight, cuda::GroupedWeight>;

struct hxq_cuda_matrix {
  CudaWeight weight = {};
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

const CudaWeight& placed(const hxq_cuda_matrix* matrix) {
  require_pointers({{"matrix", matrix}});
  require(matrix->is_placed, "the matrix has not been placed on a GPU");
  return matrix->weight;
}

/// For what only matrices that can be trained have.
const cuda::CodebookWeight& placed_codebook(const hxq_cuda_matrix* matrix) {
  const auto* weight = std::get_if<cuda::CodebookWeight>(&placed(matrix));
  require(weight != nullptr, "the matrix has no codebook");
  return *weight;
}

void describe(const CodebookMatrix& stored, hxq_cuda_matrix& matrix) {
  kernels::describe(stored, matrix.weight.emplace<cuda::CodebookWeight>(),
                    [&](auto& field, auto values) { append(matrix, field, values); });
}

void describe(const GroupedMatrix& stored, hxq_cuda_matrix& matrix) {
  auto& weight = matrix.weight.emplace<cuda::GroupedWeight>();
  kernels::describe(stored, weight, [&](auto& field, auto values) { append(matrix, field, values); });
  append(matrix, weight.scales,
         std::span(reinterpret_cast<const uint8_t*>(stored.scales.data()), stored.scales.size()));
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

template <class Weight>
void require_tokens(const Weight& weight, int64_t tokens) {
  require_count("tokens", tokens, weight.cols);
  require_count("tokens", tokens, weight.rows);
}

// As those of launchers.h, for what the runtime does not ask for.
cuda::Status multiply_transposed(const cuda::Kernels& kernels, const cuda::CodebookWeight& weight,
                                 const cuda::LinearTransposedArgs& args, cuda::Stream stream) {
  return kernels.linear_transposed(weight, args, stream);
}
cuda::Status multiply_transposed(const cuda::Kernels& kernels, const cuda::GroupedWeight& weight,
                                 const cuda::LinearTransposedArgs& args, cuda::Stream stream) {
  return kernels.grouped_linear_transposed(weight, args, stream);
}
/// With channel scales: what x / scales is multiplied with.
cuda::Status decode(const cuda::Kernels& kernels, cuda::CodebookWeight weight, const cuda::DecodeArgs& args,
                    cuda::Stream stream) {
  weight.channel_scales = nullptr;
  return kernels.decode_rows(weight, args, stream);
}
cuda::Status decode(const cuda::Kernels& kernels, const cuda::GroupedWeight& weight, const cuda::DecodeArgs& args,
                    cuda::Stream stream) {
  return kernels.decode_grouped_rows(weight, args, stream);
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
    hxq_cuda_call call{};
    call.device = device;
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
    const bool is_grouped = stored->codec == &kGroupedCodec;
    if (stored->codec != &kCodebookCodec && !is_grouped) {
      throw Error(
          fmt::format("{}: matrices of codec '{}' have no kernels for NVIDIA GPUs: keep the module on the CPU, "
                      "or make it dense first",
                      name, stored->codec->id));
    }
    auto made = std::make_unique<hxq_cuda_matrix>();
    if (is_grouped) {
      describe(static_cast<const GroupedMatrix&>(*stored), *made);
    } else {
      describe(static_cast<const CodebookMatrix&>(*stored), *made);
    }
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
    std::visit([&](auto& weight) { weight.indices = indices; }, matrix->weight);
    for (const auto& set : matrix->setters) set(static_cast<const std::byte*>(arrays));
    matrix->arrays = {};
    matrix->is_placed = true;
  });
}

hxq_status hxq_cuda_linear(hxq_cuda_call* call, const hxq_cuda_matrix* matrix, const hxq_linear_args* given) {
  return guard("multiplying", [&] {
    const CudaWeight& placed_weight = placed(matrix);
    CudaCall on(call);
    const hxq_linear_args& args = not_null(given, "args");
    const Precision precision = precision_of(args.precision);
    std::visit(
        [&](const auto& weight) {
          require_tokens(weight, args.tokens);
          if (!on.begins(kernels::workspace_of(on.kernels(), weight, args.tokens))) return;
          const cuda::LinearArgs there{
              .x = input("x", &args.x, args.tokens, weight.cols),
              .y = output("y", &args.y, args.tokens, weight.rows),
              .tokens = args.tokens,
              .bias = args.bias,
              .precision = precision == Precision::exact ? cuda::Precision::exact : cuda::Precision::fast,
              .workspace = on.workspace()};
          on.check(kernels::multiply(on.kernels(), weight, there, on.stream()), "a product");
        },
        placed_weight);
  });
}

hxq_status hxq_cuda_linear_transposed(hxq_cuda_call* call, const hxq_cuda_matrix* matrix, int64_t tokens,
                                      const hxq_rows* g, const hxq_output_rows* dx) {
  return guard("multiplying with the transpose", [&] {
    const CudaWeight& placed_weight = placed(matrix);
    CudaCall on(call);
    std::visit(
        [&](const auto& weight) {
          require_tokens(weight, tokens);
          if (!on.begins(0)) return;
          const cuda::LinearTransposedArgs there{
              .g = input("g", g, tokens, weight.rows), .dx = output("dx", dx, tokens, weight.cols), .tokens = tokens};
          on.check(multiply_transposed(on.kernels(), weight, there, on.stream()), "a product with the transpose");
        },
        placed_weight);
  });
}

hxq_status hxq_cuda_codebook_gradient(hxq_cuda_call* call, const hxq_cuda_matrix* matrix, int64_t tokens,
                                      const float* x, const float* g, float* gradient) {
  return guard("computing a codebook's gradient", [&] {
    const cuda::CodebookWeight& weight = placed_codebook(matrix);
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
    const CudaWeight& placed_weight = placed(matrix);
    CudaCall on(call);
    std::visit(
        [&](const auto& weight) {
          require_count("count", count, weight.cols);
          if (!on.begins(0) || count == 0) return;
          require_pointers({{"ids", ids}});
          const cuda::GatherArgs there{.ids = ids, .count = count, .out = output("out", out, count, weight.cols)};
          on.check(kernels::gather(on.kernels(), weight, there, on.stream()), "looking up rows");
        },
        placed_weight);
  });
}

hxq_status hxq_cuda_gather_gradient(hxq_cuda_call* call, const hxq_cuda_matrix* matrix, int64_t count,
                                    const int32_t* ids, const float* g, float* gradient) {
  return guard("computing a codebook's gradient", [&] {
    const cuda::CodebookWeight& weight = placed_codebook(matrix);
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
    const CudaWeight& placed_weight = placed(matrix);
    CudaCall on(call);
    if (!on.begins(0)) return;
    std::visit(
        [&](const auto& weight) {
          const cuda::DecodeArgs there{.rows = weight.rows, .out = output("out", out, weight.rows, weight.cols)};
          on.check(decode(on.kernels(), weight, there, on.stream()), "decoding a matrix");
        },
        placed_weight);
  });
}
