#pragma once

#include "hxq/arithmetic.h"
#include "kernels/team.h"

namespace hxq::kernels {

struct Operations;

/// What an operation runs on. Devices derive from it what else their operations need.
struct Context {
  const Operations& operations;
  Team team;  ///< CPU: the threads that run the same code together; other devices: a team of one
  Precision precision = Precision::fast;
};

}  // namespace hxq::kernels
