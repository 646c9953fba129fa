#include "hxq/compress.h"

#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <nlohmann/json.hpp>

#include "compress/peak_memory.h"
#include "compress/plan.h"
#include "compress/replaceable.h"
#include "compress/sha256.h"
#include "compress/staged_folder.h"
#include "hxq/error.h"
#include "hxq/version.h"
#include "io/json.h"
#include "io/safetensors_writer.h"

namespace hxq {
namespace {

/// Every key that may be written, with shapes as large as they can get.
std::vector<TensorPlan> header_plan(const std::vector<PlanEntry>& plan) {
  std::vector<TensorPlan> keys;
  for (const PlanEntry& entry : plan) {
    if (!entry.encoder) {
      keys.push_back({entry.name, entry.view.dtype, entry.view.shape});
      continue;
    }
    for (const PartPlan& part : entry.encoder->largest_parts(entry.view.shape)) {
      keys.push_back({part_key(module_of(entry.name), part.suffix), part.dtype, part.shape});
    }
  }
  return keys;
}

nlohmann::json quantization_config(const std::vector<PlanEntry>& plan, const Encoder& encoder,
                                   const ReceiptTotals& totals) {
  std::vector<std::string> modules;
  for (const PlanEntry& entry : plan) {
    if (entry.encoder) modules.emplace_back(module_of(entry.name));
  }
  nlohmann::json config = encoder.config();
  config["quant_method"] = "hxq";
  config["compression_ratio"] = static_cast<double>(totals.f32_bytes) / static_cast<double>(totals.stored_bytes);
  config["compressed_modules"] = modules;
  return config;
}

class Compressor {
 public:
  Compressor(const Checkpoint& source, const std::vector<PlanEntry>& plan, const CompressOptions& options,
             SafetensorsWriter& writer)
      : source_(source), plan_(plan), options_(options), writer_(writer) {}

  std::vector<TensorReceipt> run() {
    int64_t total = 0;
    for (const PlanEntry& entry : plan_) total += static_cast<int64_t>(entry.view.bytes.size());
    int64_t done = 0;
    std::vector<TensorReceipt> receipts;
    for (const PlanEntry& entry : plan_) {
      report(entry.name, done, total);
      receipts.push_back(store(entry));
      source_.drop(entry.view);
      done += static_cast<int64_t>(entry.view.bytes.size());
    }
    report({}, done, total);
    return receipts;
  }

 private:
  void report(std::string_view name, int64_t done, int64_t total) const {
    if (options_.progress) options_.progress(name, done, total);
  }

  TensorReceipt store(const PlanEntry& entry) {
    TensorReceipt receipt;
    receipt.name = entry.name;
    receipt.shape = entry.view.shape;
    receipt.role = role_name(entry.role);
    receipt.codec = codec_name(entry.encoder);
    receipt.source_dtype = name_of(entry.view.dtype);
    receipt.source_bytes = static_cast<int64_t>(entry.view.bytes.size());
    receipt.source_sha256 = sha256_hex(entry.view.bytes);
    if (!entry.encoder) {
      add_key(receipt, entry.name, entry.view.dtype, entry.view.shape, entry.view.bytes, receipt.source_sha256);
    } else {
      encode(entry, receipt);
    }
    const int64_t weights = entry.view.size();
    receipt.bits_per_weight =
        weights == 0 ? 0 : 8.0 * static_cast<double>(receipt.stored_bytes) / static_cast<double>(weights);
    return receipt;
  }

  void encode(const PlanEntry& entry, TensorReceipt& receipt) {
    EncodedTensor encoded;
    try {
      encoded = entry.encoder->encode(entry.view,
                                      {.sidecar_fraction = options_.sidecar_fraction, .threads = options_.threads});
    } catch (const Error& error) {
      throw Error(error.what(), source_.place(entry.name));
    }
    for (const EncodedPart& part : encoded.parts) {
      add_key(receipt, part_key(module_of(entry.name), part.suffix), part.dtype, part.shape, part.bytes,
              sha256_hex(part.bytes));
    }
    if (encoded.fidelity.squared_error > 0) receipt.snr_db = encoded.fidelity.snr_db();
    receipt.cosine = encoded.fidelity.cosine();
    receipt.max_error = encoded.fidelity.max_error;
    receipt.outliers = encoded.outliers;
  }

