#pragma once

#include "kernels/cuda/sequence.h"

namespace hxq::cuda {

/// What `ssd_chunks` needs, or 0 where it does not take the batch: few tokens, too many chunks, or no
/// room on the GPU.
size_t ssd_chunks_workspace(const SsdArgs& args) noexcept;

/// Segments of at least `fewest` tokens; others stay as they are.
Status ssd_chunks(const SsdArgs& args, int fewest, Stream stream) noexcept;

}  // namespace hxq::cuda
