#include "compress/peak_memory.h"

#include <sys/resource.h>

#include <fstream>
#include <string>

namespace hxq {

int64_t peak_memory_bytes() {
  // ru_maxrss starts with the peak of the process that this one was started from, VmHWM does not.
  std::ifstream status("/proc/self/status");
  for (std::string field; status >> field;) {
    int64_t kibibytes = 0;
    if (field == "VmHWM:" && status >> kibibytes) return kibibytes * 1024;
  }
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

}  // namespace hxq
