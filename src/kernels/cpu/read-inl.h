// Reading memory as fast as this target can.

#pragma once

#include "kernels/cpu/vec-inl.h"

namespace hxq::kernels::cpu {
namespace {

/// Reads `bytes` bytes, a multiple of 4096, and returns something that depends on them all. Four streams a quarter
/// apart draw more from one core than one stream does.
int32_t read_bytes(const std::byte* data, int64_t bytes) {
  constexpr int64_t kVector = kLanes * 4;
  const int64_t apart = bytes / 4;
  VecI seen[4] = {};
  for (int64_t at = 0; at < apart; at += 4 * kVector) {
#pragma GCC unroll 4
    for (int stream = 0; stream < 4; ++stream) {
#pragma GCC unroll 4
      for (int i = 0; i < 4; ++i) seen[i] ^= bits_of(load(data + stream * apart + at + i * kVector));
    }
  }
  const VecI all = (seen[0] ^ seen[1]) ^ (seen[2] ^ seen[3]);
  int32_t sum = 0;
  for (int i = 0; i < kLanes; ++i) sum ^= all[i];
  return sum;
}

}  // namespace
}  // namespace hxq::kernels::cpu
