#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "desc/model_desc.h"
#include "refusal.h"

namespace hxq::testing {

/// Why a configuration is refused; empty if it is not.
inline std::string message_of(const nlohmann::json& config) {
  return refusal([&] { describe(config, "config.json"); });
}

}  // namespace hxq::testing
