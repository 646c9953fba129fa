#pragma once

#include <cstdint>
#include <vector>

namespace hxq {

class ConfigReader;

/// How positions turn into rotary angles: position * frequency, for head_dim / 2 frequencies.
struct RopeDesc {
  enum class Type : uint8_t {
    standard,  ///< "default": theta^(-2i / head_dim) (Su et al. 2021, arXiv 2104.09864)
    linear,    ///< every frequency divided by `factor` (Chen et al. 2023, arXiv 2306.15595)
    dynamic,   ///< theta grows with a sequence beyond `trained_positions` (bloc97, emozilla 2023: "NTK-aware")
    llama3,    ///< low frequencies divided by `factor`, those in between blended (Llama 3.1)
  };
  Type type = Type::standard;
  int64_t head_dim = 0;  ///< even
  double theta = 10000;
  double factor = 1;
  double low_freq_factor = 1;
  double high_freq_factor = 4;
  int64_t trained_positions = 0;  ///< the context before it was stretched
};

/// Reads `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (transformers 4). Throws `Error` for an
/// unknown type and for a missing or malformed parameter.
RopeDesc read_rope(const ConfigReader& config, int64_t head_dim);

/// The head_dim / 2 frequencies, rounded to float as transformers has them. `sequence_length` counts all tokens up to
/// the last one that is run now; only `dynamic` depends on it.
std::vector<float> inverse_frequencies(const RopeDesc& rope, int64_t sequence_length);

/// Tokens a sequence may have: max_position_embeddings, times the factor where a scaling stretches it (linear,
/// dynamic); 0, no limit, when the config has none.
int64_t context_limit(const ConfigReader& config, const RopeDesc& rope);

}  // namespace hxq
