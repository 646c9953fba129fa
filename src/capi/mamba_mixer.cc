#include "layers/mamba_mixer.h"

#include <fmt/format.h>

#include "capi/sequence_arguments.h"

using namespace hxq;
using namespace hxq::capi;

namespace {

void check_shape(const char* name, const hxq_matrix* matrix, int64_t rows, int64_t cols) {
  const kernels::PreparedMatrix& found = *matrix->value;
  if (found.rows() == rows && found.cols() == cols) return;
  throw InvalidArgument(
      fmt::format("{} is [{}, {}], the others ask for [{}, {}]", name, found.rows(), found.cols(), rows, cols));
}

void check(const hxq_mamba_mixer& mixer, const hxq_mamba_mixer_args& args) {
  require_pointers({{"in_proj", mixer.in_proj},
                    {"x_proj", mixer.x_proj},
                    {"dt_proj", mixer.dt_proj},
                    {"out_proj", mixer.out_proj},
                    {"conv_weight", mixer.conv_weight},
                    {"a", mixer.a},
                    {"d", mixer.d},
                    {"x", args.x},
                    {"conv_state", args.conv_state},
                    {"ssm_state", args.ssm_state},
                    {"y", args.y}});
  require_aligned({{"in_proj_bias", mixer.in_proj_bias},
                   {"dt_bias", mixer.dt_bias},
                   {"out_proj_bias", mixer.out_proj_bias},
                   {"conv_bias", mixer.conv_bias}});
  require_sizes({{"batch", args.batch}, {"tokens", args.tokens}});
  require_sizes({{"width", mixer.width}, {"state_size", mixer.state_size}});
  const int64_t inner = mixer.out_proj->value->cols();
  const int64_t hidden = mixer.in_proj->value->cols();
  const int64_t rank = mixer.dt_proj->value->cols();
  check_shape("in_proj", mixer.in_proj, 2 * inner, hidden);
  check_shape("out_proj", mixer.out_proj, hidden, inner);
  check_shape("x_proj", mixer.x_proj, rank + 2 * mixer.state_size, inner);
  check_shape("dt_proj", mixer.dt_proj, inner, rank);
}

/// Runs all sequences of a call, their operations in one parallel region.
void run_mixer(hxq_context& context, const hxq_mamba_mixer& given, const hxq_mamba_mixer_args& args) {
  const int64_t inner = given.out_proj->value->cols();
  const int64_t hidden = given.in_proj->value->cols();
  const MambaMixer mixer{.in_proj = given.in_proj->value.get(),
                         .x_proj = given.x_proj->value.get(),
                         .dt_proj = given.dt_proj->value.get(),
                         .out_proj = given.out_proj->value.get(),
                         .in_proj_bias = given.in_proj_bias,
                         .out_proj_bias = given.out_proj_bias,
                         .conv_weight = filter_of(context, given.conv_weight, inner, given.width),
                         .conv_bias = given.conv_bias,
                         .dt_bias = given.dt_bias,
                         .a = given.a,
                         .d = given.d,
                         .conv_width = given.width,
                         .state_size = given.state_size};
  for (const kernels::PreparedMatrix* matrix : {mixer.in_proj, mixer.x_proj, mixer.dt_proj, mixer.out_proj}) {
    matrix->finish();
  }
  const kernels::UniformBatch sequences = batch_of(args.batch, args.tokens);
  kernels::Batch batch = sequences.view();
  if (phase_of(args.phase) == Phase::decode) batch.decode_rows = batch.rows;
  const std::vector<void*> conv = sequences.states(args.conv_state, given.width * inner);
  const std::vector<void*> ssm = sequences.states(args.ssm_state, given.state_size * inner);
  const MambaMixer::Args pass{.x = args.x,
                              .y = args.y,
                              .batch = batch,
                              .conv_state = conv.data(),
                              .conv_state_rows = given.width,
                              .ssm_state = ssm.data()};
  const Precision precision = precision_of(args.precision);
  size_t bytes = 0;
  const auto body = [&](const kernels::CpuContext& on) {
    mixer(pass, on.measures ? WorkMemory::measuring(bytes) : WorkMemory(context.work.data()), on);
  };
  body(kernels::CpuContext::to_measure(context.target, context.scratch, precision));
  if (context.work.bytes() < bytes) {
    context.work = {kernels::cpu_device(), static_cast<int64_t>(bytes), "the mixer's activations"};
  }
  run(context, batch.rows * 3 * inner * hidden, body, precision);
}

}  // namespace

hxq_status hxq_mamba_mixer_forward(hxq_context* context, const hxq_mamba_mixer* mixer,
                                   const hxq_mamba_mixer_args* given) {
  return guard("running a Mamba mixer", [&] {
    require_pointers({{"context", context}, {"mixer", mixer}, {"args", given}});
    check(*mixer, *given);
    const int64_t inner = mixer->out_proj->value->cols();
    require_sizes(
        {{"batch", given->batch}, {"tokens", given->tokens}, {"the work", 4 * inner + mixer->x_proj->value->rows()}});
    run_mixer(*context, *mixer, *given);
  });
}
