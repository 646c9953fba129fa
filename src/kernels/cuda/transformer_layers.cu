#include "kernels/cuda/transformer_layers.h"

namespace hxq::cuda {

bool supports_transformer_layers(const TransformerLayersArgs&) noexcept { return false; }

Status transformer_layers(const TransformerLayersArgs&, Stream) noexcept { return Status::invalid_value; }

}  // namespace hxq::cuda
