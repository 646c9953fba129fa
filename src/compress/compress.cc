#include "hxq/compress.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <future>
#include <nlohmann/json.hpp>

#include "compress/journal.h"
#include "compress/peak_memory.h"
#include "compress/plan.h"
#include "compress/replaceable.h"
#include "compress/sha256.h"
#include "compress/side_files.h"
#include "compress/staged_folder.h"
#include "hxq/error.h"
#include "hxq/version.h"
#include "io/json.h"
#include "io/sharded_writer.h"
#include "io/system_error.h"
#include "io/utf8.h"

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
    for (const PartPlan& part : entry.encoder->largest_parts(entry.view.shape, entry.options)) {
      keys.push_back({part_key(module_of(entry.name), part.suffix), part.dtype, part.shape});
    }
  }
  return keys;
}

nlohmann::json quantization_config(const std::vector<PlanEntry>& plan, const CompressOptions& options,
                                   const ReceiptTotals& totals) {
  std::vector<std::string> modules;
  for (const PlanEntry& entry : plan) {
    if (entry.encoder) modules.emplace_back(module_of(entry.name));
  }
  const Encoding encoding = find_encoding(choice_of(options));
  nlohmann::json config = encoding.encoder->config(encoding.options);
  if (!options.bits_for.empty()) config["bits_for"] = options.bits_for;
  config["quant_method"] = encoding.encoder->quant_method;
  config["compression_ratio"] = static_cast<double>(totals.f32_bytes) / static_cast<double>(totals.stored_bytes);
  config["compressed_modules"] = modules;
  return config;
}

class Compressor {
 public:
  Compressor(const Checkpoint& source, const std::vector<PlanEntry>& plan, const CompressOptions& options,
             ShardedWriter& writer, Journal& journal)
      : source_(source), plan_(plan), options_(options), writer_(writer), journal_(journal) {}

