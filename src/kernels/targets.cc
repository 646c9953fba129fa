#include "kernels/kernels.h"

namespace hxq::kernels {

std::string_view name_of(Target target) noexcept {
  switch (target) {
    case Target::avx512:
      return "avx512";
    case Target::avx2:
      return "avx2";
    default:
      return "scalar";
  }
}

}  // namespace hxq::kernels
