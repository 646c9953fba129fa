#include "hxq/model.h"

#include <fmt/format.h>

#include <algorithm>
#include <memory>
#include <mutex>
#include <set>
#include <span>
#include <vector>

#include "capi/arguments.h"
#include "capi/handles.h"

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
}

}  // namespace

hxq_status hxq_model_open(const char* folder, const hxq_model_options* options, hxq_model** model) {
  return guard("opening a model", [&] {
    require_pointers({{"folder", folder}, {"model", model}});
    const hxq_model_options chosen = options == nullptr ? hxq_model_options{} : *options;
    require_threads(chosen.threads, 0);
    require(chosen.kv_cache == HXQ_F32 || chosen.kv_cache == HXQ_F16, "kv_cache is neither HXQ_F32 nor HXQ_F16");
    ModelOptions options_of_model;
    options_of_model.threads = chosen.threads;
    options_of_model.target = target_of(chosen.target);
    options_of_model.precision = precision_of(chosen.precision);
    options_of_model.kv_cache = static_cast<DType>(chosen.kv_cache);
    *model = new hxq_model{std::make_shared<OpenedModel>(Model::open(folder, options_of_model))};
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
                       .logits = wanted_logits(segment.wanted)});
      size += logits_size(opened.model.info(), segment);
    }
    const std::lock_guard lock(opened.running);
    float* logits = reserve(opened.logits, size, "logits");
    opened.model.forward(tokens, parts, opened.workspace, {logits, static_cast<size_t>(size)});
    for (const hxq_segment& segment : std::span(segments, count)) {
      const int64_t own = logits_size(opened.model.info(), segment);
      std::copy_n(logits, own, segment.logits);
      logits += own;
    }
  });
}
