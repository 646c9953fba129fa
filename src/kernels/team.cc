#include "kernels/team.h"

#include <omp.h>

namespace hxq {

void Team::barrier() const noexcept {
  if (size_ > 1) {
#pragma omp barrier
  }
}

int default_thread_count() noexcept { return omp_get_num_procs(); }

void detail::run_team(int threads, void (*body)(const Team&, void*), void* argument) {
  if (threads == 1) {
    body(Team(0, 1), argument);
    return;
  }
#pragma omp parallel num_threads(threads)
  {
    body(Team(omp_get_thread_num(), omp_get_num_threads()), argument);
  }
}

}  // namespace hxq
