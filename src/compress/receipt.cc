#include "hxq/receipt.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>
#include <type_traits>

#include "codec/codec.h"
#include "compress/journal.h"
#include "hxq/error.h"
#include "io/json.h"
#include "io/system_error.h"

namespace hxq {
namespace {

using nlohmann::ordered_json;

constexpr int kReceiptVersion = 1;

ordered_json json_of(const StoredKey& key) {
  return {{"key", key.key}, {"dtype", key.dtype}, {"shape", key.shape}, {"bytes", key.bytes}, {"sha256", key.sha256}};
}

ordered_json json_of(const TensorReceipt& tensor) {
  ordered_json stored = ordered_json::array();
  for (const StoredKey& key : tensor.stored) stored.push_back(json_of(key));
  return {
      {"name", tensor.name},
      {"shape", tensor.shape},
      {"role", tensor.role},
      {"codec", tensor.codec},
      {"source", {{"dtype", tensor.source_dtype}, {"bytes", tensor.source_bytes}, {"sha256", tensor.source_sha256}}},
      {"stored", std::move(stored)},
      {"stored_bytes", tensor.stored_bytes},
      {"bits_per_weight", tensor.bits_per_weight},
      {"snr_db", tensor.snr_db ? ordered_json(*tensor.snr_db) : ordered_json()},
      {"cosine", tensor.cosine},
      {"max_error", tensor.max_error},
      {"outliers", tensor.outliers},
  };
}

/// One object of a receipt, with where it is, so that complaints name the field.
class Part {
 public:
  Part(const nlohmann::json& json, std::string path) : json_(json), path_(std::move(path)) {
    if (!json_.is_object()) fail(path_.empty() ? "expected a JSON object" : path_ + " is not an object");
  }

  bool has(const char* key) const { return json_.contains(key); }
  bool is_null(const char* key) const { return field(key).is_null(); }
  Part part(const char* key) const { return {field(key), path_of(key)}; }

  std::vector<Part> parts(const char* key) const {
    const nlohmann::json& list = field(key);
    if (!list.is_array()) fail(path_of(key) + " is not a list");
    std::vector<Part> parts;
    for (const nlohmann::json& item : list) parts.emplace_back(item, fmt::format("{}[{}]", path_of(key), parts.size()));
    return parts;
  }

  template <class T>
  void get(const char* key, T& value) const {
    const nlohmann::json& found = field(key);
    try {
      if (holds<T>(found)) {
        found.get_to(value);
        return;
      }
    } catch (const nlohmann::json::exception&) {
    }
    fail(fmt::format("{} is of another type than expected", path_of(key)));
  }

 private:
  /// Whether the number is one of T, or the list one of such: the JSON library turns 1.5 into 1, and 1e30 into
  /// anything.
  template <class T>
  static bool holds(const nlohmann::json& found) {
    if constexpr (std::is_same_v<T, Shape>) {
      return found.is_array() && std::ranges::all_of(found, holds<int64_t>);
    } else if constexpr (std::is_integral_v<T>) {
      return found.is_number_unsigned() ? found.get<uint64_t>() <= INT64_MAX : found.is_number_integer();
    } else if constexpr (std::is_floating_point_v<T>) {
      return found.is_number();
    }
    return true;
  }

  [[noreturn]] static void fail(const std::string& message) { throw Error("not a receipt: " + message); }

  std::string path_of(const char* key) const { return path_.empty() ? key : fmt::format("{}.{}", path_, key); }

  const nlohmann::json& field(const char* key) const {
    const auto found = json_.find(key);
    if (found == json_.end()) fail("no " + path_of(key));
    return *found;
  }

