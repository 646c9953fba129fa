#pragma once

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "hxq/tensor.h"

namespace hxq {

/// The name of the receipt in a compressed folder.
inline constexpr const char* kReceiptFile = "hxq_receipt.json";

/// One stored safetensors key.
struct StoredKey {
  std::string key;
  std::string dtype;
  Shape shape;
  int64_t bytes = 0;
  std::string sha256;  ///< of the stored bytes, in hex
};

/// What became of one tensor of the source.
struct TensorReceipt {
  std::string name;
  Shape shape;
  std::string role;          ///< "projection", "norm", ...; "unlisted" if the architecture does not name the tensor
  std::string codec;         ///< the codec's name ("codebook", ...), or "exact"
  std::string source_dtype;  ///< its safetensors name
  int64_t source_bytes = 0;
  std::string source_sha256;  ///< of the tensor's bytes in the source, in hex
  std::vector<StoredKey> stored;
  int64_t stored_bytes = 0;      ///< of all of `stored`
  double bits_per_weight = 0;    ///< 8 * stored_bytes over the tensor's elements; 0 where there are none
  std::optional<double> snr_db;  ///< 10 log10(sum w^2 / sum (w - decoded)^2); absent when nothing was lost (infinite)
  double cosine = 1;     ///< of the angle between the tensor and what is decoded, as vectors; 1 if both are zero
  double max_error = 0;  ///< the largest |w - decoded|
  int64_t outliers = 0;  ///< weights in the sidecar
};

struct ReceiptTotals {
  int64_t parameters = 0;
  int64_t tensors_compressed = 0;
  int64_t tensors_exact = 0;
  int64_t source_bytes = 0;             ///< of the tensors, as stored in the source
  int64_t f32_bytes = 0;                ///< the same tensors at 4 bytes each
  int64_t stored_bytes = 0;             ///< of the tensors, as written
  int64_t compressed_f32_bytes = 0;     ///< of compressed tensors alone, at 4 bytes a weight
  int64_t compressed_stored_bytes = 0;  ///< of compressed tensors alone, as written
  double ratio_to_source = 0;           ///< stored / source
  double ratio_to_f32 = 0;              ///< stored / f32
  double bits_per_weight = 0;           ///< 8 * stored / parameters
  double wall_seconds = 0;
  int64_t peak_memory_bytes = 0;  ///< largest resident set of the process so far
};

/// A file of the source that was not copied.
struct LeftOut {
  std::string name;    ///< relative to the source
  std::string reason;  ///< "hidden", "weights in another form", ...
};

/// The record that `compress` leaves beside the weights, and that `verify` checks.
struct Receipt {
  std::string tool_version;
  std::string source_name;              ///< last component of the source's path
  double sidecar_fraction = 0;          ///< as in CompressOptions
  int bits = 0;                         ///< of an index, where the codec has groups; otherwise 0
  int64_t group = 0;                    ///< adjacent weights that share a scale; 0: none
  std::map<std::string, int> bits_for;  ///< other bits for tensors of a role
  std::string levels;                   ///< "uniform" or "segments" where they are; empty: fitted
  std::optional<int> low_rank;          ///< as in CompressOptions
  std::vector<std::string> keep;
  std::vector<std::string> only;
  std::vector<std::string> files;  ///< the folder's files, without the receipt, relative; empty in older receipts
  std::vector<LeftOut> left_out;   ///< files of the source that are not in the folder in any form
  std::vector<TensorReceipt> tensors;
  ReceiptTotals totals;
};

/// The receipt of a compressed folder; empty when it has none. Throws `Error` if it is malformed.
std::optional<Receipt> read_receipt(const std::filesystem::path& dir);

/// The receipt as JSON text, two spaces of indentation.
std::string to_json(const Receipt& receipt);

}  // namespace hxq
