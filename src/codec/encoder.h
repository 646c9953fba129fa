#pragma once

#include <cstddef>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "codec/codec.h"
#include "codec/fidelity.h"
#include "hxq/tensor.h"

namespace hxq {

/// One stored tensor of a compressed module, little-endian and row-major as in the file.
struct EncodedPart {
  std::string suffix = {};  ///< as in the codec's PartSpec
  DType dtype = DType::u8;
  Shape shape = {};
  std::vector<std::byte> bytes = {};
};

/// A compressed matrix as the tensors that are written for it.
struct EncodedTensor {
  std::vector<EncodedPart> parts = {};
  Fidelity fidelity = {};  ///< of the decoded tensor against the source
  int64_t outliers = 0;    ///< weights that are stored exactly beside the others
};

/// The dtype and shape of a part before anything is encoded.
struct PartPlan {
  std::string_view suffix;
  DType dtype;
  Shape shape;
};

/// What levels there may be. Those that are no table to every kernel cost some accuracy.
enum class Levels : uint8_t {
  fitted,    ///< any, those of the least error
  segments,  ///< 32 runs of 8 evenly spaced ones
  uniform,   ///< all evenly spaced, so that indices are multiplied as they are
};

/// "fitted", ...
std::string_view name_of(Levels levels) noexcept;

struct EncodeOptions {
  double sidecar_fraction = 0.001;  ///< largest share of the weights kept exactly, where the codec keeps any; 0 to 1
  int bits = 0;                     ///< of an index, where the codec has a choice (`Encoder::profiles`)
  int64_t group = 0;                ///< adjacent weights that share a scale, where the codec has groups
  Levels levels = Levels::fitted;   ///< of a kind that the codec has (`Encoder::profiles`)
  int threads = 0;                  ///< 0: one per core; the answer does not depend on it
  /// Rank of a low-rank term stored apart, where the codec has such terms; empty: one where it pays.
  std::optional<int> low_rank = {};
};

/// A name for options of an encoder; only the name of one that is not fitted asks for such levels.
struct Profile {
  std::string_view name;
  int bits = 0;       ///< of an index
  int64_t group = 0;  ///< adjacent weights that share a scale; 0: there are no such groups
  Levels levels = Levels::fitted;
};

/// How matrices get into the form that a codec reads: a row of the compressor's table.
struct Encoder {
  const Codec* codec;
  /// In config.json. Folders that readers of the codec "hxq" would take for their own have the same name; others none
  /// that these know.
  std::string_view quant_method = "hxq";
  bool keeps_outliers;        ///< whether EncodeOptions::sidecar_fraction means something to it
  bool has_low_rank = false;  ///< whether EncodeOptions::low_rank does
  /// What bits and groups there are, by names that no other encoder has; the first is the default. Any multiple of 8
  /// can be the group where these have groups. Empty: nothing to choose.
  std::span<const Profile> profiles = {};

  /// Bytes of a matrix [rows, cols] with a term of the rank that is told, and what outliers are beyond the default
  /// share: what the policy weighs against the source's.
  int64_t (*expected_bytes)(const Shape& shape, const EncodeOptions& options) noexcept;

  /// Every part that may be written for a matrix, with shapes as large as they can get.
  std::vector<PartPlan> (*largest_parts)(const Shape& shape, const EncodeOptions& options);

  /// `source`: F32, F16 or BF16, [rows, cols], not empty; its bytes need not be aligned. Throws `Error` for values that
  /// are not finite, for another dtype or rank, and for options out of range.
  EncodedTensor (*encode)(const TensorView& source, const EncodeOptions& options);

  /// Fields of `quantization_config` in config.json, beside those that all codecs have.
  nlohmann::json (*config)(const EncodeOptions& options);
};

/// All encoders: those of the library (`encoders.cc`), the default one first, then registered ones.
std::span<const Encoder* const> encoders() noexcept;

/// The encoder of the codec of that name; the default one for an empty name. Throws `Error` that lists the names.
const Encoder& encoder_of(std::string_view codec_id);

/// As `register_codec`, for a codec that is registered.
void register_encoder(const Encoder& encoder);

}  // namespace hxq
