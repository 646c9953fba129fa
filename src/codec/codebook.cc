#include "codec/codebook.h"

namespace hxq {

int64_t bytes_read(const CodebookMatrix& matrix) noexcept {
  const size_t floats = matrix.codebook.size() + matrix.low_rank.u_scaled.size() + matrix.low_rank.vt.size() +
                        matrix.channel_scales.size();
  return static_cast<int64_t>(matrix.indices.size() + sizeof(float) * floats +
                              sizeof(OutlierChange) * matrix.sidecar.value.size());
}

}  // namespace hxq
