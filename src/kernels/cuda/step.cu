// A step of one sequence as one kernel. Every multiprocessor has a block, and every block does its share of every
// operation. One warp of a block walks ahead through the operations and brings the bytes of the weights (a ring that is
// filled by bulk copies, also while the block waits for elements of others), so that memory is read without a pause.

#include <new>

#include "kernels/cuda/step_products.cuh"
#include "kernels/cuda/step_scan.cuh"

namespace hxq::cuda {
namespace step {
namespace {

struct Parameters {
  Step step;
  uint32_t ring_bytes;
};

/// Of shared memory, what lies before the ring: x is the last of it.
HXQ_HOST_DEVICE inline size_t bytes_before_ring(const Step& step) {
  return sizeof(Shared) + (static_cast<size_t>(step.x_floats) * sizeof(float) + 127) / 128 * 128;
}

#if __CUDA_ARCH__ >= 900 || !defined(__CUDA_ARCH__)

__device__ inline SharedX x_of(int cols) { return {reinterpret_cast<float*>(dynamic_shared + sizeof(Shared)), cols}; }
__device__ inline unsigned char* ring_of(const Parameters& p) { return dynamic_shared + bytes_before_ring(p.step); }

/// The warp that brings what the others need. All its lanes keep the same state.
class Bringer {
 public:
  __device__ Bringer(const Parameters& p) : p_(p), ring_{.bytes = p.ring_bytes}, memory_(ring_of(p)) {}

  __device__ void run() {
    StepWork mine = work_of(lane()), next = mine;
    for (int i = 0; i < p_.step.operations; ++i) {
      if (i % 32 == 0) {
        if (i > 0) mine = next;
        next = work_of(i + 32 + lane());
      }
      const StepWork work = of_lane(mine, i % 32);
      const int slot = i % kHeaders;
      if (i >= kHeaders) hopper::wait(&shared().header_empty[slot], (i / kHeaders - 1) % 2);
      const StepPlan& plan = StepLayout::plans(p_.step.memory)[i];
      float* state = bring_state(plan, work);
      if (lane() == 0) bring_header(plan, work, state, shared().header[slot], &shared().header_full[slot]);
      __syncwarp();
      if (work.part < 0) continue;
      for (int row = 0; row < work.rows; row += work.chunk_rows) {
        bring(work.weights + int64_t{row} * work.cols,
              static_cast<uint32_t>(min(work.chunk_rows, work.rows - row) * work.cols));
      }
    }
  }

 private:
  __device__ static int lane() { return static_cast<int>(threadIdx.x % 32); }

  __device__ StepWork work_of(int operation) const {
    if (operation >= p_.step.operations) return {};
    return StepLayout::works(p_.step.memory, p_.step.operations)[int64_t{operation} * gridDim.x + blockIdx.x];
  }
  __device__ static StepWork of_lane(const StepWork& work, int lane) {
    StepWork out;
    out.weights = reinterpret_cast<const unsigned char*>(
        __shfl_sync(kAllLanes, reinterpret_cast<unsigned long long>(work.weights), lane));
    out.part = __shfl_sync(kAllLanes, work.part, lane);
    out.first_row = __shfl_sync(kAllLanes, work.first_row, lane);
    out.rows = __shfl_sync(kAllLanes, work.rows, lane);
    out.first_outlier = __shfl_sync(kAllLanes, work.first_outlier, lane);
    out.outliers = __shfl_sync(kAllLanes, work.outliers, lane);
    out.cols = __shfl_sync(kAllLanes, work.cols, lane);
    out.chunk_rows = __shfl_sync(kAllLanes, work.chunk_rows, lane);
    return out;
  }

  /// Elements [first, first + count) of an array of words, as whole groups of four.
  struct Groups {
    const void* from;
    uint32_t bytes;

    __device__ Groups(const void* array, uint32_t first, uint32_t count)
        : from(static_cast<const uint32_t*>(array) + first / 4 * 4),
          bytes(array && count > 0 ? (first % 4 + count + 3) / 4 * 16 : 0) {}
    __device__ void copy(void* to, uint64_t* full) const {
      if (bytes > 0) hopper::copy_bulk(to, from, bytes, full);
    }
  };

  /// Brings memory nearer that others will read.
  __device__ static void prefetch(const void* from) { asm volatile("prefetch.global.L2 [%0];" ::"l"(from)); }

  /// Rows [0, rows) of an array of floats, each `stride` after the other: their elements [first, first + count).
  __device__ static void prefetch(const float* array, int rows, int64_t stride, int64_t first, int count) {
    constexpr int kLine = 32;  ///< floats
    const int lines = (count + 2 * kLine - 2) / kLine;
    for (int i = lane(); array && i < rows * lines; i += 32) {
      const int64_t col = first + min(i % lines * kLine, count - 1);
      prefetch(array + i / lines * stride + col);
    }
  }

