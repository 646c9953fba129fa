#include "kernels/cuda_device/cuda_matrix.h"

#include <algorithm>
#include <cmath>

#include "codec/codec.h"
#include "kernels/codebook_facts.h"

namespace hxq::kernels {
namespace {

/// The arrays of a matrix as they go to the device.
class Uploads {
 public:
  explicit Uploads(const Device& device) : device_(device) {}

  /// Null for an array without elements. Readable past its end up to the next multiple of 16 bytes.
  template <class T>
  const T* put(std::span<const T> values) {
    if (values.empty()) return nullptr;
    DeviceArray<std::byte>& array = taken(values.size_bytes());
    array.upload(std::as_bytes(values));
    return reinterpret_cast<const T*>(array.data());
  }

  DeviceArray<std::byte>& taken(size_t bytes) {
    return memory_.emplace_back(device_, static_cast<int64_t>((bytes + 15) / 16 * 16), "a matrix");
  }

  std::vector<DeviceArray<std::byte>> memory() && { return std::move(memory_); }

 private:
  const Device& device_;
  std::vector<DeviceArray<std::byte>> memory_ = {};
};

std::unique_ptr<const CudaMatrix> prepare_exact(const StoredMatrix& stored, const Device& device) {
  const auto& matrix = static_cast<const ExactMatrix&>(stored);
  Uploads uploads(device);
  const cuda::DenseWeight view{
      .rows = matrix.rows, .cols = matrix.cols, .dtype = matrix.dtype, .data = uploads.put(matrix.bytes)};
  return std::make_unique<CudaMatrix>(stored, view, std::move(uploads).memory(), stored.bytes_read());
}

bool fits_tiles(const CodebookMatrix& matrix, const LevelScale& levels) {
  const float largest = cuda::kLargestTileWeight * levels.scale;
  const auto is_zero = [](float level) { return level == 0; };
  return levels.scale > 0 && !std::ranges::all_of(matrix.codebook, is_zero) &&
         std::ranges::all_of(matrix.sidecar.value, [&](float value) { return std::abs(value) <= largest; });
}

std::unique_ptr<const CudaMatrix> prepare_codebook(const StoredMatrix& stored, const Device& device) {
  constexpr int kIndexBits[] = {8, 16, 12};
  const auto& matrix = static_cast<const CodebookMatrix&>(stored);
  const LevelScale levels = matrix.d == 1 ? level_scale(matrix.codebook) : LevelScale{};
  std::vector<float> changes;
  for (const OutlierChange& outlier : outlier_changes(matrix)) changes.push_back(outlier.change);
  Uploads uploads(device);
  const cuda::CodebookWeight view{.rows = matrix.rows,
                                  .cols = matrix.cols,
                                  .k = matrix.k,
                                  .d = matrix.d,
                                  .index_bits = kIndexBits[static_cast<size_t>(matrix.layout)],
                                  .indices = uploads.put(matrix.indices),
                                  .codebook = uploads.put<float>(matrix.codebook),
                                  .outlier_row_begin = uploads.put<uint32_t>(matrix.sidecar.row_begin),
                                  .outlier_col = uploads.put<uint32_t>(matrix.sidecar.col),
                                  .outlier_change = uploads.put<float>(changes),
                                  .channel_scales = uploads.put<float>(matrix.channel_scales),
                                  .rank = static_cast<int32_t>(matrix.low_rank.rank),
                                  .low_rank_u = uploads.put<float>(matrix.low_rank.u_scaled),
                                  .low_rank_vt = uploads.put<float>(matrix.low_rank.vt),
                                  .level_scale = levels.scale,
                                  .levels_fit_half = levels.fits_half,
                                  .fits_tiles = fits_tiles(matrix, levels)};
  return std::make_unique<CudaMatrix>(stored, view, std::move(uploads).memory(), stored.bytes_read());
}

std::unique_ptr<const CudaMatrix> prepare_decoded(const StoredMatrix& stored, const Device& device) {
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

std::unique_ptr<const CudaMatrix> prepare_for_cuda(const StoredMatrix& stored, const Device& device) {
  if (stored.codec == nullptr) return prepare_exact(stored, device);
  if (stored.codec == &kCodebookCodec) return prepare_codebook(stored, device);
  return prepare_decoded(stored, device);
}

}  // namespace hxq::kernels
