#include "kernels/cuda_device/cuda_matrix.h"

#include <algorithm>

#include "codec/codec.h"
#include "kernels/cuda_device/codebook_weight.h"
#include "kernels/cuda_device/cuda_device.h"
#include "kernels/cuda_device/grouped_weight.h"

namespace hxq::kernels {
namespace {

/// The arrays of a matrix as they go to the device.
class Uploads {
 public:
  explicit Uploads(const CudaDevice& device) : device_(device) {}

  /// Null for an array without elements. Readable past its end up to the next multiple of 16 bytes.
  template <class T>
  const T* put(std::span<const T> values) {
    if (values.empty()) return nullptr;
    DeviceArray<std::byte>& array = taken(values.size_bytes());
    array.upload(std::as_bytes(values));
    return reinterpret_cast<const T*>(array.data());
  }

  /// As `put`, of bytes as they are stored; where the device has them already, no copy.
  const std::byte* put_stored(std::span<const std::byte> bytes) {
    const std::byte* lent = device_.lent(bytes.data());
    return lent != nullptr ? lent : put(bytes);
  }

  DeviceArray<std::byte>& taken(size_t bytes) {
    return memory_.emplace_back(device_, static_cast<int64_t>((bytes + 15) / 16 * 16), "a matrix");
  }

  std::vector<DeviceArray<std::byte>> memory() && { return std::move(memory_); }

 private:
  const CudaDevice& device_;
  std::vector<DeviceArray<std::byte>> memory_ = {};
};

std::unique_ptr<const CudaMatrix> prepare_exact(const StoredMatrix& stored, const CudaDevice& device) {
  const auto& matrix = static_cast<const ExactMatrix&>(stored);
  Uploads uploads(device);
  const cuda::DenseWeight view{
      .rows = matrix.rows, .cols = matrix.cols, .dtype = matrix.dtype, .data = uploads.put_stored(matrix.bytes)};
  return std::make_unique<CudaMatrix>(stored, view, std::move(uploads).memory(), stored.bytes_read());
}

std::unique_ptr<const CudaMatrix> prepare_codebook(const StoredMatrix& stored, const CudaDevice& device) {
  const auto& matrix = static_cast<const CodebookMatrix&>(stored);
  Uploads uploads(device);
  cuda::CodebookWeight view{.indices = uploads.put_stored(matrix.indices)};
  describe(matrix, view, [&]<class T>(const T*& field, std::span<const T> values) { field = uploads.put(values); });
  return std::make_unique<CudaMatrix>(stored, view, std::move(uploads).memory(), stored.bytes_read());
}

std::unique_ptr<const CudaMatrix> prepare_grouped(const StoredMatrix& stored, const CudaDevice& device) {
  const auto& matrix = static_cast<const GroupedMatrix&>(stored);
  Uploads uploads(device);
  cuda::GroupedWeight view{.indices = uploads.put_stored(matrix.packed),
                           .scales = reinterpret_cast<const uint8_t*>(uploads.put_stored(matrix.scales))};
  describe(matrix, view, [&]<class T>(const T*& field, std::span<const T> values) { field = uploads.put(values); });
  return std::make_unique<CudaMatrix>(stored, view, std::move(uploads).memory(), stored.bytes_read());
}

std::unique_ptr<const CudaMatrix> prepare_decoded(const StoredMatrix& stored, const CudaDevice& device) {
  constexpr int64_t kPanelWeights = int64_t{1} << 20;
  Uploads uploads(device);
  const auto row_bytes = static_cast<size_t>(stored.cols) * sizeof(float);
  DeviceArray<std::byte>& data = uploads.taken(static_cast<size_t>(stored.rows) * row_bytes);
  const int64_t panel_rows = std::max<int64_t>(1, kPanelWeights / std::max<int64_t>(1, stored.cols));
  std::vector<float> panel;
  for (int64_t begin = 0; begin < stored.rows; begin += panel_rows) {
    const int64_t end = std::min(begin + panel_rows, stored.rows);
    panel.resize(static_cast<size_t>((end - begin) * stored.cols));
    decode_dense_rows(stored, begin, end, panel);
    data.upload(std::as_bytes(std::span<const float>(panel)), begin * static_cast<int64_t>(row_bytes));
  }
  const cuda::DenseWeight view{.rows = stored.rows, .cols = stored.cols, .dtype = DType::f32, .data = data.data()};
  const auto bytes = static_cast<int64_t>(data.bytes());
  return std::make_unique<CudaMatrix>(stored, view, std::move(uploads).memory(), bytes);
}

}  // namespace

std::unique_ptr<const CudaMatrix> prepare_for_cuda(const StoredMatrix& stored, const CudaDevice& device) {
  if (stored.codec == nullptr) return prepare_exact(stored, device);
  if (stored.codec == &kCodebookCodec) return prepare_codebook(stored, device);
  if (stored.codec == &kGroupedCodec) return prepare_grouped(stored, device);
  return prepare_decoded(stored, device);
}

}  // namespace hxq::kernels
