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

/// The result of `body`; what std::filesystem throws in it becomes an `Error` that names the path.
template <class Body>
auto with_file_errors(Body body) {
  try {
    return body();
  } catch (const std::filesystem::filesystem_error& error) {
    throw_system_error(error.path1(), "read", error.code().value());
  }
}

}  // namespace hxq
