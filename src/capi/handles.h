#pragma once

#include <memory>
#include <string>
#include <vector>

#include "capi/guard.h"
#include "codec/encoder.h"
#include "hxq/c_api.h"
#include "kernels/cpu_matrix.h"

struct hxq_context {
  int threads;
  hxq::Target target;
  hxq::kernels::Scratch scratch;
  // Arguments in the form that kernels want them. They keep their size, so calls of the same shape allocate nothing.
  std::vector<float> input = {};
  std::vector<float> output = {};
  std::vector<float> filter = {};
  std::vector<float> state = {};
  std::vector<int32_t> ids = {};
  hxq::kernels::DeviceArray<std::byte> work = {};
};

struct hxq_matrix {
  std::unique_ptr<const hxq::kernels::CpuMatrix> value;
  hxq::StoredForm form;
};

struct hxq_encoded {
  hxq::EncodedTensor value;
};

namespace hxq::capi {

/// The target of that name, or for null the best of this processor. A wrong name is an invalid argument.
Target target_of(const char* name);

/// Runs `body(kernels::CpuContext)` on the context's threads, or on one when `work` (multiplications, about) would not
/// repay waking the others.
template <class Body>
void run(hxq_context& context, int64_t work, Body&& body, Precision precision = Precision::fast) {
  constexpr int64_t kWorthAThread = int64_t{1} << 18;
  const int threads = work < kWorthAThread ? 1 : context.threads;
  kernels::run_on_cpu(threads, context.target, context.scratch, body, precision);
}

/// Gives `memory` at least `count` elements; the error names what they are for.
template <class T>
T* reserve(std::vector<T>& memory, int64_t count, const char* purpose) {
  try {
    if (memory.size() < static_cast<size_t>(count)) memory.resize(static_cast<size_t>(count));
  } catch (const std::exception&) {
    throw OutOfMemory(purpose, static_cast<uint64_t>(count) * sizeof(T));
  }
  return memory.data();
}

}  // namespace hxq::capi
