#include "codec/codebook/assign.h"

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <limits>

#include "io/half.h"
#include "io/threads.h"

namespace hxq {
namespace {

constexpr int64_t kBlock = 64;       // elements that one outlier flag stands for
constexpr int64_t kChunk = 1 << 16;  // elements whose fidelity is summed on its own
constexpr float kInfinity = std::numeric_limits<float>::infinity();

template <class T>
T load(const std::byte* bytes, int64_t index) {
  T value;
  std::memcpy(&value, bytes + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

uint16_t pattern_of(DType dtype, float value) {
  return dtype == DType::bf16 ? bf16_from_float(value) : f16_from_float(value);
}

/// The slot that is an outlier in part: its elements before `end` are outliers.
struct PartialSlot {
  float low = 1;
  float high = 0;  // low > high: there is none
  int64_t end = 0;

  bool keeps(float value, int64_t position) const { return low <= value && value <= high && position >= end; }
};

// Elements of [begin, end) that have one bit pattern of 16 bits.
int64_t count_pattern(const std::byte* bytes, int64_t begin, int64_t end, uint16_t pattern) {
  int64_t found = 0;
  for (int64_t i = begin; i < end; ++i) found += static_cast<int64_t>(load<uint16_t>(bytes, i) == pattern);
  return found;
}

// Weights of [begin, end) that are in [low, high].
int64_t count_between(const Weights& weights, int64_t begin, int64_t end, float low, float high) {
  std::array<float, 4096> block;
  const std::span<float> values(block.data(), static_cast<size_t>(end - begin));
  weights.read(begin, values);
  int64_t found = 0;
  for (const float value : values) found += static_cast<int64_t>(low <= value) & static_cast<int64_t>(value <= high);
  return found;
}

// Position behind the `wanted`-th element in [low, high]; the end or beyond if there are fewer, as in a file that was
// cut since they were counted and then reads as zeros.
int64_t end_of_first(const Weights& weights, float low, float high, int64_t wanted) {
  const auto matches = [&](int64_t begin, int64_t end) {
    if (!weights.in_16_bits()) return count_between(weights, begin, end, low, high);
    const std::byte* bytes = weights.source().bytes.data();
    const uint16_t pattern = pattern_of(weights.source().dtype, low);  // such a slot is a single value
    int64_t found = count_pattern(bytes, begin, end, pattern);
    if (low == 0) found += count_pattern(bytes, begin, end, pattern ^ 0x8000u);
    return found;
  };
  constexpr int64_t kStep = 4096;
  int64_t begin = 0;
  for (; begin < weights.size(); begin += kStep) {
    const int64_t found = matches(begin, std::min(begin + kStep, weights.size()));
    if (found >= wanted) break;
    wanted -= found;
  }
  for (; wanted > 0 && begin < weights.size(); ++begin) wanted -= matches(begin, begin + 1);
  return begin;
}

PartialSlot partial_slot(const Weights& weights, const ValueHistogram& histogram, const CodebookFit& fit) {
  for (size_t i = 0; i < histogram.size(); ++i) {
    const int64_t taken = fit.outliers[i];
    if (taken == 0 || taken == histogram.count[i]) continue;
    return {histogram.low[i], histogram.high[i], end_of_first(weights, histogram.low[i], histogram.high[i], taken)};
  }
  return {};
}

void add(Fidelity& fidelity, double value, double decoded, double times) {
  const double error = value - decoded;
  fidelity.signal += times * value * value;
  fidelity.decoded += times * decoded * decoded;
  fidelity.dot += times * value * decoded;
  fidelity.squared_error += times * error * error;
  if (times > 0) fidelity.max_error = std::max(fidelity.max_error, std::abs(error));
}

/// Level of each slot, in the order of the slots.
std::vector<uint8_t> levels_of_slots(const ValueHistogram& histogram, std::span<const float> levels) {
  const std::vector<double> thresholds = thresholds_of(levels);
  std::vector<uint8_t> answer(histogram.size());
  size_t level = 0;
  for (size_t i = 0; i < histogram.size(); ++i) {
    while (level < thresholds.size() && histogram.value[i] > thresholds[level]) ++level;
    answer[i] = static_cast<uint8_t>(level);
  }
  return answer;
}

/// Where the work of assigning goes on: fixed chunks, so that sums come out the same for any number of threads.
template <class Work>
std::vector<int64_t> for_chunks(int64_t count, int threads, size_t max_outliers, Work work) {
  const int64_t chunks = (count + kChunk - 1) / kChunk;
  std::vector<std::vector<int64_t>> found(static_cast<size_t>(threads));
  for (auto& list : found) list.reserve(max_outliers);
  parallel_for(threads, threads, [&](int t) {
    for (int64_t chunk = chunks * t / threads; chunk < chunks * (t + 1) / threads; ++chunk) {
      work(chunk, chunk * kChunk, std::min(count, (chunk + 1) * kChunk), found[static_cast<size_t>(t)]);
    }
  });
  std::vector<int64_t> all = std::move(found[0]);
  for (int t = 1; t < threads; ++t) all.insert(all.end(), found[t].begin(), found[t].end());
  return all;
}

// 16-bit sources: every bit pattern's level, with bit 8 set where its elements may be outliers.
using PatternTable = std::array<uint16_t, 65536>;
constexpr uint16_t kMaybeOutlier = 0x100;

// Indices of [begin, end); says whether any of them may be an outlier.
bool assign_patterns(const std::byte* source, int64_t begin, int64_t end, const PatternTable& table,
                     std::byte* indices) {
  uint32_t any = 0;
  int64_t i = begin;
  for (; i + 8 <= end; i += 8) {
    const auto a = load<uint64_t>(source + i * 2, 0);
    const auto b = load<uint64_t>(source + i * 2, 1);
    for (int lane = 0; lane < 4; ++lane) {
      const uint16_t entry_a = table[a >> 16 * lane & 0xffff];
      const uint16_t entry_b = table[b >> 16 * lane & 0xffff];
      indices[i + lane] = static_cast<std::byte>(entry_a);
      indices[i + 4 + lane] = static_cast<std::byte>(entry_b);
      any |= entry_a | entry_b;
    }
  }
  for (; i < end; ++i) {
    const uint16_t entry = table[load<uint16_t>(source, i)];
    indices[i] = static_cast<std::byte>(entry);
    any |= entry;
  }
  return any & kMaybeOutlier;
}

Assignment assign_16bit(const Weights& weights, const ValueHistogram& histogram, const CodebookFit& fit, int threads,
                        std::span<std::byte> indices) {
  const TensorView& source = weights.source();
  Assignment assignment;
  assignment.fidelity.count = source.size();
  const std::vector<uint8_t> slot_level = levels_of_slots(histogram, fit.levels);
  std::vector<PatternTable> table_memory(1);
  PatternTable& table = table_memory[0];
  int64_t outliers = 0;
  for (size_t i = 0; i < histogram.size(); ++i) {
    const auto value = static_cast<float>(histogram.value[i]);
    table[pattern_of(source.dtype, value)] =
        static_cast<uint16_t>(slot_level[i] | (fit.outliers[i] > 0 ? kMaybeOutlier : 0));
    if (value == 0) table[0x8000] = table[0];
    outliers += fit.outliers[i];
    add(assignment.fidelity, value, fit.levels[slot_level[i]],
        static_cast<double>(histogram.count[i] - fit.outliers[i]));
    add(assignment.fidelity, value, value, static_cast<double>(fit.outliers[i]));
  }

  const PartialSlot partial = partial_slot(weights, histogram, fit);
  const std::byte* bytes = source.bytes.data();
  const auto work = [&](int64_t, int64_t begin, int64_t end, std::vector<int64_t>& found) {
    for (int64_t block = begin; block < end; block += kBlock) {
      const int64_t block_end = std::min(block + kBlock, end);
      if (!assign_patterns(bytes, block, block_end, table, indices.data())) continue;
      for (int64_t i = block; i < block_end; ++i) {
        if (!(table[load<uint16_t>(bytes, i)] & kMaybeOutlier) || partial.keeps(weights.at(i), i)) continue;
        found.push_back(i);
      }
    }
  };
  assignment.outliers = for_chunks(source.size(), threads, static_cast<size_t>(outliers), work);
  return assignment;
}

/// Finds a float's level: the upper 16 bits give the first level it can be, and comparisons the rest.
class FloatLevels {
 public:
  explicit FloatLevels(std::span<const float> levels);

  size_t level(float value) const {
    const Start start = starts_[std::bit_cast<uint32_t>(value) >> 16];
    size_t level = start.first + static_cast<size_t>(value > thresholds_[start.first]);
    if (start.more) [[unlikely]] {
      while (value > thresholds_[level]) ++level;
    }
    return level;
  }

 private:
  struct Start {
    uint8_t first;
    bool more;  // more than one comparison may be needed
  };
  std::array<float, 256> thresholds_;  // the largest float of each level; infinity from the last level on
  std::vector<Start> starts_;          // [65536]
};

FloatLevels::FloatLevels(std::span<const float> levels) : starts_(65536) {
  thresholds_.fill(kInfinity);
  const std::vector<double> middles = thresholds_of(levels);
  for (size_t i = 0; i < middles.size(); ++i) {
    const auto nearest = static_cast<float>(middles[i]);
    thresholds_[i] = nearest > middles[i] ? std::nextafter(nearest, -kInfinity) : nearest;
  }
  const auto first_not_below = [&](uint32_t bits) {
    const auto last = thresholds_.begin() + static_cast<std::ptrdiff_t>(middles.size());
    return static_cast<size_t>(std::lower_bound(thresholds_.begin(), last, std::bit_cast<float>(bits)) -
                               thresholds_.begin());
  };
  for (uint32_t upper = 0; upper < 65536; ++upper) {
    if ((upper & 0x7f80u) == 0x7f80u) continue;  // not finite
    const bool negative = upper >= 0x8000u;
    const size_t first = first_not_below(upper << 16 | (negative ? 0xffffu : 0u));
    const size_t last = first_not_below(upper << 16 | (negative ? 0u : 0xffffu));
    starts_[upper] = {static_cast<uint8_t>(first), last > first + 1};
  }
}

// The last slot that does not begin above the value; the first for those of a file that has been cut since.
size_t slot_of(const ValueHistogram& histogram, float value) {
  const auto second = histogram.low.begin() + 1;
  return static_cast<size_t>(std::upper_bound(second, histogram.low.end(), value) - second);
}

/// For each level, beyond which values its elements may be outliers: a quick test before the slot is looked up.
struct KeptRanges {
  std::array<float, 257> outlier_up_to;  // an element <= this may be an outlier
  std::array<float, 257> outlier_from;   // so may one >= this

  KeptRanges(const ValueHistogram& histogram, const CodebookFit& fit, std::span<const uint8_t> slot_level) {
    outlier_up_to.fill(-kInfinity);
    outlier_from.fill(kInfinity);
    for (size_t i = 0; i < histogram.size(); ++i) {
      if (fit.outliers[i] == 0) continue;
      // A slot may reach over the threshold to the next level, which must see it as well.
      const size_t level = slot_level[i];
      const bool above = histogram.value[i] > fit.levels[level];
      if (!above && level == 0) {
        outlier_up_to[0] = std::max(outlier_up_to[0], histogram.high[i]);
      } else {
        const size_t lower = above ? level : level - 1;
        outlier_from[lower] = std::min(outlier_from[lower], histogram.low[i]);
        outlier_up_to[lower + 1] = std::max(outlier_up_to[lower + 1], histogram.high[i]);
      }
    }
  }
};

/// Sums of a chunk's fidelity, in lanes that can be added at once.
class Lanes {
 public:
  void add(const std::array<float, kBlock>& values, const std::array<float, kBlock>& decoded) {
    for (size_t block = 0; block < kBlock; block += kLanes) {
      for (size_t lane = 0; lane < kLanes; ++lane) {
        const double value = values[block + lane], level = decoded[block + lane], error = value - level;
        signal_[lane] += value * value;
        decoded_[lane] += level * level;
        dot_[lane] += value * level;
        squared_error_[lane] += error * error;
        max_error_[lane] = std::max(max_error_[lane], std::abs(error));
      }
    }
  }

  Fidelity total() const {
    Fidelity sum;
    for (size_t lane = 0; lane < kLanes; ++lane) {
      sum += {0, signal_[lane], decoded_[lane], dot_[lane], squared_error_[lane], max_error_[lane]};
    }
    return sum;
  }

 private:
  static constexpr size_t kLanes = 4;
  std::array<double, kLanes> signal_ = {}, decoded_ = {}, dot_ = {}, squared_error_ = {}, max_error_ = {};
};

Assignment assign_floats(const Weights& weights, const ValueHistogram& histogram, const CodebookFit& fit, int threads,
                         std::span<std::byte> indices) {
  const std::vector<uint8_t> slot_level = levels_of_slots(histogram, fit.levels);
  const KeptRanges kept(histogram, fit, slot_level);
  const FloatLevels finder(fit.levels);
  const PartialSlot partial = partial_slot(weights, histogram, fit);
  std::vector<Fidelity> parts(static_cast<size_t>((weights.size() + kChunk - 1) / kChunk));
  const auto is_outlier = [&](float value, size_t level, int64_t position) {
    return value != fit.levels[level] && fit.outliers[slot_of(histogram, value)] > 0 && !partial.keeps(value, position);
  };
  const auto work = [&](int64_t chunk, int64_t begin, int64_t end, std::vector<int64_t>& found) {
    Lanes sums;
    const float* const levels = fit.levels.data();
    for (int64_t block = begin; block < end; block += kBlock) {
      std::array<float, kBlock> decoded = {};
      std::array<float, kBlock> values = {};
      std::array<uint8_t, kBlock> codes;
      const int64_t size = std::min(kBlock, end - block);
      weights.read(block, {values.data(), static_cast<size_t>(size)});
      for (int64_t i = 0; i < size; ++i) {
        const size_t level = finder.level(values[i]);
        codes[i] = static_cast<uint8_t>(level);
        decoded[i] = levels[level];
        if (values[i] > kept.outlier_up_to[level] && values[i] < kept.outlier_from[level]) [[likely]]
          continue;
        if (!is_outlier(values[i], level, block + i)) continue;
        found.push_back(block + i);
        decoded[i] = values[i];
      }
      std::memcpy(indices.data() + block, codes.data(), static_cast<size_t>(size));
      if (weights.term().rank > 0) {
        weights.read_source(block, {values.data(), static_cast<size_t>(size)});
        weights.add_term(block, {decoded.data(), static_cast<size_t>(size)});
      }
      sums.add(values, decoded);
    }
    parts[chunk] = sums.total();
  };
  int64_t outliers = 0;
  for (int64_t taken : fit.outliers) outliers += taken;
  Assignment assignment;
  assignment.outliers = for_chunks(weights.size(), threads, static_cast<size_t>(outliers), work);
  for (const Fidelity& part : parts) assignment.fidelity += part;
  assignment.fidelity.count = weights.size();
  return assignment;
}

}  // namespace

Assignment assign(const Weights& weights, const ValueHistogram& histogram, const CodebookFit& fit, int threads,
                  std::span<std::byte> indices) {
  if (weights.in_16_bits()) return assign_16bit(weights, histogram, fit, threads, indices);
  return assign_floats(weights, histogram, fit, threads, indices);
}

}  // namespace hxq
