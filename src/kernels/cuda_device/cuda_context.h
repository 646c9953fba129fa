#pragma once

#include <algorithm>
#include <exception>
#include <type_traits>
#include <vector>

#include "kernels/attention.h"
#include "kernels/context.h"
#include "kernels/cuda/table.h"
#include "kernels/cuda_device/cuda_steps.h"

namespace hxq::kernels {

/// Adjacent layers that become one kernel, and are not launched yet.
template <class LayersArgs>
struct CudaLayers {
  using Layer = std::remove_cvref_t<decltype(*LayersArgs::layers)>;

  void* exchange = nullptr;  ///< memory that the kernel's blocks exchange something through, or null
  LayersArgs of = {};        ///< but for their address and number
  std::vector<Layer> layers = {};
};

/// What comes of the operations of one piece of code.
struct CudaLaunches {
  cuda::Status status = cuda::Status::ok;        ///< of the first launch that failed; none is tried after it
  const char* failed = "";                       ///< what that one was to do
  size_t scratch_bytes = 0;                      ///< measured: the largest workspace of an operation
  RotaryTableArgs rotary = {};                   ///< the angles that were asked for last
  CudaSteps* steps = nullptr;                    ///< where operations are collected to run as steps, or null
  CudaLayers<cuda::MambaLayersArgs> mamba = {};  ///< of one kind at most there are any
  CudaLayers<cuda::TransformerLayersArgs> transformer = {};
  std::vector<cuda::StepOperation> collected = {};  ///< after the layers, and not launched yet
  std::exception_ptr failure = {};                  ///< of a step
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
    if (measures) return;
    launch_collected();
    try_launch(what, launch);
  }

  /// Keeps an operation for a step; false where there are none, or none that takes it. `fused_linear` must take
  /// products. Of Mamba conv.y and scan.u, dt, b and c are set, too: its parts use them where it runs as kernels of
  /// their own.
  bool collect(const cuda::StepOperation& operation) const noexcept;
  /// Keeps a layer that may become one kernel with those before and after it; false where no kernel takes it. Of
  /// `args`, `layers`, `count` and `exchange` are not looked at.
  bool collect(const cuda::MambaLayer& layer, const cuda::MambaLayersArgs& args) const noexcept;
  bool collect(const cuda::TransformerLayer& layer, const cuda::TransformerLayersArgs& args) const noexcept;
  /// Launches what was collected.
  void launch_collected() const noexcept;

  const cuda::Kernels& kernels;
  cuda::Stream stream;
  cuda::Workspace workspace;
  CudaLaunches& launches;
  bool measures = false;

 private:
  template <class Launch>
  void try_launch(const char* what, const Launch& launch) const noexcept {
    if (launches.status != cuda::Status::ok || launches.failure) return;
    launches.status = launch();
    launches.failed = what;
  }
  template <class Args>
  bool collect_layer(CudaLayers<Args>& known, const typename CudaLayers<Args>::Layer& layer, Args args,
                     bool (*supports)(const Args&) noexcept) const noexcept;
  template <class Args>
  void launch_layers(CudaLayers<Args>& known, const char* what,
                     cuda::Status (*launch)(const Args&, cuda::Stream) noexcept) const noexcept;
  void launch_one(const cuda::StepProducts& step) const noexcept;
  void launch_one(const cuda::MambaStepArgs& args) const noexcept;
};

}  // namespace hxq::kernels
