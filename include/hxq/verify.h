#pragma once

#include <filesystem>
#include <functional>
#include <optional>
#include <string>
#include <string_view>
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

struct VerifyResult {
  int64_t tensors = 0;             ///< tensors of the model
  int64_t compressed = 0;          ///< of those, stored compressed
  int64_t hashes_checked = 0;      ///< stored keys whose SHA-256 was recomputed
  int64_t fidelities_checked = 0;  ///< tensors compared with the source
  bool has_receipt = false;
  std::vector<Problem> problems;  ///< empty: all is well

  bool ok() const { return problems.empty(); }
};

/// Checks a model folder: every index, position and value of compressed tensors; that the model is complete, as far as
/// config.json tells; against the receipt, if there is one,
/// the set of stored keys and the SHA-256 of each; with `source`, that exact tensors equal the source bit for bit and
/// that every fidelity figure of the receipt is what the stored bytes give. Reports all problems, not only the first.
/// Throws `Error` only if the folder cannot be opened at all.
VerifyResult verify(const std::filesystem::path& dir, const VerifyOptions& options = {});

/// The result as JSON text, two spaces of indentation; `ok` sums it up.
std::string to_json(const VerifyResult& result);

/// One tensor of a model folder, as it is stored.
struct InspectedTensor {
  std::string name;
  Shape shape;
  std::string codec;  ///< "exact" or "codebook"
  std::string dtype;  ///< of the exact tensor, or of the indices
  int64_t codewords = 0;
  int64_t vector_dim = 0;  ///< weights per codeword
  int64_t outliers = 0;
  int64_t low_rank = 0;  ///< rank of the added factors
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
  std::string receipt_fault;  ///< why the receipt could not be read; empty if it could or there is none
};

/// Lists what a model folder (dense, HXQ or .cdnav3) stores, without reading the weights.
Inspection inspect(const std::filesystem::path& dir);

/// The same as JSON text, two spaces of indentation.
std::string to_json(const Inspection& inspection);

}  // namespace hxq
