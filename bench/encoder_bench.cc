// The encoders: how fast, and how much better that of the scalar codebook is than the recipe it replaces.
//
//   encoder_bench [MODEL_DIR]
//
// Without a model: the encode rates. With one: SNR of every linear matrix and embedding against the baseline.

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <exception>
#include <random>
#include <string>
#include <vector>

#include "codec/codebook/encode.h"
#include "codec/grouped/encode.h"
#include "compress/plan.h"
#include "decoded_snr.h"
#include "hxq/error.h"
#include "percentile_codebook.h"

namespace hxq {
namespace {

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  const size_t middle = values.size() / 2;
  return values.size() % 2 ? values[middle] : (values[middle - 1] + values[middle]) / 2;
}

/// Normal weights.
struct Source {
  static constexpr int64_t kRows = 4096, kCols = 4096;
  DType dtype;
  std::vector<std::byte> bytes;

  explicit Source(DType of) : dtype(of), bytes(kRows * kCols * size_of(of)) {
    std::mt19937_64 random(1);
    std::normal_distribution<float> normal(0, 0.02f);
    for (int64_t i = 0; i < kRows * kCols; ++i) {
      const auto bits = std::bit_cast<uint32_t>(normal(random));
      const uint32_t stored = dtype == DType::bf16 ? bits >> 16 : bits;
      std::memcpy(bytes.data() + i * size_of(dtype), &stored, size_of(dtype));
    }
  }

  TensorView view() const { return {dtype, {kRows, kCols}, bytes}; }
};

template <class Encode>
EncodedTensor measure_rate(const std::string& what, int runs, Encode encode) {
  std::vector<double> seconds;
  EncodedTensor encoded;
  for (int run = 0; run < runs; ++run) {
    const auto start = std::chrono::steady_clock::now();
    encoded = encode();
    seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  }
  fmt::print("{} [{}, {}]: {:.0f} M weights/s, SNR {:.3f} dB", what, Source::kRows, Source::kCols,
             Source::kRows * Source::kCols / median(seconds) / 1e6, encoded.fidelity.snr_db());
  return encoded;
}

void measure_codebook(DType dtype, const char* name) {
  const Source source(dtype);
  for (const int threads : {1, 2}) {
    const EncodedTensor encoded = measure_rate(fmt::format("{}, {} thread(s)", name, threads), 9,
                                               [&] { return encode_codebook(source.view(), {.threads = threads}); });
    const double counted = testing::decoded_snr_db(source.view(), encoded);
    fmt::print(", decoded and compared {:.3f} dB: {}\n", counted,
               std::abs(encoded.fidelity.snr_db() - counted) < 1e-6 ? "equal" : "NOT EQUAL");
  }
}

void measure_grouped() {
  const Source source(DType::f32);
  for (const Profile& profile : kGroupedEncoder.profiles) {
    measure_rate(fmt::format("f32, 1 thread, {}", profile.name), 5, [&] {
      return kGroupedEncoder.encode(
          source.view(), {.bits = profile.bits, .group = profile.group, .levels = profile.levels, .threads = 1});
    });
    fmt::print("\n");
  }
}

void compare_with_baseline(const char* path) {
  const ModelFolder folder = ModelFolder::open(path);
  std::vector<double> snrs, gains;
  double seconds = 0;
  fmt::print("{:<45} {:>16} {:>8} {:>8} {:>9} {:>8}\n", "tensor", "shape", "outliers", "SNR dB", "baseline", "gain dB");
  for (const PlanEntry& entry : plan_entries(folder, {})) {
    if (!entry.encoder) continue;
    const TensorView& tensor = entry.view;
    const auto start = std::chrono::steady_clock::now();
    const EncodedTensor encoded = encode_codebook(tensor, {});
    seconds += std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
    const double snr = testing::decoded_snr_db(tensor, encoded);
    const double baseline = testing::percentile_codebook_snr_db(tensor, encoded.outliers);
    snrs.push_back(snr);
    gains.push_back(snr - baseline);
    fmt::print("{:<45} {:>16} {:>8} {:>8.3f} {:>9.3f} {:>8.3f}\n", entry.name, to_string(tensor.shape),
               encoded.outliers, snr, baseline, snr - baseline);
  }
  if (snrs.empty()) throw Error("no matrix to compress found", {.file = path});
  fmt::print("{} tensors in {:.2f} s: SNR min {:.3f} median {:.3f} dB, gain min {:.3f} median {:.3f} dB\n", snrs.size(),
             seconds, *std::min_element(snrs.begin(), snrs.end()), median(snrs),
             *std::min_element(gains.begin(), gains.end()), median(gains));
}

}  // namespace
}  // namespace hxq

int main(int argc, char** argv) {
  try {
    if (argc > 1) {
      hxq::compare_with_baseline(argv[1]);
    } else {
      hxq::measure_codebook(hxq::DType::bf16, "bf16");
      hxq::measure_codebook(hxq::DType::f32, "f32");
      hxq::measure_grouped();
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "encoder_bench: {}\n", error.what());
    return 1;
  }
}
