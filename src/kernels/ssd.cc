#include "kernels/ssd.h"

#include "kernels/cpu/ops.h"
#include "kernels/scratch.h"

namespace hxq::kernels {

void ssd(const SsdArgs& args, const Context& context) noexcept {
  const cpu::Ops& ops = cpu::ops_of(context.target);
  const auto floats = static_cast<size_t>(ops.ssd_floats(args));
  const Range mine = context.team.share(args.heads);
  ops.ssd(args, mine.begin, mine.end, context.scratch.own(floats, context.team));
  context.team.barrier();
}

}  // namespace hxq::kernels
