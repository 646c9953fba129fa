#pragma once

#include <vector>

#include "kernels/batch.h"

namespace hxq::kernels {

/// A batch on the CPU of sequences that are equally long here and have seen as many tokens before.
class UniformBatch {
 public:
  UniformBatch(int64_t sequences, int64_t tokens, int64_t position = 0) {
    for (int64_t s = 0; s < sequences; ++s) {
      segments_.push_back({static_cast<int32_t>(s * tokens), static_cast<int32_t>((s + 1) * tokens)});
      for (int64_t t = 0; t < tokens; ++t) positions_.push_back(static_cast<int32_t>(position + t));
    }
  }

  /// Valid while this is.
  Batch view() const noexcept {
    return {.rows = static_cast<int64_t>(positions_.size()),
            .segments = static_cast<int64_t>(segments_.size()),
            .segment = segments_.data(),
            .position = positions_.data()};
  }

  /// [sequences]: addresses of states that lie `stride` floats apart.
  std::vector<void*> states(float* first, int64_t stride) const {
    std::vector<void*> addresses;
    for (size_t s = 0; s < segments_.size(); ++s) addresses.push_back(first + static_cast<int64_t>(s) * stride);
    return addresses;
  }

 private:
  std::vector<RowRange> segments_;
  std::vector<int32_t> positions_;
};

}  // namespace hxq::kernels
