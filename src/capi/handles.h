#pragma once

#include <exception>
#include <memory>
#include <string>
#include <vector>

#include "codec/encoder.h"
#include "hxq/c_api.h"
#include "hxq/error.h"
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

/// A wrong call, as opposed to wrong data.
class InvalidArgument : public std::exception {
 public:
  explicit InvalidArgument(std::string message) : message_(std::move(message)) {}
  const char* what() const noexcept override { return message_.c_str(); }

 private:
  std::string message_;
};

inline void require(bool condition, const char* message) {
  if (!condition) throw InvalidArgument(message);
}

/// Remembers the exception being handled for `hxq_last_error`, and names it.
hxq_status fail() noexcept;

/// Runs the body of a function of the interface; nothing gets out of it.
template <class Body>
hxq_status guard(Body&& body) noexcept {
  try {
    body();
    return HXQ_OK;
  } catch (...) {
    return fail();
  }
}

/// Text for the caller to free with `hxq_free`.
char* copy_text(const std::string& text);

/// Runs `body(kernels::Context)` on the context's threads, or on one when `work` (multiplications, about) would not
/// repay waking the others.
template <class Body>
void run(hxq_context& context, int64_t work, Body&& body) {
  constexpr int64_t kWorthAThread = int64_t{1} << 18;
  const int threads = work < kWorthAThread ? 1 : context.threads;
  run_team(threads, [&](const Team& team) { body(kernels::Context{team, context.target, context.scratch}); });
}

DType dtype_of(int32_t dtype);
/// As `dtype_of`, but only F32, F16 and BF16.
DType float_dtype_of(int32_t dtype);
TensorView view_of(const hxq_tensor& tensor);

}  // namespace hxq::capi
