#include <fmt/format.h>

#include <algorithm>
#include <filesystem>
#include <map>
#include <nlohmann/json.hpp>
#include <set>

#include "capi/arguments.h"
#include "capi/encode_options.h"
#include "capi/handles.h"
#include "codec/stored_tensors.h"
#include "hxq/compress.h"
#include "hxq/verify.h"
#include "io/checkpoint.h"
#include "io/json.h"

using namespace hxq;
using namespace hxq::capi;

namespace {

/// The caller's function as the library calls one; what it wants to stop stops.
std::function<void(std::string_view, int64_t, int64_t)> report_to(const hxq_progress* progress) {
  if (progress == nullptr || progress->report == nullptr) return {};
  return [call = *progress](std::string_view tensor, int64_t done, int64_t total) {
    if (call.report(std::string(tensor).c_str(), done, total, call.user) != 0) throw Cancelled();
  };
}

std::function<void(const std::string&)> notice_to(const hxq_progress* progress) {
  if (progress == nullptr || progress->notice == nullptr) return {};
  return [call = *progress](const std::string& line) { call.notice(line.c_str(), call.user); };
}

/// The files as one checkpoint; `opened` keeps them mapped.
Checkpoint join(const char* const* paths, size_t count, std::vector<Checkpoint>& opened) {
  TensorMap tensors;
  for (size_t i = 0; i < count; ++i) {
    opened.push_back(Checkpoint::open(paths[i]));
    for (const auto& [name, tensor] : opened.back().tensors()) {
      if (!tensors.emplace(name, tensor).second)
        throw Error("is stored in two files", {.file = paths[i], .tensor = name});
    }
  }
  return Checkpoint::over(std::move(tensors));
}

/// The key of a part that is stored and has elements, under its name or its older one; otherwise empty.
std::string stored_key(const Checkpoint& checkpoint, std::string_view module, const PartSpec& part) {
  const TensorView* tensor = find_part(checkpoint, module, part);
  if (tensor == nullptr) return {};
  std::string key = part_key(module, part.suffix);
  return checkpoint.find(key) == tensor ? key : part_key(module, part.older_name);
}

nlohmann::json describe_part(const TensorView& tensor) {
  return {{"dtype", name_of(tensor.dtype)}, {"shape", tensor.shape}};
}

nlohmann::json stored_modules(const Checkpoint& checkpoint) {
  nlohmann::json modules = nlohmann::json::array();
  std::set<std::string> needed;
  for (const StoredTensor& stored : list_tensors(checkpoint)) {
    if (!stored.codec) {
      needed.insert(stored.name);
      continue;
    }
    nlohmann::json parts;
    for (const PartSpec& part : stored.codec->parts) {
      if (part.kind == PartSpec::Kind::derived) continue;
      const std::string key = stored_key(checkpoint, stored.module, part);
      if (key.empty()) continue;
      needed.insert(key);
      parts[key.substr(stored.module.size() + 1)] = describe_part(*checkpoint.find(key));
    }
    modules.push_back({{"module", stored.module},
                       {"parameter", stored.name},
                       {"shape", stored.shape},
                       {"codec", stored.codec->id},
                       {"parts", parts}});
  }
  nlohmann::json ignored = nlohmann::json::array();
  for (const auto& [key, tensor] : checkpoint.tensors()) {
    if (!needed.contains(key)) ignored.push_back(key);
  }
  return {{"modules", modules}, {"ignored", ignored}};
}

/// Where to look for the tensor of one `.cdnav3` folder: its tree, and the name in its meta.json, which `name` is
/// then, unless it is another.
std::filesystem::path tree_of(const std::filesystem::path& folder, std::string& name) {
  std::filesystem::path plain = folder;
  if (plain.filename().empty()) plain = plain.parent_path();
  if (plain.extension() != ".cdnav3") return folder;
  const nlohmann::json meta = load_json(plain / "meta.json");
  if (!meta.is_object() || !meta.contains("tensor_name") || !meta["tensor_name"].is_string()) {
    throw Error("has no 'tensor_name'", {.file = (plain / "meta.json").string()});
  }
  const std::string found = meta["tensor_name"].get<std::string>();
  if (!name.empty() && name != found) {
    throw Error(fmt::format("is of tensor '{}', not of '{}'", found, name), {.file = plain.string()});
  }
  name = found;
  return plain.has_parent_path() ? plain.parent_path() : ".";
}

std::vector<std::string> strings(const char* name, const char* const* texts, size_t count) {
  if (count > 0) require_pointers({{name, texts}});
  for (size_t i = 0; i < count; ++i) require_pointers({{name, texts[i]}});
  return count == 0 ? std::vector<std::string>() : std::vector<std::string>(texts, texts + count);
}

std::map<std::string, int> bits_by_role(const hxq_role_bits* given, size_t count) {
  std::map<std::string, int> bits;
  if (count > 0) require_pointers({{"bits_for", given}});
  for (size_t i = 0; i < count; ++i) {
    require_pointers({{"bits_for", given[i].role}});
    if (!bits.emplace(given[i].role, given[i].bits).second) {
      throw InvalidArgument(fmt::format("bits_for names '{}' twice", given[i].role));
    }
  }
  return bits;
}

CompressOptions compress_options(const hxq_compress_options* options) {
  hxq_compress_options chosen;
  hxq_compress_options_init(&chosen);
  if (options != nullptr) chosen = *options;
  if (!(chosen.sidecar_fraction >= 0 && chosen.sidecar_fraction <= 0.5)) {
    throw InvalidArgument(fmt::format("sidecar_fraction is {}, expected 0 to 0.5", chosen.sidecar_fraction));
  }
  require_threads(chosen.threads, 0);
  if (chosen.max_shard_bytes < 0) {
    throw InvalidArgument(fmt::format("max_shard_bytes is {}, expected 0 or more", chosen.max_shard_bytes));
  }
  return {.profile = optional_text("profile", chosen.profile),
          .bits = chosen.bits,
          .group = chosen.group,
          .bits_for = bits_by_role(chosen.bits_for, chosen.bits_for_count),
          .sidecar_fraction = chosen.sidecar_fraction,
          .low_rank = low_rank_option(chosen.low_rank),
          .keep = strings("keep", chosen.keep, chosen.keep_count),
          .only = strings("only", chosen.only, chosen.only_count),
          .threads = chosen.threads,
          .force = chosen.force != 0,
          .resume = chosen.resume != 0,
          .max_shard_bytes = chosen.max_shard_bytes == 0 ? kMaxShardBytes : chosen.max_shard_bytes};
}

}  // namespace

