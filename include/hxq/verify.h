#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "hxq/tensor.h"

namespace hxq {

struct VerifyOptions {
  /// The dense folder the model was compressed from; empty: check the compressed folder by itself.
  std::filesystem::path source = {};
  std::function<void(std::string_view tensor, int64_t done, int64_t total)> progress = {};  ///< bytes, as for compress
};

/// One thing that is not as it should be: a line that names the file and the tensor.
struct Problem {
  std::string message;
};

/// How far a compressed tensor was found to be from its source.
struct MeasuredTensor {
  std::string name;
  double snr_db = 0;  ///< infinite where the source's weights were reproduced exactly
};

struct VerifyResult {
  int64_t tensors = 0;             ///< tensors of the model
  int64_t compressed = 0;          ///< of those, stored compressed
  int64_t matrices_checked = 0;    ///< compressed tensors with valid indices, positions and values
  int64_t hashes_checked = 0;      ///< stored keys whose SHA-256 was recomputed
  int64_t fidelities_checked = 0;  ///< compressed tensors whose distance from the source was measured
  int64_t exact_compared = 0;      ///< exact tensors compared with the source
  int64_t exact_converted = 0;     ///< of those, stored in another dtype than the source's, with the same values
  bool has_receipt = false;        ///< also if it is malformed, which is a problem
  bool has_source = false;
  /// Of the measured tensors, infinite where the source's weights were reproduced exactly; empty if none was measured.
  std::optional<double> worst_snr_db;
  std::optional<double> median_snr_db;
  std::string worst_tensor;
  std::vector<MeasuredTensor> fidelities;  ///< of the measured tensors, in the order of the model
  std::vector<Problem> problems;           ///< empty: all is well

  bool ok() const { return problems.empty(); }
};

/// Checks a model folder: every index, position and value of compressed tensors; that the model is complete, as far as
/// config.json tells; against the receipt, if there is one,
/// the set of stored keys and the SHA-256 of each; with `source`, that exact tensors have the source's values and
/// that every fidelity figure of the receipt is what the stored bytes give; without a receipt, that no tensor is so far
/// from the source that it must be another. Reports all problems, not only the first; a source that differs in most
/// tensors is the first. A folder with nothing to check (dense, no receipt, no source) is a problem. Throws `Error`
/// only if a folder cannot be opened at all, or the source is itself compressed.
VerifyResult verify(const std::filesystem::path& dir, const VerifyOptions& options = {});

/// The result as JSON text, two spaces of indentation; `ok` sums it up.
std::string to_json(const VerifyResult& result);

/// One tensor of a model folder, as it is stored.
struct InspectedTensor {
  std::string name;
  Shape shape;
  std::string role;   ///< as in TensorReceipt, by the architecture that config.json names
  std::string codec;  ///< the codec's name, or "exact"
  std::string dtype;  ///< of the exact tensor, or of the part that has the weights
  std::string form;   ///< how it is stored, for a table: "BF16", "codebook x 256"
  int64_t outliers = 0;
  std::vector<std::pair<std::string, int64_t>> facts;  ///< of the codec, by name; in JSON fields beside the others
  int64_t stored_bytes = 0;
  double bits_per_weight = 0;
  std::optional<double> snr_db;  ///< from the receipt, where there is one
};

struct Inspection {
  std::string model_type;    ///< from config.json; empty without one
  std::string quant_method;  ///< from config.json; empty for a dense model
  std::vector<InspectedTensor> tensors;
  /// Stored keys that belong to no tensor of the model: derived buffers, stubs, unknown dtypes, and what a known
  /// architecture does not name.
  std::vector<std::string> other_keys;
  int64_t parameters = 0;
  int64_t stored_bytes = 0;
  /// Where the tensors are not those that config.json describes. What is listed above is what is stored.
  std::vector<std::string> faults;
  std::string receipt_fault;  ///< why the receipt could not be read; empty if it could or there is none
};

/// Lists what a model folder (dense, HXQ or .cdnav3) stores, without reading the weights.
Inspection inspect(const std::filesystem::path& dir);

/// The same as JSON text, two spaces of indentation.
std::string to_json(const Inspection& inspection);

}  // namespace hxq
