#pragma once

#include <cstdint>
#include <string>

#include "codec/encoder.h"

namespace hxq {

/// How matrices are to be stored, as the user says it; what is empty or 0 is left to the others.
struct EncodingChoice {
  std::string codec = {};
  std::string profile = {};  ///< of any encoder
  int bits = 0;              ///< of an index
  int64_t group = 0;         ///< adjacent weights that share a scale
};

/// An encoder with what is to be chosen.
struct Encoding {
  const Encoder* encoder = nullptr;
  EncodeOptions options = {};
};

/// The encoding that is meant: the default one if nothing is said; of bits or a group alone, those of the first encoder
/// that has such a choice. Throws `Error` for names and numbers that are not known, options that contradict each other,
/// and such as have no effect on the codec.
Encoding find_encoding(const EncodingChoice& choice);

/// The same encoder with other bits, and the group that goes with them unless `choice` names one.
Encoding with_bits(const Encoding& encoding, const EncodingChoice& choice, int bits);

}  // namespace hxq
