#include "io/threads.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <set>
#include <stdexcept>
#include <thread>
#include <vector>

#include "io/cpu_quota.h"
#include "temp_dir.h"

namespace hxq {
namespace {

std::set<int> ranks_of(int threads) {
  std::vector<std::atomic<int>> seen(static_cast<size_t>(threads));
  std::atomic<int> sizes = 0;
  run_threads(threads, [&](int rank, int size) {
    ++seen[static_cast<size_t>(rank)];
    sizes += size;
  });
  std::set<int> ranks;
  for (int rank = 0; rank < threads; ++rank) {
    if (seen[static_cast<size_t>(rank)] == 1) ranks.insert(rank);
  }
  EXPECT_EQ(sizes, threads * threads);
  return ranks;
}

TEST(Threads, EachRankRunsOnce) {
  for (const int threads : {1, 2, 7, 3, 64, 2}) EXPECT_EQ(ranks_of(threads).size(), static_cast<size_t>(threads));
}

TEST(Threads, AllRunAtTheSameTime) {
  std::atomic<int> here = 0;
  run_threads(5, [&](int, int size) {
    ++here;
    const auto limit = std::chrono::steady_clock::now() + std::chrono::minutes(5);
    while (here < size && std::chrono::steady_clock::now() < limit) std::this_thread::yield();
    EXPECT_EQ(here, size);
  });
  EXPECT_EQ(here, 5);
}

TEST(Threads, CallsFromManyThreadsAndWithinEachOther) {
  std::atomic<int> done = 0;
  std::vector<std::thread> callers;
  for (int caller = 0; caller < 6; ++caller) {
    callers.emplace_back([&] {
      for (int i = 0; i < 200; ++i) {
        run_threads(3, [&](int rank, int) {
          if (rank == 1) run_threads(2, [&](int, int) { ++done; });
        });
      }
    });
  }
  for (std::thread& caller : callers) caller.join();
  EXPECT_EQ(done, 6 * 200 * 2);
}

TEST(Threads, AForkedChildHasItsOwn) {
  ranks_of(4);
  const pid_t child = fork();
  if (child == 0) _exit(ranks_of(4).size() == 4 ? 0 : 1);
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
}

TEST(Threads, ParallelForTakesEveryItemAndPassesErrorsOn) {
  for (const int threads : {1, 3, 100}) {
    std::vector<std::atomic<int>> seen(17);
    parallel_for(threads, 17, [&](int i) { ++seen[static_cast<size_t>(i)]; });
    for (const auto& count : seen) EXPECT_EQ(count, 1);
    EXPECT_THROW(parallel_for(threads, 17,
                              [](int i) {
                                if (i == 11) throw std::runtime_error("no");
                              }),
                 std::runtime_error);
  }
}

class CpuQuota : public ::testing::Test {
 protected:
  void write(const std::string& file, const std::string& text) {
    const std::filesystem::path path = dir_.path() / file;
    std::filesystem::create_directories(path.parent_path());
    std::ofstream(path) << text;
  }
  std::optional<double> quota() const { return cpu_quota(dir_.path()); }

  testing::TempDir dir_;
};

TEST_F(CpuQuota, NothingIsNoLimit) {
  EXPECT_EQ(quota(), std::nullopt);
  write("proc/self/cgroup", "0::/\n");
  write("sys/fs/cgroup/cpu.max", "max 100000\n");
  EXPECT_EQ(quota(), std::nullopt);
}

TEST_F(CpuQuota, TheLeastOfTheGroupAndThoseAboveIt) {
  write("proc/self/cgroup", "0::/docker/abc\n");
  write("sys/fs/cgroup/docker/abc/cpu.max", "400000 100000\n");
  write("sys/fs/cgroup/docker/cpu.max", "150000 100000\n");
  EXPECT_EQ(quota(), 1.5);
}

TEST_F(CpuQuota, InsideAContainerItsOwnGroupIsWhatIsMounted) {
  write("proc/self/cgroup", "0::/docker/abc\n");
  write("sys/fs/cgroup/cpu.max", "50000 100000\n");
  EXPECT_EQ(quota(), 0.5);
}

TEST_F(CpuQuota, VersionOne) {
  write("proc/self/cgroup", "7:memory:/a\n4:cpu,cpuacct:/a\n");
  write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_quota_us", "300000\n");
  write("sys/fs/cgroup/cpu,cpuacct/a/cpu.cfs_period_us", "100000\n");
  write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us", "-1\n");
  write("sys/fs/cgroup/cpu,cpuacct/cpu.cfs_period_us", "100000\n");
  EXPECT_EQ(quota(), 3.0);
}

TEST(AvailableThreads, IsAtLeastOne) { EXPECT_GE(available_threads(), 1); }

}  // namespace
}  // namespace hxq
