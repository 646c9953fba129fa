// Every instruction set against the scalar decoder: weights bit for bit, products within what rounding may do.

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

#include "codec/grouped/matrix.h"
#include "codec/stored_tensors.h"
#include "fuzz/readers.h"
#include "hxq/error.h"
#include "io/safetensors.h"
#include "kernels/cpu_context.h"
#include "kernels/grouped_rounding.h"
#include "kernels/kernels.h"
#include "layers/weight.h"

namespace hxq::fuzz {
namespace {

constexpr int64_t kMaxWeights = 1 << 14;
/// Of the largest |x| times the sum of a row's |w|: x is rounded to 11 bits at the coarsest. An outlier is added as its
/// difference from the level that it replaces, so that level counts as well.
constexpr double kRounding = 1.0 / 512;

[[noreturn]] void report(const std::string& what) {
  std::fprintf(stderr, "%s\n", what.c_str());
  std::abort();
}

std::vector<float> some_x(int64_t count) {
  std::vector<float> x(static_cast<size_t>(count));
  uint32_t state = 1;
  for (float& value : x) {
    state = state * 1664525u + 1013904223u;
    value = static_cast<float>(static_cast<int32_t>(state)) * 0x1p-31f;
  }
  return x;
}

/// The matrix as it would be without outliers; as it is where it has none.
std::vector<float> without_outliers(const Checkpoint& checkpoint, const std::string& module, size_t weights) {
  TensorMap tensors = checkpoint.tensors();
  std::erase_if(tensors, [](const auto& tensor) { return tensor.first.find(".sidecar_") != std::string::npos; });
  const Checkpoint plain = Checkpoint::over(std::move(tensors));
  const auto matrix = read_matrix(plain, module);
  std::vector<float> rows(weights);
  decode_dense_rows(*matrix, 0, matrix->rows, rows);
  return rows;
}

/// `replaced`: the weights without outliers; weight_error: what those of a row may be off by, none for exact ones.
void check_products(const Weight& weight, const std::vector<float>& rows, const std::vector<float>& replaced,
                    const std::vector<double>& weight_error, int64_t tokens, Phase phase, Target target) {
  const int64_t cols = weight->cols();
  const std::vector<float> x = some_x(tokens * cols);
  std::vector<float> y(static_cast<size_t>(tokens * weight->rows()));
  kernels::Scratch scratch(1);
  kernels::run_on_cpu(1, target, scratch, [&](const kernels::Context& context) {
    kernels::linear(
        *weight,
        {.x = x.data(), .x_stride = cols, .y = y.data(), .y_stride = weight->rows(), .tokens = tokens, .phase = phase},
        context);
  });
  for (int64_t r = 0; r < weight->rows(); ++r) {
    for (int64_t t = 0; t < tokens; ++t) {
      double sum = 0, size = 0;
      for (int64_t c = 0; c < cols; ++c) {
        const double w = rows[static_cast<size_t>(r * cols + c)];
        sum += w * x[static_cast<size_t>(t * cols + c)];
        size += std::max(std::abs(w), std::abs(double{replaced[static_cast<size_t>(r * cols + c)]}));
      }
      if (size > 1e30) continue;  // floats may overflow on the way
      const double rounded = weight_error.empty() || target == Target::scalar
                                 ? 0
                                 : weight_error[static_cast<size_t>(r)] * static_cast<double>(cols);
      const double got = y[static_cast<size_t>(t * weight->rows() + r)];
      if (std::abs(got - sum) <= kRounding * size + rounded + 1e-30) continue;
      report(
          fmt::format("a product is off on {}: phase {}, {} tokens, [{}, {}]: {} for {}, of numbers that sum up to {}",
                      name_of(target), static_cast<int>(phase), tokens, t, r, got, sum, size));
    }
  }
}

void check_matrix(const Checkpoint& checkpoint, const StoredTensor& stored) {
  const auto matrix = read_matrix(checkpoint, stored.module);
  if (matrix->rows == 0 || matrix->cols == 0 || matrix->rows * matrix->cols > kMaxWeights) return;
  std::vector<float> rows(static_cast<size_t>(matrix->rows * matrix->cols));
  decode_dense_rows(*matrix, 0, matrix->rows, rows);
  for (const float value : rows) {
    if (!std::isfinite(value)) return;
  }
  const std::vector<float> replaced = without_outliers(checkpoint, stored.module, rows.size());
  std::vector<double> weight_error;
  if (const auto* grouped = dynamic_cast<const GroupedMatrix*>(matrix.get())) {
    for (int64_t r = 0; r < matrix->rows; ++r) weight_error.push_back(kernels::largest_weight_error(*grouped, r));
  }
  const Weight weight =
      load_matrix(checkpoint, {.name = stored.name, .shape = {matrix->rows, matrix->cols}, .role = Role::projection},
                  kernels::cpu_device());
  weight->finish();
  std::vector<int32_t> ids;
  for (int64_t r = 0; r < matrix->rows; ++r) ids.push_back(static_cast<int32_t>(r));
  for (const Target target : kernels::supported_targets()) {
    std::vector<float> gathered(rows.size());
    kernels::Scratch scratch(1);
    kernels::run_on_cpu(1, target, scratch, [&](const kernels::Context& context) {
      kernels::gather_rows(*weight, ids.data(), matrix->rows, gathered.data(), context);
    });
    if (std::memcmp(gathered.data(), rows.data(), 4 * rows.size()) != 0) {
      report(fmt::format("a decoded row is off on {}", name_of(target)));
    }
    for (const int64_t tokens : {1, 5})
      check_products(weight, rows, replaced, weight_error, tokens, Phase::decode, target);
    for (const int64_t tokens : {1, 130})
      check_products(weight, rows, replaced, weight_error, tokens, Phase::prefill, target);
  }
}

}  // namespace

void every_target(std::span<const std::byte> bytes) {
  const std::string repaired = with_repaired_length(bytes);
  try {
    const Checkpoint checkpoint =
        Checkpoint::over(parse_safetensors(std::as_bytes(std::span(repaired)), "fuzz").tensors);
    for (const StoredTensor& stored : list_tensors(checkpoint)) {
      try {
        if (stored.codec) check_matrix(checkpoint, stored);
      } catch (const Error&) {
      }
    }
  } catch (const Error&) {
  }
}

}  // namespace hxq::fuzz
