#include "codec/codebook/encode.h"

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "codec/check_source.h"
#include "codec/codebook/assign.h"
#include "codec/codebook/codec.h"
#include "codec/codebook/fit.h"
#include "codec/codebook/value_histogram.h"
#include "hxq/error.h"
#include "io/threads.h"

namespace hxq {
namespace {

constexpr int32_t kMaxCodewords = 256;

constexpr Profile kProfiles[] = {{"hxq", 8}};

void check(const TensorView& source, const CodebookOptions& options) {
  check_source(source);
  if (!(options.sidecar_fraction >= 0 && options.sidecar_fraction <= 1)) {
    throw Error(fmt::format("sidecar fraction is {}, expected 0 to 1", options.sidecar_fraction));
  }
  if (options.max_codewords < 1 || options.max_codewords > kMaxCodewords) {
    throw Error(fmt::format("{} codewords, expected 1 to 256", options.max_codewords));
  }
  if (options.threads < 0) throw Error(fmt::format("{} threads, expected 0 or more", options.threads));
}

template <class T>
EncodedPart part_of(const char* suffix, DType dtype, const std::vector<T>& values) {
  EncodedPart part{
      suffix, dtype, {static_cast<int64_t>(values.size())}, std::vector<std::byte>(values.size() * sizeof(T))};
  std::memcpy(part.bytes.data(), values.data(), part.bytes.size());
  return part;
}

int64_t expected_bytes(const Shape& shape, const EncodeOptions&) noexcept {
  return shape[0] * shape[1] + kMaxCodewords * static_cast<int64_t>(sizeof(float));
}

std::vector<PartPlan> largest_parts(const Shape& shape, const EncodeOptions&) {
  const int64_t weights = element_count(shape);
  return {{"codebook", DType::f32, {kMaxCodewords}},
          {"indices", DType::u8, shape},
          {"sidecar_positions", DType::i64, {weights}},
          {"sidecar_values", DType::f32, {weights}}};
}

EncodedTensor encode(const TensorView& source, const EncodeOptions& options) {
  return encode_codebook(
      source,
      {.sidecar_fraction = options.sidecar_fraction, .max_codewords = kMaxCodewords, .threads = options.threads});
}

nlohmann::json config(const EncodeOptions&) {
  return {{"bits", 8},
          {"n_clusters", kMaxCodewords},
          {"codebook_size", kMaxCodewords},
          {"vector_dim", 1},
          {"sidecar_enabled", true}};
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
  std::vector<EncodedPart>& parts = encoded.parts;
  parts.push_back(part_of("codebook", DType::f32, fit.levels));
  parts.push_back({"indices", DType::u8, source.shape, std::vector<std::byte>(static_cast<size_t>(count))});
  const Assignment assignment = assign(source, histogram, fit, threads, parts.back().bytes);
  encoded.fidelity = assignment.fidelity;
  encoded.outliers = static_cast<int64_t>(assignment.outliers.size());
  if (encoded.outliers > 0) {
    std::vector<float> values;
    values.reserve(assignment.outliers.size());
    for (int64_t position : assignment.outliers) values.push_back(element_at(source, position));
    parts.push_back(part_of("sidecar_positions", DType::i64, assignment.outliers));
    parts.push_back(part_of("sidecar_values", DType::f32, values));
  }
  return encoded;
}

constinit const Encoder kCodebookEncoder = {.codec = &kCodebookCodec,
                                            .keeps_outliers = true,
                                            .profiles = kProfiles,
                                            .expected_bytes = expected_bytes,
                                            .largest_parts = largest_parts,
                                            .encode = encode,
                                            .config = config};

}  // namespace hxq
