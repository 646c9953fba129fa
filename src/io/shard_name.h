#pragma once

#include <optional>
#include <string_view>

namespace hxq {

/// "model-00001-of-00002.safetensors".
struct ShardName {
  std::string_view model;          ///< what the shards' names begin with
  std::string_view number, count;  ///< digits, at least one each
};

/// Nothing for another name.
std::optional<ShardName> read_shard_name(std::string_view name);

}  // namespace hxq
