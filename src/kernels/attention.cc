#include "kernels/attention.h"

#include <algorithm>
#include <cmath>

#include "kernels/cpu/ops.h"
#include "kernels/scratch.h"

namespace hxq::kernels {
namespace {

/// Queries of one key-value head that go over its keys together: their rows stay in the second-level cache.
constexpr int64_t kRowsAtOnce = 32;
constexpr int64_t kColumnGranule = 16;

}  // namespace

void rotary_table(const RotaryTableArgs& args, const Context& context) noexcept {
  const Range mine = context.team.share(args.tokens);
  for (int64_t t = mine.begin; t < mine.end; ++t) {
    float* cos = args.table + t * 2 * args.half;
    float* sin = cos + args.half;
    for (int64_t i = 0; i < args.half; ++i) {
      const double angle = static_cast<double>(args.position + t) * static_cast<double>(args.inverse_frequency[i]);
      cos[i] = static_cast<float>(std::cos(angle));
      sin[i] = static_cast<float>(std::sin(angle));
    }
  }
}

void extend_cache(const ExtendCacheArgs& args, const Context& context) noexcept {
  const Range mine = context.team.share(args.tokens);
  cpu::ops_of(context.target).extend_cache(args, mine.begin, mine.end);
  context.team.barrier();
}

void attention(const AttentionArgs& args, const Context& context) noexcept {
  const cpu::Ops& ops = cpu::ops_of(context.target);
  const int64_t heads = args.cache.heads;
  const int64_t rows = args.tokens * (args.query_heads / heads);
  // Few heads for many threads: their queries are split further.
  const int64_t shares = (context.team.size() + heads - 1) / heads;
  const int64_t at_once = std::clamp<int64_t>((rows + shares - 1) / shares, 1, kRowsAtOnce);
  const int64_t blocks = (rows + at_once - 1) / at_once;
  float* memory = context.scratch.own(static_cast<size_t>(ops.attention_floats(args.cache, at_once)), context.team);
  // In turn, not in contiguous shares: later queries see more keys.
  for (int64_t item = context.team.rank(); item < blocks * heads; item += context.team.size()) {
    const int64_t begin = item / heads * at_once;
    ops.attend(args, item % heads, begin, std::min(begin + at_once, rows), memory);
  }
  context.team.barrier();
}

void gated_activation(const GatedActivationArgs& args, const Context& context) noexcept {
  const Range mine = context.team.share(args.dim, kColumnGranule);
  cpu::ops_of(context.target).gated_activation(args, mine.begin, mine.end);
  context.team.barrier();
}

}  // namespace hxq::kernels
