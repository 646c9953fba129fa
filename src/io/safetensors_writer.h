#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "hxq/tensor.h"
#include "io/safetensors.h"

namespace hxq {

/// A tensor that will be written; `shape` may be an upper bound.
struct TensorPlan {
  std::string name = {};
  DType dtype = DType::f32;
  Shape shape = {};
};

/// What becomes of a file that a killed process was writing.
enum class Leftovers { ignore, take_up };

/// Writes one safetensors file without holding it in memory. The same calls in the same order give the same bytes.
///
/// Everything goes to `<file>.tmp-…` beside the target, which `finish` moves into place; without `finish` nothing
/// stays behind. With `Leftovers::take_up`, in a folder that nobody else writes to, the names are fixed instead, so
/// that a killed writer's tensors can be taken up. Every tensor's offset in the file is a multiple of its element size
/// and the data has no holes: large tensors of a multiple of 8 bytes are written where they stay at once, the others
/// follow at the end, ordered by element size (largest first), then by arrival. Data starts at a multiple of 64 bytes.
class SafetensorsWriter {
 public:
  /// `plan` sizes the header: it must name at least the tensors that will be added (the ones that are not added
  /// afterwards cost only padding). `metadata` is written as it is, but for "format", which is "pt". Throws `Error` if
  /// the file cannot be created.
  SafetensorsWriter(const std::filesystem::path& path, std::span<const TensorPlan> plan, const Metadata& metadata = {},
                    Leftovers leftovers = Leftovers::ignore);
  SafetensorsWriter(const SafetensorsWriter&) = delete;
  SafetensorsWriter& operator=(const SafetensorsWriter&) = delete;
  ~SafetensorsWriter();

  /// Appends a tensor; `bytes` need not outlive the call. Throws `Error` if the name was added before or is not valid
  /// UTF-8, if `bytes` is not as long as dtype and shape say, or on a write error (disk full, say).
  void add(std::string_view name, DType dtype, const Shape& shape, std::span<const std::byte> bytes);

  /// In place of `add`, for a tensor that a killed writer has written by the same calls. False if `is_right` says no to
  /// its bytes or it is not there; then this writer is of no more use.
  bool take_up(std::string_view name, DType dtype, const Shape& shape,
               const std::function<bool(std::span<const std::byte>)>& is_right);

  /// Completes the file, syncs it to disk and renames it to its target, replacing a file of that name.
  /// Syncing the folder is left to the caller. Throws `Error` on a write error, or if the header outgrew the plan.
  void finish();

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace hxq
