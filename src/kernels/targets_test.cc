#include "kernels/cpu/ops.h"
#include "kernels/kernels_test_data.h"
#include "kernels/read_bandwidth.h"

namespace hxq::kernels::testing {
namespace {

using cpu::LookupPlanes;
using cpu::make_planes;

TEST(Targets, ScalarIsFirstAndAllAreDistinct) {
  const std::vector<Target> targets = supported_targets();
  ASSERT_FALSE(targets.empty());
  EXPECT_EQ(targets.front(), Target::scalar);
  EXPECT_TRUE(std::is_sorted(targets.begin(), targets.end()));
  EXPECT_EQ(std::adjacent_find(targets.begin(), targets.end()), targets.end());
}

TEST(Targets, NamesAreThoseOfTheSettings) {
  EXPECT_EQ(name_of(Target::scalar), "scalar");
  EXPECT_EQ(name_of(Target::avx2), "avx2");
  EXPECT_EQ(name_of(Target::avx512), "avx512");
  EXPECT_EQ(name_of(Target::amx), "amx");
}

// The sum of one row as a target with that many lanes adds it: one sum for each lane of each of two vectors in turn.
float sum_in_lanes(const float* weights, const float* x, size_t cols, size_t lanes, bool fused) {
  std::vector<float> sum(2 * lanes);
  for (size_t c = 0; c < cols; ++c) {
    float& lane = sum[c % (2 * lanes)];
    lane = fused ? std::fma(weights[c], x[c], lane) : lane + weights[c] * x[c];
  }
  for (size_t width = lanes; width > 0; width /= 2) {
    for (size_t i = 0; i < width; ++i) sum[i] += sum[i + width];
  }
  return sum[0];
}

// Each target adds in vectors of its own width: the rounding of its sums tells which one ran. AMX has those of AVX-512.
TEST(Targets, TheForcedOneRuns) {
  constexpr int64_t kRows = 20, kCols = 256;
  const std::vector<float> weights = normal_floats(kRows * kCols, 1), x = normal_floats(kCols, 2);
  const DenseMatrix matrix{
      .rows = kRows, .cols = kCols, .dtype = DType::f32, .data = reinterpret_cast<const std::byte*>(weights.data())};
  std::vector<std::vector<float>> results;
  for (const Target target : supported_targets()) {
    const cpu::Ops& ops = cpu::ops_of(target);
    EXPECT_EQ(ops.target, target);
    Scratch scratch(1);
    std::vector<float> y(kRows);
    run_team(1, [&](const Team& team) {
      linear(matrix,
             {.x = x.data(), .x_stride = kCols, .y = y.data(), .y_stride = kRows, .tokens = 1, .phase = Phase::decode},
             {team, target, scratch});
    });
    for (size_t r = 0; r < kRows; ++r) {
      const auto expected = [&](bool fused) {
        return sum_in_lanes(&weights[r * kCols], x.data(), kCols, static_cast<size_t>(ops.lanes), fused);
      };
      // The compiler is free to fuse or not.
      EXPECT_TRUE(y[r] == expected(true) || y[r] == expected(false)) << name_of(target) << " row " << r;
    }
    if (target != Target::amx) results.push_back(y);
  }
  std::sort(results.begin(), results.end());
  EXPECT_EQ(std::adjacent_find(results.begin(), results.end()), results.end()) << "two targets cannot be told apart";
}

TEST(ReadBandwidth, IsPositiveOnEveryTarget) {
  for (const Target target : supported_targets()) {
    ReadBandwidth bandwidth(2, target, 1 << 20);
    EXPECT_GT(bandwidth.measure(2), 1e6);
  }
}

TEST(ReadBandwidth, ReadsEveryByte) {
  for (const Target target : supported_targets()) {
    std::vector<std::byte> memory(3 * 4096);
    const int32_t none = cpu::ops_of(target).read_bytes(memory.data(), static_cast<int64_t>(memory.size()));
    for (size_t i = 0; i < memory.size(); i += 61) {
      memory[i] = std::byte{1};
      ASSERT_NE(cpu::ops_of(target).read_bytes(memory.data(), static_cast<int64_t>(memory.size())), none) << i;
      memory[i] = std::byte{0};
    }
  }
}

TEST(Team, SharesCoverEverythingOnce) {
  for (const int threads : {1, 2, 3, 5}) {
    for (const int64_t count : {0, 1, 13, 64, 100}) {
      for (const int64_t granule : {1, 14, 16}) {
        int64_t at = 0;
        for (int rank = 0; rank < threads; ++rank) {
          const Range range = Team(rank, threads).share(count, granule);
          EXPECT_EQ(range.begin, at);
          EXPECT_TRUE(range.begin % granule == 0 || range.begin == count);
          at = range.end;
        }
        EXPECT_EQ(at, count);
      }
    }
  }
}

TEST(LookupPlanes, IntegerLevels) {
  const LookupPlanes planes = make_planes(std::vector<float>{-3 * 0x1p-20f, 0, 0x1.8p14f * 0x1p-20f});
  EXPECT_EQ(planes.kind, LookupPlanes::Kind::half);
  EXPECT_TRUE(planes.integer_levels);
  EXPECT_EQ(planes.scale, 0x1p-20f);
  const int codes[] = {-3, 0, 0x6000};
  for (size_t i = 0; i < 3; ++i) {
    EXPECT_EQ(static_cast<int16_t>(planes.bytes[0][i] | planes.bytes[1][i] << 8), codes[i]);
  }
}

TEST(LookupPlanes, MinusZeroIsNoInteger) {
  const LookupPlanes planes = make_planes(std::vector<float>{-0.0f, 1.0f});
  EXPECT_EQ(planes.kind, LookupPlanes::Kind::half);
  EXPECT_FALSE(planes.integer_levels);
  EXPECT_EQ(planes.bytes[0][0] | planes.bytes[1][0] << 8, 0x8000);
}

TEST(LookupPlanes, HalfLevelsThatAreNotIntegers) {
  const LookupPlanes planes = make_planes(std::vector<float>{1.0f, 0x1p-15f, -0x1p-38f, 0x1.004p-10f});
  EXPECT_EQ(planes.kind, LookupPlanes::Kind::half);
  EXPECT_FALSE(planes.integer_levels);
  EXPECT_EQ(planes.scale, 0x1p-14f);
  const float levels[] = {1.0f, 0x1p-15f, -0x1p-38f, 0x1.004p-10f};
  for (size_t i = 0; i < 4; ++i) {
    EXPECT_EQ(planes.scale * float_from_f16(static_cast<uint16_t>(planes.bytes[0][i] | planes.bytes[1][i] << 8)),
              levels[i]);
  }
}

TEST(LookupPlanes, AnythingElseIsKeptAsFloats) {
  for (const std::vector<float>& codebook : {std::vector<float>{1.0f, 0.1f},
                                             {1.0f, 0x1p-39f},
                                             {0x1p-140f, 0x1p-141f},
                                             {1.0f, INFINITY},
                                             {1.0f, -0.0f, 0x1.001p0f}}) {
    const LookupPlanes planes = make_planes(codebook);
    EXPECT_EQ(planes.kind, LookupPlanes::Kind::float32);
    EXPECT_FALSE(planes.integer_levels);
    for (size_t i = 0; i < codebook.size(); ++i) {
      uint32_t bits = 0;
      for (size_t b = 0; b < 4; ++b) bits |= static_cast<uint32_t>(planes.bytes[b][i]) << (8 * b);
      EXPECT_EQ(bits, std::bit_cast<uint32_t>(codebook[i]));
    }
  }
}

TEST(LookupPlanes, NoneForLargeOrEmptyCodebooks) {
  EXPECT_EQ(make_planes({}).kind, LookupPlanes::Kind::none);
  EXPECT_EQ(make_planes(std::vector<float>(257, 1.0f)).kind, LookupPlanes::Kind::none);
  EXPECT_TRUE(make_planes(std::vector<float>(256, 0.0f)).integer_levels);
}

}  // namespace
}  // namespace hxq::kernels::testing
