#include <algorithm>

#include "kernels/gradients/ops.h"

namespace hxq::kernels {
namespace {

constexpr int64_t kChannelGranule = 16;
/// Channels are taken in at most this many groups, each with sums of its own that are then added in order: the result
/// does not depend on the team.
constexpr int64_t kGroups = 8;

}  // namespace

void causal_conv1d_silu_gradient(const ConvGradientArgs& args, const CpuContext& context) noexcept {
  const gradients::Ops& ops = gradients::ops_of(context.target);
  float* memory = context.own(args.tokens * ops.lanes);
  if (context.measures) return;
  const Range mine = context.team.share(args.channels, kChannelGranule);
  ops.conv(args, mine.begin, mine.end, memory);
  context.team.barrier();
}

void selective_scan_gradient(const ScanGradientArgs& args, const CpuContext& context) noexcept {
  const gradients::Ops& ops = gradients::ops_of(context.target);
  const ScanArgs& in = args.forward;
  const int64_t width = 2 * in.state_size;  // dB, dC of one token
  const int64_t partial_size = in.batch.rows * width * ops.lanes;
  const int64_t blocks = (in.channels + kChannelGranule - 1) / kChannelGranule;
  const int64_t groups = std::min(blocks, kGroups);
  float* partial = context.shared(Scratch::kPackedInput, groups * partial_size);
  float* memory = context.own(gradients::scan_floats(args, ops.lanes));
  if (context.measures) return;
  const Range mine = context.team.share(groups);
  for (int64_t group = mine.begin; group < mine.end; ++group) {
    float* sums = partial + group * partial_size;
    std::fill_n(sums, partial_size, 0.0f);
    const int64_t begin = blocks * group / groups * kChannelGranule;
    const int64_t end = std::min(in.channels, blocks * (group + 1) / groups * kChannelGranule);
    ops.scan(args, begin, end, sums, memory);
  }
  context.team.barrier();
  const Range tokens = context.team.share(in.batch.rows);
  const auto sum_of = [&](int64_t t, int64_t i) {
    float sum = 0;
    for (int64_t group = 0; group < groups; ++group) {
      const float* lanes = partial + group * partial_size + (t * width + i) * ops.lanes;
      for (int64_t lane = 0; lane < ops.lanes; ++lane) sum += lanes[lane];
    }
    return sum;
  };
  for (int64_t t = tokens.begin; t < tokens.end; ++t) {
    for (int64_t i = 0; i < in.state_size; ++i) {
      args.db[t * in.state_size + i] = sum_of(t, i);
      args.dc[t * in.state_size + i] = sum_of(t, in.state_size + i);
    }
  }
  context.team.barrier();
}

void ssd_gradient(const SsdGradientArgs& args, const CpuContext& context) noexcept {
  const gradients::Ops& ops = gradients::ops_of(context.target);
  const SsdArgs& in = args.forward;
  const int64_t width = 2 * in.state_size;
  float* partial = context.shared(Scratch::kPackedInput, in.heads * in.batch.rows * width);
  float* memory = context.own(gradients::ssd_floats(args));
  if (context.measures) return;
  const Range mine = context.team.share(in.heads);
  for (int64_t head = mine.begin; head < mine.end; ++head) {
    ops.ssd(args, head, partial + head * in.batch.rows * width, memory);
  }
  context.team.barrier();
  const int64_t heads_per_group = in.heads / in.groups;
  const Range tokens = context.team.share(in.batch.rows);
  const auto sum_of = [&](int64_t t, int64_t group, int64_t i) {
    float sum = 0;
    for (int64_t h = group * heads_per_group; h < (group + 1) * heads_per_group; ++h) {
      sum += partial[(h * in.batch.rows + t) * width + i];
    }
    return sum;
  };
  for (int64_t t = tokens.begin; t < tokens.end; ++t) {
    for (int64_t group = 0; group < in.groups; ++group) {
      for (int64_t i = 0; i < in.state_size; ++i) {
        const int64_t at = (t * in.groups + group) * in.state_size + i;
        args.db[at] = sum_of(t, group, i);
        args.dc[at] = sum_of(t, group, in.state_size + i);
      }
    }
  }
  context.team.barrier();
}

}  // namespace hxq::kernels
