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
  if (taken_ == 0) {
    file_.open(path_, std::ios::trunc);
    append(identity_);
    return;
  }
  // In place: whenever this run is killed, the next finds the lines that were taken.
  uintmax_t bytes = identity_.size() + 1;
  for (size_t i = 0; i < taken_; ++i) bytes += lines_[i].size() + 1;
  std::filesystem::resize_file(path_, bytes);
  file_.open(path_, std::ios::app);
  if (!file_) throw_system_error(path_, "open");
}

void Journal::note(const TensorReceipt& tensor) { append(journal_line(tensor)); }

void Journal::append(std::string_view line) {
  file_ << line << '\n' << std::flush;
  if (!file_) throw_system_error(path_, "write");
}

}  // namespace hxq
