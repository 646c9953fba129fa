#pragma once

#include "kernels/cuda/gemv_plan.h"
#include "kernels/cuda/step.h"

/// A step as the kernel reads it.
///
/// Blocks hand vectors to each other through device memory, element by element: a word of 64 bits has the value and, in
/// its upper half, a flag that says which operation of which run wrote it. Whoever needs an element reads it until the
/// flag is right, so that one passage of memory is all that lies between an operation and the next. An array is written
/// again only by operations that need, directly or not, all that those wrote which read it before.
namespace hxq::cuda {

/// Elements that a kernel before has written (`data`), or an operation of this step (`shared`).
struct StepVector {
  const float* data = nullptr;
  const uint64_t* shared = nullptr;
  uint32_t operation = 0;  ///< that writes `shared`
};

struct StepOutput {
  float* data = nullptr;       ///< null: nothing but the step reads it
  uint64_t* shared = nullptr;  ///< null: nothing of the step reads it
};

/// Mamba's convolution of the first rows of a product, whose place its output takes.
struct StepConv {
  const float* weight = nullptr;  // [width, channels], or null: there is none
  const float* bias = nullptr;    // [channels], or null
  void* const* states = nullptr;  // [1]: float [kept, channels], oldest first; advanced
  int32_t channels = 0;
  int32_t width = 0;  ///< up to kStepTaps
  int32_t kept = 0;
};
inline constexpr int kStepTaps = 4;
inline constexpr int kStepLanes = 16;  ///< threads of a channel in a scan
inline constexpr int kStepDbc = 1024;  ///< rows of x_proj, at most

struct StepInput {
  StepVector x = {};
  const float* norm_weight = nullptr;
  float eps = 0;
  int32_t cols = 0;
};

/// One of the products, and the blocks that have it.
struct alignas(16) StepPart {
  const unsigned char* indices = nullptr;
  const float* codebook = nullptr;
  const uint32_t* outlier_row_begin = nullptr;
  const uint32_t* outlier_col = nullptr;
  const float* outlier_change = nullptr;
  const float* low_rank_u = nullptr;
  const float* low_rank_vt = nullptr;
  const float* bias = nullptr;
  StepVector residual = {};  ///< added to y, or nothing
  StepOutput y = {};
  StepConv conv = {};
  BlockShare share = {};
  int32_t first_block = 0;
  int32_t blocks = 0;
  int32_t k = 0;
  int32_t rank = 0;
};

/// Mamba's scan; before it, dt from dt_proj. Blocks own channels.
struct alignas(16) StepScan {
  StepVector u = {}, z = {}, dbc = {};  ///< the convolution's output, the gate, and dt, B, C
  CodebookWeight dt_proj = {};
  const float* dt_bias = nullptr;
  const float* a = nullptr;
  const float* d = nullptr;
  void* const* states = nullptr;
  StepOutput y = {};
  BlockShare share = {};
  int32_t first_block = 0;  ///< that has channels
  int32_t channels = 0;
  int32_t state_size = 0;
};

enum class StepKind : int32_t { products, scan };

/// What the products of an operation have in common.
struct alignas(16) StepCommon {
  StepKind kind = StepKind::products;
  int32_t parts = 0;
  StepInput input = {};
  GemvPlan plan = {};  ///< of all parts, but for their blocks
  /// Rows are so few that a warp has whole ones: at most kStepUnits rows, and as many units a lane; they come as one
  /// chunk. Otherwise as `plan` says.
  bool has_few_rows = false;
};
inline constexpr int kStepUnits = 4;  ///< of a lane, and rows of a warp, where a block has few rows

struct StepPlan {
  StepCommon common = {};
  StepPart part[kMaxFusedProducts] = {};
  StepScan scan = {};
};

/// The part of an operation that a block works on.
struct alignas(16) StepWork {
  const unsigned char* weights = nullptr;  ///< of its first row
  int32_t part = -1;                       ///< or none
  int32_t first_row = 0;
  int32_t rows = 0;
  uint32_t first_outlier = 0;  ///< of the matrix
  uint32_t outliers = 0;
  int32_t cols = 0;
  int32_t chunk_rows = 0;  ///< rows that come together
};

/// What lies where in a step's memory: first what the image has.
struct StepLayout {
  static constexpr size_t kMostBlocks = 1024;

  /// [kMostBlocks]: operations that a block has done, in all runs.
  HXQ_HOST_DEVICE static uint32_t* done(void* memory) { return static_cast<uint32_t*>(memory); }
  HXQ_HOST_DEVICE static StepPlan* plans(void* memory) {
    return reinterpret_cast<StepPlan*>(static_cast<unsigned char*>(memory) + kMostBlocks * sizeof(uint32_t));
  }
  HXQ_HOST_DEVICE static size_t image_bytes(int64_t plans) {
    return kMostBlocks * sizeof(uint32_t) + static_cast<size_t>(plans) * sizeof(StepPlan);
  }
  /// [plans, blocks]
  HXQ_HOST_DEVICE static StepWork* works(void* memory, int64_t plans) {
    return reinterpret_cast<StepWork*>(static_cast<unsigned char*>(memory) + image_bytes(plans));
  }
};

/// Whether the kernel takes the operation, on any device that can run it.
bool fits_step(const StepOperation& operation) noexcept;

/// Lays out a step for that many blocks; the same arguments give the same. memory, image: null to find out the size,
/// which is 0 where the operations do not fit together.
StepSize plan_step(std::span<const StepOperation> operations, int blocks, void* memory, void* image, Step& step);

}  // namespace hxq::cuda
