#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "io/half.h"
#include "kernels/cpu/codebook_prepared.h"
#include "kernels/cpu_context.h"
#include "kernels/kernels.h"

namespace hxq::kernels::testing {

/// Memory whose last byte lies right before a page that must not be touched.
class GuardedBytes {
 public:
  explicit GuardedBytes(const std::vector<std::byte>& bytes) : size_(bytes.size()) {
    const auto page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t whole = (size_ + page - 1) / page * page;
    mapped_ = whole + page;
    base_ = static_cast<std::byte*>(mmap(nullptr, mapped_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    EXPECT_NE(base_, MAP_FAILED);
    EXPECT_EQ(mprotect(base_ + whole, page, PROT_NONE), 0);
    data_ = base_ + whole - size_;
    std::memcpy(data_, bytes.data(), size_);
  }
  GuardedBytes(const GuardedBytes&) = delete;
  GuardedBytes& operator=(const GuardedBytes&) = delete;
  ~GuardedBytes() { munmap(base_, mapped_); }

  std::span<const std::byte> bytes() const { return {data_, size_}; }

 private:
  size_t size_;
  size_t mapped_;
  std::byte* base_;
  std::byte* data_;
};

inline std::vector<float> normal_floats(int64_t n, uint32_t seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution(0, scale);
  std::vector<float> values(static_cast<size_t>(n));
  for (float& value : values) value = distribution(random);
  return values;
}

/// What the levels of a codebook are: any floats, binary16 numbers times a power of two, whole ones of those, or 256 of
/// these in segments (cpu::LookupPlanes::segments).
enum class Levels { any, half, integer, segments };
inline constexpr Levels kAllLevels[] = {Levels::any, Levels::half, Levels::integer, Levels::segments};

inline const char* name_of(Levels levels) {
  constexpr const char* kNames[] = {"any", "half", "integer", "segments"};
  return kNames[static_cast<size_t>(levels)];
}

/// Segments of small numbers and of large ones, which have 11 significant bits. slopes: bytes times 2^shift.
inline std::vector<float> random_segments(uint32_t seed) {
  std::mt19937 random(seed);
  const int shift = static_cast<int>(random() % 5);
  std::vector<float> codebook;
  for (int h = 0; h < 32; ++h) {
    const bool large = h % 2 == 1;
    const int grain = large ? 16 : 1, most = (large ? 140 * 16 : 140) >> shift;  // of slopes / 2^shift
    const int base = h == 1 ? 1200 * 16 : grain * (static_cast<int>(random() % 1801) - 900);
    const int slope = h == 1 ? 320 : (static_cast<int>(random()) & 0x7fffffff) % std::min(256, most + 1) << shift;
    const int whole = slope / grain * grain;  // no bit of the shift is lost: both are powers of two up to 16
    for (int l = 0; l < 8; ++l) codebook.push_back(static_cast<float>(base + whole * l) * 0x1p-20f);
  }
  return codebook;
}

inline std::vector<float> random_codebook(int64_t k, Levels levels, uint32_t seed) {
  if (levels == Levels::segments) return random_segments(seed);
  std::vector<float> codebook = normal_floats(k, seed, 0.02f);
  float largest = 0;
  for (const float level : codebook) largest = std::max(largest, std::fabs(level));
  const float scale = std::ldexp(1.0f, std::ilogb(largest) - 14);
  for (float& level : codebook) {
    if (levels == Levels::any) break;
    const float code = levels == Levels::integer ? std::nearbyint(level / scale) : level / scale;
    level = float_from_f16(f16_from_float(code)) * scale;
  }
  // Small ones too, so that no narrower form fits.
  if (k > 2 && levels == Levels::half) codebook[1] = scale * 0x1.8p-3f;
  if (k > 2 && levels == Levels::integer) codebook[1] = 0;
  return codebook;
}

struct MatrixOptions {
  int64_t rows = 1;
  int64_t cols = 1;
  int32_t k = 256;
  int32_t d = 1;
  IndexLayout layout = IndexLayout::u8;
  Levels levels = Levels::any;
  double sidecar = 0.02;    ///< fraction of the weights; the first and the last weight as well if positive
  int64_t sidecar_row = 0;  ///< the first row that has more of it
  int64_t rank = 0;
  DType factors = DType::f32;  ///< the type of low-rank factors
  bool channel_scales = false;
  uint32_t seed = 1;
};

/// Random numbers of that type in guarded memory.
inline TensorView random_factor(const Shape& shape, DType dtype, uint32_t seed, std::unique_ptr<GuardedBytes>& memory) {
  std::vector<std::byte> bytes;
  for (const float value : normal_floats(element_count(shape), seed)) {
    const uint32_t bits = dtype == DType::f16    ? f16_from_float(value)
                          : dtype == DType::bf16 ? bf16_from_float(value)
                                                 : std::bit_cast<uint32_t>(value);
    for (size_t i = 0; i < size_of(dtype); ++i) bytes.push_back(static_cast<std::byte>(bits >> 8 * i));
  }
  memory = std::make_unique<GuardedBytes>(bytes);
  return {dtype, shape, memory->bytes()};
}

/// A low-rank term whose factors are of that type, and in guarded memory.
struct TestTerm {
  LowRankView view;
  std::unique_ptr<GuardedBytes> u_memory, vt_memory;

  TestTerm(int64_t rows, int64_t cols, int64_t rank, DType factors, uint32_t seed) {
    if (rank == 0) return;
    view = {.rank = rank,
            .u = random_factor({rows, rank}, factors, seed, u_memory),
            .s = normal_floats(rank, seed + 3, 0.01f),
            .vt = random_factor({rank, cols}, factors, seed + 1, vt_memory)};
  }
};

/// A codebook matrix with its indices in guarded memory, and its weights as they must decode.
struct TestMatrix {
  CodebookMatrix view;
  std::unique_ptr<const cpu::PreparedCodebook> prepared;  // of the view
  std::vector<float> weights;                             // [rows, cols], with sidecar, without low-rank term
  std::unique_ptr<GuardedBytes> memory;
  TestTerm factors;
  LowRank term = {};  // what they hold

  explicit TestMatrix(const MatrixOptions& options)
      : factors(options.rows, options.cols, options.rank, options.factors, options.seed + 2) {
    std::mt19937 random(options.seed);
    view.rows = options.rows;
    view.cols = options.cols;
    view.k = options.k;
    view.d = options.d;
    view.layout = options.layout;
    view.codebook = random_codebook(int64_t{options.k} * options.d, options.levels, options.seed + 1);
    std::vector<uint32_t> index(static_cast<size_t>(options.rows * options.cols / options.d));
    std::uniform_int_distribution<uint32_t> any_index(0, static_cast<uint32_t>(options.k) - 1);
    for (uint32_t& i : index) i = any_index(random);
    index.back() = static_cast<uint32_t>(options.k) - 1;
    for (const uint32_t i : index) {
      for (int32_t part = 0; part < options.d; ++part) {
        weights.push_back(view.codebook[i * static_cast<uint32_t>(options.d) + static_cast<uint32_t>(part)]);
      }
    }
    memory = std::make_unique<GuardedBytes>(pack(index, options.layout));
    view.indices = memory->bytes();
    if (options.sidecar > 0) add_sidecar(options, random);
    if (options.rank > 0) {
      view.low_rank = factors.view;
      term = {.rank = options.rank, .u_scaled = to_float(view.low_rank.u), .vt = to_float(view.low_rank.vt)};
      for (size_t i = 0; i < term.u_scaled.size(); ++i) term.u_scaled[i] *= view.low_rank.s[i % view.low_rank.s.size()];
    }
    if (options.channel_scales) {
      for (const float x : normal_floats(options.cols, options.seed + 4)) view.channel_scales.push_back(std::exp(x));
    }
    prepared = std::make_unique<cpu::PreparedCodebook>(std::make_unique<CodebookMatrix>(view));
    prepared->finish();
  }

  /// The weight that multiplies x[col], all terms included.
  double effective(int64_t row, int64_t col) const {
    double weight = weights[static_cast<size_t>(row * view.cols + col)];
    for (int64_t n = 0; n < term.rank; ++n) {
      weight += static_cast<double>(term.u_scaled[static_cast<size_t>(row * term.rank + n)]) *
                term.vt[static_cast<size_t>(n * view.cols + col)];
    }
    return view.channel_scales.empty() ? weight : weight / view.channel_scales[static_cast<size_t>(col)];
  }

 private:
  static std::vector<std::byte> pack(const std::vector<uint32_t>& index, IndexLayout layout) {
    std::vector<std::byte> bytes;
    const auto put = [&](uint32_t value) { bytes.push_back(static_cast<std::byte>(value)); };
    for (size_t i = 0; i < index.size(); ++i) {
      if (layout == IndexLayout::u8) {
        put(index[i]);
      } else if (layout == IndexLayout::u16) {
        put(index[i]);
        put(index[i] >> 8);
      } else if (i % 2 == 1) {
        put(index[i - 1]);
        put(index[i - 1] >> 8 | (index[i] & 0xf) << 4);
        put(index[i] >> 4);
      }
    }
    return bytes;
  }

  void add_sidecar(const MatrixOptions& options, std::mt19937& random) {
    for (int64_t row = 0; row < view.rows; ++row) {
      for (int64_t col = 0; col < view.cols; ++col) {
        const bool corner = (row == 0 && col == 0) || (row + 1 == view.rows && col + 1 == view.cols);
        const double fraction = row < options.sidecar_row ? 0 : options.sidecar;
        if (!corner && std::uniform_real_distribution<double>()(random) >= fraction) continue;
        view.sidecar.row.push_back(static_cast<uint32_t>(row));
        view.sidecar.col.push_back(static_cast<uint32_t>(col));
        view.sidecar.value.push_back(std::normal_distribution<float>(0, 0.3f)(random));
        weights[static_cast<size_t>(row * view.cols + col)] = view.sidecar.value.back();
      }
    }
  }
};

inline std::string target_name(const ::testing::TestParamInfo<Target>& info) {
  return std::string(name_of(info.param));
}

}  // namespace hxq::kernels::testing
