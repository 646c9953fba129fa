#pragma once

namespace hxq {

/// How many threads a decode step should have, from how long steps take. Threads wait for each other many times a step;
/// when other programs hold one up, all wait for the system's time slices, and fewer threads are faster, often by far.
/// Half of them are tried when steps take much longer than the shortest did, or when the process gets much less time of
/// processors than so many threads use that hardly ever sleep; twice as many again after a while. Where nothing
/// disturbs, it stays at all threads.
class StepThreads {
 public:
  /// most: >= 1, what to begin with.
  explicit StepThreads(int most) noexcept : most_(most), usual_(most), threads_(most) {}

  /// Threads for the next step.
  int threads() const noexcept { return threads_; }

  /// Says how long the step with `threads()` threads took, and how much time of processors the process had in it.
  void took(double seconds, double processor_seconds) noexcept;

 private:
  void begin_window(int threads) noexcept;
  void end_usual_window() noexcept;
  void end_trial(bool better) noexcept;

  int most_;
  int usual_;    ///< what has proved best
  int threads_;  ///< of this window; differs from `usual_` in a trial

  double sum_ = 0;         ///< over the steps of this window
  int steps_ = -1;         ///< the very first step, in which memory is met for the first time, does not count
  double shortest_ = 0;    ///< step with `usual_` threads; 0: none yet
  double usual_mean_ = 0;  ///< of the last window with `usual_` threads
  double wall_ = 0;        ///< seconds of steps with `usual_` threads since it was last told whether these are held up
  double busy_ = 0;        ///< seconds of processors in them
  bool is_held_up_ = false;
  bool fewer_failed_ = false;  ///< in the last trial: now it is the turn of more
  int wait_ = 1;               ///< windows before the next trial
  int next_wait_ = 1;          ///< after a trial that fails, doubled
};

}  // namespace hxq
