#pragma once

#include <string>

#include "desc/config_reader.h"
#include "desc/model_desc.h"

namespace hxq {

/// Names and options in which checkpoints with Mamba-2 layers differ.
struct Mamba2Layout {
  std::string norm;   ///< full name of the norm before the mixer
  std::string mixer;  ///< prefix of the mixer's tensors
  bool bias = false;  ///< in_proj and out_proj have one
  bool conv_bias = true;
};

/// Throws `Error` unless heads are a multiple of groups and the width of in_proj fits in 31 bits. The keys are those of
/// the config for the number of heads and of groups.
void check_mamba2_sizes(const ConfigReader& config, const Mamba2BlockDesc& block, const char* heads_key,
                        const char* groups_key);

/// Adds the weights of a Mamba-2 layer whose sizes are set to `model` and `block`.
void add_mamba2_weights(ModelDesc& model, const Mamba2Layout& layout, Mamba2BlockDesc& block);

/// Sets dt_min and dt_max from `time_step_limit`, the bounds in force when the model was trained: 0 and infinity when
/// absent. (`time_step_min` and `time_step_max` are about initial values, whatever transformers' slow path does.)
void read_time_step_limit(const ConfigReader& config, Mamba2BlockDesc& block);

}  // namespace hxq
