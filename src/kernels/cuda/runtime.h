#pragma once

#include <cstddef>

#include "kernels/cuda/types.h"

/// What a runtime that is built without CUDA needs of it: devices, memory, streams and graphs. Everything concerns the
/// device that is current in the calling thread, and `stream` says after what it happens.
namespace hxq::cuda {

struct DeviceDescription {
  char name[256] = {};
  int compute_capability = 0;  ///< 90 for 9.0
  size_t memory_bytes = 0;
  bool has_kernels = false;  ///< this build has machine code for it
};

/// An instantiated graph.
using Graph = void*;

Status count_devices(int& count) noexcept;
Status describe_device(int device, DeviceDescription& description) noexcept;
/// Makes `device` current; `previous` becomes the one that was.
Status use_device(int device, int& previous) noexcept;

Status create_stream(Stream& stream) noexcept;
void destroy_stream(Stream stream) noexcept;
/// Waits until all work of the stream is done, and tells of it what failed.
Status wait_for(Stream stream) noexcept;

/// Memory of the device, 256-byte aligned, kept for later calls when it is freed. Null when there is none to be had.
Status allocate(void*& memory, size_t bytes, Stream stream) noexcept;
void deallocate(void* memory, Stream stream) noexcept;
/// Memory of the host that copies need not be staged for, and that kernels may write to.
Status allocate_on_host(void*& memory, size_t bytes) noexcept;
void deallocate_on_host(void* memory) noexcept;

/// `from` may change on return, unless it is memory of `allocate_on_host`.
Status upload(void* to, const void* from, size_t bytes, Stream stream) noexcept;
Status download(void* to, const void* from, size_t bytes, Stream stream) noexcept;
Status clear(void* memory, size_t bytes, Stream stream) noexcept;

/// What is launched into the stream from here on is recorded and does not run.
Status begin_recording(Stream stream) noexcept;
/// The recorded graph; none where the status is not `ok`.
Status end_recording(Stream stream, Graph& graph) noexcept;
Status launch_graph(Graph graph, Stream stream) noexcept;
void destroy_graph(Graph graph) noexcept;

}  // namespace hxq::cuda
