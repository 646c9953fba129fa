#include "kernels/cuda_device/cuda_executor.h"

#include <fmt/format.h>

#include <algorithm>

#include "hxq/error.h"

namespace hxq::kernels {
namespace {

/// Keys that are remembered: a graph takes a few hundred kilobytes, a step as one kernel about one megabyte.
constexpr size_t kMostKnown = 32;

}  // namespace

CudaExecutor::CudaExecutor(const CudaDevice& device, const ExecutorOptions& options)
    : device_(device), precision_(options.precision) {
  const CudaDevice::Use use(device_);
  const auto exchange = [&](size_t bytes) {
    DeviceArray<std::byte> array(device_, static_cast<int64_t>(bytes), "what blocks of layers exchange");
    array.clear();
    return array;
  };
  mamba_exchange_ = exchange(cuda::kMambaExchangeBytes);
  transformer_exchange_ = exchange(cuda::kTransformerExchangeBytes);
  device_.check(device_.kernels().create_stream(recording_), "taking it");
}

CudaExecutor::~CudaExecutor() {
  const CudaDevice::Use use(device_);
  forget();
  device_.kernels().destroy_stream(recording_);
}

void CudaExecutor::forget() noexcept {
  for (const Known& known : known_) {
    if (known.graph != nullptr) device_.kernels().destroy_graph(known.graph);
  }
  known_.clear();
}

void CudaExecutor::reserve(const DeviceCode& code) {
  const CudaDevice::Use use(device_);
  CudaLaunches measured;
  code(CudaContext::to_measure(device_.kernels(), precision_, measured));
  if (measured.scratch_bytes <= scratch_.bytes()) return;
  forget();  // graphs use the scratch memory
  scratch_ = {};
  scratch_ = {device_, static_cast<int64_t>(measured.scratch_bytes), "the work memory of operations"};
}

void CudaExecutor::launch(const DeviceCode& code, cuda::Stream stream, CudaSteps* steps) const {
  CudaLaunches launches{.steps = steps,
                        .mamba = {.exchange = mamba_exchange_.data()},
                        .transformer = {.exchange = transformer_exchange_.data()}};
  if (steps != nullptr) steps->rewind();
  const CudaContext context(device_.kernels(), stream, {.data = scratch_.data(), .bytes = scratch_.bytes()}, precision_,
                            launches);
  code(context);
  context.launch_collected();
  if (launches.failure) std::rethrow_exception(launches.failure);
  if (launches.status != cuda::Status::ok) device_.check(launches.status, launches.failed);
}

cuda::Graph CudaExecutor::record(const DeviceCode& code, CudaSteps* steps) const {
  const cuda::Kernels& kernels = device_.kernels();
  device_.check(kernels.begin_recording(recording_), "recording a step");
  cuda::Graph graph = nullptr;
  try {
    launch(code, recording_, steps);
  } catch (...) {
    if (kernels.end_recording(recording_, graph) == cuda::Status::ok) kernels.destroy_graph(graph);
    throw;
  }
  device_.check(kernels.end_recording(recording_, graph), "recording a step");
  return graph;
}

void CudaExecutor::run(int, const DeviceCode& code, uint64_t key) {
  const CudaDevice::Use use(device_);
  if (key == 0) return launch(code, device_.stream(), nullptr);
  const auto found = std::ranges::find(known_, key, &Known::key);
  if (found == known_.end()) {
    auto steps = std::make_unique<CudaSteps>(device_);
    launch(code, device_.stream(), steps.get());
    if (known_.size() == kMostKnown) {
      if (known_.back().graph != nullptr) device_.kernels().destroy_graph(known_.back().graph);
      known_.pop_back();
    }
    known_.insert(known_.begin(), Known{.key = key, .steps = std::move(steps)});
    return;
  }
  std::rotate(known_.begin(), found, found + 1);
  Known& known = known_.front();
  if (known.graph == nullptr) known.graph = record(code, known.steps.get());
  device_.check(device_.kernels().launch_graph(known.graph, device_.stream()), "running a step");
}

}  // namespace hxq::kernels