  /// What is not copied but read by the others themselves; the state of the operation's sequence.
  __device__ static float* bring_state(const StepPlan& plan, const StepWork& work) {
    if (plan.common.kind == StepKind::scan) {
      const StepScan& scan = plan.scan;
      auto* state = static_cast<float*>(*scan.states);
      const int block = static_cast<int>(blockIdx.x) - scan.first_block;
      if (block < 0 || scan.share.count(block) == 0) return state;
      const int64_t first = scan.share.begin(block);
      const int count = scan.share.count(block);
      prefetch(scan.a, scan.state_size, scan.channels, first, count);
      prefetch(state, scan.state_size, scan.channels, first, count);
      prefetch(scan.d, 1, 0, first, count);
      prefetch(scan.dt_bias, 1, 0, first, count);
      const int64_t row_bytes = scan.dt_proj.cols;
      prefetch(static_cast<const float*>(scan.dt_proj.indices), 1, 0, first * row_bytes / 4,
               static_cast<int>((count * row_bytes + 3) / 4));
      return state;
    }
    if (work.part < 0 || !plan.part[work.part].conv.weight) return nullptr;
    const StepConv& conv = plan.part[work.part].conv;
    auto* state = static_cast<float*>(*conv.states);
    const int count = min(work.rows, conv.channels - work.first_row);
    if (count > 0) {
      prefetch(conv.weight, conv.width, conv.channels, work.first_row, count);
      prefetch(state, conv.kept, conv.channels, work.first_row, count);
      prefetch(conv.bias, 1, 0, work.first_row, count);
    }
    return state;
  }

  __device__ static void bring_header(const StepPlan& plan, const StepWork& work, float* state, Header& header,
                                      uint64_t* full) {
    header.work = work;
    header.state = state;
    if (work.part < 0) {
      hopper::arrive_and_expect_bytes(full, sizeof(StepCommon) + sizeof(StepScan));
      hopper::copy_bulk(&header.common, &plan.common, sizeof(StepCommon), full);
      hopper::copy_bulk(&header.scan, &plan.scan, sizeof(StepScan), full);
      return;
    }
    const StepPart& part = plan.part[work.part];
    const auto first = static_cast<uint32_t>(work.first_row);
    const uint32_t ready = min(work.outliers, uint32_t{kReadyOutliers});
    const Groups codebook(part.codebook, 0, static_cast<uint32_t>(part.k)),
        begins(part.outlier_row_begin, first, static_cast<uint32_t>(min(work.rows, kRowBegins) + 1)),
        cols(part.outlier_col, work.first_outlier, ready), changes(part.outlier_change, work.first_outlier, ready);
    hopper::arrive_and_expect_bytes(full, static_cast<uint32_t>(sizeof(StepCommon) + sizeof(StepPart)) +
                                              codebook.bytes + begins.bytes + cols.bytes + changes.bytes);
    hopper::copy_bulk(&header.common, &plan.common, sizeof(StepCommon), full);
    hopper::copy_bulk(&header.part, &part, sizeof(StepPart), full);
    codebook.copy(header.codebook, full);
    begins.copy(header.begins, full);
    cols.copy(header.cols, full);
    changes.copy(header.changes, full);
  }

  /// A chunk of the ring.
  __device__ void bring(const unsigned char* from, uint32_t bytes) {
    // A slot is free once the chunk before in it was read; so is what all chunks before that one held.
    while (free_ < bytes || ring_.chunk - oldest_ == kChunks) {
      const int slot = static_cast<int>(oldest_ % kChunks);
      hopper::wait(&shared().empty[slot], oldest_ / kChunks % 2);
      free_ += __shfl_sync(kAllLanes, held_, slot);
      ++oldest_;
    }
    free_ -= bytes;
    const int slot = ring_.slot();
    if (lane() == slot) held_ = bytes;
    if (lane() == 0) {
      uint64_t* full = &shared().full[slot];
      hopper::arrive_and_expect_bytes(full, bytes);
      const uint32_t until_end = min(bytes, ring_.bytes - ring_.position);
      hopper::copy_bulk(memory_ + ring_.position, from, until_end, full);
      if (until_end < bytes) hopper::copy_bulk(memory_, from + until_end, bytes - until_end, full);
    }
    ring_.advance(bytes);
  }

