#include "io/cpu_quota.h"

#include <algorithm>
#include <fstream>
#include <sstream>
#include <string>

namespace hxq {
namespace {

namespace fs = std::filesystem;

/// cpu.max: "max 100000" or "150000 100000", in microseconds.
std::optional<double> quota_of_v2(const fs::path& group) {
  double quota = 0, period = 0;
  std::ifstream file(group / "cpu.max");
  if (!(file >> quota >> period) || quota <= 0 || period <= 0) return std::nullopt;
  return quota / period;
}

/// cpu.cfs_quota_us is -1 without a limit.
std::optional<double> quota_of_v1(const fs::path& group) {
  double quota = 0, period = 0;
  std::ifstream quota_file(group / "cpu.cfs_quota_us"), period_file(group / "cpu.cfs_period_us");
  if (!(quota_file >> quota) || !(period_file >> period) || quota <= 0 || period <= 0) return std::nullopt;
  return quota / period;
}

bool lists_cpu(const std::string& controllers) {
  std::istringstream list(controllers);
  for (std::string one; std::getline(list, one, ',');) {
    if (one == "cpu") return true;
  }
  return false;
}

}  // namespace

std::optional<double> cpu_quota(const fs::path& root) {
  std::optional<double> least;
  // A line is "number:controllers:path"; a group is bound by those above it. Inside a container the path may be that
  // of the host, which is not there: what is mounted then is the container's own group.
  std::ifstream groups(root / "proc/self/cgroup");
  for (std::string line; std::getline(groups, line);) {
    const size_t first = line.find(':');
    const size_t second = first == line.npos ? first : line.find(':', first + 1);
    if (second == line.npos) continue;
    const std::string controllers = line.substr(first + 1, second - first - 1);
    const bool v2 = controllers.empty();
    if (!v2 && !lists_cpu(controllers)) continue;
    const fs::path mount = v2 ? root / "sys/fs/cgroup" : root / "sys/fs/cgroup" / controllers;
    fs::path group = fs::path(line.substr(second + 1)).relative_path();
    for (bool more = true; more; group = group.parent_path()) {
      more = !group.empty();
      const std::optional<double> quota = v2 ? quota_of_v2(mount / group) : quota_of_v1(mount / group);
      if (quota) least = std::min(*quota, least.value_or(*quota));
    }
  }
  return least;
}

}  // namespace hxq
