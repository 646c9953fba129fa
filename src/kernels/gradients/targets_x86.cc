#include "kernels/gradients/ops.h"

namespace hxq::kernels {

const gradients::Ops& gradients::ops_of(Target target) noexcept {
  switch (target) {
    case Target::amx:
    case Target::avx512:
      return kAvx512Ops;
    case Target::avx2:
      return kAvx2Ops;
    default:
      return kScalarOps;
  }
}

}  // namespace hxq::kernels
