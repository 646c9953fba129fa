// The encoder of the scalar codebook: how fast, and how much better than the recipe it replaces.
//
//   encoder_bench [MODEL_DIR]
//
// Without a model: the encode rate. With one: SNR of every linear matrix and embedding against the baseline.

#include <fmt/format.h>

#include <algorithm>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstring>
#include <exception>
#include <random>
#include <vector>

#include "codec/codebook/encode.h"
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

void measure_rate(DType dtype, const char* name) {
  constexpr int64_t kRows = 4096, kCols = 4096;
  std::vector<std::byte> bytes(kRows * kCols * size_of(dtype));
  std::mt19937_64 random(1);
  std::normal_distribution<float> normal(0, 0.02f);
  for (int64_t i = 0; i < kRows * kCols; ++i) {
    const auto bits = std::bit_cast<uint32_t>(normal(random));
    const uint32_t stored = dtype == DType::bf16 ? bits >> 16 : bits;
    std::memcpy(bytes.data() + i * size_of(dtype), &stored, size_of(dtype));
  }
  const TensorView source{dtype, {kRows, kCols}, bytes};
  for (int threads : {1, 2}) {
    std::vector<double> seconds;
    EncodedTensor encoded;
    for (int run = 0; run < 9; ++run) {
      const auto start = std::chrono::steady_clock::now();
      encoded = encode_codebook(source, {.threads = threads});
      seconds.push_back(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
    }
    const double reported = encoded.fidelity.snr_db();
    const double counted = testing::decoded_snr_db(source, encoded);
    fmt::print("{} [{}, {}], {} thread(s): {:.0f} M weights/s, SNR {:.3f} dB, decoded and compared {:.3f} dB: {}\n",
               name, kRows, kCols, threads, kRows * kCols / median(seconds) / 1e6, reported, counted,
               std::abs(reported - counted) < 1e-6 ? "equal" : "NOT EQUAL");
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
      hxq::measure_rate(hxq::DType::bf16, "bf16");
      hxq::measure_rate(hxq::DType::f32, "f32");
    }
  } catch (const std::exception& error) {
    fmt::print(stderr, "encoder_bench: {}\n", error.what());
    return 1;
  }
}
