#include "codec/codebook/value_histogram.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>

#include "hxq/error.h"
#include "io/half.h"
#include "io/threads.h"

namespace hxq {
namespace {

/// Floats of up to this many elements are sorted, so that every distinct value gets a slot of its own.
constexpr int64_t kSortLimit = int64_t{1} << 16;

template <class T>
T load(const std::byte* bytes, int64_t index) {
  T value;
  std::memcpy(&value, bytes + index * static_cast<int64_t>(sizeof(T)), sizeof(T));
  return value;
}

/// Cut `chunk` of `chunks` over `count` elements.
int64_t cut(int64_t count, int chunk, int chunks) { return count / chunks * chunk + count % chunks * chunk / chunks; }

void append(ValueHistogram& histogram, double value, int64_t count, float low, float high) {
  if (histogram.size() > 0 && histogram.value.back() == value) {  // -0 and +0
    histogram.count.back() += count;
    histogram.high.back() = high;
    return;
  }
  histogram.value.push_back(value + 0.0);  // turns -0 into +0
  histogram.count.push_back(count);
  histogram.low.push_back(low);
  histogram.high.push_back(high);
}

[[noreturn]] void throw_not_finite(const Weights& weights, int64_t bad) {
  int64_t first = 0;
  // The last one, if the file was cut since they were counted.
  while (first + 1 < weights.size() && std::isfinite(weights.at(first))) ++first;
  throw Error(fmt::format("{} of {} values are not finite, the first ({}) at flat position {}; expected finite weights",
                          bad, weights.size(), weights.at(first), first));
}

/// Takes values in ascending order, and counts apart those that are not finite.
class DistinctValues {
 public:
  void add(float value, int64_t count) {
    if (std::isfinite(value)) {
      append(histogram_, value, count, value, value);
    } else {
      bad_ += count;
    }
  }

  /// Throws `Error` if a value was not finite.
  ValueHistogram finish(const Weights& weights) {
    if (bad_ > 0) throw_not_finite(weights, bad_);
    return std::move(histogram_);
  }

