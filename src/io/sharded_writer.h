#pragma once

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "io/safetensors.h"
#include "io/safetensors_writer.h"

namespace hxq {

/// Writes the tensors of a model folder: model.safetensors, or, where they are more than fit into one file,
/// model-00001-of-00003.safetensors and so on with model.safetensors.index.json. The same calls give the same bytes.
class ShardedWriter {
 public:
  /// A shard holds at most `max_shard_bytes` of tensors, but at least one group of them. `plan` is that of
  /// `SafetensorsWriter`, and so is `metadata`, which every shard gets. Throws `Error` as it does.
  ShardedWriter(const std::filesystem::path& folder, std::vector<TensorPlan> plan, int64_t max_shard_bytes,
                Metadata metadata = {});

  /// The tensors up to the next `begin_group`, `bytes` in all, stay in one shard.
  void begin_group(int64_t bytes);

  void add(std::string_view name, DType dtype, const Shape& shape, std::span<const std::byte> bytes);

  /// In place of `add`, for a tensor that an earlier run, which was killed, has written to the same folder by the same
  /// calls. False if it is not there or `is_right` says no to its bytes; then this writer is of no more use.
  bool take_up(std::string_view name, DType dtype, const Shape& shape,
               const std::function<bool(std::span<const std::byte>)>& is_right);

  /// Whether a writer may have left a file of that name.
  static bool may_have_written(const std::string& name);

  /// Completes the files and gives them their names.
  void finish();

 private:
  std::filesystem::path shard_path(size_t shard) const;
  void take_names_back() const;
  SafetensorsWriter& writer();

  std::filesystem::path folder_;
  std::vector<TensorPlan> plan_;
  uint64_t max_shard_bytes_;
  Metadata metadata_;
  uint64_t shard_bytes_ = 0;
  uint64_t total_bytes_ = 0;
  std::vector<std::string> finished_;                 // paths of shards
  std::unique_ptr<SafetensorsWriter> writer_;         // of the current shard
  std::optional<SafetensorsFile> earlier_;            // the current shard, if an earlier run has finished it
  std::map<std::string, size_t, std::less<>> where_;  // name -> shard
};

}  // namespace hxq
