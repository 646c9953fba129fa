#pragma once

#include <optional>

#include "codec/codebook/encode.h"
#include "hxq/c_api.h"

namespace hxq::capi {

/// The caller's options, checked; null means the defaults.
CodebookOptions codebook_options(const hxq_encode_options* options);

/// Of the C interface's 0 (where it pays), -1 (none) or a rank. Throws `InvalidArgument` for others.
std::optional<int> low_rank_option(int32_t given);

}  // namespace hxq::capi