 private:
  ValueHistogram histogram_;
  int64_t bad_ = 0;
};

/// Calls `take` with all weights in [begin, end), some at a time.
template <class Take>
void read_blocks(const Weights& weights, int64_t begin, int64_t end, Take take) {
  std::array<float, 4096> block;
  while (begin < end) {
    const std::span<float> values(block.data(), static_cast<size_t>(std::min<int64_t>(end - begin, block.size())));
    weights.read(begin, values);
    take(std::span<const float>(values));
    begin += static_cast<int64_t>(values.size());
  }
}

using Counts16 = std::array<uint32_t, 65536>;

// Neighbouring elements are often equal: four tables keep an increment from waiting for the one just before it.
void count_patterns(const std::byte* bytes, int64_t begin, int64_t end, std::array<Counts16, 4>& counts) {
  int64_t i = begin;
  for (; i + 8 <= end; i += 8) {
    uint64_t a = load<uint64_t>(bytes + i * 2, 0);
    uint64_t b = load<uint64_t>(bytes + i * 2, 1);
    ++counts[0][a & 0xffff];
    ++counts[1][b & 0xffff];
    ++counts[2][a >> 16 & 0xffff];
    ++counts[3][b >> 16 & 0xffff];
    ++counts[0][a >> 32 & 0xffff];
    ++counts[1][b >> 32 & 0xffff];
    ++counts[2][a >> 48];
    ++counts[3][b >> 48];
  }
  for (; i < end; ++i) ++counts[0][load<uint16_t>(bytes, i)];
}

ValueHistogram count_16bit(const Weights& weights, int threads, float (*decode)(uint16_t)) {
  const TensorView& source = weights.source();
  const int64_t elements = source.size();
  std::vector<std::array<Counts16, 4>> counts(static_cast<size_t>(threads));
  parallel_for(threads, threads, [&](int t) {
    count_patterns(source.bytes.data(), cut(elements, t, threads), cut(elements, t + 1, threads),
                   counts[static_cast<size_t>(t)]);
  });
  const auto total = [&](uint32_t bits) {
    int64_t sum = 0;
    for (const auto& tables : counts) {
      for (const Counts16& table : tables) sum += table[bits];
    }
    return sum;
  };

  DistinctValues distinct;
  for (uint32_t key = 0; key < 65536; ++key) {
    // Patterns in the order of the numbers they stand for: the negative ones run backwards.
    const uint32_t bits = key < 0x8000u ? 0xffffu - key : key - 0x8000u;
    const int64_t count = total(bits);
    if (count == 0) continue;
    distinct.add(decode(static_cast<uint16_t>(bits)), count);
  }
  return distinct.finish(weights);
}

// Ascending as the floats are, for the bits of a float.
uint32_t order_key(uint32_t bits) { return bits & 0x80000000u ? ~bits : bits | 0x80000000u; }
uint32_t bits_of_key(uint32_t key) { return key & 0x80000000u ? key & 0x7fffffffu : ~key; }

ValueHistogram sort_floats(const Weights& weights) {
  std::vector<uint32_t> keys;
  keys.reserve(static_cast<size_t>(weights.size()));
  read_blocks(weights, 0, weights.size(), [&](std::span<const float> values) {
    for (const float value : values) keys.push_back(order_key(std::bit_cast<uint32_t>(value)));
  });
  std::sort(keys.begin(), keys.end());
  DistinctValues distinct;
  for (size_t begin = 0, end = 0; begin < keys.size(); begin = end) {
    while (end < keys.size() && keys[end] == keys[begin]) ++end;
    distinct.add(std::bit_cast<float>(bits_of_key(keys[begin])), static_cast<int64_t>(end - begin));
  }
  return distinct.finish(weights);
}

constexpr int kBinBits = 12;  // of the mantissa: two more than the codebook's own values have
constexpr int kLowBits = 23 - kBinBits;

/// How many elements fell into a bin, and the sum of the mantissa bits that the bin does not tell: integers, so the
/// order of adding does not matter.
struct Bin {
  int64_t count = 0;
  int64_t low_sum = 0;
};
using Binade = std::array<Bin, size_t{1} << kBinBits>;     // one sign and exponent
using Binades = std::array<std::unique_ptr<Binade>, 512>;  // by the upper 9 bits; null where nothing fell

void count_binades(std::span<const float> values, Binades& binades) {
  for (const float value : values) {
    const auto bits = std::bit_cast<uint32_t>(value);
    auto& binade = binades[bits >> 23];
    if (!binade) [[unlikely]]
      binade = std::make_unique<Binade>();
    Bin& bin = (*binade)[bits >> kLowBits & ((1u << kBinBits) - 1)];
    ++bin.count;
    bin.low_sum += bits & ((1u << kLowBits) - 1);
  }
}

void append_bin(ValueHistogram& histogram, uint32_t first_bits, const Bin& bin) {
  if (bin.count == 0) return;
  const uint32_t exponent = first_bits >> 23 & 255u;
  const uint32_t mantissa = (first_bits & 0x7fffffu) | (exponent > 0 ? 0x800000u : 0u);
  const double magnitude = std::ldexp(mantissa + static_cast<double>(bin.low_sum) / static_cast<double>(bin.count),
                                      std::max<int>(static_cast<int>(exponent), 1) - 150);
  const auto inner = std::bit_cast<float>(first_bits);
  const auto outer = std::bit_cast<float>(first_bits | ((1u << kLowBits) - 1));
  if (first_bits >> 31) {
    append(histogram, -magnitude, bin.count, outer, inner);
  } else {
    append(histogram, magnitude, bin.count, inner, outer);
  }
}

ValueHistogram bin_floats(const Weights& weights, int threads) {
  threads = std::min(threads, 8);  // a wide tensor's bins take up to 32 MB a thread
  std::vector<Binades> parts(static_cast<size_t>(threads));
  parallel_for(threads, threads, [&](int t) {
    read_blocks(weights, cut(weights.size(), t, threads), cut(weights.size(), t + 1, threads),
                [&](std::span<const float> values) { count_binades(values, parts[static_cast<size_t>(t)]); });
  });
  const auto total = [&](uint32_t binade, uint32_t index) {
    Bin sum;
    for (const Binades& part : parts) {
      if (!part[binade]) continue;
      sum.count += (*part[binade])[index].count;
      sum.low_sum += (*part[binade])[index].low_sum;
    }
    return sum;
  };

  ValueHistogram histogram;
  int64_t bad = 0;
  constexpr uint32_t kBins = 1u << kBinBits;
  for (uint32_t order = 0; order < 512; ++order) {
    const uint32_t binade = order < 256 ? 511 - order : order - 256;
    if (std::none_of(parts.begin(), parts.end(), [&](const Binades& part) { return part[binade] != nullptr; }))
      continue;
    for (uint32_t step = 0; step < kBins; ++step) {
      const uint32_t index = order < 256 ? kBins - 1 - step : step;
      const Bin bin = total(binade, index);
      if ((binade & 255u) == 255u) {
        bad += bin.count;
      } else {
        append_bin(histogram, binade << 23 | index << kLowBits, bin);
      }
    }
  }
  if (bad > 0) throw_not_finite(weights, bad);
  return histogram;
}

}  // namespace

ValueHistogram count_values(const Weights& weights, int threads) {
  if (weights.in_16_bits()) {
    return count_16bit(weights, threads, weights.source().dtype == DType::bf16 ? float_from_bf16 : float_from_f16);
  }
  return weights.size() <= kSortLimit ? sort_floats(weights) : bin_floats(weights, threads);
}

}  // namespace hxq
