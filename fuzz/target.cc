// libFuzzer's entry; HXQ_FUZZ_READER is one of readers.h.

#include <cstdint>

#include "fuzz/readers.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  hxq::fuzz::HXQ_FUZZ_READER(std::as_bytes(std::span(data, size)));
  return 0;
}