  std::vector<TensorReceipt> run() {
    int64_t total = 0;
    for (const PlanEntry& entry : plan_) total += static_cast<int64_t>(entry.view.bytes.size());
    int64_t done = 0;
    std::vector<TensorReceipt> receipts;
    bool taking_up = true;
    for (size_t i = 0; i < plan_.size(); ++i) {
      const PlanEntry& entry = plan_[i];
      report(entry.name, done, total);
      if (i + 1 < plan_.size()) source_.fetch(plan_[i + 1].view);
      std::optional<TensorReceipt> earlier;
      if (taking_up) earlier = journal_.next();
      if (earlier) {
        take_up(entry, *earlier);
        receipts.push_back(std::move(*earlier));
      } else {
        if (std::exchange(taking_up, false)) journal_.begin();
        receipts.push_back(store(entry));
        journal_.note(receipts.back());
      }
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

  /// What an earlier run has stored counts if it was made from the same bytes and is all there.
  void take_up(const PlanEntry& entry, const TensorReceipt& earlier) {
    bool same = earlier.name == entry.name && earlier.source_sha256 == sha256_hex(entry.view.bytes);
    if (same) writer_.begin_group(earlier.stored_bytes);
    for (const StoredKey& key : earlier.stored) {
      const auto is_right = [&](std::span<const std::byte> bytes) { return sha256_hex(bytes) == key.sha256; };
      same = same && writer_.take_up(key.key, dtype_from_name(key.dtype), key.shape, is_right);
    }
    if (same) return;
    throw Error(
        "cannot be taken up: it is not what was stored, or its source has changed; without resuming, the "
        "compression begins anew",
        source_.place(entry.name));
  }

  TensorReceipt store(const PlanEntry& entry) {
    TensorReceipt receipt;
    receipt.name = entry.name;
    receipt.shape = entry.view.shape;
    receipt.role = role_name(entry.role);
    receipt.codec = codec_name(entry.encoder);
    receipt.source_dtype = name_of(entry.view.dtype);
    receipt.source_bytes = static_cast<int64_t>(entry.view.bytes.size());
    if (!entry.encoder) {
      receipt.source_sha256 = sha256_hex(entry.view.bytes);
      writer_.begin_group(receipt.source_bytes);
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
    // Beside the encoder, where there is a thread for it; otherwise when it is asked for.
    const auto policy = std::launch::deferred | (options_.threads == 1 ? std::launch::deferred : std::launch::async);
    std::future<std::string> source_sha256 = std::async(policy, [&] { return sha256_hex(entry.view.bytes); });
    EncodedTensor encoded;
    try {
      encoded = entry.encoder->encode(entry.view, entry.options);
    } catch (const Error& error) {
      throw Error(error.what(), source_.place(entry.name));
    }
    receipt.source_sha256 = source_sha256.get();
    int64_t bytes = 0;
    for (const EncodedPart& part : encoded.parts) bytes += static_cast<int64_t>(part.bytes.size());
    writer_.begin_group(bytes);
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
  ShardedWriter& writer_;
  Journal& journal_;
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

/// What makes the tensors' bytes what they are, but for the source's own.
std::string identity_of(const std::vector<PlanEntry>& plan, const Metadata& metadata, const CompressOptions& options) {
  std::string text = fmt::format("hxq {} sidecar {} low rank {} shards {}", kVersion, options.sidecar_fraction,
                                 options.low_rank.value_or(-1), options.max_shard_bytes);
  for (const PlanEntry& entry : plan) {
    text += fmt::format("\n{} {} {} {} {} {}", entry.name, name_of(entry.view.dtype), to_string(entry.view.shape),
                        codec_name(entry.encoder), entry.options.bits, entry.options.group);
    if (entry.options.levels != Levels::fitted) text += fmt::format(" {}", name_of(entry.options.levels));
  }
  for (const auto& [key, value] : metadata) text += fmt::format("\n{} {} {}", key, value.size(), value);
  return sha256_hex(std::as_bytes(std::span(text)));
}

/// The journal of an earlier run if that one is to be taken up, or an empty one, in a folder with nothing else in it.
Journal open_journal(const StagedFolder& folder, const std::string& identity, const CompressOptions& options) {
  Journal journal(folder.path(), identity);
  const auto is_work = [](const std::string& name) {
    return name == Journal::kFile || ShardedWriter::may_have_written(name);
  };
  if (journal.has_lines()) {
    folder.clear(is_work);
    return journal;
  }
  if (folder.taken_up() && options.notice) {
    options.notice("there is nothing to take up: what an earlier run left is of other tensors, options or version");
  }
  folder.clear();
  return journal;
}

void write_config(const Checkpoint& source, const std::vector<PlanEntry>& plan, const CompressOptions& options,
                  const ReceiptTotals& totals, const StagedFolder& folder) {
  if (source.config().is_null()) return;
  nlohmann::ordered_json config = load_json_to_edit(source.path() / "config.json");
  config["quantization_config"] = quantization_config(plan, options, totals);
  folder.write("config.json", json_text(config) + "\n");
}

Receipt compress_folder(const std::filesystem::path& source, const std::filesystem::path& destination,
                        const CompressOptions& options) {
  const auto start = std::chrono::steady_clock::now();
  const ModelFolder model = ModelFolder::open(source);
  const Checkpoint& checkpoint = model.checkpoint;
  const std::vector<PlanEntry> plan = plan_entries(model, options);
  if (options.force) check_apart(source, destination);
  StagedFolder folder(destination, options.force ? StagedFolder::Check(check_replaceable) : nullptr,
                      options.resume ? StagedFolder::Leftovers::take_up : StagedFolder::Leftovers::clear);
  const SideFiles side_files = find_side_files(checkpoint, std::array{folder.path(), destination});
  if (options.notice && !side_files.left_out.empty()) options.notice(left_out_text(side_files.left_out));

  Journal journal = open_journal(folder, identity_of(plan, checkpoint.metadata(), options), options);
  ShardedWriter writer(folder.path(), header_plan(plan), options.max_shard_bytes, checkpoint.metadata());
  Receipt receipt;
  receipt.tensors = Compressor(checkpoint, plan, options, writer, journal).run();
  writer.finish();

  receipt.tool_version = kVersion;
  receipt.source_name = to_valid_utf8(std::filesystem::canonical(source).filename().string());
  receipt.sidecar_fraction = options.sidecar_fraction;
  const EncodeOptions chosen = find_encoding(choice_of(options)).options;
  if (chosen.group > 0) {
    receipt.bits = chosen.bits;
    receipt.group = chosen.group;
  }
  if (chosen.levels != Levels::fitted) receipt.levels = name_of(chosen.levels);
  receipt.bits_for = options.bits_for;
  receipt.low_rank = options.low_rank;
  receipt.keep = options.keep;
  receipt.only = options.only;
  receipt.totals = totals_of(receipt.tensors);

  write_config(checkpoint, plan, options, receipt.totals, folder);
  copy_side_files(source, side_files, folder);
  for (const std::string& file : files_below(folder.path())) receipt.files.push_back(to_valid_utf8(file));
  for (const char* file : {StagedFolder::kMark, Journal::kFile}) std::erase(receipt.files, file);
  receipt.left_out = side_files.left_out;
  receipt.totals.wall_seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  receipt.totals.peak_memory_bytes = peak_memory_bytes();
  folder.write(kReceiptFile, to_json(receipt));
  std::filesystem::remove(folder.path() / Journal::kFile);
  folder.commit();
  return receipt;
}

}  // namespace

Receipt compress(const std::filesystem::path& source, const std::filesystem::path& destination,
                 const CompressOptions& options) {
  return with_file_errors([&] { return compress_folder(source, destination, options); });
}

}  // namespace hxq
