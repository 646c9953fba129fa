#pragma once

#include <cstdint>
#include <string_view>

#include "desc/model_desc.h"

namespace hxq {

/// How a tensor is stored.
enum class Codec : uint8_t { exact, codebook };

std::string_view name_of(Codec codec) noexcept;

/// The codec for a tensor of that role, shape and dtype: a codebook for the matrices of linear layers, embeddings and
/// heads, where it takes fewer bytes than the source; exact for everything else. Decided before any encoding.
Codec choose_codec(Role role, const Shape& shape, DType dtype) noexcept;

/// The same where nothing tells what the tensor is for: a codebook for matrices that are at least kMinDimension in both
/// directions and get a quarter smaller, exact for everything else.
Codec choose_codec_by_shape(const Shape& shape, DType dtype) noexcept;

/// Smaller ones are token types, SSM states, small classifiers and adapters more often than matrices that matter.
inline constexpr int64_t kMinDimension = 32;

}  // namespace hxq
