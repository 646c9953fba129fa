#pragma once

#include <string>

#include "hxq/error.h"

namespace hxq::testing {

/// What a call says as it throws an `Error`; empty if it throws none.
template <class Call>
std::string refusal(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace hxq::testing
