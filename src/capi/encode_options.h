#pragma once

#include "codec/codebook/encode.h"
#include "hxq/c_api.h"

namespace hxq::capi {

/// The caller's options, checked; null means the defaults.
CodebookOptions codebook_options(const hxq_encode_options* options);

}  // namespace hxq::capi
