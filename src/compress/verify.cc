#include "hxq/verify.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <set>
#include <tuple>
#include <utility>

#include "codec/fidelity.h"
#include "codec/stored_tensors.h"
#include "compress/completeness.h"
#include "compress/same_values.h"
#include "compress/sha256.h"
#include "compress/side_files.h"
#include "folder/model_folder.h"
#include "hxq/error.h"
#include "hxq/receipt.h"
#include "io/system_error.h"
#include "io/utf8.h"

namespace hxq {
namespace {

/// Weights decoded at a time when a tensor is compared with its source.
constexpr int64_t kBlockWeights = int64_t{1} << 20;
/// A tensor that is further from the source was not made from it.
constexpr double kLeastSnrDb = 10;
/// Fidelity sums are accumulated in another order than when the receipt was written.
constexpr double kRelativeTolerance = 1e-6;

bool close(double a, double b) { return std::abs(a - b) <= kRelativeTolerance * std::max(std::abs(a), std::abs(b)); }

TensorView rows_of(const TensorView& tensor, int64_t cols, int64_t begin, int64_t end) {
  const size_t row_bytes = static_cast<size_t>(cols) * size_of(tensor.dtype);
  return {tensor.dtype,
          {end - begin, cols},
          tensor.bytes.subspan(static_cast<size_t>(begin) * row_bytes, static_cast<size_t>(end - begin) * row_bytes)};
}

Fidelity measure(const StoredMatrix& matrix, const TensorView& source) {
  const int64_t block_rows = std::max<int64_t>(1, kBlockWeights / std::max<int64_t>(1, matrix.cols));
  std::vector<float> block;
  Fidelity fidelity;
  for (int64_t begin = 0; begin < matrix.rows; begin += block_rows) {
    const int64_t end = std::min(begin + block_rows, matrix.rows);
    block.resize(static_cast<size_t>((end - begin) * matrix.cols));
    decode_dense_rows(matrix, begin, end, block);
    fidelity += compare(rows_of(source, matrix.cols, begin, end), block);
  }
  return fidelity;
}

class Verifier {
 public:
  Verifier(const std::filesystem::path& dir, const VerifyOptions& options)
      : options_(options), folder_(ModelFolder::open(dir)) {
    if (!options.source.empty()) open_source();
    try {
      receipt_ = read_receipt(dir);
      result_.has_receipt = receipt_.has_value();
    } catch (const Error& error) {
      result_.has_receipt = true;
      problem(error.what());
    }
  }

  VerifyResult run() {
    const std::vector<StoredTensor> tensors = list_tensors(checkpoint_);
    try {
      folder_.check_dtypes();
    } catch (const Error& error) {
      problem(error.what());
    }
    for (const Error& fault : completeness_faults(folder_)) problem(fault.what());
    if (receipt_) check_keys();
    if (receipt_) check_files();
    int64_t total = 0;
    for (const auto& [key, view] : checkpoint_.tensors()) total += static_cast<int64_t>(view.bytes.size());
    int64_t done = 0;
    for (const StoredTensor& tensor : tensors) {
      if (options_.progress) options_.progress(tensor.name, done, total);
      ++result_.tensors;
      result_.compressed += tensor.codec != nullptr;
      try {
        check_tensor(tensor);
      } catch (const Error& error) {
        problem(error.what());
      }
      done += bytes_of(tensor);
    }
    if (source_) {
      check_source_is_covered(tensors);
      sum_up_source();
    } else if (result_.compressed == 0 && !result_.has_receipt && result_.ok()) {
      problem(Error("is dense and has no receipt: there is nothing to verify", {.file = checkpoint_.path().string()})
                  .what());
    }
    if (options_.progress) options_.progress({}, total, total);
    return std::move(result_);
  }

 private:
  void open_source() {
    source_.emplace(Checkpoint::open(options_.source));
    result_.has_source = true;
    const std::vector<StoredTensor> tensors = list_tensors(*source_);
    if (std::ranges::any_of(tensors, [](const StoredTensor& tensor) { return tensor.codec != nullptr; })) {
      throw Error("is itself compressed, expected the dense folder that the model was made from",
                  {.file = options_.source.string()});
    }
  }

