#include "hxq/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <string_view>
#include <utility>
#include <vector>

#include "capi/arguments.h"
#include "capi/handles.h"
#include "hxq/cuda_c_api.h"
#include "kernels/cuda_device/cuda_device.h"
#include "kernels/device.h"

using namespace hxq;
using namespace hxq::capi;

namespace {

/// A model with what it computes in: one call at a time.
struct OpenedModel {
  explicit OpenedModel(Model opened) : model(std::move(opened)), workspace(model.new_workspace()) {}

  Model model;
  std::mutex running = {};
  Workspace workspace;
  std::vector<float> logits = {};  // of a call, before they go to where each segment wants them
};

}  // namespace

struct hxq_model {
  std::shared_ptr<OpenedModel> opened;
};

struct hxq_sequence {
  std::shared_ptr<OpenedModel> opened;  // handles may be destroyed in any order
  Sequence sequence;
};

namespace {

Logits wanted_logits(int32_t wanted) {
  switch (wanted) {
    case HXQ_LOGITS_NONE:
      return Logits::none;
    case HXQ_LOGITS_LAST:
      return Logits::last;
    case HXQ_LOGITS_ALL:
      return Logits::all;
    default:
      throw InvalidArgument(fmt::format("wanted is {}, expected an hxq_logits", wanted));
  }
}

StateKind state_of(int32_t state) {
  switch (state) {
    case HXQ_STATE_CONV:
      return StateKind::conv;
    case HXQ_STATE_SSM:
      return StateKind::ssm;
    case HXQ_STATE_KEYS:
      return StateKind::keys;
    case HXQ_STATE_VALUES:
      return StateKind::values;
    default:
      throw InvalidArgument(fmt::format("state is {}, expected an hxq_state", state));
  }
}

ModelOptions options_of(const hxq_model_options* options) {
  const hxq_model_options chosen = options == nullptr ? hxq_model_options{} : *options;
  require_threads(chosen.threads, 0);
  require(chosen.kv_cache == HXQ_F32 || chosen.kv_cache == HXQ_F16, "kv_cache is neither HXQ_F32 nor HXQ_F16");
  ModelOptions made;
  made.threads = chosen.threads;
  made.target = target_of(chosen.target);
  made.precision = precision_of(chosen.precision);
  made.kv_cache = static_cast<DType>(chosen.kv_cache);
  if (chosen.device != nullptr) made.device = chosen.device;
  try {
    kernels::find_device(made.device);
  } catch (const OutOfMemory&) {
    throw;
  } catch (const Error& error) {
    throw InvalidArgument(error.what());
  }
  return made;
}

hxq_model* new_model(Model model, const ModelOptions& options) {
  require(options.kv_cache == DType::f32 || model.info().has_attention,
          "kv_cache has no effect: the model has no attention");
  return new hxq_model{std::make_shared<OpenedModel>(std::move(model))};
}

std::vector<NamedTensor> named_tensors(std::span<const hxq_tensor> tensors) {
  std::vector<NamedTensor> named;
  std::set<std::string_view> names;
  for (const hxq_tensor& tensor : tensors) {
    require_pointers({{"the name of a tensor", tensor.name}});
    if (!names.insert(tensor.name).second) throw InvalidArgument(fmt::format("{} is given twice", tensor.name));
    named.push_back({tensor.name, view_of(tensor)});
  }
  return named;
}

int64_t logits_size(const ModelInfo& info, const hxq_segment& segment) {
  if (segment.wanted == HXQ_LOGITS_NONE) return 0;
  return (segment.wanted == HXQ_LOGITS_ALL ? segment.count : 1) * info.vocab_size;
}

void check(const OpenedModel& opened, const hxq_segment& segment) {
  const ModelInfo& info = opened.model.info();
  require_pointers({{"sequence", segment.sequence}, {"tokens", segment.tokens}});
  require(segment.sequence->opened.get() == &opened, "the sequence is not one of this model's");
  require_sizes({{"count", segment.count}, {"vocab_size", info.vocab_size}});
  phase_of(segment.phase);
  if (wanted_logits(segment.wanted) != Logits::none) {
    require_pointers({{"logits", segment.logits}});
  } else {
    require(segment.logits == nullptr, "logits are given, but none are wanted");
  }
  for (int64_t i = 0; i < segment.count; ++i) {
    const int32_t token = segment.tokens[i];
    if (token < 0 || token >= info.vocab_size) {
      throw InvalidArgument(fmt::format("token {} is outside the vocabulary of {}", token, info.vocab_size));
    }
  }
  const int64_t position = segment.sequence->sequence.position();
  if (info.context_length > 0 && segment.count > info.context_length - position) {
    throw InvalidArgument(
        fmt::format("{} tokens after {}: the model's context holds {}", segment.count, position, info.context_length));
  }
  if (segment.end != 0 && segment.end < position + segment.count) {
    throw InvalidArgument(fmt::format("end is {}, but {} tokens follow {}", segment.end, segment.count, position));
  }
  if (info.context_length > 0 && segment.end > info.context_length) {
    throw InvalidArgument(fmt::format("end is {}: the model's context holds {}", segment.end, info.context_length));
  }
}

}  // namespace

hxq_status hxq_model_open(const char* folder, const hxq_model_options* options, hxq_model** model) {
  return guard("opening a model", [&] {
    require_pointers({{"folder", folder}, {"model", model}});
    const ModelOptions chosen = options_of(options);
    *model = new_model(Model::open(folder, chosen), chosen);
  });
}

