#include "codec/check_source.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "hxq/error.h"

namespace hxq {

void check_source(const TensorView& source) {
  if (source.shape.size() != 2) {
    throw Error(fmt::format("shape is {}, expected a matrix [rows, cols]", to_string(source.shape)));
  }
  if (!is_float(source.dtype)) {
    throw Error(fmt::format("dtype is {}, expected F32, F16 or BF16", name_of(source.dtype)));
  }
  const auto count = static_cast<uint64_t>(source.size());
  if (count == 0) throw Error(fmt::format("shape {} has no elements, expected at least one", to_string(source.shape)));
  if (count > source.bytes.size() || source.bytes.size() != count * size_of(source.dtype)) {
    throw Error(fmt::format("{} bytes, expected {} of {} each", source.bytes.size(), count, size_of(source.dtype)));
  }
}

void throw_not_finite(const TensorView& source) {
  const std::vector<float> values = to_float(source);
  const auto is_bad = [](float value) { return !std::isfinite(value); };
  const auto first = std::ranges::find_if(values, is_bad);
  throw Error(fmt::format("{} of {} values are not finite, the first ({}) at flat position {}; expected finite weights",
                          std::ranges::count_if(values, is_bad), values.size(), *first, first - values.begin()));
}

}  // namespace hxq
