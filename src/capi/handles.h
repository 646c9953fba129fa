#pragma once

#include <memory>
#include <string>
#include <vector>

#include "capi/guard.h"
#include "codec/encoder.h"
#include "hxq/c_api.h"
#include "kernels/kernels.h"
#include "kernels/prepared_matrix.h"
#include "kernels/scratch.h"

struct hxq_context {
  int threads;
  hxq::kernels::Target target;
  hxq::kernels::Scratch scratch;
  // Arguments in the form that kernels want them. They keep their size, so calls of the same shape allocate nothing.
  std::vector<float> input = {};
  std::vector<float> output = {};
  std::vector<float> filter = {};
  std::vector<float> state = {};
  std::vector<int32_t> ids = {};
};

struct hxq_matrix {
  std::unique_ptr<const hxq::kernels::PreparedMatrix> value;
  hxq::StoredForm form;
};

struct hxq_encoded {
  hxq::EncodedTensor value;
};

namespace hxq::capi {

/// The target of that name, or for null the best of this processor. A wrong name is an invalid argument.
kernels::Target target_of(const char* name);

/// The target whose products have that precision: exact ones are those of a target that does not round x.
kernels::Target target_for(kernels::Target target, int32_t precision);

/// Runs `body(kernels::Context)` on the context's threads, or on one when `work` (multiplications, about) would not
/// repay waking the others.
template <class Body>
void run(hxq_context& context, kernels::Target target, int64_t work, Body&& body) {
  constexpr int64_t kWorthAThread = int64_t{1} << 18;
  const int threads = work < kWorthAThread ? 1 : context.threads;
  run_team(threads, [&](const Team& team) { body(kernels::Context{team, target, context.scratch}); });
}

template <class Body>
void run(hxq_context& context, int64_t work, Body&& body) {
  run(context, context.target, work, body);
}

/// Gives `memory` at least `count` elements; the error names what they are for.
template <class T>
T* reserve(std::vector<T>& memory, int64_t count, const char* purpose) {
  try {
    if (memory.size() < static_cast<size_t>(count)) memory.resize(static_cast<size_t>(count));
  } catch (const std::exception&) {
    throw OutOfMemory(count * static_cast<int64_t>(sizeof(T)), purpose);
  }
  return memory.data();
}

}  // namespace hxq::capi
