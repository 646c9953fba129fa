#include "codec/weights.h"

#include <algorithm>
#include <utility>

namespace hxq {
Weights::Weights(const TensorView& source, LowRank term) : source_(source), term_(std::move(term)) {}

Weights Weights::less(const LowRank& term) const {
  if (term_.rank == 0) return {source_, term};
  LowRank both{.rank = term_.rank + term.rank, .u_scaled = {}, .vt = term_.vt};
  both.vt.insert(both.vt.end(), term.vt.begin(), term.vt.end());
  for (int64_t row = 0; row < rows(); ++row) {
    for (const LowRank* part : {&term_, &term}) {
      const auto begin = part->u_scaled.begin() + row * part->rank;
      both.u_scaled.insert(both.u_scaled.end(), begin, begin + part->rank);
    }
  }
  return {source_, std::move(both)};
}

void Weights::read_source(int64_t begin, std::span<float> out) const noexcept { read_floats(source_, begin, out); }

void Weights::add(double sign, int64_t begin, std::span<float> values) const noexcept {
  const int64_t width = cols();
  for (size_t done = 0; done < values.size();) {
    const int64_t row = (begin + static_cast<int64_t>(done)) / width,
                  col = (begin + static_cast<int64_t>(done)) % width;
    const size_t count = std::min(values.size() - done, static_cast<size_t>(width - col));
    const float* u = term_.u_scaled.data() + row * term_.rank;
    const float* vt = term_.vt.data() + col;
    const double scaled = sign * u[0];
    for (size_t i = 0; i < count && term_.rank == 1; ++i) {
      values[done + i] = static_cast<float>(values[done + i] + scaled * vt[i]);
    }
    for (size_t i = 0; i < count && term_.rank > 1; ++i) {
      double sum = values[done + i];
      for (int64_t n = 0; n < term_.rank; ++n) {
        sum += sign * u[n] * vt[static_cast<size_t>(n * width) + i];
      }
      values[done + i] = static_cast<float>(sum);
    }
    done += count;
  }
}

void Weights::read(int64_t begin, std::span<float> out) const noexcept {
  read_source(begin, out);
  if (term_.rank > 0) add(-1, begin, out);
}

float Weights::at(int64_t position) const noexcept {
  float value;
  read(position, {&value, 1});
  return value;
}

void Weights::add_term(int64_t begin, std::span<float> values) const noexcept {
  if (term_.rank > 0) add(1, begin, values);
}

}  // namespace hxq
