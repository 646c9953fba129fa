#include "layers/attention.h"

namespace hxq {

AttentionState::AttentionState(const StateOptions& options, int64_t kv_heads, int64_t head_dim, const RopeDesc* rope)
    : rope_(rope), cache_(*options.device, kv_heads, head_dim, options.kv_cache) {
  if (rope_ != nullptr) {
    inverse_frequency_ = {*options.device, std::span<const float>(inverse_frequencies(*rope_, 0)), "rotary positions"};
  }
}

void AttentionState::reserve(int64_t positions, int64_t end) {
  cache_.reserve(positions);
  // Keys that are in the cache keep the angles they came with, as in transformers.
  if (rope_ != nullptr && rope_->type == RopeDesc::Type::dynamic) {
    inverse_frequency_.upload(inverse_frequencies(*rope_, end));
  }
}

void AttentionState::put_arrays(std::span<void*> arrays) const noexcept {
  arrays[0] = cache_.tiles();
  arrays[1] = inverse_frequency_.data();
}

StateValues AttentionState::read(StateKind kind, int64_t positions) const {
  if (kind != StateKind::keys && kind != StateKind::values) return {};
  const auto part = kind == StateKind::keys ? kernels::KvCache::Part::keys : kernels::KvCache::Part::values;
  return {.shape = {cache_.heads(), positions, cache_.head_dim()}, .values = cache_.read(part, positions)};
}

Attention::Parts Attention::parts(const kernels::RmsNormArgs& norm, float* y, bool accumulate,
                                  const kernels::Batch& batch, const StateArrays& state,
                                  WorkMemory work) const noexcept {
  const int64_t rows = batch.rows;
  const int64_t q_size = shape_.heads * shape_.head_dim;
  const int64_t kv_size = shape_.kv_heads * shape_.head_dim;
  // Queries, keys and values of a row lie side by side: a device may make them in one product.
  const int64_t qkv_size = q_size + 2 * kv_size;
  float* q = work.take<float>(rows * qkv_size);                                       // [rows, heads, head_dim]
  float* k = q + q_size;                                                              // [rows, kv_heads, head_dim]
  float* v = k + kv_size;                                                             // [rows, kv_heads, head_dim]
  float* attended = work.take<float>(rows * q_size);                                  // [rows, heads, head_dim]
  float* table = shape_.rotary ? work.take<float>(rows * shape_.head_dim) : nullptr;  // [rows, 2, head_dim / 2]

  kernels::KvCacheView cache = kernels::KvCache::shape(shape_.kv_heads, shape_.head_dim, shape_.kv_cache);
  cache.tiles = state.array(0);
  Parts parts{
      .qkv = {norm, norm.y, norm.dim},
      .step = {.extend = {.q = q,
                          .k = k,
                          .v = v,
                          .q_stride = qkv_size,
                          .kv_stride = qkv_size,
                          .query_heads = shape_.heads,
                          .rotary_table = table,
                          .batch = batch,
                          .cache = cache},
               .attend = {.q = q,
                          .q_stride = qkv_size,
                          .y = attended,
                          .y_stride = q_size,
                          .query_heads = shape_.heads,
                          .scale = shape_.scale,
                          .window = shape_.window,
                          .batch = batch,
                          .cache = cache}},
      .o = o_.with({.x = attended, .x_stride = q_size, .y = y, .y_stride = o_.rows(), .accumulate = accumulate})};
  parts.qkv.add(q_, q, qkv_size, rows, work);
  parts.qkv.add(k_, k, qkv_size, rows, work);
  parts.qkv.add(v_, v, qkv_size, rows, work);
  if (shape_.rotary) {
    parts.step.rotary = {
        .inverse_frequency = state.array(1), .half = shape_.head_dim / 2, .batch = batch, .table = table};
  }
  return parts;
}

void Attention::Parts::run(const kernels::Batch& batch, const kernels::Context& context) const noexcept {
  qkv.run(batch, context);
  if (!batch.has_one_token_each() || !kernels::attention_step(step, context)) {
    if (step.rotary) kernels::rotary_table(*step.rotary, context);
    kernels::extend_cache(step.extend, context);
    kernels::attention(step.attend, context);
  }
  linear(*o.weight, o.args, batch, context);
}

}  // namespace hxq
