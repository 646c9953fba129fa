#include "kernels/codebook_facts.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <cstdint>
#include <new>

#include "codec/codebook/index_packing.h"
#include "hxq/error.h"
#include "io/half.h"

namespace hxq::kernels {
namespace {

float scale_of(std::span<const float> codebook) {
  float largest = 0;
  for (const float level : codebook) {
    if (!std::isfinite(level)) return 0;
    largest = std::max(largest, std::fabs(level));
  }
  if (largest == 0) return 1;
  int exponent = 0;
  std::frexp(largest, &exponent);  // largest in [2^(exponent - 1), 2^exponent)
  const float scale = std::ldexp(1.0f, exponent - 15);
  return scale >= FLT_MIN ? scale : 0;
}

}  // namespace

LevelScale level_scale(std::span<const float> codebook) {
  const float scale = scale_of(codebook);
  const auto is_half = [&](float level) {
    const float restored = scale * float_from_f16(f16_from_float(level / scale));
    return std::bit_cast<uint32_t>(restored) == std::bit_cast<uint32_t>(level);
  };
  return {.scale = scale, .fits_half = scale > 0 && std::ranges::all_of(codebook, is_half)};
}

std::vector<float> outlier_changes(const CodebookMatrix& matrix) {
  const Sidecar& sidecar = matrix.sidecar;
  std::vector<float> changes;
  try {
    changes.reserve(sidecar.value.size());
  } catch (const std::bad_alloc&) {
    throw OutOfMemory("the outliers of a matrix", sidecar.value.size() * sizeof(float));
  }
  for (size_t i = 0; i < sidecar.value.size(); ++i) {
    const int64_t flat = sidecar.row[i] * matrix.cols + sidecar.col[i];
    const int64_t index = index_at(matrix.layout, matrix.indices, flat / matrix.d);
    const float level = matrix.codebook[static_cast<size_t>(index * matrix.d + flat % matrix.d)];
    changes.push_back(sidecar.value[i] - level);
  }
  return changes;
}

}  // namespace hxq::kernels
