#include "hxq/receipt.h"

#include <nlohmann/json.hpp>

#include "hxq/error.h"
#include "io/json.h"

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

TensorReceipt tensor_from(const nlohmann::json& json) {
  TensorReceipt tensor;
  json.at("name").get_to(tensor.name);
  json.at("shape").get_to(tensor.shape);
  json.at("role").get_to(tensor.role);
  json.at("codec").get_to(tensor.codec);
  const nlohmann::json& source = json.at("source");
  source.at("dtype").get_to(tensor.source_dtype);
  source.at("bytes").get_to(tensor.source_bytes);
  source.at("sha256").get_to(tensor.source_sha256);
  for (const nlohmann::json& key : json.at("stored")) {
    tensor.stored.push_back({key.at("key"), key.at("dtype"), key.at("shape"), key.at("bytes"), key.at("sha256")});
  }
  json.at("stored_bytes").get_to(tensor.stored_bytes);
  json.at("bits_per_weight").get_to(tensor.bits_per_weight);
  if (!json.at("snr_db").is_null()) tensor.snr_db = json.at("snr_db").get<double>();
  json.at("cosine").get_to(tensor.cosine);
  json.at("max_error").get_to(tensor.max_error);
  json.at("outliers").get_to(tensor.outliers);
  return tensor;
}

Receipt receipt_from(const nlohmann::json& json) {
  Receipt receipt;
  json.at("tool").at("version").get_to(receipt.tool_version);
  json.at("source").get_to(receipt.source_name);
  const nlohmann::json& options = json.at("options");
  options.at("sidecar_fraction").get_to(receipt.sidecar_fraction);
  options.at("keep").get_to(receipt.keep);
  options.at("only").get_to(receipt.only);
  if (json.contains("files")) json.at("files").get_to(receipt.files);
  const nlohmann::json& totals = json.at("totals");
  totals.at("parameters").get_to(receipt.totals.parameters);
  totals.at("tensors_compressed").get_to(receipt.totals.tensors_compressed);
  totals.at("tensors_exact").get_to(receipt.totals.tensors_exact);
  totals.at("source_bytes").get_to(receipt.totals.source_bytes);
  totals.at("f32_bytes").get_to(receipt.totals.f32_bytes);
  totals.at("stored_bytes").get_to(receipt.totals.stored_bytes);
  totals.at("compressed_f32_bytes").get_to(receipt.totals.compressed_f32_bytes);
  totals.at("compressed_stored_bytes").get_to(receipt.totals.compressed_stored_bytes);
  totals.at("ratio_to_source").get_to(receipt.totals.ratio_to_source);
  totals.at("ratio_to_f32").get_to(receipt.totals.ratio_to_f32);
  totals.at("bits_per_weight").get_to(receipt.totals.bits_per_weight);
  totals.at("wall_seconds").get_to(receipt.totals.wall_seconds);
  totals.at("peak_memory_bytes").get_to(receipt.totals.peak_memory_bytes);
  for (const nlohmann::json& tensor : json.at("tensors")) receipt.tensors.push_back(tensor_from(tensor));
  return receipt;
}

}  // namespace

std::string to_json(const Receipt& receipt) {
  ordered_json tensors = ordered_json::array();
  for (const TensorReceipt& tensor : receipt.tensors) tensors.push_back(json_of(tensor));
  const ReceiptTotals& totals = receipt.totals;
  const ordered_json json = {
      {"receipt_version", kReceiptVersion},
      {"tool", {{"name", "hxq"}, {"version", receipt.tool_version}}},
      {"source", receipt.source_name},
      {"options", {{"sidecar_fraction", receipt.sidecar_fraction}, {"keep", receipt.keep}, {"only", receipt.only}}},
      {"files", receipt.files},
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
  return json.dump(2) + "\n";
}

std::optional<Receipt> read_receipt(const std::filesystem::path& dir) {
  const std::filesystem::path path = dir / kReceiptFile;
  if (!std::filesystem::exists(path)) return std::nullopt;
  const nlohmann::json json = load_json(path);
  try {
    if (const int version = json.at("receipt_version"); version != kReceiptVersion) {
      throw Error("receipt_version is " + std::to_string(version) + ", expected " + std::to_string(kReceiptVersion),
                  {.file = path.string()});
    }
    return receipt_from(json);
  } catch (const nlohmann::json::exception& error) {
    throw Error(std::string("not a receipt: ") + error.what(), {.file = path.string()});
  }
}

}  // namespace hxq
