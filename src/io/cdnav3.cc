#include "io/cdnav3.h"

#include <fmt/format.h>

#include <algorithm>

#include "hxq/error.h"
#include "io/json.h"
#include "io/npy.h"

namespace hxq {
namespace {

namespace fs = std::filesystem;

constexpr size_t kNpyHeaderAllowance = 64 << 10;

/// Entries of the folder, sorted by name: what is read does not depend on the folder's order.
std::vector<fs::path> sorted_entries(const fs::path& root) {
  std::vector<fs::path> entries;
  for (const fs::directory_entry& entry : fs::directory_iterator(root)) entries.push_back(entry.path());
  std::ranges::sort(entries);
  return entries;
}

void add(CheckpointContents& contents, const std::string& name, const TensorView& tensor, const fs::path& file) {
  if (!contents.tensors.emplace(name, tensor).second) {
    throw Error("is stored twice in this tree", {.file = file.string(), .tensor = name});
  }
}

TensorView map_npy(CheckpointContents& contents, const fs::path& file) {
  contents.files.push_back(MappedFile::open(file));
  return parse_npy(contents.files.back().bytes(), file.string());
}

/// meta.json of one compressed tensor.
struct TensorMeta {
  std::string tensor_name;
  Shape shape;  // [out, in]
  DType index_dtype;
};

std::string string_field(const nlohmann::json& json, const char* key, const std::string& otherwise,
                         const fs::path& file) {
  if (!json.is_object()) throw Error("is not a JSON object", {.file = file.string()});
  const auto found = json.find(key);
  if (found == json.end()) return otherwise;
  if (!found->is_string()) throw Error(fmt::format("'{}' is not a string", key), {.file = file.string()});
  return found->get<std::string>();
}

TensorMeta read_meta(const fs::path& file) {
  const nlohmann::json json = load_json(file);
  const ErrorPlace place{.file = file.string()};
  TensorMeta meta;
  meta.tensor_name = string_field(json, "tensor_name", "", file);
  if (meta.tensor_name.empty()) throw Error("has no 'tensor_name'", place);
  const std::string version = string_field(json, "format_version", "cdna_v3", file);
  if (version != "cdna_v3") throw Error(fmt::format("format_version is '{}', expected 'cdna_v3'", version), place);
  const std::string mode = string_field(json, "storage_mode", "codebook", file);
  if (mode != "codebook" && mode != "codebook+sidecar") {
    throw Error(fmt::format("storage_mode '{}' is not supported", mode), place);
  }
  const std::string index_dtype = string_field(json, "index_dtype", "uint8", file);
  if (index_dtype != "uint8" && index_dtype != "uint16") {
    throw Error(fmt::format("index_dtype is '{}', expected 'uint8' or 'uint16'", index_dtype), place);
  }
  meta.index_dtype = index_dtype == "uint8" ? DType::u8 : DType::u16;
  const auto shape = json.find("shape");
  const auto is_dimension = [](const nlohmann::json& dimension) {
    return dimension.is_number_unsigned() && dimension.get<uint64_t>() <= INT32_MAX;
  };
  if (shape == json.end() || !shape->is_array() || shape->size() != 2 || !std::ranges::all_of(*shape, is_dimension)) {
    throw Error("'shape' is not a list of two dimensions", place);
  }
  meta.shape = shape->get<Shape>();
  return meta;
}

/// indices.bin as [out, in / d].
TensorView map_indices(CheckpointContents& contents, const fs::path& file, const TensorMeta& meta, int64_t d) {
  contents.files.push_back(MappedFile::open(file));
  const ErrorPlace place{.file = file.string(), .tensor = meta.tensor_name};
  if (d < 1 || meta.shape[1] % d != 0) {
    throw Error(fmt::format("shape {} cannot be made of codewords of {}", to_string(meta.shape), d), place);
  }
  TensorView view{meta.index_dtype, {meta.shape[0], meta.shape[1] / d}, contents.files.back().bytes()};
  const auto expected = static_cast<uint64_t>(view.size()) * size_of(view.dtype);
  if (view.bytes.size() != expected) {
    throw Error(fmt::format("{} bytes, expected {} for {} {}", view.bytes.size(), expected, name_of(view.dtype),
                            to_string(view.shape)),
                place);
  }
  return view;
}

void read_sidecar(CheckpointContents& contents, const fs::path& file, const std::string& module, const Shape& shape) {
  const MappedFile archive = MappedFile::open(file);
  const auto elements = static_cast<size_t>(element_count(shape));
  for (const auto& [member, key] : {std::pair("positions", ".sidecar_positions"), {"values", ".sidecar_values"}}) {
    const std::string npy = fmt::format("{}.npy", member);
    auto bytes = read_npz_member(archive.bytes(), npy, elements * sizeof(int64_t) + kNpyHeaderAllowance, file.string());
    if (!bytes) throw Error(fmt::format("has no member {}", npy), {.file = file.string()});
    contents.inflated.push_back({file, std::move(*bytes)});
    add(contents, module + key, parse_npy(contents.inflated.back().bytes, file.string()), file);
  }
}

void read_compressed(CheckpointContents& contents, const fs::path& dir) {
  const TensorMeta meta = read_meta(dir / "meta.json");
  const std::string_view name = meta.tensor_name;
  const std::string module(name.ends_with(".weight") ? name.substr(0, name.size() - 7) : name);
  if (!contents.parameter_names.emplace(module, meta.tensor_name).second) {
    throw Error("is stored twice in this tree", {.file = dir.string(), .tensor = meta.tensor_name});
  }
  const TensorView codebook = map_npy(contents, dir / "codebook.npy");
  add(contents, module + ".codebook", codebook, dir);
  const int64_t d = codebook.shape.size() == 2 ? codebook.shape[1] : 1;
  add(contents, module + ".indices", map_indices(contents, dir / "indices.bin", meta, d), dir);
  if (fs::exists(dir / "sidecar.npz")) read_sidecar(contents, dir / "sidecar.npz", module, meta.shape);
  for (const char* part : {"svd_U", "svd_s", "svd_Vt", "channel_scales"}) {
    const fs::path file = dir / fmt::format("{}.npy", part);
    if (fs::exists(file)) add(contents, fmt::format("{}.{}", module, part), map_npy(contents, file), file);
  }
}

void read_exact(CheckpointContents& contents, const fs::path& file, const fs::path& meta_file) {
  const nlohmann::json meta = load_json(meta_file);
  const std::string name = string_field(meta, "tensor_name", "", meta_file);
  if (name.empty()) throw Error("has no 'tensor_name'", {.file = meta_file.string()});
  add(contents, name, map_npy(contents, file), file);
}

}  // namespace

bool is_cdnav3_tree(const fs::path& root) {
  return std::ranges::any_of(fs::directory_iterator(root), [](const fs::directory_entry& entry) {
    return entry.path().extension() == ".cdnav3" || entry.path().extension() == ".npy";
  });
}

void read_cdnav3_tree(const fs::path& root, CheckpointContents& contents) {
  contents.is_tree = true;
  std::vector<fs::path> unnamed;
  for (const fs::path& entry : sorted_entries(root)) {
    if (entry.extension() == ".cdnav3") {
      read_compressed(contents, entry);
    } else if (entry.extension() == ".npy") {
      const fs::path meta = entry.string() + ".meta.json";
      if (fs::exists(meta)) {
        read_exact(contents, entry, meta);
      } else {
        unnamed.push_back(entry);
      }
    }
  }
  for (const fs::path& file : unnamed) {
    std::string name = file.stem().string();
    std::ranges::replace(name, '_', '.');
    if (!contents.tensors.contains(name)) add(contents, name, map_npy(contents, file), file);
  }
}

}  // namespace hxq