hxq_status hxq_stored_modules(const char* const* paths, size_t count, char** json) {
  return guard("listing stored modules", [&] {
    require_pointers({{"paths", paths}, {"json", json}});
    require(count > 0, "no files");
    for (size_t i = 0; i < count; ++i) require_pointers({{"a path", paths[i]}});
    std::vector<Checkpoint> opened;
    *json = copy_text(stored_modules(join(paths, count, opened)).dump());
  });
}

void hxq_compress_options_init(hxq_compress_options* options) {
  if (options == nullptr) return;
  *options = {};
  options->sidecar_fraction = CompressOptions{}.sidecar_fraction;
}

hxq_status hxq_compress(const char* source, const char* destination, const hxq_compress_options* options,
                        const hxq_progress* progress, char** receipt_json) {
  return guard("compressing a model", [&] {
    require_pointers({{"source", source}, {"destination", destination}, {"receipt_json", receipt_json}});
    CompressOptions chosen = compress_options(options);
    chosen.progress = report_to(progress);
    chosen.notice = notice_to(progress);
    *receipt_json = copy_text(to_json(compress(source, destination, chosen)));
  });
}

hxq_status hxq_verify(const char* folder, const char* source, const hxq_progress* progress, char** json) {
  return guard("verifying a model", [&] {
    require_pointers({{"folder", folder}, {"json", json}});
    VerifyOptions options;
    options.source = optional_text("source", source);
    options.progress = report_to(progress);
    *json = copy_text(to_json(verify(folder, options)));
  });
}

hxq_status hxq_decompress(const char* source, const char* destination, int32_t dtype, const hxq_progress* progress) {
  return guard("decompressing a model", [&] {
    require_pointers({{"source", source}, {"destination", destination}});
    decompress(source, destination,
               {.dtype = float_dtype_of(dtype), .progress = report_to(progress), .notice = notice_to(progress)});
  });
}

hxq_status hxq_inspect(const char* folder, char** json) {
  return guard("inspecting a folder", [&] {
    require_pointers({{"folder", folder}, {"json", json}});
    *json = copy_text(to_json(inspect(folder)));
  });
}

hxq_status hxq_stored_parts(const char* folder, const char* name, hxq_encoded** parts, char** json) {
  return guard("reading stored tensors", [&] {
    require_pointers({{"folder", folder}, {"parts", parts}, {"json", json}});
    std::string tensor_name = name == nullptr ? "" : name;
    const Checkpoint checkpoint = Checkpoint::open(tree_of(folder, tensor_name));
    const std::optional<StoredTensor> stored = find_tensor(checkpoint, tensor_name);
    if (!stored || !stored->codec) throw Error("is not stored compressed", checkpoint.place(tensor_name));
    auto result = std::make_unique<hxq_encoded>();
    for (const PartSpec& part : stored->codec->parts) {
      const TensorView* tensor = find_part(checkpoint, stored->module, part);
      if (tensor == nullptr || part.kind == PartSpec::Kind::derived) continue;
      result->value.parts.push_back(
          {std::string(part.suffix), tensor->dtype, tensor->shape, {tensor->bytes.begin(), tensor->bytes.end()}});
    }
    *json = copy_text(nlohmann::json{{"parameter", stored->name}, {"shape", stored->shape}}.dump());
    *parts = result.release();
  });
}

hxq_status hxq_read_tensor(const char* folder, const char* name, int64_t* shape, int32_t* rank, float* out,
                           int64_t count) {
  return guard("reading a tensor", [&] {
    require_pointers({{"folder", folder}, {"name", name}, {"shape", shape}, {"rank", rank}});
    require_aligned({{"out", out}});
    std::string tensor_name = name;
    const Checkpoint checkpoint = Checkpoint::open(tree_of(folder, tensor_name));
    const std::optional<StoredTensor> stored = find_tensor(checkpoint, tensor_name);
    if (!stored) throw Error("is not stored", checkpoint.place(tensor_name));
    require(stored->shape.size() <= 4, "the tensor has more than 4 dimensions");
    const int64_t expected = out == nullptr ? 0 : element_count(stored->shape);
    if (count != expected) throw InvalidArgument(fmt::format("room for {} floats, expected {}", count, expected));
    if (out != nullptr && stored->codec) {
      const auto matrix = stored->codec->read(checkpoint, stored->module, stored->shape);
      matrix->decode_rows(0, matrix->rows, {out, static_cast<size_t>(matrix->rows * matrix->cols)});
    } else if (out != nullptr) {
      std::ranges::copy(to_float(*checkpoint.find(stored->name)), out);
    }
    std::ranges::copy(stored->shape, shape);
    *rank = static_cast<int32_t>(stored->shape.size());
  });
}
