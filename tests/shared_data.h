#pragma once

#include <gtest/gtest.h>

#include <cstdlib>
#include <filesystem>

namespace hxq::testing {

/// The folder of large test data kept outside the repository, or an empty path when it is absent.
inline std::filesystem::path shared_dir() {
  const char* given = std::getenv("HXQ_SHARED_DIR");
  const std::filesystem::path dir = given ? given : HXQ_SOURCE_DIR "/../shared";
  return std::filesystem::exists(dir / "models") ? dir : std::filesystem::path();
}

}  // namespace hxq::testing

/// Leaves the test as skipped, with a message, when the shared test data is absent.
#define HXQ_REQUIRE_SHARED() \
  if (hxq::testing::shared_dir().empty()) GTEST_SKIP() << "no shared test data: set HXQ_SHARED_DIR to its folder"
