#pragma once

#include <memory>

#include "kernels/attention_step.h"
#include "kernels/kv_cache.h"
#include "layers/projection.h"

namespace hxq {

/// What attention remembers of one sequence: keys, values and, with rotary positions, the angles that new ones get.
class AttentionState {
 public:
  static constexpr int64_t kArrays = 2;

  /// rope: null without rotary positions; must outlive it.
  AttentionState(const StateOptions& options, int64_t kv_heads, int64_t head_dim, const RopeDesc* rope);

  void reset() noexcept { cache_.reset(); }
  void copy_from(const AttentionState& other, int64_t positions) { cache_.copy_from(other.cache_, positions); }
  int64_t bytes() const noexcept { return cache_.bytes(); }
  void reserve(int64_t positions, int64_t end);
  void put_arrays(std::span<void*> arrays) const noexcept;
  StateValues read(StateKind kind, int64_t positions) const;

 private:
  const RopeDesc* rope_;
  kernels::KvCache cache_;
  kernels::DeviceArray<float> inverse_frequency_;  // [head_dim / 2], empty without rotary positions
};

/// Grouped-query attention over the sequence's cache, with its four projections.
class Attention {
 public:
  struct Shape {
    int64_t heads = 0;
    int64_t kv_heads = 0;
    int64_t head_dim = 0;
    int64_t window = 0;  ///< positions a query sees, its own included; 0: all before it
    float scale = 0;     ///< of the scores
    bool rotary = true;
    DType kv_cache = DType::f32;
  };

  Attention(const Shape& shape, AdaptedProjection q, AdaptedProjection k, AdaptedProjection v, Projection o)
      : shape_(shape), q_(std::move(q)), k_(std::move(k)), v_(std::move(v)), o_(std::move(o)) {}

  /// The operations that it is made of; what they give each other is in work memory.
  struct Parts {
    JointProjections qkv;
    kernels::AttentionStepArgs step;  ///< also where segments have more rows than one
    kernels::LinearProduct o;

    void run(const kernels::Batch& batch, const kernels::Context& context) const noexcept;
  };
  /// y = o(attention(q(x), k(x), v(x))) (+ y), with x what the norm gives: [rows, in]; y: [rows, hidden], contiguous.
  Parts parts(const kernels::RmsNormArgs& norm, float* y, bool accumulate, const kernels::Batch& batch,
              const StateArrays& state, WorkMemory work) const noexcept;
  void operator()(const kernels::RmsNormArgs& norm, float* y, bool accumulate, const kernels::Batch& batch,
                  const StateArrays& state, WorkMemory work, const kernels::Context& context) const noexcept {
    parts(norm, y, accumulate, batch, state, work).run(batch, context);
  }

 private:
  Shape shape_;
  AdaptedProjection q_;  // [heads * head_dim, in]
  AdaptedProjection k_;  // [kv_heads * head_dim, in]
  AdaptedProjection v_;  // [kv_heads * head_dim, in]
  Projection o_;         // [hidden, heads * head_dim]
};

}  // namespace hxq
