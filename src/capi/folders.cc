#include <algorithm>
#include <array>
#include <filesystem>
#include <nlohmann/json.hpp>
#include <set>

#include "capi/handles.h"
#include "codec/codebook_read.h"
#include "codec/decode_reference.h"
#include "codec/stored_tensors.h"
#include "hxq/compress.h"
#include "hxq/verify.h"
#include "io/checkpoint.h"
#include "io/json.h"

using namespace hxq;
using namespace hxq::capi;

namespace {

/// What a loader needs of a compressed module; the first of two names for the same part counts.
constexpr std::array<std::string_view, 8> kParts = {
    "codebook", "indices", "sidecar_positions", "sidecar_values", "svd_U", "svd_s", "svd_Vt", "channel_scales"};

std::function<void(std::string_view, int64_t, int64_t)> report_to(hxq_progress progress, void* user) {
  if (progress == nullptr) return {};
  return [=](std::string_view tensor, int64_t done, int64_t total) {
    progress(std::string(tensor).c_str(), done, total, user);
  };
}

/// The files as one checkpoint; `opened` keeps them mapped.
Checkpoint join(const char* const* paths, size_t count, std::vector<Checkpoint>& opened) {
  TensorMap tensors;
  for (size_t i = 0; i < count; ++i) {
    opened.push_back(Checkpoint::open(paths[i]));
    for (const auto& [name, tensor] : opened.back().tensors()) tensors.emplace(name, tensor);
  }
  return Checkpoint::over(std::move(tensors));
}

nlohmann::json describe_part(const TensorView& tensor) {
  return {{"dtype", name_of(tensor.dtype)}, {"shape", tensor.shape}};
}

nlohmann::json stored_modules(const Checkpoint& checkpoint) {
  nlohmann::json modules = nlohmann::json::array();
  std::set<std::string> needed;
  for (const StoredTensor& stored : list_tensors(checkpoint)) {
    if (!stored.compressed) {
      needed.insert(stored.name);
      continue;
    }
    nlohmann::json parts;
    const auto take = [&](std::string_view part) {
      const std::string key = stored.module + "." + std::string(part);
      const TensorView* tensor = checkpoint.find(key);
      if (tensor == nullptr || tensor->size() == 0) return false;
      needed.insert(key);
      parts[std::string(part)] = describe_part(*tensor);
      return true;
    };
    for (const std::string_view part : kParts) {
      if (!take(part) && part == "sidecar_positions") take("sidecar_indices");
    }
    modules.push_back(
        {{"module", stored.module}, {"parameter", stored.name}, {"shape", stored.shape}, {"parts", parts}});
  }
  nlohmann::json ignored = nlohmann::json::array();
  for (const auto& [key, tensor] : checkpoint.tensors()) {
    if (!needed.contains(key)) ignored.push_back(key);
  }
  return {{"modules", modules}, {"ignored", ignored}};
}

/// Where to look for the tensor of one `.cdnav3` folder: its tree, and the name in its meta.json.
std::filesystem::path tree_of(const std::filesystem::path& folder, std::string& name) {
  std::filesystem::path plain = folder;
  if (plain.filename().empty()) plain = plain.parent_path();
  if (plain.extension() != ".cdnav3") return folder;
  const nlohmann::json meta = load_json(plain / "meta.json");
  if (!meta.is_object() || !meta.contains("tensor_name") || !meta["tensor_name"].is_string()) {
    throw Error("has no 'tensor_name'", {.file = (plain / "meta.json").string()});
  }
  name = meta["tensor_name"].get<std::string>();
  return plain.has_parent_path() ? plain.parent_path() : ".";
}

std::vector<std::string> strings(const char* const* texts, size_t count) {
  return count == 0 ? std::vector<std::string>() : std::vector<std::string>(texts, texts + count);
}

}  // namespace

hxq_status hxq_stored_modules(const char* const* paths, size_t count, char** json) {
  return guard([&] {
    require(count > 0, "no files");
    std::vector<Checkpoint> opened;
    *json = copy_text(stored_modules(join(paths, count, opened)).dump());
  });
}

hxq_status hxq_compress(const char* source, const char* destination, const hxq_compress_options* options,
                        hxq_progress progress, void* user, char** receipt_json) {
  return guard([&] {
    CompressOptions chosen;
    if (options != nullptr) {
      chosen.sidecar_fraction = options->sidecar_fraction;
      chosen.keep = strings(options->keep, options->keep_count);
      chosen.only = strings(options->only, options->only_count);
      chosen.threads = options->threads;
      chosen.force = options->force != 0;
    }
    chosen.progress = report_to(progress, user);
    *receipt_json = copy_text(to_json(compress(source, destination, chosen)));
  });
}

hxq_status hxq_verify(const char* folder, const char* source, hxq_progress progress, void* user, char** json) {
  return guard([&] {
    VerifyOptions options;
    if (source != nullptr) options.source = source;
    options.progress = report_to(progress, user);
    *json = copy_text(to_json(verify(folder, options)));
  });
}

hxq_status hxq_decompress(const char* source, const char* destination, int32_t dtype, hxq_progress progress,
                          void* user) {
  return guard([&] {
    decompress(source, destination, {.dtype = float_dtype_of(dtype), .progress = report_to(progress, user)});
  });
}

hxq_status hxq_inspect(const char* folder, char** json) {
  return guard([&] { *json = copy_text(to_json(inspect(folder))); });
}

hxq_status hxq_stored_parts(const char* folder, const char* name, hxq_encoded** parts, char** json) {
  return guard([&] {
    std::string tensor_name = name == nullptr ? "" : name;
    const Checkpoint checkpoint = Checkpoint::open(tree_of(folder, tensor_name));
    const std::optional<StoredTensor> stored = find_tensor(checkpoint, tensor_name);
    if (!stored || !stored->compressed) throw Error("is not stored compressed", checkpoint.place(tensor_name));
    auto result = std::make_unique<hxq_encoded>();
    for (const std::string_view part : kParts) {
      const TensorView* tensor = checkpoint.find(stored->module + "." + std::string(part));
      if (tensor == nullptr || tensor->size() == 0) continue;
      result->value.packed.planes.push_back(
          {std::string(part), tensor->dtype, tensor->shape, {tensor->bytes.begin(), tensor->bytes.end()}});
    }
    *json = copy_text(nlohmann::json{{"parameter", stored->name}, {"shape", stored->shape}}.dump());
    *parts = result.release();
  });
}

hxq_status hxq_read_tensor(const char* folder, const char* name, int64_t* shape, int32_t* rank, float* out) {
  return guard([&] {
    std::string tensor_name = name;
    const Checkpoint checkpoint = Checkpoint::open(tree_of(folder, tensor_name));
    const std::optional<StoredTensor> stored = find_tensor(checkpoint, tensor_name);
    if (!stored) throw Error("is not stored", checkpoint.place(tensor_name));
    require(stored->shape.size() <= 4, "the tensor has more than 4 dimensions");
    std::ranges::copy(stored->shape, shape);
    *rank = static_cast<int32_t>(stored->shape.size());
    if (out == nullptr) return;
    if (stored->compressed) {
      const CodebookMatrix matrix = read_codebook_matrix(checkpoint, stored->module, stored->shape);
      decode_reference(matrix, {out, static_cast<size_t>(matrix.rows * matrix.cols)});
    } else {
      std::ranges::copy(to_float(*checkpoint.find(stored->name)), out);
    }
  });
}
