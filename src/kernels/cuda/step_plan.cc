#include <algorithm>
#include <cstdint>
#include <cstring>
#include <set>
#include <utility>
#include <vector>

#include "kernels/cuda/gemv.cuh"
#include "kernels/cuda/step_program.h"

namespace hxq::cuda {
namespace {

/// Two units of a lane; x lies in shared memory.
constexpr int64_t kMostCols = 2 * 32 * GemvPlan::kWarps * GemvPlan::kUnitCols;

bool fits(const CodebookWeight& weight) {
  return supports_codebook_gemv(weight) && weight.rows > 0 && weight.cols <= kMostCols && weight.cols % 16 == 0 &&
         weight.rank <= kGemvMaxRank && !weight.channel_scales && is_aligned(weight.indices, 16) &&
         is_aligned(weight.codebook, 16) && is_aligned(weight.outlier_row_begin, 16) &&
         is_aligned(weight.outlier_col, 16) && is_aligned(weight.outlier_change, 16);
}

bool fits(const Input& x) { return x.dtype == DType::f32 && is_aligned(x.data, 8); }

bool fits(const StepProducts& step) {
  if (step.count < 1 || step.count > kMaxFusedProducts || !fits(step.input.x)) return false;
  return std::all_of(step.products, step.products + step.count, [&](const FusedProduct& product) {
    return fits(product.weight) && product.weight.cols == step.products[0].weight.cols &&
           product.y.dtype == DType::f32 && !product.low_rank_product;
  });
}

bool fits(const MambaStepArgs& args) {
  const ConvArgs& conv = args.conv;
  const ScanArgs& scan = args.scan;
  const CodebookWeight& dt = args.dt_proj;
  return fits(args.x_proj) && supports_codebook_gemv(dt) && !dt.channel_scales && fits(conv.x) && fits(scan.z) &&
         scan.y.dtype == DType::f32 && args.batch.count == 1 && args.batch.max_rows == 1 && conv.width >= 1 &&
         conv.width <= kStepTaps && conv.state_rows >= conv.width - 1 && scan.state_size >= 1 &&
         scan.state_size <= kStepLanes && conv.channels == scan.channels && args.x_proj.cols == conv.channels &&
         dt.rows == conv.channels && args.x_proj.rows == dt.cols + 2 * scan.state_size && args.x_proj.rows <= kStepDbc;
}

class Planner {
 public:
  Planner(std::span<const StepOperation> operations, int blocks, void* memory)
      : operations_(operations), blocks_(blocks), memory_(reinterpret_cast<uintptr_t>(memory)) {
    int64_t plans = 0;
    for (const StepOperation& operation : operations) plans += std::holds_alternative<StepProducts>(operation) ? 1 : 2;
    plans_.reserve(static_cast<size_t>(plans));
    bytes_ = StepLayout::image_bytes(plans) + static_cast<size_t>(plans * blocks) * sizeof(StepWork);
    for (const StepOperation& operation : operations) std::visit([&](const auto& one) { add(one); }, operation);
  }

  const std::vector<StepPlan>& plans() const { return plans_; }
  size_t bytes() const { return bytes_; }
  bool fits() const { return fits_; }
  int64_t x_floats() const { return x_floats_; }

 private:
  /// What an operation wrote: elements outside, or of the step alone (`data` is null).
  struct Written {
    const float* data;
    int64_t size;
    uint64_t* shared;  ///< the same elements for other blocks, or null: no operation reads them
    uint32_t operation;
  };
  /// What an operation read. `own`: each block only what it writes itself.
  struct Reading {
    const float* data;
    int64_t size;
    uint32_t operation;
    bool own;
    size_t written = SIZE_MAX;  ///< which of written_ it comes from, if one
  };

  uint32_t number() const { return static_cast<uint32_t>(plans_.size()) + 1; }

  static bool overlap(const float* a, int64_t a_size, const float* b, int64_t b_size) {
    return a != nullptr && b != nullptr ? a < b + b_size && b < a + a_size : a == b && a_size == b_size;
  }

  /// Where the elements from `data` on come from; the next operation reads them.
  StepVector read(const void* data, int64_t size, bool own = false) {
    const auto* first = static_cast<const float*>(data);
    readings_.push_back({first, size, number(), own});
    for (size_t i = written_.size(); i-- > 0;) {
      const Written& last = written_[i];
      if (!overlap(first, size, last.data, last.size)) continue;
      const int64_t offset = first - last.data;
      if (offset < 0 || offset + size > last.size || offset % 2 != 0 || last.shared == nullptr) {
        fits_ = false;  // pairs of elements are read from one array
        return {};
      }
      readings_.back().written = i;
      return {.data = first, .shared = last.shared + offset, .operation = last.operation};
    }
    return {.data = first};
  }

