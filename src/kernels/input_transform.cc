#include "kernels/input_transform.h"

namespace hxq::kernels {

LinearArgs transform_input(const InputTransform& transform, const LinearArgs& args,
                           const CpuContext& context) noexcept {
  const std::span<const float> scales = transform.scales;
  if (scales.empty()) return args;
  const auto cols = static_cast<int64_t>(scales.size());
  float* scaled = context.shared(Scratch::kScaledInput, args.tokens * cols);
  LinearArgs transformed = args;
  transformed.x = scaled;
  transformed.x_stride = cols;
  if (context.measures) return transformed;
  const Range mine = context.team.share(args.tokens * cols, 64);
  for (int64_t i = mine.begin; i < mine.end; ++i) {
    scaled[i] = args.x[i / cols * args.x_stride + i % cols] / scales[static_cast<size_t>(i % cols)];
  }
  context.team.barrier();
  return transformed;
}

}  // namespace hxq::kernels
