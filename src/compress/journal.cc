#include "compress/journal.h"

#include "io/json.h"
#include "io/system_error.h"

namespace hxq {

Journal::Journal(const std::filesystem::path& folder, std::string_view identity)
    : path_(folder / kFile), identity_(identity) {
  // What is too large for a journal, or no file at all, is none.
  std::error_code error;
  if (!std::filesystem::is_regular_file(std::filesystem::symlink_status(path_, error))) return;
  if (std::filesystem::file_size(path_, error) > kMaxJsonList) return;
  std::ifstream file(path_);
  std::string line;
  // A line without its end was being written.
  if (!std::getline(file, line) || file.eof() || line != identity_) return;
  while (std::getline(file, line) && !file.eof()) lines_.push_back(line);
}

std::optional<TensorReceipt> Journal::next() {
  if (taken_ == lines_.size()) return std::nullopt;
  return read_journal_line(lines_[taken_++]);
}

void Journal::begin() {
  file_.open(path_, std::ios::trunc);
  append(identity_);
  for (size_t i = 0; i < taken_; ++i) append(lines_[i]);
}

void Journal::note(const TensorReceipt& tensor) { append(journal_line(tensor)); }

void Journal::append(std::string_view line) {
  file_ << line << '\n' << std::flush;
  if (!file_) throw_system_error(path_, "write");
}

}  // namespace hxq
