#pragma once

#include <cstdint>
#include <vector>

#include "desc/config_reader.h"

namespace hxq {

/// How positions turn into rotary angles: position * frequency, for head_dim / 2 frequencies.
struct RopeDesc {
  enum class Type : uint8_t {
    standard,  ///< "default": theta^(-2i / head_dim) (RoFormer, arXiv 2104.09864)
    linear,    ///< positions divided by `factor` (Chen et al. 2023, arXiv 2306.15595)
    dynamic,   ///< theta grows with the sequence beyond `original_positions` ("NTK-aware" scaling)
    llama3,    ///< low frequencies divided by `factor`, those in between blended (Llama 3.1)
  };
  Type type = Type::standard;
  int64_t head_dim = 0;
  double theta = 10000;
  double factor = 1;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  int64_t original_positions = 0;  ///< context the model was trained for before scaling
};

/// Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4). Throws `Error` for an
/// unknown type or a missing or malformed parameter.
RopeDesc read_rope(const ConfigReader& config, int64_t head_dim);

/// The head_dim / 2 frequencies, rounded to float as transformers does. `sequence_length` matters for `dynamic` alone.
std::vector<float> inverse_frequencies(const RopeDesc& rope, int64_t sequence_length);

/// Positions the model may see: max_position_embeddings, stretched where the scaling is meant to go beyond it;
/// 0 when the config has no limit.
int64_t context_limit(const ConfigReader& config, const RopeDesc& rope);

}  // namespace hxq
