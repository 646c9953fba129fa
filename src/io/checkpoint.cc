#include "io/checkpoint.h"

#include <fmt/format.h>

#include <algorithm>
#include <set>

#include "io/cdnav3.h"
#include "io/checkpoint_contents.h"
#include "io/json.h"
#include "io/shard_name.h"
#include "io/system_error.h"

namespace hxq {
namespace {

namespace fs = std::filesystem;

constexpr std::string_view kSingleFile = "model.safetensors";
constexpr std::string_view kIndexFile = "model.safetensors.index.json";
constexpr std::string_view kAdapterFile = "adapter_model.safetensors";
constexpr std::string_view kAdapterPrefix = "base_model.model.";
constexpr std::string_view kFileSuffix = ".safetensors";
constexpr std::string_view kIndexSuffix = ".safetensors.index.json";

template <class Map>
void move_into(Map& into, Map& from, const std::string& file) {
  into.merge(from);
  if (from.empty()) return;
  throw Error("is stored in two files", {.file = file, .tensor = from.begin()->first});
}

void add_file(SafetensorsFile file, CheckpointContents& contents) {
  const std::string path = file.file.path().string();
  contents.files.push_back(std::move(file.file));
  contents.metadata.merge(file.contents.metadata);
  move_into(contents.tensors, file.contents.tensors, path);
  move_into(contents.unsupported, file.contents.unsupported, path);
}

/// Tensor name -> shard, from the index. A shard is a plain name of a file in the same folder.
std::map<std::string, std::string> read_weight_map(const fs::path& index) {
  const nlohmann::json json = load_json(index, nullptr, kMaxJsonList);
  const ErrorPlace place{.file = index.string()};
  if (!json.is_object() || !json.contains("weight_map") || !json["weight_map"].is_object()) {
    throw Error("has no object 'weight_map'", place);
  }
  std::map<std::string, std::string> weight_map;
  for (const auto& [name, shard] : json["weight_map"].items()) {
    if (!shard.is_string()) throw Error("shard is not a string", {.file = index.string(), .tensor = name});
    const std::string file = shard.get<std::string>();
    if (file.empty() || file == "." || file == ".." || file.find('/') != file.npos || file.find('\0') != file.npos) {
      throw Error(fmt::format("shard is '{}', expected the name of a file in the same folder", file),
                  {.file = index.string(), .tensor = name});
    }
    weight_map.emplace(name, file);
  }
  return weight_map;
}

void read_sharded(const fs::path& index, CheckpointContents& contents) {
  const fs::path dir = index.parent_path();
  const std::map<std::string, std::string> weight_map = read_weight_map(index);
  std::set<std::string> shards;
  for (const auto& [name, shard] : weight_map) shards.insert(shard);
  for (const std::string& shard : shards) {
    SafetensorsFile file = SafetensorsFile::open(dir / shard);
    // A tensor that another shard is named for does not count here.
    const auto belongs_elsewhere = [&](const auto& tensor) {
      const auto named = weight_map.find(tensor.first);
      return named != weight_map.end() && named->second != shard;
    };
    std::erase_if(file.contents.tensors, belongs_elsewhere);
    std::erase_if(file.contents.unsupported, belongs_elsewhere);
    add_file(std::move(file), contents);
  }
  for (const auto& [name, shard] : weight_map) {
    if (!contents.tensors.contains(name) && !contents.unsupported.contains(name)) {
      throw Error(fmt::format("is not there, but {} says so", index.filename().string()),
                  {.file = (dir / shard).string(), .tensor = name});
    }
  }
}

/// The one file of the folder with that ending; empty when there is none or more than one.
fs::path only_file(const fs::path& dir, std::string_view ending) {
  std::vector<fs::path> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(dir)) {
    if (entry.path().filename().string().ends_with(ending)) files.push_back(entry.path());
  }
  return files.size() == 1 ? files.front() : fs::path();
}

/// A shard without the index that lists the others is part of a model.
void check_is_whole(const fs::path& file) {
  const std::string name = file.filename().string();
  if (const auto shard = read_shard_name(name)) {
    throw Error(fmt::format("is one shard of a model, but {}{}, which lists all of them, is missing", shard->model,
                            kIndexSuffix),
                {.file = file.string()});
  }
}

void read_folder(const fs::path& dir, CheckpointContents& contents) {
  if (const fs::path config = dir / "config.json"; is_there(config)) {
    contents.config = load_json(config);
    if (!contents.config.is_object()) throw Error("expected a JSON object", {.file = config.string()});
  }
  if (is_there(dir / kSingleFile)) {
    add_file(SafetensorsFile::open(dir / kSingleFile), contents);
  } else if (is_there(dir / kIndexFile)) {
    read_sharded(dir / kIndexFile, contents);
  } else if (fs::is_directory(dir / "cdnav3")) {
    read_cdnav3_tree(dir / "cdnav3", contents);
  } else if (is_cdnav3_tree(dir)) {
    read_cdnav3_tree(dir, contents);
  } else if (const fs::path index = only_file(dir, kIndexSuffix); !index.empty()) {
    read_sharded(index, contents);
  } else if (const fs::path file = only_file(dir, kFileSuffix); !file.empty()) {
    check_is_whole(file);
    add_file(SafetensorsFile::open(file), contents);
  } else {
    throw Error(fmt::format("holds no model: expected {}, {}, one other {} file or a .cdnav3 tree", kSingleFile,
                            kIndexFile, kFileSuffix),
                {.file = dir.string()});
  }
}

/// An adapter is a change of a model. PEFT gives all of its tensors one prefix, whatever the file is called.
void check_is_no_adapter(const CheckpointContents& contents) {
  if (contents.files.size() != 1) return;
  const fs::path file = contents.files.front().path();
  const auto is_of_peft = [](const auto& tensor) { return tensor.first.starts_with(kAdapterPrefix); };
  const bool only_peft = !contents.tensors.empty() && std::ranges::all_of(contents.tensors, is_of_peft);
  if (file.filename() == kAdapterFile || only_peft) {
    throw Error("is an adapter, not a model: merge it into its model", {.file = file.string()});
  }
}

bool inside(std::span<const std::byte> part, std::span<const std::byte> whole) {
  return !part.empty() && part.data() >= whole.data() && part.data() + part.size() <= whole.data() + whole.size();
}

}  // namespace

