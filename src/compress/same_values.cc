#include "compress/same_values.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <vector>

namespace hxq {
namespace {

constexpr int64_t kBlock = int64_t{1} << 18;  // elements compared at a time

TensorView part(const TensorView& tensor, int64_t begin, int64_t end) {
  const size_t size = size_of(tensor.dtype);
  return {tensor.dtype,
          {end - begin},
          tensor.bytes.subspan(static_cast<size_t>(begin) * size, static_cast<size_t>(end - begin) * size)};
}

/// Exact for every floating-point dtype.
std::vector<double> to_double(const TensorView& tensor) {
  std::vector<double> values(static_cast<size_t>(tensor.size()));
  if (tensor.dtype == DType::f64) {
    std::memcpy(values.data(), tensor.bytes.data(), tensor.bytes.size());
  } else {
    std::ranges::copy(to_float(tensor), values.begin());
  }
  return values;
}

bool has_values(DType dtype) { return is_float(dtype) || dtype == DType::f64; }

}  // namespace

bool same_values(const TensorView& a, const TensorView& b) {
  if (a.dtype == b.dtype) return std::ranges::equal(a.bytes, b.bytes);
  if (!has_values(a.dtype) || !has_values(b.dtype) || a.size() != b.size()) return false;
  const auto same = [](double x, double y) { return x == y || (std::isnan(x) && std::isnan(y)); };
  for (int64_t begin = 0; begin < a.size(); begin += kBlock) {
    const int64_t end = std::min(begin + kBlock, a.size());
    if (!std::ranges::equal(to_double(part(a, begin, end)), to_double(part(b, begin, end)), same)) return false;
  }
  return true;
}

}  // namespace hxq
