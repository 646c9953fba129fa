#include "compress/side_files.h"

#include <fmt/format.h>
#include <fnmatch.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "compress/staged_folder.h"
#include "io/json.h"
#include "io/system_error.h"
#include "io/utf8.h"

namespace hxq {
namespace {

namespace fs = std::filesystem;

constexpr int kMaxDepth = 64;

constexpr std::array kWeightFiles = {
    "*.safetensors", "*.safetensors.index.json",
    "*model*.bin",   "*weights*.bin",
    "optimizer.bin", "*.bin.index.json",
    "*.pt",          "*.pth",
    "*.ckpt",        "*.h5",
    "*.msgpack",     "*.msgpack.index.json",
    "*.gguf",        "*.ggml",
    "*.onnx",        "*.onnx_data",
    "*.tflite",      "*.ot",
    "*.pdparams",    "*.distcp",
};
constexpr std::array kCaches = {"__pycache__", "*.pyc"};

template <size_t N>
bool matches_any(const std::array<const char*, N>& patterns, const std::string& name) {
  return std::ranges::any_of(patterns, [&](const char* pattern) { return fnmatch(pattern, name.c_str(), 0) == 0; });
}

std::string text_of(const fs::path& path) { return to_valid_utf8(path.string()); }

std::vector<fs::path> sorted_names(const fs::path& folder) {
  std::vector<fs::path> names;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename());
  std::ranges::sort(names);
  return names;
}

/// Folders of sentence-transformers' modules: their weights are part of the model beside those that are compressed.
std::set<fs::path> module_folders(const fs::path& source) {
  std::set<fs::path> folders;
  const fs::path path = source / "modules.json";
  std::error_code fault;
  if (!fs::exists(path, fault)) return folders;
  const nlohmann::json modules = load_json(path);
  if (!modules.is_array()) return folders;
  for (const nlohmann::json& module : modules) {
    if (!module.is_object() || !module.contains("path") || !module["path"].is_string()) continue;
    const fs::path folder = fs::path(module["path"].get<std::string>()).lexically_normal();
    if (!folder.empty() && folder != ".") folders.insert(*folder.begin());
  }
  return folders;
}

class Finder {
 public:
  Finder(const Checkpoint& source, std::span<const fs::path> outputs)
      : root_(source.path()), is_tree_(source.is_tree()), modules_(module_folders(root_)) {
    for (const fs::path& file : source.files()) own_.insert(file.lexically_relative(root_));
    for (const fs::path& output : outputs) {
      std::error_code fault;
      if (const fs::path real = fs::canonical(output, fault); !fault) outputs_.insert(real);
    }
  }

  SideFiles find() {
    walk({}, 0);
    return std::move(found_);
  }

 private:
  void leave_out(const fs::path& path, const char* reason) { found_.left_out.push_back({text_of(path), reason}); }

  /// Whether the entry of the top folder is the model itself, and written anew.
  bool is_model(const fs::path& path) const {
    const std::string name = path.string();
    if (own_.contains(path) || name == "config.json" || name == kReceiptFile) return true;
    if (name.ends_with(".safetensors.index.json") && !is_tree_) return has_own_shards();
    return is_tree_ && (name == "cdnav3" || name.ends_with(".cdnav3") || name.ends_with(".npy") ||
                        name.ends_with(".npy.meta.json"));
  }

  bool has_own_shards() const {
    return std::ranges::any_of(own_, [](const fs::path& file) { return file.extension() == ".safetensors"; });
  }

  void walk(const fs::path& folder, int depth) {
    for (const fs::path& name : sorted_names(root_ / folder)) {
      const fs::path path = folder / name;
      if (depth == 0 && is_model(path)) continue;
      if (name.string().starts_with('.')) {
        leave_out(path, "hidden");
      } else if (matches_any(kCaches, name.string())) {
        leave_out(path, "a cache");
      } else if (const fs::file_status status = fs::status(root_ / path); fs::is_directory(status)) {
        enter(path, depth);
      } else if (!fs::is_regular_file(status)) {
        leave_out(path, fs::exists(status) ? "not a file" : "a link to nothing");
      } else if (matches_any(kWeightFiles, name.string()) && !modules_.contains(*path.begin())) {
        leave_out(path, "weights in another form");
      } else if (depth == 0 && name == "adapter_config.json") {
        leave_out(path, "of an adapter, whose weights are left out: transformers would look for them");
      } else {
        if (access((root_ / path).c_str(), R_OK) != 0) throw_system_error(root_ / path, "read");
        found_.files.push_back(path);
      }
    }
  }

  void enter(const fs::path& folder, int depth) {
    const fs::path real = fs::canonical(root_ / folder);
    if (outputs_.contains(real) || fs::exists(real / StagedFolder::kMark)) return;
    if (fs::exists(real / kReceiptFile)) return leave_out(folder, "another compressed model");
    const bool holds_itself = fs::is_symlink(fs::symlink_status(root_ / folder)) && visited_.contains(real);
    if (holds_itself || depth == kMaxDepth) return leave_out(folder, "a link to a folder around it");
    const size_t folders = found_.folders.size(), files = found_.files.size(), left_out = found_.left_out.size();
    found_.folders.push_back(folder);
    const bool is_new = visited_.insert(real).second;
    walk(folder, depth + 1);
    if (is_new) visited_.erase(real);
    // A folder of which nothing is copied stays behind, unless it was empty.
    const bool is_bare = found_.files.size() == files && found_.folders.size() == folders + 1;
    if (is_bare && found_.left_out.size() > left_out) found_.folders.pop_back();
  }

  fs::path root_;
  bool is_tree_;
  std::set<fs::path> modules_, own_, outputs_;
  std::set<fs::path> visited_ = {fs::canonical(root_)};  // folders around the one being walked
  SideFiles found_;
};

}  // namespace

SideFiles find_side_files(const Checkpoint& source, std::span<const fs::path> outputs) {
  if (!fs::is_directory(source.path())) return {};
  return with_file_errors([&] { return Finder(source, outputs).find(); });
}

void copy_side_files(const fs::path& source, const SideFiles& files, const StagedFolder& target) {
  for (const fs::path& folder : files.folders) target.make_folder(folder);
  for (const fs::path& file : files.files) target.copy(source / file, file);
}

std::string left_out_text(const std::vector<LeftOut>& left_out) {
  constexpr size_t kNamed = 8;
  std::map<std::string, std::vector<std::string>> by_reason;
  for (const LeftOut& file : left_out) by_reason[file.reason].push_back(file.name);
  std::string text;
  for (const auto& [reason, names] : by_reason) {
    text += text.empty() ? "left out: " : "; ";
    for (size_t i = 0; i < std::min(names.size(), kNamed); ++i) text += (i == 0 ? "" : ", ") + names[i];
    if (names.size() > kNamed) text += fmt::format(" and {} more", names.size() - kNamed);
    text += fmt::format(" ({})", reason);
  }
  std::ranges::replace_if(
      text, [](unsigned char c) { return c < 0x20 || c == 0x7f; }, '?');
  return text;
}

std::vector<std::string> files_below(const fs::path& folder) {
  std::vector<std::string> names;
  for (const fs::directory_entry& entry : fs::recursive_directory_iterator(folder)) {
    const std::string name = entry.path().lexically_relative(folder).string();
    if (!entry.is_directory()) {
      names.push_back(name);
    } else if (fs::is_empty(entry.path())) {
      names.push_back(name + "/");
    }
  }
  std::ranges::sort(names);
  return names;
}

}  // namespace hxq