  /// Whether the next operation reads all that the operation wrote: then all of its blocks are done by the time that a
  /// block of the next one writes.
  bool reads_all_of(uint32_t operation) const {
    for (size_t i = 0; i < written_.size(); ++i) {
      if (written_[i].operation != operation) continue;
      std::vector<std::pair<int64_t, int64_t>> ranges;
      for (const Reading& reading : readings_) {
        if (reading.operation != number() || reading.own || reading.written != i) continue;
        const int64_t offset = reading.data - written_[i].data;
        ranges.emplace_back(offset, offset + reading.size);
      }
      std::ranges::sort(ranges);
      int64_t covered = 0;
      for (const auto& [begin, end] : ranges) {
        if (begin <= covered) covered = std::max(covered, end);
      }
      if (covered < written_[i].size) return false;
    }
    return true;
  }

  /// All that the next operation reads has been said.
  void end_reading() {
    needed_.clear();
    for (const Reading& reading : readings_) {
      if (reading.operation != number() || reading.written == SIZE_MAX) continue;
      const uint32_t from = written_[reading.written].operation;
      if (needed_.contains(from) || !reads_all_of(from)) continue;
      needed_.insert(from);
      needed_.insert(needs_[from - 1].begin(), needs_[from - 1].end());
    }
  }

  bool is_done(const Reading& reading) const {
    return needed_.contains(reading.operation) || (reading.operation == number() && reading.own);
  }

  /// The next operation writes these elements: nothing that it does not need may still read or write them. Of those
  /// that other blocks read it takes the array that they had before, where all its readers are done.
  uint64_t* write(const float* data, int64_t size, bool is_read) {
    const auto meets = [&](const auto& used) { return overlap(data, size, used.data, used.size); };
    const bool done =
        std::ranges::all_of(written_, [&](const Written& w) { return !meets(w) || needed_.contains(w.operation); }) &&
        std::ranges::all_of(readings_, [&](const Reading& r) { return !meets(r) || is_done(r); });
    if (!done && data != nullptr) fits_ = false;
    uint64_t* shared = nullptr;
    if (is_read) {
      const auto before = std::find_if(written_.rbegin(), written_.rend(), meets);
      if (done && before != written_.rend() && before->data == data && before->size == size) shared = before->shared;
      if (shared == nullptr) {
        shared = reinterpret_cast<uint64_t*>(memory_ + bytes_);
        bytes_ += (static_cast<size_t>(size) * sizeof(uint64_t) + 15) / 16 * 16;
      }
    }
    written_.push_back({data, size, shared, number()});
    return shared;
  }
  StepOutput write(const Output& y, int64_t size) {
    auto* data = static_cast<float*>(y.data);
    return {.data = data, .shared = write(data, size, is_read(data, size))};
  }

  bool is_read(const float* data, int64_t size) const {
    return std::ranges::any_of(operations_, [&](const StepOperation& operation) {
      const auto reads = [&](const void* from, int64_t count) {
        return overlap(static_cast<const float*>(from), count, data, size);
      };
      if (const auto* step = std::get_if<StepProducts>(&operation)) {
        return reads(step->input.x.data, step->products[0].weight.cols) ||
               std::any_of(step->products, step->products + step->count, [&](const FusedProduct& product) {
                 return product.accumulate && reads(product.y.data, product.weight.rows);
               });
      }
      const auto& step = std::get<MambaStepArgs>(operation);
      return reads(step.conv.x.data, step.conv.channels) || reads(step.scan.z.data, step.conv.channels);
    });
  }

  /// The operation numbered `number()` is complete.
  void push(const StepPlan& plan) {
    plans_.push_back(plan);
    needs_.push_back(needed_);
  }

  /// Products but for their x and y.
  StepPlan products_of(std::span<const FusedProduct> products) {
    StepPlan plan{.common = {.parts = static_cast<int32_t>(products.size())}};
    StepCommon& common = plan.common;
    int64_t rows[kMaxFusedProducts], blocks[kMaxFusedProducts], all_rows = 0;
    for (size_t i = 0; i < products.size(); ++i) all_rows += rows[i] = products[i].weight.rows;
    const int64_t cols = products[0].weight.cols;
    common.plan = plan_gemv(all_rows, cols, blocks_, /*whole_warps=*/true);
    share_blocks({rows, products.size()}, std::max<int64_t>(common.plan.blocks, common.parts), blocks);
    int first_block = 0;
    common.has_few_rows = true;
    for (size_t i = 0; i < products.size(); ++i) {
      const CodebookWeight& weight = products[i].weight;
      plan.part[i] = {.indices = static_cast<const unsigned char*>(weight.indices),
                      .codebook = weight.codebook,
                      .outlier_row_begin = weight.outlier_row_begin,
                      .outlier_col = weight.outlier_col,
                      .outlier_change = weight.outlier_change,
                      .low_rank_u = weight.low_rank_u,
                      .low_rank_vt = weight.low_rank_vt,
                      .bias = products[i].bias,
                      .share = {rows[i], blocks[i]},
                      .first_block = first_block,
                      .blocks = static_cast<int32_t>(blocks[i]),
                      .k = weight.k,
                      .rank = weight.rank};
      first_block += static_cast<int>(blocks[i]);
      const int64_t warp_rows = ceil_div(ceil_div(rows[i], blocks[i]), int64_t{GemvPlan::kWarps});
      common.has_few_rows =
          common.has_few_rows && warp_rows <= kStepUnits && warp_rows * (cols / GemvPlan::kUnitCols) <= kStepUnits * 32;
    }
    common.input.cols = static_cast<int32_t>(cols);
    x_floats_ = std::max(x_floats_, cols + GemvPlan::kUnitCols);
    return plan;
  }

