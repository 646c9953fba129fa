#pragma once

#include <memory>
#include <variant>
#include <vector>

#include "kernels/cuda/grouped.h"
#include "kernels/device.h"

namespace hxq::kernels {

class CudaDevice;

/// A matrix in the memory of a GPU: a codebook or groups as they are stored, or dense.
class CudaMatrix final : public PreparedMatrix {
 public:
  using View = std::variant<cuda::CodebookWeight, cuda::GroupedWeight, cuda::DenseWeight>;

  CudaMatrix(const StoredMatrix& stored, const View& view, std::vector<DeviceArray<std::byte>> memory,
             int64_t bytes_read)
      : PreparedMatrix(stored), view_(view), memory_(std::move(memory)), bytes_read_(bytes_read) {}

  const View& view() const noexcept { return view_; }
  int64_t bytes_read() const noexcept override { return bytes_read_; }

 private:
  View view_;
  std::vector<DeviceArray<std::byte>> memory_;  // what the view is over
  int64_t bytes_read_;
};

/// Copies the matrix to the device, unless its bytes are lent. Of codecs that it has no kernels for: decoded, as F32.
/// Throws `OutOfMemory`.
std::unique_ptr<const CudaMatrix> prepare_for_cuda(const StoredMatrix& stored, const CudaDevice& device);

}  // namespace hxq::kernels
