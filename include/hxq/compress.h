#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "hxq/receipt.h"

namespace hxq {

/// Tensor bytes in one file of a model folder: what model hubs serve and loaders hold well.
inline constexpr int64_t kMaxShardBytes = 5'000'000'000;

/// The largest rank of a low-rank term that may be asked for.
inline constexpr int kMaxLowRank = 64;

/// The codecs that tensors can be compressed with, the default one first.
std::vector<std::string> codec_names();

/// Names of how matrices can be stored, of all codecs, the default one first: "hxq", "g4", ...
std::vector<std::string> profile_names();

struct CompressOptions {
  std::string codec = {};    ///< how matrices are stored: one of `codec_names`; empty: the first of these
  std::string profile = {};  ///< one of `profile_names`: a codec and how it is used; empty: the codec's first
  int bits = 0;              ///< of an index, in place of a profile, where the codec has a choice; 0: none
  int64_t group = 0;         ///< adjacent weights that share a scale, a multiple of 8; 0: the profile's
  std::map<std::string, int> bits_for = {};  ///< other bits for tensors of a role: "embedding", "projection", "head"
  double sidecar_fraction = 0.001;           ///< outliers kept exactly, as a share of a tensor's weights; in [0, 0.5]
  std::optional<int> low_rank = {};          ///< rank of a term stored apart, 0 to kMaxLowRank; empty: where it pays
  std::vector<std::string> keep = {};        ///< shell patterns (fnmatch) of tensor names to store exactly
  std::vector<std::string> only = {};        ///< if not empty, compress nothing but tensors that match one of these
  int threads = 0;                           ///< 0: the cores this process may run on
  bool force = false;   ///< replace a folder that an earlier compression wrote, if nothing was added to it
  bool resume = false;  ///< take up what a killed compression of the same source to the same destination has done
  int64_t max_shard_bytes = kMaxShardBytes;  ///< of tensors in one file; more become shards with an index
  /// Called before each tensor with its name, and with the source bytes done and in all; at the end with an empty name.
  std::function<void(std::string_view tensor, int64_t done, int64_t total)> progress = {};
  /// Called with one line of what the user should know: how tensors were chosen where the architecture is not a known
  /// one, which files of the source are left out, and what is not taken up.
  std::function<void(const std::string& line)> notice = {};
};

/// What compression will do with one tensor of the source.
struct PlannedTensor {
  std::string name;
  Shape shape;
  std::string dtype;
  std::string role;   ///< as in TensorReceipt
  std::string codec;  ///< as in TensorReceipt
  int bits = 0;       ///< of an index; 0 where the codec has no choice
  int64_t group = 0;  ///< adjacent weights that share a scale; 0 where there are no groups
  int64_t source_bytes = 0;
};

/// Decides how each tensor of the model folder `source` would be stored: from roles and shapes where the runtime knows
/// the architecture, otherwise from shape and dtype alone. Throws `Error` for a tensor that a known architecture lacks
/// or has in a layer beyond the configuration's, a source that is quantized already, or a pattern that matches no
/// tensor.
std::vector<PlannedTensor> plan_compression(const std::filesystem::path& source, const CompressOptions& options = {});

/// Compresses the model folder (or safetensors file) `source` into the new folder `destination`: model.safetensors (or
/// shards and their index) in the HXQ layout, config.json (where the source has one) with quantization_config, all that
/// lies beside the weights and is no weights itself, and the receipt that is returned.
///
/// The bytes written do not depend on `threads`, nor on whether the work was taken up. One tensor is in memory at a
/// time. Everything is written to a folder beside `destination`, synced, then renamed: `destination` is complete or not
/// there, and of two processes one does it. A folder that a killed one left is cleared by the next that has the same
/// destination, or with `resume` taken up. Throws `Error`, leaving what was there before as it was, if `destination`
/// exists (unless `force` and an earlier compression wrote all that is in it), for bad input, and when writing fails.
Receipt compress(const std::filesystem::path& source, const std::filesystem::path& destination,
                 const CompressOptions& options = {});

struct DecompressOptions {
  DType dtype = DType::f32;                  ///< of the decoded matrices: f32 (exactly what runs), f16 or bf16
  int64_t max_shard_bytes = kMaxShardBytes;  ///< as for compress
  std::function<void(std::string_view tensor, int64_t done, int64_t total)> progress = {};  ///< as for compress
  /// Called with one line of which files are left out, or that nothing is compressed.
  std::function<void(const std::string& line)> notice = {};
};

/// Writes the model folder `source` (HXQ or .cdnav3) as a dense one: every compressed matrix decoded, exact tensors as
/// they are, config.json without quantization_config. `destination` must not exist; otherwise the same care and errors
/// as `compress`. Returns the bytes of the tensors written.
int64_t decompress(const std::filesystem::path& source, const std::filesystem::path& destination,
                   const DecompressOptions& options = {});

}  // namespace hxq