  void problem(std::string message) {
    if (messages_.insert(message).second) result_.problems.push_back({std::move(message)});
  }

  void problem(std::string_view tensor, const std::string& message) {
    problem(Error(message, checkpoint_.place(tensor)).what());
  }

  /// A problem that may mean that the source is another model's.
  void source_differs(std::string_view tensor, const std::string& message) {
    differing_.emplace(tensor);
    problem(tensor, message);
  }

  int64_t bytes_of(const StoredTensor& tensor) const {
    const auto bytes = [](const TensorView* view) { return view ? static_cast<int64_t>(view->bytes.size()) : 0; };
    if (!tensor.codec) return bytes(checkpoint_.find(tensor.name));
    int64_t sum = 0;
    for (const PartSpec& part : tensor.codec->parts) sum += bytes(find_part(checkpoint_, tensor.module, part));
    return sum;
  }

  const TensorReceipt* receipt_of(std::string_view name) const {
    if (!receipt_) return nullptr;
    const auto found = std::ranges::find(receipt_->tensors, name, &TensorReceipt::name);
    return found == receipt_->tensors.end() ? nullptr : &*found;
  }

  /// All that was written is there; what was added may stay.
  void check_files() {
    const std::filesystem::path& dir = checkpoint_.path();
    std::set<std::string> found;
    for (const std::string& name : with_file_errors([&] { return files_below(dir); }))
      found.insert(to_valid_utf8(name));
    for (const std::string& name : receipt_->files) {
      if (name.ends_with('/') || found.contains(name)) continue;
      problem(Error("is in the receipt but not there", {.file = (dir / name).string()}).what());
    }
  }

  /// The file has the keys that the receipt lists and no others.
  void check_keys() {
    std::set<std::string_view> listed;
    for (const TensorReceipt& tensor : receipt_->tensors) {
      for (const StoredKey& key : tensor.stored) {
        listed.insert(key.key);
        if (!checkpoint_.tensors().contains(key.key)) problem(key.key, "is in the receipt but not stored");
      }
    }
    for (const auto& [key, view] : checkpoint_.tensors()) {
      if (!listed.contains(key)) problem(key, "is stored but not in the receipt");
    }
  }

  void check_tensor(const StoredTensor& tensor) {
    const TensorReceipt* receipt = receipt_of(tensor.name);
    if (receipt) {
      check_hashes(*receipt);
      check_codec(tensor, *receipt);
    }
    const TensorView* source = source_ ? source_of(tensor) : nullptr;
    if (!tensor.codec) {
      const TensorView& view = *checkpoint_.find(tensor.name);
      result_.exact_compared += source != nullptr;
      if (source && !same_values(view, *source)) {
        source_differs(tensor.name, "is stored exactly but differs from the source");
      } else if (source) {
        result_.exact_converted += view.dtype != source->dtype;
      }
      return;
    }
    const auto matrix = tensor.codec->read(checkpoint_, tensor.module, folder_.shape_of(tensor));
    ++result_.matrices_checked;
    if (source) check_fidelity(tensor, *matrix, *source, receipt);
  }

  void check_codec(const StoredTensor& tensor, const TensorReceipt& receipt) {
    const std::string_view stored = tensor.codec ? tensor.codec->id : kExact;
    if (receipt.codec == stored) return;
    problem(tensor.name, fmt::format("is stored as {}, the receipt says {}", stored, receipt.codec));
  }

  void check_hashes(const TensorReceipt& receipt) {
    for (const StoredKey& key : receipt.stored) {
      const TensorView* view = checkpoint_.find(key.key);
      if (!view) continue;
      ++result_.hashes_checked;
      if (name_of(view->dtype) != key.dtype || view->shape != key.shape) {
        problem(key.key, fmt::format("is {} {}, the receipt says {} {}", name_of(view->dtype), to_string(view->shape),
                                     key.dtype, to_string(key.shape)));
      } else if (sha256_hex(view->bytes) != key.sha256) {
        problem(key.key, "the stored bytes do not have the receipt's SHA-256");
      }
    }
  }

  const TensorView* source_of(const StoredTensor& tensor) {
    const TensorView* view = source_->find(tensor.name);
    if (!view) source_differs(tensor.name, "is not in the source");
    return view;
  }

