#include "codec/codebook_encode.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>

#include "codec/codebook_assign.h"
#include "codec/codebook_fit.h"
#include "codec/value_histogram.h"
#include "hxq/error.h"
#include "io/threads.h"

namespace hxq {
namespace {

void check(const TensorView& source, const CodebookOptions& options) {
  if (source.shape.size() != 2) {
    throw Error(fmt::format("shape is {}, expected a matrix [rows, cols]", to_string(source.shape)));
  }
  if (source.dtype != DType::f32 && source.dtype != DType::f16 && source.dtype != DType::bf16) {
    throw Error(fmt::format("dtype is {}, expected F32, F16 or BF16", name_of(source.dtype)));
  }
  const auto count = static_cast<uint64_t>(source.size());
  if (count == 0) throw Error(fmt::format("shape {} has no elements, expected at least one", to_string(source.shape)));
  if (count > source.bytes.size() || source.bytes.size() != count * size_of(source.dtype)) {
    throw Error(fmt::format("{} bytes, expected {} of {} each", source.bytes.size(), count, size_of(source.dtype)));
  }
  if (!(options.sidecar_fraction >= 0 && options.sidecar_fraction <= 1)) {
    throw Error(fmt::format("sidecar fraction is {}, expected 0 to 1", options.sidecar_fraction));
  }
  if (options.max_codewords < 1 || options.max_codewords > 256) {
    throw Error(fmt::format("{} codewords, expected 1 to 256", options.max_codewords));
  }
  if (options.threads < 0) throw Error(fmt::format("{} threads, expected 0 or more", options.threads));
}

template <class T>
Plane plane_of(const char* suffix, DType dtype, const std::vector<T>& values) {
  Plane plane{suffix, dtype, {static_cast<int64_t>(values.size())}, std::vector<std::byte>(values.size() * sizeof(T))};
  std::memcpy(plane.bytes.data(), values.data(), plane.bytes.size());
  return plane;
}

}  // namespace

EncodedTensor encode_codebook(const TensorView& source, const CodebookOptions& options) {
  check(source, options);
  const int64_t count = source.size();
  // A thread is worth its tables from a quarter of a million elements on.
  const int64_t useful = std::max<int64_t>(1, count >> 18);
  const int threads =
      static_cast<int>(std::min<int64_t>(options.threads > 0 ? options.threads : available_threads(), useful));

  const ValueHistogram histogram = count_values(source, threads);
  const auto budget = static_cast<int64_t>(std::floor(options.sidecar_fraction * static_cast<double>(count)));
  const CodebookFit fit = fit_codebook(histogram, options.max_codewords, std::min(budget, count));

  EncodedTensor encoded;
  std::vector<Plane>& planes = encoded.packed.planes;
  planes.push_back(plane_of("codebook", DType::f32, fit.levels));
  planes.push_back({"indices", DType::u8, source.shape, std::vector<std::byte>(static_cast<size_t>(count))});
  const Assignment assignment = assign(source, histogram, fit, threads, planes.back().bytes);
  encoded.fidelity = assignment.fidelity;
  encoded.outliers = static_cast<int64_t>(assignment.outliers.size());
  if (encoded.outliers > 0) {
    std::vector<float> values;
    values.reserve(assignment.outliers.size());
    for (int64_t position : assignment.outliers) values.push_back(element_at(source, position));
    planes.push_back(plane_of("sidecar_positions", DType::i64, assignment.outliers));
    planes.push_back(plane_of("sidecar_values", DType::f32, values));
  }
  return encoded;
}

}  // namespace hxq
