#include "verbs.h"

namespace hxq::tools {

RunVerb add_bench(CLI::App&) {
  return [] { return 0; };
}

}  // namespace hxq::tools
