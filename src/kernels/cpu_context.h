#pragma once

#include <vector>

#include "kernels/context.h"
#include "kernels/scratch.h"

namespace hxq::kernels {

/// The targets this processor can run, slowest first; always has `scalar`. No other may be used: Linux is asked here,
/// once for the whole process, for the tile registers of `amx`.
std::vector<Target> supported_targets();

/// The operations of the CPU, and those for measuring contexts, which compute nothing.
const Operations& cpu_operations() noexcept;
const Operations& cpu_measuring_operations() noexcept;

struct CpuContext : Context {
  CpuContext(const Team& of, Target instructions, Scratch& memory, Precision rounding = Precision::fast)
      : Context{cpu_operations(), of, rounding}, target(instructions), scratch(memory) {}

  /// A context to find out with what scratch memory operations take (`Scratch::reserve` then takes it). An operation
  /// asks for all its memory first, and returns at once where the context measures: pointers need not lead anywhere.
  static CpuContext to_measure(Target target, Scratch& scratch, Precision precision = Precision::fast) {
    return {cpu_measuring_operations(), Team(0, 1), target, scratch, precision, true};
  }

  /// Memory of the whole team, and of this thread alone, 64-byte aligned; contents are undefined.
  float* shared(Scratch::Area area, int64_t floats) const noexcept {
    if (measures) scratch.want_shared(area, floats);
    return measures ? nullptr : scratch.shared(area, floats);
  }
  float* own(int64_t floats) const noexcept {
    if (measures) scratch.want_own(floats);
    return measures ? nullptr : scratch.own(floats, team);
  }

  Target target;     ///< one of supported_targets()
  Scratch& scratch;  ///< the same object for the whole team
  bool measures = false;

 private:
  CpuContext(const Operations& table, const Team& of, Target instructions, Scratch& memory, Precision rounding,
             bool only_measures)
      : Context{table, of, rounding}, target(instructions), scratch(memory), measures(only_measures) {}
};

/// Runs `operation(context)` on a team, after taking the memory it asks for. Throws `OutOfMemory`.
template <class Operation>
void run_on_cpu(int threads, Target target, Scratch& scratch, Operation&& operation,
                Precision precision = Precision::fast) {
  operation(CpuContext::to_measure(target, scratch, precision));
  scratch.reserve();
  run_team(threads, [&](const Team& team) { operation(CpuContext(team, target, scratch, precision)); });
}

/// The context of an operation of the CPU.
inline const CpuContext& on_cpu(const Context& context) noexcept { return static_cast<const CpuContext&>(context); }

}  // namespace hxq::kernels
