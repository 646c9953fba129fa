#include <fmt/format.h>

#include <algorithm>
#include <string_view>

#include "capi/arguments.h"
#include "capi/handles.h"
#include "hxq/cuda_c_api.h"
#include "hxq/version.h"

namespace hxq::capi {

Target target_of(const char* name) {
  const std::vector<Target> targets = kernels::supported_targets();
  if (name == nullptr) return targets.back();
  const std::optional<Target> found = find_target(name);
  if (!found || std::ranges::count(targets, *found) == 0) {
    throw InvalidArgument(fmt::format("target is '{}', this processor has {}", name, hxq_supported_targets()));
  }
  return *found;
}

}  // namespace hxq::capi

using namespace hxq;
using namespace hxq::capi;

int32_t hxq_abi_version(void) { return HXQ_C_ABI; }

const char* hxq_version(void) { return kVersion; }

size_t hxq_struct_size(const char* name) {
#define HXQ_STRUCT(type) \
  { #type, sizeof(type) }
  static constexpr std::pair<std::string_view, size_t> kSizes[] = {
      HXQ_STRUCT(hxq_tensor),           HXQ_STRUCT(hxq_rows),           HXQ_STRUCT(hxq_output_rows),
      HXQ_STRUCT(hxq_float_rows),       HXQ_STRUCT(hxq_progress),       HXQ_STRUCT(hxq_matrix_info),
      HXQ_STRUCT(hxq_linear_args),      HXQ_STRUCT(hxq_encode_options), HXQ_STRUCT(hxq_role_bits),
      HXQ_STRUCT(hxq_fidelity),         HXQ_STRUCT(hxq_conv_args),      HXQ_STRUCT(hxq_conv_gradients),
      HXQ_STRUCT(hxq_scan_args),        HXQ_STRUCT(hxq_scan_gradients), HXQ_STRUCT(hxq_ssd_args),
      HXQ_STRUCT(hxq_ssd_gradients),    HXQ_STRUCT(hxq_mamba_mixer),    HXQ_STRUCT(hxq_model_options),
      HXQ_STRUCT(hxq_mamba_mixer_args), HXQ_STRUCT(hxq_model_info),     HXQ_STRUCT(hxq_segment),
      HXQ_STRUCT(hxq_compress_options), HXQ_STRUCT(hxq_cuda_call)};
#undef HXQ_STRUCT
  if (name == nullptr) return 0;
  const auto found = std::ranges::find(kSizes, std::string_view(name), &std::pair<std::string_view, size_t>::first);
  return found == std::end(kSizes) ? 0 : found->second;
}

const char* hxq_supported_targets(void) {
  static const std::string names = [] {
    std::string list;
    for (const Target target : kernels::supported_targets()) {
      if (!list.empty()) list += ',';
      list += name_of(target);
    }
    return list;
  }();
  return names.c_str();
}

hxq_status hxq_context_create(int32_t threads, const char* target, hxq_context** context) {
  return guard("making a context", [&] {
    require_pointers({{"context", context}});
    require_threads(threads, 1);
    *context = new hxq_context{threads, target_of(target), kernels::Scratch(threads)};
  });
}

void hxq_context_destroy(hxq_context* context) { delete context; }
