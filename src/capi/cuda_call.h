#pragma once

#include <fmt/format.h>

#include "capi/arguments.h"
#include "hxq/cuda_c_api.h"
#include "hxq/error.h"
#include "kernels/cuda_device/library.h"

/// How functions of hxq/cuda_c_api.h reach the kernels.
namespace hxq::capi {

/// The kernels with the call's GPU as the thread's current one.
class CudaCall {
 public:
  explicit CudaCall(hxq_cuda_call* call) : call_(checked(call)), kernels_(kernels::cuda_library()) {
    check(kernels_.use_device(call_.device, previous_), "using it");
  }
  ~CudaCall() {
    if (previous_ != call_.device) kernels_.use_device(previous_, previous_);
  }
  CudaCall(const CudaCall&) = delete;
  CudaCall& operator=(const CudaCall&) = delete;

  const cuda::Kernels& kernels() const noexcept { return kernels_; }
  cuda::Stream stream() const noexcept { return call_.stream; }

  /// Whether to launch an operation that needs that much workspace: not where the caller wants to know the size alone.
  bool begins(size_t workspace_bytes) {
    const auto needed = static_cast<int64_t>(workspace_bytes);
    if (call_.measure != 0) {
      call_.workspace_bytes = needed;
      return false;
    }
    if (needed > 0) require_pointers({{"workspace", call_.workspace}});
    if (call_.workspace_bytes < needed) {
      throw InvalidArgument(fmt::format("a workspace of {} bytes, expected {}", call_.workspace_bytes, needed));
    }
    return true;
  }

  /// The workspace from `begin` on.
  cuda::Workspace workspace(size_t begin = 0) const {
    return {.data = static_cast<char*>(call_.workspace) + begin,
            .bytes = static_cast<size_t>(call_.workspace_bytes) - begin};
  }

  void check(cuda::Status status, const char* what) const {
    if (status == cuda::Status::ok) return;
    throw Error(fmt::format("cuda:{}: {} failed: {}", call_.device, what, kernels_.describe(status)));
  }

 private:
  static hxq_cuda_call& checked(hxq_cuda_call* call) {
    require_pointers({{"call", call}});
    require(call->device >= 0, "the call's device is negative");
    require(call->workspace_bytes >= 0, "the call's workspace_bytes is negative");
    return *call;
  }

  hxq_cuda_call& call_;
  const cuda::Kernels& kernels_;
  int previous_ = 0;
};

}  // namespace hxq::capi
