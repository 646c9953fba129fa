#include "kernels/cpu/grouped_prepared.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <new>

#include "hxq/error.h"

namespace hxq::kernels::cpu {
namespace {

constexpr float kWhole = 32767;  // of the power of two above a row's largest scale; levels are at most that

float largest_magnitude(std::span<const float> values) {
  float largest = 0;
  for (const float value : values) largest = std::max(largest, std::fabs(value));
  return largest;
}

bool is_whole(float value) { return std::nearbyint(value) == value; }

/// The exponent of a number, 0 for 0.
int exponent_of(double value) { return value == 0 ? 0 : std::ilogb(value); }

}  // namespace

PreparedGrouped::PreparedGrouped(std::unique_ptr<const GroupedMatrix> stored)
    : CpuMatrix(*stored), stored_(std::move(stored)) {
  make_bytes();
  make_levels();
  make_scales();
}

void PreparedGrouped::make_levels() {
  const std::vector<float>& levels = stored_->levels;
  const float largest = largest_magnitude(levels);
  has_words_ = largest <= kWhole && std::ranges::all_of(levels, is_whole);
  if (!has_words_) return;
  level_multiple_ = largest == 0 ? 1 : std::floor(kWhole / largest);
  if (has_bytes_ && levels.size() == 256) level_multiple_ = 256;  // -128 to 127 fill words as well, by a shift
  for (size_t i = 0; i < whole_levels_.size(); ++i) {
    whole_levels_[i] = static_cast<int16_t>(levels[i % levels.size()]);
  }
  for (size_t i = 0; i < level_words_.size(); ++i) {
    level_words_[i] = static_cast<int16_t>(levels[i % levels.size()] * level_multiple_);
    const auto bits = static_cast<uint16_t>(level_words_[i]);
    level_planes_[0][i] = static_cast<uint8_t>(bits);
    level_planes_[1][i] = static_cast<uint8_t>(bits >> 8);
  }
}

void PreparedGrouped::make_bytes() {
  const std::vector<float>& levels = stored_->levels;
  has_bytes_ = levels.size() <= 16 &&
               std::ranges::all_of(levels, [](float level) { return std::fabs(level) <= 127 && is_whole(level); });
  if (levels.size() == 256) {
    int next = -128;
    has_bytes_ = std::ranges::all_of(levels, [&](float level) { return level == static_cast<float>(next++); });
  }
  for (size_t i = 0; has_bytes_ && i < level_bytes_.size(); ++i) {
    level_bytes_[i] = static_cast<uint8_t>(static_cast<int>(levels[i % levels.size()]) + 128);
  }
}

void PreparedGrouped::make_scales() {
  const std::vector<float>& scales = stored_->scale_levels;
  const double largest = largest_magnitude(scales), level = largest_magnitude(stored_->levels);
  const int exponent = exponent_of(largest);
  scale_unit_ = std::ldexp(1.0f, exponent);
  for (size_t i = 0; i < scales.size(); ++i) {
    scale_multiples_[i] = static_cast<float>(std::ldexp(static_cast<double>(scales[i]), -exponent));
    const auto bits = std::bit_cast<uint32_t>(scale_multiples_[i]);
    for (size_t plane = 0; plane < 4; ++plane) scale_planes_[plane][i] = static_cast<uint8_t>(bits >> (8 * plane));
  }
  // A weight is level * scale, at most `most`; its integer is at most 32767 * 32767 / 2^15. Sums are in units of
  // planes_scale before a row's unit makes them smaller: they must not overflow.
  const double most = level * largest;
  planes_scale_ = std::ldexp(1.0f, std::clamp(exponent_of(most) - 14, -126, 60));
  const double unit = std::ldexp(0x1p15 / (kWhole * static_cast<double>(level_multiple_)), exponent) / planes_scale_;
  row_unit_ = static_cast<float>(unit);
}

PreparedGrouped::ScaleWords PreparedGrouped::scale_words(int exponent) const {
  ScaleWords words;
  for (size_t i = 0; i < words.size(); ++i) {
    const double parts = std::ldexp(static_cast<double>(scale_multiples_[i]), -(exponent + 1)) * kWhole;
    const auto whole = static_cast<uint16_t>(std::lround(std::clamp<double>(parts, -kWhole, kWhole)));
    words[i] = whole | uint32_t{whole} << 16;
  }
  return words;
}

GroupedView PreparedGrouped::view() const noexcept {
  return {
      .rows = stored_->rows,
      .cols = stored_->cols,
      .group = stored_->group,
      .groups = stored_->groups(),
      .row_bytes = stored_->row_bytes(),
      .bits = stored_->bits(),
      .packed = reinterpret_cast<const uint8_t*>(stored_->packed.data()),
      .scales = reinterpret_cast<const uint8_t*>(stored_->scales.data()),
      .levels = stored_->levels.data(),
      .scale_levels = stored_->scale_levels.data(),
      .planes_scale = planes_scale_,
      .level_planes = level_planes_[0].data(),
      .level_words = has_words_ ? level_words_.data() : nullptr,
      .whole_levels = has_words_ ? whole_levels_.data() : nullptr,
      .level_bytes = has_bytes_ ? level_bytes_.data() : nullptr,
      .scale_unit = scale_unit_,
      .scale_multiples = scale_multiples_.data(),
      .scale_planes = scale_planes_[0].data(),
      .row = rows_.data(),
  };
}

void PreparedGrouped::finish() const {
  std::call_once(rows_once_, [&] {
    const auto rows = static_cast<size_t>(stored_->rows), groups = static_cast<size_t>(stored_->groups());
    std::vector<GroupedRow> found;
    try {
      found.resize(rows);
      for (size_t row = 0; row < rows; ++row) {
        float largest = 0;
        for (const std::byte scale : stored_->scales.subspan(row * groups, groups)) {
          largest = std::max(largest, std::fabs(scale_multiples_[static_cast<size_t>(scale)]));
        }
        // Scales that far below the matrix's largest lose their last bits instead of overflowing.
        const int exponent = exponent_of(std::max(largest, 0x1p-100f));
        const auto [words, added] = scale_words_.try_emplace(exponent);
        if (added) words->second = scale_words(exponent);
        found[row] = {.scale_words = words->second.data(), .unit = std::ldexp(row_unit_, exponent + 1)};
      }
    } catch (const std::bad_alloc&) {
      throw OutOfMemory("the rows of a matrix", rows * sizeof(GroupedRow));
    }
    rows_ = std::move(found);
  });
}

void PreparedGrouped::linear(const LinearArgs& args, const CpuContext& context) const noexcept {
  kernels::linear(*this, args, context);
}

void PreparedGrouped::gather_rows(const int32_t* ids, int64_t count, float* out,
                                  const CpuContext& context) const noexcept {
  kernels::gather_rows(*this, ids, count, out, context);
}

void PreparedGrouped::decode_rows(int64_t begin, int64_t end, float* out, const CpuContext& context) const noexcept {
  if (context.measures) return;
  const Range mine = context.team.share(end - begin);
  ops_of(context.target)
      .decode_grouped(view(), begin + mine.begin, mine.end - mine.begin, 0, cols(), out + mine.begin * cols(), cols());
  for (int64_t i = mine.begin; i < mine.end && stored_->low_rank.rank > 0; ++i) {
    add_low_rank(stored_->low_rank, begin + i, {out + i * cols(), static_cast<size_t>(cols())});
  }
  context.team.barrier();
}

std::unique_ptr<const CpuMatrix> prepare_grouped(std::unique_ptr<const StoredMatrix> stored) {
  const auto* matrix = static_cast<const GroupedMatrix*>(stored.release());
  return std::make_unique<PreparedGrouped>(std::unique_ptr<const GroupedMatrix>(matrix));
}

}  // namespace hxq::kernels::cpu
