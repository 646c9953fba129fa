#pragma once

#include <filesystem>
#include <optional>

namespace hxq {

/// How many processors' time the control groups of this process grant it; empty without a limit. Reads the files of
/// both versions of control groups below `root`, where a test has its own.
std::optional<double> cpu_quota(const std::filesystem::path& root = "/");

}  // namespace hxq
