#pragma once

#include <span>

#include "kernels/cuda/gemv_plan.h"
#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// The largest rank whose Vt x the kernel works out itself.
inline constexpr int kGemvMaxRank = 4;

/// A block of a GEMV leaves room for one of the next kernel on its multiprocessor, but two of one kernel must not lie
/// on one: another would have none, and much of the memory's rate would be lost. So there are two kinds, which take
/// turns: two blocks of one need too many registers, two of the other too much shared memory.
inline constexpr int kManyRegisters = 72, kFewRegisters = 56;
static_assert(2 * kManyRegisters * GemvPlan::kThreads > 65536 &&
              (kManyRegisters + kFewRegisters) * GemvPlan::kThreads <= 65536);

/// When a block has no more than that left, blocks of the next kernel may begin: their first bytes come while this one
/// ends, and not before, as it would wait for its own.
inline constexpr int64_t kLastBytes = 64 * 1024;

/// Whether it is the turn of the kind with few registers.
bool takes_few_registers() noexcept;

/// Whether `codebook_gemv` takes the matrix with an x that is taken as it is.
bool supports_codebook_gemv(const CodebookWeight& weight) noexcept;

/// Products of one token with 1 to kMaxFusedProducts matrices of as many columns, in one kernel.
Status codebook_gemv(const FusedInput& input, std::span<const FusedProduct> products, Stream stream) noexcept;

}  // namespace hxq::cuda
