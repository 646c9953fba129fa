#include "kernels/scratch.h"

#include <algorithm>
#include <exception>
#include <new>

namespace hxq::kernels {

void Scratch::Free::operator()(float* memory) const noexcept { ::operator delete[](memory, std::align_val_t(64)); }

void Scratch::Buffer::grow(size_t wanted) noexcept {
  floats = std::max(wanted, floats + floats / 2);
  data.reset();
  data.reset(static_cast<float*>(::operator new[](floats * sizeof(float), std::align_val_t(64))));
}

}  // namespace hxq::kernels
