#include "capi/handles.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <new>

#include "hxq/version.h"

namespace hxq::capi {
namespace {

thread_local std::string last_error;

hxq_status remember(hxq_status status, const char* message) noexcept {
  try {
    last_error = message;
  } catch (...) {
    last_error.clear();
  }
  return status;
}

}  // namespace

hxq_status fail() noexcept {
  try {
    throw;
  } catch (const InvalidArgument& error) {
    return remember(HXQ_INVALID_ARGUMENT, error.what());
  } catch (const Error& error) {
    return remember(HXQ_BAD_DATA, error.what());
  } catch (const std::bad_alloc&) {
    return remember(HXQ_OUT_OF_MEMORY, "out of memory");
  } catch (const std::exception& error) {
    return remember(HXQ_INTERNAL, error.what());
  } catch (...) {
    return remember(HXQ_INTERNAL, "unknown failure");
  }
}

char* copy_text(const std::string& text) {
  char* copy = new char[text.size() + 1];
  std::memcpy(copy, text.c_str(), text.size() + 1);
  return copy;
}

DType dtype_of(int32_t dtype) {
  if (dtype < HXQ_F32 || dtype > HXQ_BOOL) throw InvalidArgument(fmt::format("dtype {} is not an hxq_dtype", dtype));
  return static_cast<DType>(dtype);
}

DType float_dtype_of(int32_t dtype) {
  const DType type = dtype_of(dtype);
  if (type != DType::f32 && type != DType::f16 && type != DType::bf16) {
    throw InvalidArgument(fmt::format("dtype is {}, expected F32, F16 or BF16", name_of(type)));
  }
  return type;
}

TensorView view_of(const hxq_tensor& tensor) {
  if (tensor.rank < 0 || tensor.rank > 4)
    throw InvalidArgument(fmt::format("rank is {}, expected 0 to 4", tensor.rank));
  TensorView view{dtype_of(tensor.dtype), Shape(tensor.shape, tensor.shape + tensor.rank), {}};
  const auto bytes = static_cast<size_t>(view.size()) * size_of(view.dtype);
  require(tensor.data != nullptr || bytes == 0, "a tensor with elements has no data");
  view.bytes = {static_cast<const std::byte*>(tensor.data), bytes};
  return view;
}

}  // namespace hxq::capi

using namespace hxq;
using namespace hxq::capi;

static_assert(static_cast<int>(DType::f32) == HXQ_F32 && static_cast<int>(DType::bf16) == HXQ_BF16 &&
              static_cast<int>(DType::u8) == HXQ_U8 && static_cast<int>(DType::boolean) == HXQ_BOOL);

int32_t hxq_abi_version(void) { return HXQ_C_ABI; }

const char* hxq_version(void) { return kVersion; }

const char* hxq_last_error(void) { return last_error.c_str(); }

const char* hxq_supported_targets(void) {
  static const std::string names = [] {
    std::string list;
    for (const kernels::Target target : kernels::supported_targets()) {
      if (!list.empty()) list += ',';
      list += kernels::name_of(target);
    }
    return list;
  }();
  return names.c_str();
}

void hxq_free(char* text) { delete[] text; }

hxq_status hxq_context_create(int32_t threads, const char* target, hxq_context** context) {
  return guard([&] {
    if (threads < 1) throw InvalidArgument(fmt::format("{} threads, expected 1 or more", threads));
    const std::vector<kernels::Target> targets = kernels::supported_targets();
    auto chosen = targets.end() - 1;
    if (target != nullptr) {
      chosen = std::ranges::find(targets, std::string_view(target), kernels::name_of);
      if (chosen == targets.end()) {
        throw InvalidArgument(
            fmt::format("this processor has no target '{}', only {}", target, hxq_supported_targets()));
      }
    }
    *context = new hxq_context{threads, *chosen, kernels::Scratch(threads)};
  });
}

void hxq_context_destroy(hxq_context* context) { delete context; }
