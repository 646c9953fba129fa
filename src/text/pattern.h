#pragma once

#include "text/json_part.h"
#include "text/regex.h"

namespace hxq::text {

/// The member "pattern" of a part: {"String": literal} or {"Regex": expression}.
Regex pattern_of(const JsonPart& part);

}  // namespace hxq::text
