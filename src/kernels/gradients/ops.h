#pragma once

#include <cstdint>

#include "kernels/gradients/gradients.h"

/// The gradients' share of one thread, compiled once per target like the operations of cpu/ops.h and by its rules.
namespace hxq::kernels::gradients {

/// Tokens whose states are computed again at once.
inline constexpr int64_t kRun = 32;

struct Ops {
  int64_t lanes;  ///< channels in a vector

  /// Channels [begin, end); `memory`: tokens * lanes floats.
  void (*conv)(const ConvGradientArgs& args, int64_t begin, int64_t end, float* memory);

  /// Channels [begin, end). dB and dC of these channels are added to `partial` [tokens, 2, state_size, lanes];
  /// `memory`: scan_floats(args) floats.
  void (*scan)(const ScanGradientArgs& args, int64_t begin, int64_t end, float* partial, float* memory);

  /// One head. dB and dC of this head are written to `partial` [tokens, 2, state_size]; `memory`: ssd_floats(args).
  void (*ssd)(const SsdGradientArgs& args, int64_t head, float* partial, float* memory);

  /// y[i] += a x[i].
  void (*add_scaled)(float a, const float* x, float* y, int64_t n);
};

inline int64_t runs_of(int64_t tokens) { return (tokens + kRun - 1) / kRun; }

/// The states before each run, and after each token of one run.
inline int64_t scan_floats(const ScanGradientArgs& args, int64_t lanes) {
  return (runs_of(args.forward.batch.rows) + kRun + 1) * args.forward.state_size * lanes;
}
inline int64_t ssd_floats(const SsdGradientArgs& args) {
  return (runs_of(args.forward.batch.rows) + kRun + 2) * args.forward.state_size * args.forward.head_dim;
}

const Ops& ops_of(Target target) noexcept;

extern const Ops kScalarOps;
extern const Ops kAvx2Ops;
extern const Ops kAvx512Ops;

}  // namespace hxq::kernels::gradients
