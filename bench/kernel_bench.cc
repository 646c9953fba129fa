// Speed of the CPU kernels, each figure with a check of the result it timed.
//
//     kernel_bench [--threads N] [--mib N] [gemv] [grouped] [joint] [gemm] [sequence] [barrier]
//
// Matrix-vector products are given as a share of the read bandwidth measured right before and after each of them,
// products with several decode rows by the time and by the tokens per second against one at a time, matrix products as
// a share of OpenBLAS sgemm on the same shape and threads.

#include <cblas.h>
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <numeric>
#include <random>
#include <string>
#include <thread>
#include <vector>

#include "io/half.h"
#include "kernels/cpu/codebook_prepared.h"
#include "kernels/cpu/grouped_prepared.h"
#include "kernels/kernels.h"
#include "kernels/read_bandwidth.h"
#include "kernels/scratch.h"
#include "kernels/uniform_batch.h"

extern "C" void openblas_set_num_threads(int);

namespace {

using namespace hxq;
using namespace hxq::kernels;

double seconds_of(auto&& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double median(std::vector<double> values) {
  std::nth_element(values.begin(), values.begin() + static_cast<long>(values.size() / 2), values.end());
  return values[values.size() / 2];
}

double smallest(const std::vector<double>& values) { return *std::min_element(values.begin(), values.end()); }

/// Lets threads that spin after a parallel region go to sleep, so that they do not disturb what is timed next.
void settle() { std::this_thread::sleep_for(std::chrono::milliseconds(200)); }

std::vector<float> normal(size_t n, uint32_t seed, float scale = 1) {
  std::mt19937 random(seed);
  std::normal_distribution<float> distribution(0, scale);
  std::vector<float> values(n);
  for (float& value : values) value = distribution(random);
  return values;
}

/// Levels are any floats, binary16 numbers times a power of two, or whole ones of those.
enum class Levels { integer, half, any };

constexpr const char* name_of(Levels levels) {
  return levels == Levels::integer ? "integer" : levels == Levels::half ? "half" : "any";
}

/// A matrix of random indices.
struct RandomMatrix {
  std::vector<std::byte> indices;
  CodebookMatrix view;
  std::unique_ptr<const cpu::PreparedCodebook> prepared;

  RandomMatrix(int64_t rows, int64_t cols, Levels levels, double sidecar_fraction) {
    std::mt19937_64 random(1);
    indices.resize(static_cast<size_t>(rows * cols));
    for (std::byte& index : indices) index = static_cast<std::byte>(random());
    view.rows = rows;
    view.cols = cols;
    view.k = 256;
    view.indices = indices;
    view.codebook = normal(256, 2, 0.02f);
    std::sort(view.codebook.begin(), view.codebook.end());
    view.codebook[255] = 0.06f;
    for (float& level : view.codebook) {
      if (levels == Levels::integer) level = std::nearbyint(level * 0x1p18f) * 0x1p-18f;
      if (levels != Levels::any) level = float_from_f16(f16_from_float(level * 0x1p18f)) * 0x1p-18f;
    }
    std::geometric_distribution<int64_t> gap(sidecar_fraction);
    for (int64_t at = gap(random); at < rows * cols; at += 1 + gap(random)) {
      view.sidecar.row.push_back(static_cast<uint32_t>(at / cols));
      view.sidecar.col.push_back(static_cast<uint32_t>(at % cols));
      view.sidecar.value.push_back(0.25f);
    }
    prepared = std::make_unique<cpu::PreparedCodebook>(std::make_unique<CodebookMatrix>(view));
    prepared->finish();
  }

  std::vector<double> weights(int64_t row) const {
    std::vector<float> decoded(static_cast<size_t>(view.cols));
    view.decode_rows(row, row + 1, decoded);
    return {decoded.begin(), decoded.end()};
  }
};

/// How a grouped matrix is stored.
struct GroupedForm {
  int bits;
  int64_t group;
  bool uniform = false;  ///< levels from -128 to 127
};

/// A grouped matrix of random indices and scales.
struct RandomGrouped {
  std::vector<std::byte> packed, scales;
  GroupedMatrix view;
  std::unique_ptr<const cpu::PreparedGrouped> prepared;

  RandomGrouped(int64_t rows, int64_t cols, const GroupedForm& form) {
    std::mt19937_64 random(1);
    view.rows = rows;
    view.cols = cols;
    view.group = form.group;
    view.levels = normal(size_t{1} << form.bits, 2, 40);
    for (float& level : view.levels) level = std::clamp(std::nearbyint(level), -127.0f, 127.0f);  // as the encoder's
    std::ranges::sort(view.levels);
    if (form.uniform) std::iota(view.levels.begin(), view.levels.end(), -128.0f);
    for (int i = 0; i < 256; ++i) view.scale_levels.push_back(1e-4f * std::exp2(static_cast<float>(i) / 64));
    packed.resize(static_cast<size_t>(rows * view.row_bytes()));
    for (std::byte& byte : packed) byte = static_cast<std::byte>(random());
    scales.resize(static_cast<size_t>(rows * view.groups()));
    for (std::byte& byte : scales) byte = static_cast<std::byte>(random());
    view.packed = packed;
    view.scales = scales;
    prepared = std::make_unique<cpu::PreparedGrouped>(std::make_unique<GroupedMatrix>(view));
    prepared->finish();
  }

  std::vector<double> weights(int64_t row) const {
    std::vector<float> decoded(static_cast<size_t>(view.cols));
    view.decode_rows(row, row + 1, decoded);
    return {decoded.begin(), decoded.end()};
  }
};

/// Largest error of some entries of y, relative to sum |w||x|; ends the program when it is above `bound`.
template <class Matrix>
double check(const Matrix& matrix, const std::vector<float>& x, const std::vector<float>& y, int64_t tokens,
             double bound) {
  const int64_t rows = matrix.view.rows, cols = matrix.view.cols;
  double worst = 0;
  for (int64_t i = 0; i < 200; ++i) {
    const int64_t row = i * 7919 % rows, t = i % tokens;
    double sum = 0, size = 0;
    const std::vector<double> weights = matrix.weights(row);
    for (int64_t c = 0; c < cols; ++c) {
      const double product = weights[static_cast<size_t>(c)] * x[static_cast<size_t>(t * cols + c)];
      sum += product;
      size += std::fabs(product);
    }
    worst = std::max(worst, std::fabs(sum - y[static_cast<size_t>(t * rows + row)]) / size);
  }
  if (!(worst < bound)) {
    fmt::print("WRONG RESULT: relative error {}\n", worst);
    std::exit(1);
  }
  return worst;
}

template <class Matrix>
void run_linear(const Matrix& matrix, const std::vector<float>& x, std::vector<float>& y, int64_t tokens, Phase phase,
                int threads, Target target, Scratch& scratch) {
  run_on_cpu(threads, target, scratch, [&](const CpuContext& context) {
    linear(*matrix.prepared,
           {.x = x.data(),
            .x_stride = matrix.view.cols,
            .y = y.data(),
            .y_stride = matrix.view.rows,
            .tokens = tokens,
            .phase = phase},
           context);
  });
}

void bench_gemv(int threads, size_t mib) {
  ReadBandwidth bandwidth(threads, supported_targets().back());
  fmt::print("matrix-vector product, {} MiB of indices, 0.1 % sidecar, {} threads; read bandwidth now {:.1f} GB/s\n",
             mib, threads, bandwidth.measure(5) / 1e9);
  Scratch scratch(threads);
  for (const int64_t cols : {768, 1536}) {
    const int64_t rows = static_cast<int64_t>(mib << 20) / cols;
    for (const Levels levels : {Levels::integer, Levels::half, Levels::any}) {
      const RandomMatrix matrix(rows, cols, levels, 0.001);
      for (const Target target : supported_targets()) {
        for (const int64_t tokens : {1, 4}) {
          const std::vector<float> x = normal(static_cast<size_t>(tokens * cols), 3);
          std::vector<float> y(static_cast<size_t>(tokens * rows));
          std::vector<double> rates, reads, shares;
          for (int i = 0; i < (target == Target::scalar ? 5 : 15); ++i) {
            const double before = bandwidth.measure();
            const double time =
                seconds_of([&] { run_linear(matrix, x, y, tokens, Phase::decode, threads, target, scratch); });
            const double read = (before + bandwidth.measure()) / 2;
            rates.push_back(static_cast<double>(rows * cols) / time);
            reads.push_back(read);
            shares.push_back(rates.back() / read);
          }
          fmt::print(
              "  cols {:4} {:5} {:6} tokens {}: {:5.1f} GB/s, read {:5.1f} GB/s, share {:3.0f} % (best {:.0f} %), "
              "error {:.1e}\n",
              cols, name_of(levels), hxq::name_of(target), tokens, median(rates) / 1e9, median(reads) / 1e9,
              100 * median(shares), 100 * *std::max_element(shares.begin(), shares.end()),
              check(matrix, x, y, tokens, 1e-4));
        }
      }
    }
  }
}

/// Grouped matrices beside the published format's, in turns: what the published format's time is of theirs.
void bench_grouped(int threads, size_t mib) {
  constexpr int64_t kCols = 2048;
  const int64_t rows = static_cast<int64_t>(mib << 20) / kCols;
  const RandomMatrix published(rows, kCols, Levels::integer, 0.001);
  Scratch scratch(threads);
  fmt::print("grouped matrices, {} x {}, {} threads: GB/s, and times the published format's speed\n", rows, kCols,
             threads);
  using Form = GroupedForm;
  for (const Form& form : {Form{8, 64}, {8, 32, true}, {7, 64}, {6, 32}, {5, 32}, {4, 16}, {4, 32}, {3, 32}}) {
    const RandomGrouped matrix(rows, kCols, form);
    for (const Target target : supported_targets()) {
      fmt::print("  {} bits{}, groups of {} {:6}:", form.bits, form.uniform ? ", uniform" : "", form.group,
                 hxq::name_of(target));
      struct Call {
        int64_t tokens;
        Phase phase;
      };
      for (const auto [tokens, phase] : {Call{1, Phase::decode}, {8, Phase::decode}, {512, Phase::prefill}}) {
        if (tokens > 8 && target == Target::scalar) continue;
        const std::vector<float> x = normal(static_cast<size_t>(tokens * kCols), 3);
        std::vector<float> y(static_cast<size_t>(tokens * rows));
        std::vector<double> ratios, times;
        for (int i = 0; i < (tokens > 8 ? 3 : 15); ++i) {
          const double theirs =
              seconds_of([&] { run_linear(published, x, y, tokens, phase, threads, target, scratch); });
          times.push_back(seconds_of([&] { run_linear(matrix, x, y, tokens, phase, threads, target, scratch); }));
          ratios.push_back(theirs / times.back());
        }
        check(matrix, x, y, tokens, phase == Phase::decode ? 1e-4 : 1e-3);
        fmt::print(" tokens {}: {:5.1f} GB/s, {:.2f}x;", tokens,
                   static_cast<double>(matrix.view.bytes_read()) / median(times) / 1e9, median(ratios));
      }
      fmt::print("\n");
    }
  }
}

/// Decode rows of several sequences on the fastest target, in the shapes of mamba-130m: in_proj, out_proj, head. Copies
/// of a matrix make up 64 MiB, so that weights come from memory, as in a step of the model.
void bench_joint(int threads) {
  struct Shape {
    int64_t rows, cols;
  };
  constexpr int64_t kMost = 64, kWeights = int64_t{64} << 20;
  const Target target = supported_targets().back();
  fmt::print("decode rows of several sequences, {} threads, {}: ms a product of n tokens (tokens/s against one)\n",
             threads, hxq::name_of(target));
  Scratch scratch(threads);
  for (const Levels levels : {Levels::integer, Levels::half, Levels::any}) {
    for (const auto [rows, cols] : {Shape{3072, 768}, {768, 1536}, {50280, 768}}) {
      const int64_t copies = std::max<int64_t>(1, kWeights / (rows * cols));
      const RandomMatrix matrix(rows * copies, cols, levels, 0.001);
      const std::vector<float> x = normal(static_cast<size_t>(kMost * cols), 3);
      std::vector<float> y(static_cast<size_t>(kMost * rows * copies));
      fmt::print("  W {:5} x {:4} {}:", rows, cols, name_of(levels));
      double one = 0;
      for (int64_t tokens = 1; tokens <= kMost; ++tokens) {
        std::vector<double> times;
        for (int i = 0; i < 5; ++i) {
          times.push_back(
              seconds_of([&] { run_linear(matrix, x, y, tokens, Phase::decode, threads, target, scratch); }));
        }
        const double time = smallest(times) / static_cast<double>(copies);
        if (tokens == 1) one = time;
        check(matrix, x, y, tokens, 1e-4);
        fmt::print(" {}: {:.3f} ({:.1f})", tokens, time * 1e3, one * static_cast<double>(tokens) / time);
      }
      fmt::print("\n");
    }
  }
}

void bench_gemm(int threads) {
  constexpr int64_t kTokens = 512;
  fmt::print("matrix product, {} tokens, {} threads; OpenBLAS: {}\n", kTokens, threads, openblas_get_config());
  openblas_set_num_threads(threads);
  Scratch scratch(threads);
  struct Shape {
    int64_t rows, cols;
  };
  for (const auto [rows, cols] : {Shape{3072, 768}, {768, 1536}, {80, 1536}, {1536, 48}, {50280, 768}}) {
    const RandomMatrix matrix(rows, cols, Levels::integer, 0.001);
    const std::vector<float> x = normal(static_cast<size_t>(kTokens * cols), 3);
    const std::vector<float> dense = normal(static_cast<size_t>(rows * cols), 4);
    std::vector<float> y(static_cast<size_t>(kTokens * rows));
    const double flop = 2.0 * static_cast<double>(kTokens * rows * cols);
    const int repeats = std::clamp(static_cast<int>(2e10 / flop), 3, 200);
    const auto blas = [&] {
      cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasTrans, static_cast<int>(kTokens), static_cast<int>(rows),
                  static_cast<int>(cols), 1, x.data(), static_cast<int>(cols), dense.data(), static_cast<int>(cols), 0,
                  y.data(), static_cast<int>(rows));
    };
    fmt::print("  W {:5} x {:4}:", rows, cols);
    std::vector<double> blas_times;
    for (int round = 0; round < 3; ++round) {
      settle();
      for (int i = 0; i < repeats; ++i) blas_times.push_back(seconds_of(blas));
    }
    fmt::print(" OpenBLAS {:5.0f} GFLOP/s (median {:.0f})", flop / smallest(blas_times) / 1e9,
               flop / median(blas_times) / 1e9);
    for (const Target target : supported_targets()) {
      if (target == Target::scalar && flop > 3e9) continue;
      std::vector<double> times;
      for (int round = 0; round < 3; ++round) {
        settle();
        for (int i = 0; i < repeats; ++i) {
          times.push_back(
              seconds_of([&] { run_linear(matrix, x, y, kTokens, Phase::prefill, threads, target, scratch); }));
        }
      }
      const bool rounds_to_11_bits = target == Target::avx2 || target == Target::avx512;
      const double error = check(matrix, x, y, kTokens, rounds_to_11_bits ? 1e-3 : 1e-5);
      fmt::print("; {} {:.0f} ({:.0f}) = {:.0f} % ({:.0f} %) error {:.0e}", hxq::name_of(target),
                 flop / smallest(times) / 1e9, flop / median(times) / 1e9, 100 * smallest(blas_times) / smallest(times),
                 100 * median(blas_times) / median(times), error);
    }
    fmt::print("\n");
  }
}

/// One layer's convolution and scan in the shape of mamba-130m.
void bench_sequence(int threads) {
  constexpr int64_t kChannels = 1536, kStates = 16, kWidth = 4;
  const size_t channels = kChannels;
  Scratch scratch(threads);
  for (const int64_t tokens : {1, 512}) {
    const size_t n = static_cast<size_t>(tokens) * channels;
    const auto u = normal(n, 1), dt = normal(n, 2), z = normal(n, 3),
               bc = normal(static_cast<size_t>(tokens) * 2 * kStates, 4);
    auto a = normal(kStates * channels, 5);
    for (float& value : a) value = -std::fabs(value) - 0.1f;
    const auto d = normal(channels, 6), weight = normal(kWidth * channels, 7), bias = normal(channels, 8);
    std::vector<float> y(n), state(kStates * channels), conv_state((kWidth - 1) * channels);
    const UniformBatch batch(1, tokens);
    const std::vector<void*> states = batch.states(state.data(), 0), conv_states = batch.states(conv_state.data(), 0);
    for (const Target target : supported_targets()) {
      std::vector<double> scan_times, conv_times;
      for (int i = 0; i < 50; ++i) {
        run_on_cpu(threads, target, scratch, [&](const CpuContext& context) {
          const auto timed = [&](std::vector<double>& times, auto&& operation) {
            context.team.barrier();
            const double time = seconds_of(operation);
            if (context.team.rank() == 0 && !context.measures) times.push_back(time);
          };
          timed(conv_times, [&] {
            causal_conv1d_silu({.x = u.data(),
                                .x_stride = kChannels,
                                .y = y.data(),
                                .batch = batch.view(),
                                .channels = kChannels,
                                .width = kWidth,
                                .weight = weight.data(),
                                .bias = bias.data(),
                                .state = conv_states.data(),
                                .state_rows = kWidth - 1},
                               context);
          });
          timed(scan_times, [&] {
            selective_scan({.u = u.data(),
                            .dt = dt.data(),
                            .dt_bias = d.data(),
                            .b = bc.data(),
                            .c = bc.data() + kStates,
                            .bc_stride = 2 * kStates,
                            .z = z.data(),
                            .z_stride = kChannels,
                            .a = a.data(),
                            .d = d.data(),
                            .state = states.data(),
                            .y = y.data(),
                            .batch = batch.view(),
                            .channels = kChannels,
                            .state_size = kStates},
                           context);
          });
        });
      }
      fmt::print("  tokens {:3} {:7}: conv {:8.1f} us, scan {:8.1f} us (best of 50; state {})\n", tokens,
                 hxq::name_of(target), smallest(conv_times) * 1e6, smallest(scan_times) * 1e6,
                 std::isfinite(state[0]) ? "finite" : "NOT FINITE");
    }
  }
}

void bench_barrier(int threads) {
  double time = 0;
  constexpr int kBarriers = 20000;
  run_team(threads, [&](const Team& team) {
    // Until the system has given each busy thread a core of its own.
    const auto start = std::chrono::steady_clock::now();
    while (std::chrono::steady_clock::now() - start < std::chrono::milliseconds(300)) continue;
    team.barrier();
    const double elapsed = seconds_of([&] {
      for (int i = 0; i < kBarriers; ++i) team.barrier();
    });
    if (team.rank() == 0) time = elapsed / kBarriers;
  });
  fmt::print("barrier of {} threads: {:.0f} ns\n", threads, time * 1e9);
}

}  // namespace

int main(int argc, char** argv) {
  int threads = default_thread_count();
  size_t mib = 256;
  std::vector<std::string> sections;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--threads" && i + 1 < argc) {
      threads = std::max(1, std::atoi(argv[++i]));
    } else if (argument == "--mib" && i + 1 < argc) {
      mib = static_cast<size_t>(std::max(1, std::atoi(argv[++i])));
    } else {
      sections.push_back(argument);
    }
  }
  const auto wants = [&](const char* section) {
    return sections.empty() || std::find(sections.begin(), sections.end(), section) != sections.end();
  };
  if (wants("barrier")) bench_barrier(threads);
  if (wants("gemv")) bench_gemv(threads, mib);
  if (wants("grouped")) bench_grouped(threads, mib);
  if (wants("joint")) bench_joint(threads);
  if (wants("gemm")) bench_gemm(threads);
  if (wants("sequence")) bench_sequence(threads);
  return 0;
}
