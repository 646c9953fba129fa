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

}  // namespace hxq
