#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "desc/model_desc.h"
#include "hxq/error.h"

namespace hxq::testing {

/// Why a configuration is refused; empty if it is not.
inline std::string message_of(const nlohmann::json& config) {
  try {
    describe(config, "config.json");
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace hxq::testing
