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

/// Whether a folder has that name: a link to nothing counts, and so does what cannot be looked at, so that opening it
/// says what is wrong, where a file that is not there would mean a default.
inline bool is_there(const std::filesystem::path& path) {
  std::error_code fault;
  return std::filesystem::symlink_status(path, fault).type() != std::filesystem::file_type::not_found;
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
