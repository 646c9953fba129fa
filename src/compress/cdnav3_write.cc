#include "compress/cdnav3_write.h"

#include <fmt/format.h>
#include <zip.h>

#include <algorithm>
#include <ctime>
#include <nlohmann/json.hpp>

#include "compress/staged_folder.h"
#include "hxq/error.h"
#include "io/json.h"

namespace hxq {
namespace {

namespace fs = std::filesystem;

/// NumPy's format 1.0: magic, version, length of the header, the header as a Python dict, padded to 64 bytes.
std::string npy(DType dtype, const Shape& shape, std::span<const std::byte> bytes) {
  const char* type = dtype == DType::f32 ? "<f4" : dtype == DType::f16 ? "<f2" : "<i8";
  std::string dimensions;
  for (const int64_t dimension : shape) dimensions += fmt::format("{}, ", dimension);
  std::string header = fmt::format("{{'descr': '{}', 'fortran_order': False, 'shape': ({}), }}", type, dimensions);
  constexpr size_t kPrefix = 10;
  header.resize((kPrefix + header.size() + 1 + 63) / 64 * 64 - kPrefix, ' ');
  header.back() = '\n';
  std::string file("\x93NUMPY\x01\x00", 8);
  file += static_cast<char>(header.size() & 0xff);
  file += static_cast<char>(header.size() >> 8);
  file += header;
  file.append(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  return file;
}

std::string_view text_of(const std::vector<std::byte>& bytes) {
  return {reinterpret_cast<const char*>(bytes.data()), bytes.size()};
}

/// A deflated .npz of positions and values.
void write_npz(const fs::path& path, const std::string& positions, const std::string& values) {
  zip_t* archive = zip_open(path.c_str(), ZIP_CREATE | ZIP_TRUNCATE, nullptr);
  if (archive == nullptr) throw Error("cannot be written", {.file = path.string()});
  bool written = true;
  for (const auto& [name, content] : {std::pair("positions.npy", &positions), {"values.npy", &values}}) {
    zip_source_t* source = zip_source_buffer(archive, content->data(), content->size(), 0);
    const zip_int64_t index = source == nullptr ? -1 : zip_file_add(archive, name, source, ZIP_FL_OVERWRITE);
    if (index < 0) zip_source_free(source);
    written = written && index >= 0 &&
              zip_set_file_compression(archive, static_cast<zip_uint64_t>(index), ZIP_CM_DEFLATE, 0) == 0;
  }
  if (!written || zip_close(archive) != 0) {
    const std::string reason = zip_strerror(archive);
    zip_discard(archive);
    throw Error("cannot be written: " + reason, {.file = path.string()});
  }
}

/// A tensor's name as the name of a file.
std::string safe_name(std::string name) {
  std::ranges::replace_if(
      name, [](char c) { return c == '/' || c == '.' || c == '\0'; }, '_');
  return name;
}

std::string now_utc() {
  const std::time_t now = std::time(nullptr);
  std::tm utc{};
  gmtime_r(&now, &utc);
  char text[32];
  std::strftime(text, sizeof text, "%Y-%m-%dT%H:%M:%S+00:00", &utc);
  return text;
}

const EncodedPart* part_named(const EncodedTensor& encoded, std::string_view suffix) {
  const auto found = std::ranges::find(encoded.parts, suffix, &EncodedPart::suffix);
  return found == encoded.parts.end() ? nullptr : &*found;
}

/// The tensor that a meta file is of; empty if it says nothing.
std::string tensor_of(const fs::path& meta) {
  const nlohmann::json found = load_json(meta);
  const auto name = found.is_object() ? found.find("tensor_name") : found.end();
  return name != found.end() && name->is_string() ? name->get<std::string>() : "";
}

/// Names of several tensors can make one name of a file: none takes the place of another.
void check_same_tensor(const fs::path& meta, const std::string& name) {
  const std::string other = tensor_of(meta);
  if (other.empty() || other == name) return;
  throw Error(
      fmt::format("is of tensor '{}', which '{}' does not replace: write one of them to another tree", other, name),
      {.file = meta.string()});
}

/// A tree that holds a tensor in both forms cannot be read. meta: where the other form has its meta file.
void check_other_form(const fs::path& meta, const std::string& name) {
  if (!fs::exists(meta) || tensor_of(meta) != name) return;
  throw Error(fmt::format("holds '{}' already, in the other form: remove that first", name), {.file = meta.string()});
}

/// A folder that an earlier call wrote for the same tensor.
void check_replaceable(const fs::path& folder, const std::string& name) {
  if (!fs::is_directory(fs::symlink_status(folder)) || !fs::exists(folder / "meta.json")) {
    throw Error("is not the folder of a tensor (it has no meta.json), so it is not replaced",
                {.file = folder.string()});
  }
  check_same_tensor(folder / "meta.json", name);
}

int64_t bytes_in(const fs::path& folder) {
  int64_t bytes = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    bytes += static_cast<int64_t>(entry.file_size());
  }
  return bytes;
}

/// Both files of an exact tensor are written under other names first. The array, without which the meta file means
/// nothing, is put in place before it.
void write_pair(const fs::path& array, const std::string& content, const nlohmann::json& meta) {
  const fs::path meta_path = array.string() + ".meta.json";
  if (fs::exists(meta_path)) check_same_tensor(meta_path, meta["tensor_name"]);
  StagedFolder staging(array.string() + ".files");  // never put in place
  staging.write("array", content);
  staging.write("meta", meta.dump(2));
  fs::rename(staging.path() / "array", array);
  fs::rename(staging.path() / "meta", meta_path);
}

}  // namespace

nlohmann::json write_cdnav3_exact(const fs::path& tree, const std::string& name, const TensorView& source) {
  fs::create_directories(tree);
  check_other_form(tree / (safe_name(name) + ".cdnav3") / "meta.json", name);
  const std::vector<float> values = to_float(source);
  write_pair(tree / (safe_name(name) + ".npy"), npy(DType::f32, source.shape, std::as_bytes(std::span(values))),
             {{"tensor_name", name}, {"shape", source.shape}, {"storage_mode", "exact"}});
  const int64_t bytes = 4 * source.size();
  return {{"tensor_name", name},      {"shape", source.shape}, {"original_bytes", bytes}, {"compressed_bytes", bytes},
          {"compression_ratio", 1.0}, {"num_outliers", 0},     {"storage_mode", "exact"}};
}

nlohmann::json write_cdnav3(const fs::path& tree, const std::string& name, const TensorView& source,
                            const CodebookOptions& options) {
  check_other_form(tree / (safe_name(name) + ".npy.meta.json"), name);
  CodebookOptions without_term = options;
  without_term.low_rank = 0;  // svd_*.npy are the caller's
  const EncodedTensor encoded = encode_codebook(source, without_term);
  StagedFolder folder(tree / (safe_name(name) + ".cdnav3"),
                      [&](const fs::path& found) { check_replaceable(found, name); });
  const EncodedPart& codebook = *part_named(encoded, "codebook");
  folder.write("codebook.npy", npy(codebook.dtype, codebook.shape, codebook.bytes));
  folder.write("indices.bin", text_of(part_named(encoded, "indices")->bytes));
  const EncodedPart* positions = part_named(encoded, "sidecar_positions");
  if (positions != nullptr) {
    const EncodedPart& values = *part_named(encoded, "sidecar_values");
    write_npz(folder.path() / "sidecar.npz", npy(positions->dtype, positions->shape, positions->bytes),
              npy(values.dtype, values.shape, values.bytes));
  }
  const nlohmann::json meta = {{"format_version", "cdna_v3"},
                               {"tensor_name", name},
                               {"shape", source.shape},
                               {"dtype", "float32"},
                               {"index_dtype", "uint8"},
                               {"storage_mode", positions != nullptr ? "codebook+sidecar" : "codebook"},
                               {"n_clusters", options.max_codewords},
                               {"sidecar_enabled", positions != nullptr},
                               {"vector_dim", 1},
                               {"svd_residual_rank", 0},
                               {"created_utc", now_utc()}};
  folder.write("meta.json", meta.dump(2));
  const int64_t bytes = bytes_in(folder.path());
  const int64_t original = 4 * source.size();
  nlohmann::json stats = {{"tensor_name", name},
                          {"shape", source.shape},
                          {"original_bytes", original},
                          {"compressed_bytes", bytes},
                          {"compression_ratio", static_cast<double>(original) / static_cast<double>(bytes)},
                          {"cosine_with_sidecar", encoded.fidelity.cosine()},
                          {"max_abs_diff", encoded.fidelity.max_error},
                          {"num_outliers", encoded.outliers}};
  folder.write("stats.json", stats.dump(2));
  folder.commit();
  return stats;
}

}  // namespace hxq
