#pragma once

#include <cstddef>
#include <filesystem>
#include <map>
#include <span>
#include <string>

#include "hxq/tensor.h"
#include "io/mapped_file.h"

namespace hxq {

using TensorMap = std::map<std::string, TensorView, std::less<>>;

/// A file's `__metadata__`.
using Metadata = std::map<std::string, std::string, std::less<>>;

/// What a safetensors file holds. The views point into the file's bytes.
struct SafetensorsContents {
  TensorMap tensors = {};
  std::map<std::string, std::string, std::less<>> unsupported = {};  ///< name -> dtype that `DType` does not have
  Metadata metadata = {};
};

/// Reads and checks the header of a whole safetensors file held in `bytes`; `file` is for messages.
///
/// Accepts what the reference implementation accepts (safetensors 0.4 and later): header of at most 100 MB that starts
/// with '{', no name twice, data that is covered exactly, without overlap, hole or remainder, each tensor's range as
/// long as its shape and dtype say. Throws `Error` otherwise.
SafetensorsContents parse_safetensors(std::span<const std::byte> bytes, const std::string& file);

/// A mapped safetensors file.
struct SafetensorsFile {
  MappedFile file;
  SafetensorsContents contents;

  /// Throws `Error` if the file cannot be read or is not valid.
  static SafetensorsFile open(const std::filesystem::path& path);
};

}  // namespace hxq
