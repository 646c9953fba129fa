#include "capi/guard.h"

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <stdexcept>

namespace hxq::capi {
namespace {

// An array, so that running out of memory can be told without any.
thread_local char last_error[4096] = "";

hxq_status remember(hxq_status status, const char* message) noexcept {
  const size_t size = std::min(std::strlen(message), sizeof last_error - 1);
  std::memcpy(last_error, message, size);
  last_error[size] = '\0';
  return status;
}

hxq_status out_of_memory(const char* doing) noexcept {
  std::snprintf(last_error, sizeof last_error, "out of memory while %s", doing);
  return HXQ_OUT_OF_MEMORY;
}

}  // namespace

hxq_status fail(const char* doing) noexcept {
  try {
    throw;
  } catch (const InvalidArgument& error) {
    return remember(HXQ_INVALID_ARGUMENT, error.what());
  } catch (const Cancelled& error) {
    return remember(HXQ_CANCELLED, error.what());
  } catch (const OutOfMemory& error) {
    return remember(HXQ_OUT_OF_MEMORY, error.what());
  } catch (const Error& error) {
    return remember(HXQ_BAD_DATA, error.what());
  } catch (const std::bad_alloc&) {
    return out_of_memory(doing);
  } catch (const std::length_error&) {  // a container larger than any memory
    return out_of_memory(doing);
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

}  // namespace hxq::capi

const char* hxq_last_error(void) { return hxq::capi::last_error; }

void hxq_free(char* text) { delete[] text; }
