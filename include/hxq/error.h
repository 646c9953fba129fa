#pragma once

#include <cstdint>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>

namespace hxq {

/// Where a fault was found. Empty fields are unknown or do not apply.
struct ErrorPlace {
  std::string file = {};
  std::string tensor = {};
  std::optional<uint64_t> offset = {};  ///< byte offset within `file`
};

/// The exception of the library: bad input, unsupported content, or an operating-system failure.
///
/// `what()` is one line that names the file, the tensor and the byte offset where known, and says what was found and
/// what was expected. Thrown at borders only (opening, parsing, writing); never from a kernel.
class Error : public std::runtime_error {
 public:
  explicit Error(const std::string& message, ErrorPlace place = {});

  /// File, tensor and offset of the fault.
  const ErrorPlace& place() const noexcept { return place_; }

  /// `what()` without the file: for those who need not know where files lie.
  std::string without_file() const;

 private:
  std::string message_;
  ErrorPlace place_;
};

/// A prompt has more tokens than the model's context holds: a shorter one may do.
struct ContextError : Error {
  using Error::Error;
};

/// A folder to be compressed is compressed: its dense form may do.
struct CompressedError : Error {
  using Error::Error;
};

/// The runtime has no description of the model's architecture; compression needs none.
struct UnknownArchitectureError : Error {
  using Error::Error;
};

/// Memory that was asked for is not to be had. What was asked for is as it was before.
struct OutOfMemory : Error {
  /// "out of memory: `what` takes 1.5 GB".
  OutOfMemory(std::string_view what, uint64_t bytes);
};

}  // namespace hxq
