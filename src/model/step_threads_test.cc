#include "model/step_threads.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <map>

namespace hxq {
namespace {

/// Seconds that a step takes: of its number and its threads.
using StepTime = std::function<double(int, int)>;

/// Steps by number of threads. processors: how many processors' time the process gets at most. share: of their time
/// that threads run, where there are several.
std::map<int, int> run(StepThreads& threads, int steps, const StepTime& time, int processors = 1000, double share = 1) {
  std::map<int, int> count;
  for (int i = 0; i < steps; ++i) {
    const int n = threads.threads();
    ++count[n];
    threads.took(time(i, n), time(i, n) * std::min(n, processors) * (n == 1 ? 1 : share));
  }
  return count;
}

TEST(StepThreads, StaysAtAllThreadsWhereNothingDisturbs) {
  StepThreads threads(8);
  EXPECT_EQ(run(threads, 5000, [](int i, int n) { return (1.0 + i % 3 * 0.1) / n; }), (std::map<int, int>{{8, 5000}}));
}

TEST(StepThreads, FollowsSequencesThatGetSlower) {
  StepThreads threads(2);
  EXPECT_EQ(run(threads, 4000, [](int i, int n) { return (1 + i * 0.0005) / n; })[1], 0);
}

/// Two threads are held up for a time slice in most steps, one is not.
double held_up(int i, int n) { return n == 1 ? 0.4e-3 : i % 4 == 0 ? 0.25e-3 : 3.6e-3; }

TEST(StepThreads, TakesFewerWhereTheyAreHeldUp) {
  StepThreads threads(2);
  const std::map<int, int> count = run(threads, 2000, held_up);
  EXPECT_GT(count.at(1), 1800);
  EXPECT_EQ(threads.threads(), 1);
}

/// As when another program has had the other processor from the start: all steps take equally long.
TEST(StepThreads, TakesFewerWhereThereIsNoTimeForAll) {
  StepThreads threads(2);
  const StepTime time = [](int, int n) { return n == 1 ? 2e-3 : 4e-3; };
  EXPECT_LT(run(threads, 500, time, 1)[2], 50);
  run(threads, 2000, [](int, int n) { return 2e-3 / n; });
  EXPECT_EQ(threads.threads(), 2);
}

TEST(StepThreads, StaysAtAllWhereFewerAreSlowerThoughTheyAreHeldUp) {
  StepThreads threads(8);
  const StepTime time = [](int, int n) { return 1.0 / n; };
  EXPECT_GT(run(threads, 5000, time, 5)[8], 4900);
}

/// Threads that wait long for each other in every step look as if they were held up.
TEST(StepThreads, TakesAllAgainThoughThreadsSleepInEveryStep) {
  StepThreads threads(8);
  const StepTime parallel_in_part = [](int, int n) { return 1e-3 * (0.3 + 0.7 / n); };
  run(
      threads, 500, [&](int i, int n) { return parallel_in_part(i, n) * (n > 2 ? n : 1); }, 1000, 0.6);
  EXPECT_LE(threads.threads(), 2);
  EXPECT_GT(run(threads, 20'000, parallel_in_part, 1000, 0.6)[8], 18'000);
}

TEST(StepThreads, TakesAllAgainWhenTheDisturbanceIsOver) {
  StepThreads threads(2);
  run(threads, 2000, held_up);
  run(threads, 2000, [](int, int n) { return 0.4e-3 / n; });
  EXPECT_EQ(threads.threads(), 2);
}

TEST(StepThreads, FindsTheNumberThatIsLeftAlone) {
  StepThreads threads(16);
  const StepTime time = [](int i, int n) { return n > 4 && i % 32 < n ? 3.0 : 1.0 / n; };
  run(threads, 3000, time);
  EXPECT_GT(run(threads, 3000, time)[4], 2500);
}

TEST(StepThreads, TheFirstStepDoesNotCount) {
  StepThreads threads(2);
  EXPECT_EQ(run(threads, 500, [](int i, int n) { return i == 0 ? 100.0 : 1.0 / n; })[1], 0);
}

TEST(StepThreads, TrialsThatFailGetRare) {
  StepThreads threads(2);
  const StepTime noisy = [](int i, int n) { return n == 1 ? 9.0 : i % 4 == 0 ? 1.0 : 3.0; };
  run(threads, 2000, noisy);
  EXPECT_LT(run(threads, 5000, noisy)[1], 50);
}

}  // namespace
}  // namespace hxq
