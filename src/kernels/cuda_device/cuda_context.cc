#include "kernels/cuda_device/cuda_context.h"

#include <new>
#include <utility>

namespace hxq::kernels {
namespace {

/// Whether the last operation is a product, the head as a rule, of so many weights that its own kernel reads them
/// faster than a step does.
bool ends_with_much(std::span<const cuda::StepOperation> operations) noexcept {
  constexpr int64_t kMuch = int64_t{16} << 20;
  const auto* last = operations.empty() ? nullptr : std::get_if<cuda::StepProducts>(&operations.back());
  return last != nullptr && last->products[0].weight.rows * last->products[0].weight.cols >= kMuch;
}

}  // namespace

bool CudaContext::collect(const cuda::StepOperation& operation) const noexcept {
  if (measures || launches.steps == nullptr || !kernels.supports_step(operation)) return false;
  try {
    launches.collected.push_back(operation);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

template <class Args>
bool CudaContext::collect_layer(CudaLayers<Args>& known, const typename CudaLayers<Args>::Layer& layer, Args args,
                                bool (*supports)(const Args&) noexcept) const noexcept {
  if (measures) return false;
  args.exchange = known.exchange;
  const auto go_on = [&] {  // whether the layer goes with those that are there
    if (known.layers.empty() || !launches.collected.empty() || known.of.batch.segments != args.batch.segments ||
        known.of.h.data != args.h.data || known.of.h.stride != args.h.stride || known.of.eps != args.eps) {
      return false;
    }
    const typename CudaLayers<Args>::Layer both[] = {known.layers.front(), layer};
    args.layers = both;
    args.count = 2;
    return supports(args);
  };
  if (!go_on()) {
    args.layers = &layer;
    args.count = 1;
    if (!supports(args)) return false;
    launch_collected();
    known.of = args;
  }
  try {
    known.layers.push_back(layer);
    return true;
  } catch (const std::bad_alloc&) {
    return false;
  }
}

bool CudaContext::collect(const cuda::MambaLayer& layer, const cuda::MambaLayersArgs& args) const noexcept {
  return collect_layer(launches.mamba, layer, args, kernels.supports_mamba_layers);
}

bool CudaContext::collect(const cuda::TransformerLayer& layer, const cuda::TransformerLayersArgs& args) const noexcept {
  return collect_layer(launches.transformer, layer, args, kernels.supports_transformer_layers);
}

template <class Args>
void CudaContext::launch_layers(CudaLayers<Args>& known, const char* what,
                                cuda::Status (*launch)(const Args&, cuda::Stream) noexcept) const noexcept {
  const auto layers = std::exchange(known.layers, {});
  if (layers.empty()) return;
  Args args = known.of;
  args.layers = layers.data();
  args.count = std::ssize(layers);
  try_launch(what, [&] { return launch(args, stream); });
}

void CudaContext::launch_collected() const noexcept {
  launch_layers(launches.mamba, "layers of Mamba", kernels.mamba_layers);
  launch_layers(launches.transformer, "layers of a transformer", kernels.transformer_layers);
  const std::vector<cuda::StepOperation> collected = std::exchange(launches.collected, {});
  if (launches.status != cuda::Status::ok || launches.failure) return;
  std::span<const cuda::StepOperation> apart = collected;
  const size_t in_step = collected.size() - (ends_with_much(collected) ? 1 : 0);
  try {
    if (in_step >= CudaSteps::kFewestOperations && launches.steps->run(apart.first(in_step), stream)) {
      apart = apart.subspan(in_step);
    }
  } catch (...) {
    launches.failure = std::current_exception();
    return;
  }
  for (const cuda::StepOperation& operation : apart) {
    std::visit([this](const auto& one) { launch_one(one); }, operation);
  }
}

void CudaContext::launch_one(const cuda::StepProducts& step) const noexcept {
  try_launch("products", [&] { return kernels.fused_linear(step.input, step.products, step.count, stream); });
}

void CudaContext::launch_one(const cuda::MambaStepArgs& args) const noexcept {
  if (kernels.supports_mamba_step(args)) {
    try_launch("a step of Mamba", [&] { return kernels.mamba_step(args, stream); });
    return;
  }
  const auto input = [](const cuda::Output& y) {
    return cuda::Input{.data = y.data, .stride = y.stride, .dtype = y.dtype};
  };
  const auto output = [](const cuda::Input& x) {
    return cuda::Output{.data = const_cast<void*>(x.data), .stride = x.stride, .dtype = x.dtype};
  };
  cuda::Input dbc = args.scan.b;  // behind dt
  dbc.data = static_cast<const float*>(dbc.data) - args.dt_proj.cols;
  try_launch("a convolution", [&] { return kernels.causal_conv1d_silu(args.conv, stream); });
  try_launch("a product", [&] {
    return kernels.codebook_linear(
        args.x_proj, {.x = input(args.conv.y), .y = output(dbc), .tokens = 1, .workspace = workspace}, stream);
  });
  try_launch("a product", [&] {
    return kernels.codebook_linear(args.dt_proj,
                                   {.x = dbc, .y = output(args.scan.dt), .tokens = 1, .workspace = workspace}, stream);
  });
  try_launch("a scan", [&] { return kernels.selective_scan(args.scan, stream); });
}

}  // namespace hxq::kernels
