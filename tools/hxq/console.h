#pragma once

#include <CLI/CLI.hpp>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "hxq/model.h"

namespace hxq::tools {

/// Thrown when the user interrupts long work; what was being written is cleaned up on the way out.
struct Interrupted {};

/// Thrown when nobody reads standard output any more.
struct ClosedPipe {};

/// From now on SIGINT, SIGTERM and SIGHUP are noted, and the next `check_interrupt` throws; a closed pipe and a file
/// that may not grow are errors of writing. Streams that are closed stay so, whatever is opened.
void set_up_process();

/// Throws `Interrupted` once a signal was noted, and `Error` once a mapped file has got shorter.
void check_interrupt();

/// The signal that was noted; 0: none.
int interrupt_signal();

/// Whether `check_interrupt` would throw.
bool is_interrupted();

/// A progress bar on standard error; draws nothing when that is not a terminal.
class ProgressBar {
 public:
  explicit ProgressBar(std::string label);
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;
  ~ProgressBar();

  void draw(int64_t done, int64_t total, std::string_view note = {});
  /// `check_interrupt`, then `draw`.
  void update(int64_t done, int64_t total, std::string_view note = {});

 private:
  std::string label_;
  bool shown_;
  int last_drawn_ = -1;
};

/// Writes to standard error. What cannot be written there is lost: there is nowhere left to say so.
void print_error(std::string_view text) noexcept;

/// "hxq: " and the line, on standard error.
void print_notice(std::string_view line) noexcept;

/// "15.0 MB"; decimal units.
std::string bytes_text(int64_t bytes);

/// Writes to standard output. Throws `ClosedPipe`, or `Error` if that fails otherwise (a full disk).
void print(std::string_view text);

/// The options of all verbs that run a model, and HXQ_TARGET from the environment.
struct ModelArguments {
  int threads = 0;
  std::string precision = "fast";
  DType kv_cache = DType::f32;
  std::string device = "cpu";

  void add_to(CLI::App& app);
  /// Throws as `Model::open`, and `UsageError` for a key-value cache of a model that has none.
  Model open(const std::string& dir) const;
};

/// Reads a whole file, or standard input for "-", without the byte-order mark that some editors put first. Throws
/// `Error`, also for a text that is not UTF-8: what stands for the wrong bytes would be measured and continued.
std::string read_text(const std::string& path);

/// Throws `Error`, by that name, for a text that is not UTF-8.
void check_utf8(std::string_view text, const std::string& name);

/// Throws `Error` that says why (errno) the file or standard input cannot be read.
[[noreturn]] void throw_cannot_read(const std::string& path);

/// What messages call the file that `read_text` reads.
std::string name_of_text(const std::string& path);

}  // namespace hxq::tools