  const Parameters& p_;
  Ring ring_;
  unsigned char* const memory_;
  uint32_t oldest_ = 0;  ///< chunk that may still be read
  uint32_t free_ = ring_.bytes;
  uint32_t held_ = 0;  ///< bytes of the chunk in the slot of the lane's number
};

__device__ void work(const Parameters& p) {
  Ring ring{.bytes = p.ring_bytes};
  uint32_t* own_done = StepLayout::done(p.step.memory) + blockIdx.x;
  const uint32_t done = *own_done;
  for (int i = 0; i < p.step.operations; ++i) {
    const int slot = i % kHeaders;
    hopper::wait(&shared().header_full[slot], i / kHeaders % 2);
    const Header& header = shared().header[slot];
    const uint32_t flag = done + static_cast<uint32_t>(i) + 1;
    if (header.work.part >= 0) {
      multiply(header, x_of(header.common.input.cols), ring_of(p), ring, done, flag);
    } else if (header.common.kind == StepKind::scan) {
      scan(header, done, flag);
    }
    __syncwarp();
    if (threadIdx.x % 32 == 0) hopper::arrive(&shared().header_empty[slot]);
  }
  sync_workers();
  if (threadIdx.x == 0) *own_done = done + static_cast<uint32_t>(p.step.operations);
}

__global__ void __launch_bounds__(kThreads + 32, 1) step_kernel(const __grid_constant__ Parameters p) {
  if (threadIdx.x == 0) {
    for (int i = 0; i < kChunks; ++i) {
      hopper::init_barrier(&shared().full[i], 1);
      hopper::init_barrier(&shared().empty[i], GemvPlan::kWarps);
    }
    for (int i = 0; i < kHeaders; ++i) {
      hopper::init_barrier(&shared().header_full[i], 1);
      hopper::init_barrier(&shared().header_empty[i], GemvPlan::kWarps);
    }
    hopper::fence_barriers();
  }
  __syncthreads();
  if (threadIdx.x >= kThreads) {
    Bringer(p).run();
  } else {
    work(p);
  }
}

/// What each block works on, which is found once.
__global__ void lay_out_kernel(const Step step, int blocks) {
  const StepPlan& plan = StepLayout::plans(step.memory)[blockIdx.x];
  wait_for_predecessors();
  for (int block = static_cast<int>(threadIdx.x); block < blocks; block += static_cast<int>(blockDim.x)) {
    StepWork work;
    int number = 0;
    while (number + 1 < plan.common.parts && block >= plan.part[number + 1].first_block) ++number;
    const StepPart& part = plan.part[number];
    if (const int own = block - part.first_block; plan.common.kind == StepKind::products && own < part.blocks) {
      work.part = number;
      work.first_row = static_cast<int>(part.share.begin(own));
      work.rows = part.share.count(own);
      work.cols = plan.common.input.cols;
      work.weights = part.indices + int64_t{work.first_row} * work.cols;
      work.chunk_rows = plan.common.has_few_rows ? work.rows : plan.common.plan.turn_rows();
      if (part.outlier_row_begin) {
        work.first_outlier = part.outlier_row_begin[work.first_row];
        work.outliers = part.outlier_row_begin[work.first_row + work.rows] - work.first_outlier;
      }
    }
    StepLayout::works(step.memory, step.operations)[int64_t{blockIdx.x} * blocks + block] = work;
  }
}

#else

__global__ void lay_out_kernel(const Step, int) {}
__global__ void step_kernel(const __grid_constant__ Parameters) {}

#endif

}  // namespace
}  // namespace step

bool supports_step(const StepOperation& operation) noexcept {
  const DeviceFacts device = current_device();
  return device.compute_capability >= 90 && device.compute_capability < 120 &&
         device.multiprocessors <= static_cast<int>(StepLayout::kMostBlocks) && fits_step(operation);
}

StepSize step_size(const StepOperation* operations, int64_t count) noexcept {
  try {
    Step step;
    return plan_step({operations, static_cast<size_t>(count)}, current_device().multiprocessors, nullptr, nullptr,
                     step);
  } catch (const std::bad_alloc&) {
    return {};
  }
}

Status write_step(const StepOperation* operations, int64_t count, void* memory, void* image, Step& step) noexcept {
  for (int64_t i = 0; i < count; ++i) {
    if (!supports_step(operations[i])) return Status::invalid_value;
  }
  try {
    const std::span all(operations, static_cast<size_t>(count));
    const StepSize size = plan_step(all, current_device().multiprocessors, memory, image, step);
    return size.bytes > 0 ? Status::ok : Status::invalid_value;
  } catch (const std::bad_alloc&) {
    return Status::out_of_memory;
  }
}

Status lay_out_step(const Step& step, Stream stream) noexcept {
  return launch(step::lay_out_kernel, {.grid = dim3(static_cast<unsigned>(step.operations)), .block = dim3(128)},
                stream, step, current_device().multiprocessors);
}

Status run_step(const Step& step, Stream stream) noexcept {
  constexpr size_t kMostShared = 226 * 1024;
  const size_t before = step::bytes_before_ring(step);
  const step::Parameters parameters{.step = step,
                                    .ring_bytes = static_cast<uint32_t>(kMostShared - before) / 128 * 128};
  return launch(step::step_kernel,
                {.grid = dim3(static_cast<unsigned>(current_device().multiprocessors)),
                 .block = dim3(step::kThreads + 32),
                 .shared_bytes = before + parameters.ring_bytes,
                 .cooperative = true},
                stream, parameters);
}

}  // namespace hxq::cuda
