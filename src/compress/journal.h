#pragma once

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hxq/receipt.h"

namespace hxq {

/// What a compression has finished so far, a line for each tensor in the folder that is being written, so that another
/// run can take it up after this one was killed.
class Journal {
 public:
  static constexpr const char* kFile = ".hxq-journal";

  /// `identity` tells what is compressed and how: lines that were written for another are not taken up.
  Journal(const std::filesystem::path& folder, std::string_view identity);

  /// Whether an earlier run has left lines.
  bool has_lines() const noexcept { return !lines_.empty(); }

  /// The next tensor that the earlier run finished; empty when there is no more.
  std::optional<TensorReceipt> next();

  /// Leaves the lines in the file that `next` has given, and no others; `note` goes on from there.
  void begin();

  /// Adds a tensor whose bytes are written.
  void note(const TensorReceipt& tensor);

 private:
  void append(std::string_view line);

  std::filesystem::path path_;
  std::string identity_;
  std::vector<std::string> lines_;
  size_t taken_ = 0;
  std::ofstream file_;
};

/// A tensor's part of the receipt as a line of JSON, and back (receipt.cc).
std::string journal_line(const TensorReceipt& tensor);
TensorReceipt read_journal_line(std::string_view line);

}  // namespace hxq