Checkpoint Checkpoint::open(const fs::path& path) {
  if (path.empty()) throw Error("the path of the model is empty");
  auto contents = std::make_unique<CheckpointContents>();
  contents->path = path;
  with_file_errors([&] {
    if (fs::is_directory(path)) {
      read_folder(path, *contents);
    } else {
      add_file(SafetensorsFile::open(path), *contents);
    }
    check_is_no_adapter(*contents);
  });
  return Checkpoint(std::move(contents));
}

Checkpoint Checkpoint::over(TensorMap tensors, std::string_view config) {
  auto contents = std::make_unique<CheckpointContents>();
  contents->tensors = std::move(tensors);
  if (!config.empty()) contents->config = parse_json(config, "config.json");
  return Checkpoint(std::move(contents));
}

Checkpoint::Checkpoint(std::unique_ptr<CheckpointContents> contents) : contents_(std::move(contents)) {}
Checkpoint::Checkpoint(Checkpoint&&) noexcept = default;
Checkpoint& Checkpoint::operator=(Checkpoint&&) noexcept = default;
Checkpoint::~Checkpoint() = default;

const fs::path& Checkpoint::path() const { return contents_->path; }
std::vector<fs::path> Checkpoint::files() const {
  std::vector<fs::path> paths;
  for (const MappedFile& file : contents_->files) paths.push_back(file.path());
  return paths;
}
bool Checkpoint::is_tree() const { return contents_->is_tree; }
const nlohmann::json& Checkpoint::config() const { return contents_->config; }
const TensorMap& Checkpoint::tensors() const { return contents_->tensors; }
const Metadata& Checkpoint::metadata() const { return contents_->metadata; }
const std::map<std::string, std::string, std::less<>>& Checkpoint::unsupported() const {
  return contents_->unsupported;
}

const TensorView* Checkpoint::find(std::string_view name) const {
  const auto found = contents_->tensors.find(name);
  if (found != contents_->tensors.end()) return &found->second;
  const auto other = contents_->unsupported.find(name);
  if (other == contents_->unsupported.end()) return nullptr;
  throw Error(fmt::format("dtype is {}, which is not supported", other->second), place(name));
}

std::string_view Checkpoint::parameter_of(std::string_view module) const {
  const auto found = contents_->parameter_names.find(module);
  return found == contents_->parameter_names.end() ? std::string_view() : found->second;
}

ErrorPlace Checkpoint::place(std::string_view tensor, std::optional<uint64_t> byte) const {
  ErrorPlace place{.file = contents_->path.string(), .tensor = std::string(tensor)};
  const auto found = contents_->tensors.find(tensor);
  if (found == contents_->tensors.end()) return place;
  const std::span<const std::byte> bytes = found->second.bytes;
  for (const MappedFile& file : contents_->files) {
    if (!file.contains(bytes)) continue;
    place.file = file.path().string();
    if (byte) place.offset = static_cast<uint64_t>(bytes.data() - file.bytes().data()) + *byte;
  }
  for (const InflatedFile& file : contents_->inflated) {
    if (inside(bytes, file.bytes)) place.file = file.archive.string();
  }
  return place;
}

void Checkpoint::fetch(const TensorView& tensor) const {
  for (const MappedFile& file : contents_->files) file.fetch(tensor.bytes);
}

void Checkpoint::drop(const TensorView& tensor) const {
  for (const MappedFile& file : contents_->files) {
    if (file.contains(tensor.bytes)) file.drop(tensor.bytes);
  }
}

}  // namespace hxq