  void check_fidelity(const StoredTensor& tensor, const StoredMatrix& matrix, const TensorView& source,
                      const TensorReceipt* receipt) {
    if (source.size() != matrix.rows * matrix.cols) {
      source_differs(tensor.name,
                     fmt::format("has {} weights, the source {}", matrix.rows * matrix.cols, source.size()));
      return;
    }
    // In another dtype the source's values may still be the same: the fidelity figures tell.
    const bool comparable = receipt && name_of(source.dtype) == receipt->source_dtype;
    if (comparable && sha256_hex(source.bytes) != receipt->source_sha256) {
      source_differs(tensor.name, "the source's bytes do not have the receipt's SHA-256");
      return;
    }
    const Fidelity fidelity = measure(matrix, source);
    ++result_.fidelities_checked;
    if (!std::isnan(fidelity.snr_db())) {
      result_.fidelities.push_back({tensor.name, fidelity.snr_db()});
    }
    if (!receipt) {
      if (!(fidelity.snr_db() >= kLeastSnrDb)) {
        source_differs(tensor.name, fmt::format("is {:.2f} dB from the source, expected at least {} dB",
                                                fidelity.snr_db(), kLeastSnrDb));
      }
      return;
    }
    const bool exact = fidelity.squared_error == 0;
    if (exact != !receipt->snr_db || (!exact && !close(fidelity.snr_db(), *receipt->snr_db))) {
      problem(tensor.name, fmt::format("SNR is {:.6f} dB, the receipt says {}", fidelity.snr_db(),
                                       receipt->snr_db ? fmt::format("{:.6f} dB", *receipt->snr_db) : "exact"));
    }
    if (!close(fidelity.cosine(), receipt->cosine)) {
      problem(tensor.name,
              fmt::format("cosine is {:.9f}, the receipt says {:.9f}", fidelity.cosine(), receipt->cosine));
    }
    if (!close(fidelity.max_error, receipt->max_error)) {
      problem(tensor.name,
              fmt::format("largest error is {:.9g}, the receipt says {:.9g}", fidelity.max_error, receipt->max_error));
    }
    if (const int64_t outliers = matrix.outliers(); outliers != receipt->outliers) {
      problem(tensor.name, fmt::format("has {} outliers, the receipt says {}", outliers, receipt->outliers));
    }
  }

  void check_source_is_covered(const std::vector<StoredTensor>& tensors) {
    std::set<std::string_view> stored;
    for (const StoredTensor& tensor : tensors) stored.insert(tensor.name);
    for (const auto& [name, view] : source_->tensors()) {
      if (!stored.contains(name)) source_differs(name, "is in the source but not stored");
    }
  }

  void sum_up_source() {
    if (const auto all = std::max(result_.tensors, static_cast<int64_t>(source_->tensors().size()));
        2 * static_cast<int64_t>(differing_.size()) > all) {
      const Error fault(fmt::format("is not what {} was made from: {} tensors differ", checkpoint_.path().string(),
                                    differing_.size()),
                        {.file = options_.source.string()});
      result_.problems.insert(result_.problems.begin(), {fault.what()});
    }
    if (result_.fidelities.empty()) return;
    std::vector<MeasuredTensor> sorted = result_.fidelities;
    std::ranges::sort(sorted, {}, [](const MeasuredTensor& t) { return std::tie(t.snr_db, t.name); });
    result_.worst_snr_db = sorted.front().snr_db;
    result_.worst_tensor = sorted.front().name;
    const size_t count = sorted.size();
    result_.median_snr_db = (sorted[(count - 1) / 2].snr_db + sorted[count / 2].snr_db) / 2;
  }

  const VerifyOptions& options_;
  ModelFolder folder_;
  const Checkpoint& checkpoint_ = folder_.checkpoint;
  std::optional<Checkpoint> source_;
  std::optional<Receipt> receipt_;
  std::set<std::string> messages_;                // of the problems so far: no line comes twice
  std::set<std::string, std::less<>> differing_;  // tensors that are not the source's
  VerifyResult result_;
};

}  // namespace

VerifyResult verify(const std::filesystem::path& dir, const VerifyOptions& options) {
  return Verifier(dir, options).run();
}

}  // namespace hxq