  void add(const StepProducts& step) {
    const std::span products(step.products, static_cast<size_t>(step.count));
    StepPlan plan = products_of(products);
    StepInput& input = plan.common.input;
    input.x = read(step.input.x.data, input.cols);
    input.norm_weight = step.input.norm_weight;
    input.eps = step.input.eps;
    for (size_t i = 0; i < products.size(); ++i) {
      StepPart& part = plan.part[i];
      if (products[i].accumulate) part.residual = read(products[i].y.data, products[i].weight.rows, true);
    }
    end_reading();
    for (size_t i = 0; i < products.size(); ++i) {
      plan.part[i].y = write(products[i].y, products[i].weight.rows);
    }
    push(plan);
  }

  /// The part of an operation before that writes these elements, and those alone or others after them.
  StepPart* writer_of(const void* data) {
    for (size_t i = plans_.size(); i-- > 0;) {
      for (StepPart& part : plans_[i].part) {
        if (part.y.data == data && part.y.shared != nullptr) return &part;
      }
    }
    return nullptr;
  }

  void add(const MambaStepArgs& step) {
    const int64_t channels = step.conv.channels;
    StepPart* in_proj = writer_of(step.conv.x.data);
    if (in_proj == nullptr || in_proj->conv.weight != nullptr) {
      fits_ = false;
      return;
    }
    in_proj->conv = {.weight = step.conv.weight,
                     .bias = step.conv.bias,
                     .states = step.conv.states,
                     .channels = static_cast<int32_t>(channels),
                     .width = static_cast<int32_t>(step.conv.width),
                     .kept = static_cast<int32_t>(step.conv.state_rows)};
    const FusedProduct x_proj{.weight = step.x_proj, .y = {}};
    StepPlan product = products_of({&x_proj, 1});
    product.common.input.x = read(step.conv.x.data, channels);
    // Blocks without rows of x_proj read what the scan needs while the others work, if they can take a channel each at
    // a time.
    const int64_t idle = blocks_ - product.part[0].blocks;
    const int64_t scan_blocks = idle * (GemvPlan::kWarps * 32 / kStepLanes) >= channels ? idle : blocks_;
    end_reading();
    product.part[0].y.shared = write(nullptr, step.x_proj.rows, true);
    push(product);
    StepPlan scan{.common = {.kind = StepKind::scan}};
    const StepVector u = read(step.conv.x.data, channels), z = read(step.scan.z.data, channels),
                     dbc = read(nullptr, step.x_proj.rows);
    end_reading();
    scan.scan = {.u = u,
                 .z = z,
                 .dbc = dbc,
                 .dt_proj = step.dt_proj,
                 .dt_bias = step.scan.dt_bias,
                 .a = step.scan.a,
                 .d = step.scan.d,
                 .states = step.scan.states,
                 .y = write(step.scan.y, channels),
                 .share = {channels, scan_blocks},
                 .first_block = static_cast<int32_t>(blocks_ - scan_blocks),
                 .channels = static_cast<int32_t>(channels),
                 .state_size = static_cast<int32_t>(step.scan.state_size)};
    push(scan);
  }

  std::span<const StepOperation> operations_;
  const int blocks_;
  const uintptr_t memory_;
  std::vector<StepPlan> plans_ = {};
  std::vector<Written> written_ = {};
  std::vector<Reading> readings_ = {};
  std::vector<std::set<uint32_t>> needs_ = {};  ///< operations that those are after with all their blocks, by plan
  std::set<uint32_t> needed_ = {};              ///< likewise by the next operation
  size_t bytes_ = 0;
  int64_t x_floats_ = 0;
  bool fits_ = true;
};

}  // namespace

bool fits_step(const StepOperation& operation) noexcept {
  return std::visit([](const auto& one) { return fits(one); }, operation);
}

StepSize plan_step(std::span<const StepOperation> operations, int blocks, void* memory, void* image, Step& step) {
  const Planner planner(operations, blocks, memory);
  if (!planner.fits()) return {};
  const std::vector<StepPlan>& plans = planner.plans();
  const size_t image_bytes = StepLayout::image_bytes(std::ssize(plans));
  if (image != nullptr) {
    std::memset(image, 0, image_bytes);
    std::memcpy(StepLayout::plans(image), plans.data(), plans.size() * sizeof(StepPlan));
  }
  step = {.memory = memory,
          .operations = static_cast<int32_t>(plans.size()),
          .x_floats = static_cast<int32_t>(planner.x_floats())};
  return {.bytes = planner.bytes(), .image_bytes = image_bytes};
}

}  // namespace hxq::cuda
