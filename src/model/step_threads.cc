#include "model/step_threads.h"

#include <algorithm>

namespace hxq {
namespace {

constexpr int kWindow = 16;          ///< steps that are judged together, fewer if their time is up before
constexpr double kDisturbed = 1.5;   ///< mean against the shortest step from which on fewer threads are tried
constexpr double kLeastBusy = 0.75;  ///< share of their time that threads run or spin, below which fewer are tried
constexpr double kLeastWall = 0.05;  ///< seconds that it is told by: processors' time comes in ticks of up to 4 ms
constexpr double kGrowth = 1.001;    ///< of the shortest, a step: sequences get longer, and attention slower with them
constexpr int kWaitAfterChange = 4;
constexpr int kLongestWait = 64;

}  // namespace

void StepThreads::begin_window(int threads) noexcept {
  threads_ = threads;
  sum_ = 0;
  steps_ = 0;
}

void StepThreads::end_usual_window() noexcept {
  usual_mean_ = sum_ / steps_;
  if (--wait_ > 0) return begin_window(usual_);
  const bool is_disturbed = usual_mean_ > kDisturbed * shortest_ || is_held_up_;
  const bool turn_of_more = fewer_failed_ && usual_ < most_;
  if (usual_ > 1 && is_disturbed && !turn_of_more) return begin_window(usual_ / 2);
  begin_window(std::min(2 * usual_, most_));
}

void StepThreads::end_trial(bool better) noexcept {
  fewer_failed_ = !better && threads_ < usual_;
  if (better) {
    usual_ = threads_;
    shortest_ = wall_ = busy_ = 0;
    is_held_up_ = false;
    next_wait_ = kWaitAfterChange;
  } else {
    next_wait_ = std::min(2 * next_wait_, kLongestWait);
  }
  wait_ = next_wait_;
  begin_window(usual_);
}

void StepThreads::took(double seconds, double processor_seconds) noexcept {
  if (++steps_ == 0) return;
  sum_ += seconds;
  if (threads_ != usual_) {
    const bool slower = sum_ > kWindow * usual_mean_;
    if (slower || steps_ == kWindow) end_trial(!slower);
    return;
  }
  wall_ += seconds;
  busy_ += processor_seconds;
  if (wall_ >= kLeastWall) {
    is_held_up_ = busy_ < kLeastBusy * usual_ * wall_;
    wall_ = busy_ = 0;
  }
  shortest_ = shortest_ == 0 ? seconds : std::min(shortest_ * kGrowth, seconds);
  if (steps_ == kWindow || sum_ > kWindow * kDisturbed * shortest_) end_usual_window();
}

}  // namespace hxq
