#pragma once

#include "desc/config_reader.h"
#include "desc/model_desc.h"

/// One function per architecture, each in the file of its name. They fill everything but the fields that all
/// architectures share (`model_type` and the token ids).
namespace hxq {

/// Mamba (Gu & Dao 2023, arXiv 2312.00752) as transformers' MambaForCausalLM stores it.
ModelDesc describe_mamba(const ConfigReader& config);

/// Mamba-2 (Dao & Gu 2024, arXiv 2405.21060) as transformers' Mamba2ForCausalLM stores it. With several groups the
/// gated norm works group by group, as mamba_ssm trains it; transformers up to 5.17 takes all of them at once there.
ModelDesc describe_mamba2(const ConfigReader& config);

/// Zamba2 (Glorioso et al. 2024, arXiv 2411.15242) as transformers' Zamba2ForCausalLM stores it.
ModelDesc describe_zamba2(const ConfigReader& config);

/// Llama 1 to 3 (Touvron et al. 2023, arXiv 2302.13971) as transformers' LlamaForCausalLM stores it.
ModelDesc describe_llama(const ConfigReader& config);

/// Qwen2 (arXiv 2407.10671) as transformers' Qwen2ForCausalLM stores it.
ModelDesc describe_qwen2(const ConfigReader& config);

}  // namespace hxq
