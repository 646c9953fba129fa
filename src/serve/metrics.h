#pragma once

#include <map>
#include <string>
#include <utility>

#include "serve/engine.h"

namespace hxq::serve {

/// What the HTTP side counts.
struct HttpCounts {
  std::map<std::pair<std::string, int>, int64_t> requests = {};  ///< by endpoint and status
  int64_t connections = 0;                                       ///< that are open
  int64_t streams = 0;                                           ///< that are open
};

/// /metrics, in Prometheus' text format. slots: generations that are run at once; embeddings take none.
std::string metrics_text(const Engine::Status& status, const HttpCounts& counts, int64_t slots);

/// /slots: what runs and what waits. Texts are not shown.
std::string slots_text(const Engine::Status& status, int64_t slots);

}  // namespace hxq::serve
