#include "hxq/model.h"

#include <fmt/format.h>

#include "capi/handles.h"

using namespace hxq;
using namespace hxq::capi;

struct hxq_model {
  Model model;
  State state;
};

hxq_status hxq_model_open(const char* folder, int32_t threads, const char* target, hxq_model** model) {
  return guard([&] {
    Model opened = Model::open(folder, {.threads = threads, .target = target == nullptr ? "" : target});
    State state = opened.new_state();
    *model = new hxq_model{std::move(opened), std::move(state)};
  });
}

void hxq_model_destroy(hxq_model* model) { delete model; }

int64_t hxq_model_vocab_size(const hxq_model* model) { return model->model.info().vocab_size; }

hxq_status hxq_model_forward(hxq_model* model, size_t count, const int32_t* tokens, int32_t all, float* logits) {
  return guard([&] {
    if (count == 0) throw InvalidArgument("no tokens");
    const size_t rows = all != 0 ? count : 1;
    const std::span<float> out(logits, logits == nullptr ? 0 : rows * model->model.info().vocab_size);
    const Logits wanted = logits == nullptr ? Logits::none : all != 0 ? Logits::all : Logits::last;
    model->model.forward({tokens, count}, model->state, wanted, out);
  });
}

void hxq_model_reset(hxq_model* model) { model->state.reset(); }