  const nlohmann::json& json_;
  std::string path_;
};

ordered_json options_json(const Receipt& receipt) {
  ordered_json options = {
      {"sidecar_fraction", receipt.sidecar_fraction}, {"keep", receipt.keep}, {"only", receipt.only}};
  if (receipt.group > 0) {
    options["bits"] = receipt.bits;
    options["group"] = receipt.group;
    options["bits_for"] = receipt.bits_for;
  }
  options["low_rank"] = receipt.low_rank ? ordered_json(*receipt.low_rank) : ordered_json();
  if (!receipt.levels.empty()) options["levels"] = receipt.levels;
  return options;
}

TensorReceipt tensor_from(const Part& json) {
  TensorReceipt tensor;
  json.get("name", tensor.name);
  json.get("shape", tensor.shape);
  json.get("role", tensor.role);
  json.get("codec", tensor.codec);
  if (tensor.codec != kExact && find_codec(tensor.codec) == nullptr) {
    throw Error(fmt::format("{} is stored with codec '{}', which is not known here", tensor.name, tensor.codec));
  }
  const Part source = json.part("source");
  source.get("dtype", tensor.source_dtype);
  source.get("bytes", tensor.source_bytes);
  source.get("sha256", tensor.source_sha256);
  for (const Part& part : json.parts("stored")) {
    StoredKey& key = tensor.stored.emplace_back();
    part.get("key", key.key);
    part.get("dtype", key.dtype);
    part.get("shape", key.shape);
    part.get("bytes", key.bytes);
    part.get("sha256", key.sha256);
  }
  json.get("stored_bytes", tensor.stored_bytes);
  json.get("bits_per_weight", tensor.bits_per_weight);
  if (!json.is_null("snr_db")) json.get("snr_db", tensor.snr_db.emplace());
  json.get("cosine", tensor.cosine);
  json.get("max_error", tensor.max_error);
  json.get("outliers", tensor.outliers);
  return tensor;
}

Receipt receipt_from(const Part& json) {
  if (!json.has("receipt_version")) throw Error(fmt::format("no receipt_version, expected {}", kReceiptVersion));
  int64_t version = 0;
  json.get("receipt_version", version);
  if (version != kReceiptVersion) {
    throw Error(fmt::format("receipt_version is {}, expected {}", version, kReceiptVersion));
  }
  Receipt receipt;
  json.part("tool").get("version", receipt.tool_version);
  json.get("source", receipt.source_name);
  const Part options = json.part("options");
  options.get("sidecar_fraction", receipt.sidecar_fraction);
  if (options.has("low_rank") && !options.is_null("low_rank")) options.get("low_rank", receipt.low_rank.emplace());
  options.get("keep", receipt.keep);
  options.get("only", receipt.only);
  if (options.has("bits")) {
    options.get("bits", receipt.bits);
    options.get("group", receipt.group);
    options.get("bits_for", receipt.bits_for);
  }
  if (options.has("levels")) options.get("levels", receipt.levels);
  if (json.has("files")) json.get("files", receipt.files);
  if (json.has("left_out")) {
    for (const Part& file : json.parts("left_out")) {
      LeftOut& left_out = receipt.left_out.emplace_back();
      file.get("name", left_out.name);
      file.get("reason", left_out.reason);
    }
  }
  const Part totals = json.part("totals");
  totals.get("parameters", receipt.totals.parameters);
  totals.get("tensors_compressed", receipt.totals.tensors_compressed);
  totals.get("tensors_exact", receipt.totals.tensors_exact);
  totals.get("source_bytes", receipt.totals.source_bytes);
  totals.get("f32_bytes", receipt.totals.f32_bytes);
  totals.get("stored_bytes", receipt.totals.stored_bytes);
  totals.get("compressed_f32_bytes", receipt.totals.compressed_f32_bytes);
  totals.get("compressed_stored_bytes", receipt.totals.compressed_stored_bytes);
  totals.get("ratio_to_source", receipt.totals.ratio_to_source);
  totals.get("ratio_to_f32", receipt.totals.ratio_to_f32);
  totals.get("bits_per_weight", receipt.totals.bits_per_weight);
  totals.get("wall_seconds", receipt.totals.wall_seconds);
  totals.get("peak_memory_bytes", receipt.totals.peak_memory_bytes);
  for (const Part& tensor : json.parts("tensors")) receipt.tensors.push_back(tensor_from(tensor));
  return receipt;
}

}  // namespace

std::string journal_line(const TensorReceipt& tensor) { return json_of(tensor).dump(); }

TensorReceipt read_journal_line(std::string_view line) {
  const nlohmann::json json = parse_json(line, "journal");
  return tensor_from(Part(json, ""));
}

std::string to_json(const Receipt& receipt) {
  ordered_json tensors = ordered_json::array();
  for (const TensorReceipt& tensor : receipt.tensors) tensors.push_back(json_of(tensor));
  ordered_json left_out = ordered_json::array();
  for (const LeftOut& file : receipt.left_out) left_out.push_back({{"name", file.name}, {"reason", file.reason}});
  const ReceiptTotals& totals = receipt.totals;
  const ordered_json json = {
      {"receipt_version", kReceiptVersion},
      {"tool", {{"name", "hxq"}, {"version", receipt.tool_version}}},
      {"source", receipt.source_name},
      {"options", options_json(receipt)},
      {"files", receipt.files},
      {"left_out", std::move(left_out)},
      {"totals",
       {{"parameters", totals.parameters},
        {"tensors_compressed", totals.tensors_compressed},
        {"tensors_exact", totals.tensors_exact},
        {"source_bytes", totals.source_bytes},
        {"f32_bytes", totals.f32_bytes},
        {"stored_bytes", totals.stored_bytes},
        {"compressed_f32_bytes", totals.compressed_f32_bytes},
        {"compressed_stored_bytes", totals.compressed_stored_bytes},
        {"ratio_to_source", totals.ratio_to_source},
        {"ratio_to_f32", totals.ratio_to_f32},
        {"bits_per_weight", totals.bits_per_weight},
        {"wall_seconds", totals.wall_seconds},
        {"peak_memory_bytes", totals.peak_memory_bytes}}},
      {"tensors", std::move(tensors)},
  };
  return json.dump(2, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

std::optional<Receipt> read_receipt(const std::filesystem::path& dir) {
  const std::filesystem::path path = dir / kReceiptFile;
  if (!is_there(path)) return std::nullopt;
  const nlohmann::json json = load_json(path, nullptr, kMaxJsonList);
  try {
    return receipt_from(Part(json, ""));
  } catch (const Error& error) {
    throw Error(error.what(), {.file = path.string()});
  }
}

}  // namespace hxq
