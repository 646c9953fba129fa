#include "console.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <unistd.h>

#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <system_error>

#include "hxq/error.h"
#include "hxq/mapped_files.h"
#include "hxq/utf8.h"
#include "usage.h"

namespace hxq::tools {
namespace {

volatile std::sig_atomic_t noted_signal = 0;

void note_interrupt(int signal) { noted_signal = signal; }

std::string bytes_of_standard_input() {
  std::string text;
  char buffer[1 << 16];
  while (true) {
    const ssize_t size = read(STDIN_FILENO, buffer, sizeof buffer);
    check_interrupt();
    if (size == 0) return text;
    if (size > 0) {
      text.append(buffer, static_cast<size_t>(size));
    } else if (errno != EINTR) {
      throw_cannot_read("-");
    }
  }
}

std::string bytes_of(const std::string& path) {
  if (path == "-") return bytes_of_standard_input();
  std::error_code fault;
  if (std::filesystem::is_directory(path, fault)) throw Error("is a folder, expected a text file", {.file = path});
  errno = 0;
  std::ifstream file(path, std::ios::binary);
  std::string text{std::istreambuf_iterator<char>(file), {}};
  if (!file) throw_cannot_read(path);
  return text;
}

/// A file that is opened must not get the number of a stream that is closed: text would be written into it. In their
/// place stand files that can be neither read nor written, but for standard error.
void keep_stream_numbers() {
  for (const int stream : {STDIN_FILENO, STDOUT_FILENO, STDERR_FILENO}) {
    if (fcntl(stream, F_GETFD) < 0 && errno == EBADF) {
      // The lowest free number is this one.
      static_cast<void>(open("/dev/null", stream == STDOUT_FILENO ? O_RDONLY : O_WRONLY));
    }
  }
}

}  // namespace

void set_up_process() {
  keep_stream_numbers();
  struct sigaction action {};
  action.sa_handler = note_interrupt;
  action.sa_flags = SA_RESETHAND;  // a second one ends the program at once
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
  struct sigaction hang_up {};
  sigaction(SIGHUP, nullptr, &hang_up);
  if (hang_up.sa_handler != SIG_IGN) sigaction(SIGHUP, &action, nullptr);  // nohup has it ignored
  // Writing fails instead, and what was begun is cleaned up.
  std::signal(SIGPIPE, SIG_IGN);
  std::signal(SIGXFSZ, SIG_IGN);
  guard_mapped_files();
}

void check_interrupt() {
  if (noted_signal) throw Interrupted{};
  check_mapped_files();
}

bool is_interrupted() { return noted_signal != 0 || !mapped_files_are_whole(); }

int interrupt_signal() { return noted_signal; }

ProgressBar::ProgressBar(std::string label) : label_(std::move(label)), shown_(isatty(STDERR_FILENO) == 1) {}

ProgressBar::~ProgressBar() {
  if (shown_ && last_drawn_ >= 0) print_error("\r\033[K");
}

void ProgressBar::update(int64_t done, int64_t total, std::string_view note) {
  check_interrupt();
  draw(done, total, note);
}

void ProgressBar::draw(int64_t done, int64_t total, std::string_view note) {
  if (!shown_) return;
  constexpr int kWidth = 30;
  const double share = total > 0 ? static_cast<double>(done) / static_cast<double>(total) : 1;
  const int permille = static_cast<int>(share * 1000);
  if (permille == last_drawn_) return;
  last_drawn_ = permille;
  const int filled = static_cast<int>(share * kWidth);
  print_error(fmt::format("\r\033[K{} [{:=<{}}{:{}}] {:3d} % {}", label_, "", filled, "", kWidth - filled,
                          permille / 10, note.substr(0, 60)));
}

std::string bytes_text(int64_t bytes) {
  const auto value = static_cast<double>(bytes);
  if (bytes >= 1'000'000'000) return fmt::format("{:.2f} GB", value / 1e9);
  if (bytes >= 1'000'000) return fmt::format("{:.2f} MB", value / 1e6);
  if (bytes >= 1'000) return fmt::format("{:.1f} kB", value / 1e3);
  return fmt::format("{} B", bytes);
}

void print_error(std::string_view text) noexcept {
  std::fwrite(text.data(), 1, text.size(), stderr);
  std::fflush(stderr);
}

void print_notice(std::string_view line) noexcept {
  for (const std::string_view part : {std::string_view("hxq: "), line, std::string_view("\n")}) {
    std::fwrite(part.data(), 1, part.size(), stderr);
  }
  std::fflush(stderr);
}

void print(std::string_view text) {
  check_mapped_files();
  const bool written = std::fwrite(text.data(), 1, text.size(), stdout) == text.size() && std::fflush(stdout) == 0;
  if (written) return;
  if (errno == EPIPE) throw ClosedPipe{};
  throw Error("cannot write to standard output: " + std::generic_category().message(errno));
}

void ModelArguments::add_to(CLI::App& app) {
  add_threads(app, threads, "Threads (0: all cores, fewer while other programs hold them up)");
  app.add_option(
         "--precision", precision,
         "What prompts may round: fast (activations to 11 bits, or 22, where that is faster) or exact (nothing)")
      ->transform(CLI::IsMember({"fast", "exact"}, CLI::ignore_case))
      ->capture_default_str();
  add_dtype(app, "--kv-cache", kv_cache, {DType::f32, DType::f16},
            "How attention keeps keys and values: f32, or f16 at half the memory");
  app.add_option("--device", device, fmt::format("Where the model runs: {}", kDeviceNames))->capture_default_str();
}

Model ModelArguments::open(const std::string& dir) const {
  ModelOptions options;
  options.threads = threads;
  options.device = device;
  options.precision = find_precision(precision).value();
  options.kv_cache = kv_cache;
  if (const char* name = std::getenv("HXQ_TARGET"); name != nullptr && *name != 0) {
    options.target = find_target(name);
    if (!options.target) throw Error(not_as_expected("scalar, avx2, avx512 or amx in HXQ_TARGET", name));
  }
  Model model = Model::open(dir, options);
  if (options.kv_cache != DType::f32 && !model.info().has_attention) {
    throw UsageError("--kv-cache without effect: the model has no attention", {.file = dir});
  }
  return model;
}

std::string read_text(const std::string& path) {
  constexpr std::string_view kByteOrderMark = "\xEF\xBB\xBF";
  std::string text = bytes_of(path);
  if (text.starts_with(kByteOrderMark)) text.erase(0, kByteOrderMark.size());
  check_utf8(text, name_of_text(path));
  // Text of UTF-16 without a mark is UTF-8 with a NUL in every character.
  if (const size_t nul = text.find('\0'); nul != text.npos) {
    throw Error("holds a NUL, expected UTF-8 text", {.file = name_of_text(path), .offset = nul});
  }
  return text;
}

void check_utf8(std::string_view text, const std::string& name) {
  const std::optional<size_t> at = first_invalid_utf8(text);
  if (!at) return;
  const bool utf16 = text.starts_with("\xFF\xFE") || text.starts_with("\xFE\xFF");
  throw Error(fmt::format("is not UTF-8 text{}", utf16 ? ", it looks like UTF-16" : ""), {.file = name, .offset = *at});
}

void throw_cannot_read(const std::string& path) {
  throw Error("cannot read: " + std::generic_category().message(errno), {.file = name_of_text(path)});
}

std::string name_of_text(const std::string& path) { return path == "-" ? "standard input" : path; }

}  // namespace hxq::tools
