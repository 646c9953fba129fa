#pragma once

#include <algorithm>

#include "kernels/attention.h"
#include "kernels/context.h"
#include "kernels/cuda/table.h"

namespace hxq::kernels {

/// What comes of the operations of one piece of code.
struct CudaLaunches {
  cuda::Status status = cuda::Status::ok;  ///< of the first launch that failed; none is tried after it
  const char* failed = "";                 ///< what that one was to do
  size_t scratch_bytes = 0;                ///< measured: the largest workspace of an operation
  RotaryTableArgs rotary = {};             ///< the angles that were asked for last
};

const Operations& cuda_operations() noexcept;

/// Operations are launched into a stream, all with the same workspace: they follow each other.
struct CudaContext : Context {
  CudaContext(const cuda::Kernels& table, cuda::Stream into, const cuda::Workspace& memory, Precision rounding,
              CudaLaunches& result) noexcept
      : Context{cuda_operations(), Team(0, 1), rounding},
        kernels(table),
        stream(into),
        workspace(memory),
        launches(result) {}

  /// Launches nothing and finds out `scratch_bytes`.
  static CudaContext to_measure(const cuda::Kernels& table, Precision rounding, CudaLaunches& result) noexcept {
    CudaContext context(table, nullptr, {}, rounding, result);
    context.measures = true;
    return context;
  }

  /// Launches unless it measures or a launch has failed. `launch` returns a status.
  template <class Launch>
  void run(const char* what, const Launch& launch, size_t workspace_bytes = 0) const noexcept {
    launches.scratch_bytes = std::max(launches.scratch_bytes, workspace_bytes);
    if (measures || launches.status != cuda::Status::ok) return;
    launches.status = launch();
    launches.failed = what;
  }

  const cuda::Kernels& kernels;
  cuda::Stream stream;
  cuda::Workspace workspace;
  CudaLaunches& launches;
  bool measures = false;
};

}  // namespace hxq::kernels
