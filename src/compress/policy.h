#pragma once

#include <cstdint>
#include <string_view>

#include "compress/encoding.h"
#include "desc/model_desc.h"

namespace hxq {

/// The name in receipts and plans of what an encoder makes; null: "exact".
inline std::string_view codec_name(const Encoder* encoder) noexcept { return encoder ? encoder->codec->id : kExact; }

/// How a tensor of that role, shape and dtype is stored: by the encoder for the matrices of linear layers, embeddings
/// and heads, where it takes fewer bytes than the source; null, exactly, for everything else. Decided before any
/// encoding.
const Encoder* choose_codec(const Encoding& encoding, Role role, const Shape& shape, DType dtype) noexcept;

/// The same where nothing tells what the tensor is for: the encoder for matrices that are at least kMinDimension in
/// both directions and get a quarter smaller.
const Encoder* choose_codec_by_shape(const Encoding& encoding, const Shape& shape, DType dtype) noexcept;

/// Smaller ones are token types, SSM states, small classifiers and adapters more often than matrices that matter.
inline constexpr int64_t kMinDimension = 32;

}  // namespace hxq
