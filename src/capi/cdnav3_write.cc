#include <fmt/format.h>
#include <zip.h>

#include <algorithm>
#include <ctime>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>

#include "capi/handles.h"

using namespace hxq;
using namespace hxq::capi;

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

void write_file(const fs::path& path, std::string_view content) {
  std::ofstream file(path, std::ios::binary);
  file.write(content.data(), static_cast<std::streamsize>(content.size()));
  file.close();
  if (!file) throw Error("cannot be written", {.file = path.string()});
}

/// A deflated .npz of positions and values.
void write_npz(const fs::path& path, const std::string& positions, const std::string& values) {
  fs::remove(path);
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

const Plane* find_plane(const PackedTensor& packed, std::string_view suffix) {
  const auto found = std::ranges::find(packed.planes, suffix, &Plane::suffix);
  return found == packed.planes.end() ? nullptr : &*found;
}

nlohmann::json write_exact(const fs::path& folder, const std::string& name, const TensorView& source) {
  const std::vector<float> values = to_float(source);
  const fs::path file = folder / (safe_name(name) + ".npy");
  write_file(file, npy(DType::f32, source.shape, std::as_bytes(std::span(values))));
  const nlohmann::json meta = {{"tensor_name", name}, {"shape", source.shape}, {"storage_mode", "exact"}};
  write_file(file.string() + ".meta.json", meta.dump(2));
  const int64_t bytes = 4 * source.size();
  return {{"tensor_name", name},      {"shape", source.shape}, {"original_bytes", bytes}, {"compressed_bytes", bytes},
          {"compression_ratio", 1.0}, {"num_outliers", 0},     {"storage_mode", "exact"}};
}

nlohmann::json write_compressed(const fs::path& tree, const std::string& name, const TensorView& source,
                                const CodebookOptions& options) {
  const EncodedTensor encoded = encode_codebook(source, options);
  const fs::path folder = tree / (safe_name(name) + ".cdnav3");
  fs::create_directories(folder);
  const Plane& codebook = *find_plane(encoded.packed, "codebook");
  const Plane& indices = *find_plane(encoded.packed, "indices");
  write_file(folder / "codebook.npy", npy(codebook.dtype, codebook.shape, codebook.bytes));
  write_file(folder / "indices.bin", {reinterpret_cast<const char*>(indices.bytes.data()), indices.bytes.size()});
  const Plane* positions = find_plane(encoded.packed, "sidecar_positions");
  if (positions != nullptr) {
    const Plane& values = *find_plane(encoded.packed, "sidecar_values");
    write_npz(folder / "sidecar.npz", npy(positions->dtype, positions->shape, positions->bytes),
              npy(values.dtype, values.shape, values.bytes));
  } else {
    fs::remove(folder / "sidecar.npz");
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
  write_file(folder / "meta.json", meta.dump(2));
  int64_t bytes = 0;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    bytes += static_cast<int64_t>(entry.file_size());
  }
  const int64_t original = 4 * source.size();
  nlohmann::json stats = {{"tensor_name", name},
                          {"shape", source.shape},
                          {"original_bytes", original},
                          {"compressed_bytes", bytes},
                          {"compression_ratio", static_cast<double>(original) / static_cast<double>(bytes)},
                          {"cosine_with_sidecar", encoded.fidelity.cosine()},
                          {"max_abs_diff", encoded.fidelity.max_error},
                          {"num_outliers", encoded.outliers}};
  write_file(folder / "stats.json", stats.dump(2));
  return stats;
}

}  // namespace

hxq_status hxq_cdnav3_write(const char* folder, const hxq_tensor* source, int32_t exact, double sidecar_fraction,
                            int32_t max_codewords, int32_t threads, char** stats_json) {
  return guard([&] {
    require(source->name != nullptr && *source->name != 0, "the tensor has no name");
    const TensorView view = capi::view_of(*source);
    try {
      fs::create_directories(folder);
      const bool compressed = exact == 0 && view.shape.size() == 2 && view.size() > 0;
      const nlohmann::json stats =
          compressed ? write_compressed(
                           folder, source->name, view,
                           {.sidecar_fraction = sidecar_fraction, .max_codewords = max_codewords, .threads = threads})
                     : write_exact(folder, source->name, view);
      *stats_json = copy_text(stats.dump());
    } catch (const fs::filesystem_error& error) {
      throw Error("cannot be written: " + error.code().message(), {.file = error.path1().string()});
    }
  });
}
