#include "kernels/read_bandwidth.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>

#include "kernels/cpu/ops.h"

namespace hxq::kernels {
namespace {

constexpr int64_t kGranule = 4096;

}  // namespace

ReadBandwidth::ReadBandwidth(int threads, Target target, size_t bytes)
    : threads_(threads),
      target_(target),
      bytes_(std::max<size_t>(bytes / kGranule, 1) * kGranule),
      buffer_(new std::byte[bytes_]) {
  std::memset(buffer_.get(), 1, bytes_);
}

double ReadBandwidth::measure(int passes) {
  using Clock = std::chrono::steady_clock;
  std::atomic<int32_t> seen = 0;  // keeps the reads from being dropped
  double best = 0;
  run_team(threads_, [&](const Team& team) {
    const Range mine = team.share(static_cast<int64_t>(bytes_), kGranule);
    for (int pass = 0; pass < passes; ++pass) {
      team.barrier();
      const auto start = Clock::now();
      seen ^= cpu::ops_of(target_).read_bytes(buffer_.get() + mine.begin, mine.end - mine.begin);
      team.barrier();
      const std::chrono::duration<double> elapsed = Clock::now() - start;
      if (team.rank() == 0) best = std::max(best, static_cast<double>(bytes_) / elapsed.count());
    }
  });
  return best;
}

}  // namespace hxq::kernels
