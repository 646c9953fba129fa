#include "kernels/cpu/ops.h"

// Operations along the sequence: channels (or tokens) are shared out in whole vectors of every target.
namespace hxq::kernels {
namespace {

constexpr int64_t kChannelGranule = 16;

}  // namespace

void rms_norm(const RmsNormArgs& args, const Context& context) noexcept {
  const Range mine = context.team.share(args.tokens * args.groups);
  cpu::ops_of(context.target).rms_norm(args, mine.begin, mine.end);
  context.team.barrier();
}

void causal_conv1d_silu(const ConvArgs& args, const Context& context) noexcept {
  const Range mine = context.team.share(args.channels, kChannelGranule);
  cpu::ops_of(context.target).conv(args, mine.begin, mine.end);
  context.team.barrier();
}

void selective_scan(const ScanArgs& args, const Context& context) noexcept {
  const Range mine = context.team.share(args.channels, kChannelGranule);
  cpu::ops_of(context.target).scan(args, mine.begin, mine.end);
  context.team.barrier();
}

}  // namespace hxq::kernels
