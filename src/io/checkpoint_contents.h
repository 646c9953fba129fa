#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "io/mapped_file.h"
#include "io/safetensors.h"

namespace hxq {

/// A member of an archive, inflated.
struct InflatedFile {
  std::filesystem::path archive;
  std::vector<std::byte> bytes;
};

/// What a `Checkpoint` holds: the views of `tensors` point into `files` and `inflated`.
struct CheckpointContents {
  std::filesystem::path path;
  nlohmann::json config;
  bool is_tree = false;
  TensorMap tensors = {};
  Metadata metadata = {};
  std::map<std::string, std::string, std::less<>> unsupported = {};      // name -> dtype as stored
  std::map<std::string, std::string, std::less<>> parameter_names = {};  // compressed module -> parameter
  std::vector<MappedFile> files = {};
  std::vector<InflatedFile> inflated = {};
};

}  // namespace hxq
