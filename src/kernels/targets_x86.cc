#include <cpuid.h>
#ifdef __linux__
#include <sys/syscall.h>
#include <unistd.h>
#endif

#include "kernels/cpu/ops.h"

namespace hxq::kernels {
namespace {

/// clang 14's `__builtin_cpu_supports` does not know it.
bool has_f16c() {
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  return __get_cpuid(1, &eax, &ebx, &ecx, &edx) != 0 && (ecx & bit_F16C) != 0;
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && has_f16c(); }

bool has_avx512() {
  return has_avx2() && __builtin_cpu_supports("bmi2") && __builtin_cpu_supports("avx512f") &&
         __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512vbmi") &&
         __builtin_cpu_supports("avx512vnni");
}

/// Tile registers are larger than what Linux saves of a process by default: it has to be asked.
bool has_amx() {
  constexpr unsigned kAmxTile = 1u << 24, kAmxInt8 = 1u << 25;  // edx of leaf 7
  unsigned eax = 0, ebx = 0, ecx = 0, edx = 0;
  if (!has_avx512() || __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) == 0) return false;
  if ((edx & (kAmxTile | kAmxInt8)) != (kAmxTile | kAmxInt8)) return false;
#ifdef __linux__
  constexpr int kRequestPermission = 0x1023, kTileData = 18;
  return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
#else
  return false;
#endif
}

}  // namespace

// The compiler's run-time support asks the operating system too: registers it does not save count as absent.
std::vector<Target> supported_targets() {
  __builtin_cpu_init();
  std::vector<Target> targets = {Target::scalar};
  if (has_avx2()) targets.push_back(Target::avx2);
  if (has_avx512()) targets.push_back(Target::avx512);
  static const bool amx = has_amx();
  if (amx) targets.push_back(Target::amx);
  return targets;
}

const cpu::Ops& cpu::ops_of(Target target) noexcept {
  switch (target) {
    case Target::amx:
      return kAmxOps;
    case Target::avx512:
      return kAvx512Ops;
    case Target::avx2:
      return kAvx2Ops;
    default:
      return kScalarOps;
  }
}

}  // namespace hxq::kernels
