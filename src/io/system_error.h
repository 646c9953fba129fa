#pragma once

#include <cerrno>
#include <filesystem>
#include <string>
#include <system_error>

#include "hxq/error.h"

namespace hxq {

/// Throws `Error` for a failed system call: "<file>: cannot <action>: <text of errno>".
[[noreturn]] inline void throw_system_error(const std::filesystem::path& file, const std::string& action,
                                            int error = errno) {
  throw Error("cannot " + action + ": " + std::generic_category().message(error), {.file = file.string()});
}

}  // namespace hxq