  void add_key(TensorReceipt& receipt, const std::string& key, DType dtype, const Shape& shape,
               std::span<const std::byte> bytes, const std::string& sha256) {
    writer_.add(key, dtype, shape, bytes);
    const auto size = static_cast<int64_t>(bytes.size());
    receipt.stored.push_back({key, std::string(name_of(dtype)), shape, size, sha256});
    receipt.stored_bytes += size;
  }

  const Checkpoint& source_;
  const std::vector<PlanEntry>& plan_;
  const CompressOptions& options_;
  SafetensorsWriter& writer_;
};

ReceiptTotals totals_of(const std::vector<TensorReceipt>& tensors) {
  ReceiptTotals totals;
  for (const TensorReceipt& tensor : tensors) {
    const int64_t parameters = element_count(tensor.shape);
    totals.parameters += parameters;
    if (tensor.codec == kExact) {
      ++totals.tensors_exact;
    } else {
      ++totals.tensors_compressed;
      totals.compressed_f32_bytes += 4 * parameters;
      totals.compressed_stored_bytes += tensor.stored_bytes;
    }
    totals.source_bytes += tensor.source_bytes;
    totals.f32_bytes += 4 * parameters;
    totals.stored_bytes += tensor.stored_bytes;
  }
  const auto stored = static_cast<double>(totals.stored_bytes);
  totals.ratio_to_source = stored / static_cast<double>(totals.source_bytes);
  totals.ratio_to_f32 = stored / static_cast<double>(totals.f32_bytes);
  totals.bits_per_weight = 8 * stored / static_cast<double>(totals.parameters);
  return totals;
}

/// Replacing a folder removes what is in it, so the source must be somewhere else.
void check_apart(const std::filesystem::path& source, const std::filesystem::path& destination) {
  if (!std::filesystem::exists(destination)) return;
  const std::filesystem::path inner = std::filesystem::canonical(source);
  const std::filesystem::path outer = std::filesystem::canonical(destination);
  if (std::mismatch(outer.begin(), outer.end(), inner.begin(), inner.end()).first == outer.end()) {
    throw Error(fmt::format("holds the source {}, so it is not replaced", source.string()),
                {.file = destination.string()});
  }
}

std::vector<std::string> names_in(const std::filesystem::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : std::filesystem::directory_iterator(folder)) {
    names.push_back(entry.path().filename().string());
  }
  std::ranges::sort(names);
  return names;
}

}  // namespace

Receipt compress(const std::filesystem::path& source, const std::filesystem::path& destination,
                 const CompressOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const ModelFolder model = ModelFolder::open(source);
  const Checkpoint& checkpoint = model.checkpoint;
  const std::vector<PlanEntry> plan = plan_entries(model, options);
  if (options.force) check_apart(source, destination);
  StagedFolder folder(destination, options.force ? StagedFolder::Check(check_replaceable) : nullptr);

  SafetensorsWriter writer(folder.path() / "model.safetensors", header_plan(plan));
  Receipt receipt;
  receipt.tensors = Compressor(checkpoint, plan, options, writer).run();
  writer.finish();

  receipt.tool_version = kVersion;
  receipt.source_name = std::filesystem::canonical(source).filename().string();
  receipt.sidecar_fraction = options.sidecar_fraction;
  receipt.keep = options.keep;
  receipt.only = options.only;
  receipt.totals = totals_of(receipt.tensors);

  if (nlohmann::json config = checkpoint.config(); !config.is_null()) {
    config["quantization_config"] = quantization_config(plan, encoder_of(options.codec), receipt.totals);
    folder.write("config.json", json_text(config) + "\n");
  }
  if (std::filesystem::is_directory(source)) copy_side_files(source, folder);
  receipt.files = names_in(folder.path());
  receipt.totals.wall_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  receipt.totals.peak_memory_bytes = peak_memory_bytes();
  folder.write(kReceiptFile, to_json(receipt));
  folder.commit();
  return receipt;
}

}  // namespace hxq