hxq_status hxq_model_create(const char* config, const hxq_tensor* tensors, size_t count,
                            const hxq_model_options* options, hxq_model** model) {
  return guard("making a model", [&] {
    require_pointers({{"config", config}, {"tensors", tensors}, {"model", model}});
    const std::vector<NamedTensor> named = named_tensors({tensors, count});
    const ModelOptions chosen = options_of(options);
    *model = new_model(Model::over(config, named, chosen), chosen);
  });
}

hxq_status hxq_cuda_model_create(const char* config, const hxq_tensor* tensors, const void* const* on_gpu, size_t count,
                                 const hxq_model_options* options, hxq_model** model) {
  return guard("making a model", [&] {
    require_pointers({{"config", config}, {"tensors", tensors}, {"on_gpu", on_gpu}, {"model", model}});
    const std::vector<NamedTensor> named = named_tensors({tensors, count});
    const ModelOptions chosen = options_of(options);
    require(kernels::is_cuda_name(chosen.device), "the device is no GPU");
    const auto& device = static_cast<const kernels::CudaDevice&>(kernels::find_device(chosen.device));
    kernels::CudaDevice::Copies copies;
    for (size_t i = 0; i < count; ++i) {
      if (on_gpu[i] != nullptr && tensors[i].data != nullptr)
        copies[static_cast<const std::byte*>(tensors[i].data)] = static_cast<const std::byte*>(on_gpu[i]);
    }
    const kernels::CudaDevice::Lent lent(device, std::move(copies));
    *model = new_model(Model::over(config, named, chosen), chosen);
  });
}

void hxq_model_destroy(hxq_model* model) { delete model; }

hxq_status hxq_model_get_info(const hxq_model* model, hxq_model_info* info) {
  return guard("describing a model", [&] {
    require_pointers({{"model", model}, {"info", info}});
    const ModelInfo& found = model->opened->model.info();
    *info = {.vocab_size = found.vocab_size,
             .hidden_size = found.hidden_size,
             .blocks = found.blocks,
             .context_length = found.context_length,
             .parameters = found.parameters,
             .compressed_matrices = found.compressed_matrices,
             .dense_matrices = found.dense_matrices,
             .bytes_per_token = found.bytes_per_token};
  });
}

hxq_status hxq_sequence_create(const hxq_model* model, hxq_sequence** sequence) {
  return guard("making a sequence", [&] {
    require_pointers({{"model", model}, {"sequence", sequence}});
    *sequence = new hxq_sequence{model->opened, model->opened->model.new_sequence()};
  });
}

void hxq_sequence_destroy(hxq_sequence* sequence) { delete sequence; }

hxq_status hxq_sequence_reset(hxq_sequence* sequence) {
  return guard("resetting a sequence", [&] { not_null(sequence, "sequence").sequence.reset(); });
}

int64_t hxq_sequence_position(const hxq_sequence* sequence) {
  return sequence == nullptr ? -1 : sequence->sequence.position();
}

hxq_status hxq_sequence_read(const hxq_sequence* sequence, int64_t block, int32_t state, int64_t* shape, int32_t* rank,
                             float* out, int64_t count) {
  return guard("reading a sequence's state", [&] {
    require_pointers({{"sequence", sequence}, {"shape", shape}, {"rank", rank}});
    require(out != nullptr || count == 0, "out is null");
    require_aligned({{"out", out}});
    const int64_t blocks = sequence->opened->model.info().blocks;
    if (block < 0 || block >= blocks) {
      throw InvalidArgument(fmt::format("block is {}, the model has {}", block, blocks));
    }
    const StateValues found = sequence->sequence.read(block, state_of(state));
    const int64_t size = found.shape.empty() ? 0 : element_count(found.shape);
    if (out != nullptr && count != size) throw InvalidArgument(fmt::format("count is {}, expected {}", count, size));
    *rank = static_cast<int32_t>(found.shape.size());
    std::ranges::copy(found.shape, shape);
    if (out != nullptr) std::ranges::copy(found.values, out);
  });
}

hxq_status hxq_forward(const hxq_model* model, const hxq_segment* segments, size_t count) {
  return guard("running a model", [&] {
    require_pointers({{"model", model}, {"segments", segments}});
    require(count > 0, "no segments");
    OpenedModel& opened = *model->opened;
    std::set<const hxq_sequence*> seen;
    for (size_t i = 0; i < count; ++i) {
      check(opened, segments[i]);
      require(seen.insert(segments[i].sequence).second, "a sequence has two segments");
    }
    std::vector<int32_t> tokens;
    std::vector<Segment> parts;
    int64_t size = 0;
    for (const hxq_segment& segment : std::span(segments, count)) {
      tokens.insert(tokens.end(), segment.tokens, segment.tokens + segment.count);
      parts.push_back({.sequence = &segment.sequence->sequence,
                       .tokens = segment.count,
                       .phase = phase_of(segment.phase),
                       .logits = wanted_logits(segment.wanted),
                       .end = segment.end});
      size += logits_size(opened.model.info(), segment);
    }
    const std::lock_guard lock(opened.running);
    // Those of one segment can be written where they are to go.
    float* logits = count == 1 ? segments->logits : reserve(opened.logits, size, "logits");
    opened.model.forward(tokens, parts, opened.workspace, {logits, static_cast<size_t>(size)});
    if (count == 1) return;
    for (const hxq_segment& segment : std::span(segments, count)) {
      const int64_t own = logits_size(opened.model.info(), segment);
      std::copy_n(logits, own, segment.logits);
      logits += own;
    }
  });
}
