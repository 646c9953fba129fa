// The operations of the CPU: each shares its work out to the threads of a team.

#include <algorithm>
#include <cmath>

#include "kernels/cpu/ops.h"
#include "kernels/cpu_context.h"
#include "kernels/cpu_matrix.h"
#include "kernels/operations.h"

namespace hxq::kernels {
namespace {

/// Channels are shared out in whole vectors of every target.
constexpr int64_t kChannelGranule = 16;
/// Queries of one key-value head that go over its keys together: their rows stay in the second-level cache.
constexpr int64_t kRowsAtOnce = 32;

const cpu::Ops& ops_of(const Context& context) noexcept { return cpu::ops_of(on_cpu(context).target); }

/// The entries of the tables below, named as those are.
struct Cpu {
  static void linear(const PreparedMatrix& weight, const LinearArgs& args, const Context& context) noexcept {
    static_cast<const CpuMatrix&>(weight).linear(args, on_cpu(context));
  }

  static void gather_rows(const PreparedMatrix& weight, const int32_t* ids, int64_t count, float* out,
                          const Context& context) noexcept {
    static_cast<const CpuMatrix&>(weight).gather_rows(ids, count, out, on_cpu(context));
  }

  static void copy_rows(const CopyRowsArgs& args, const Context& context) noexcept {
    const Range mine = context.team.share(args.rows);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      std::copy_n(args.from + (args.row ? args.row[i] : i) * args.from_stride, args.cols, args.to + i * args.to_stride);
    }
    context.team.barrier();
  }

  static void rms_norm(const RmsNormArgs& args, const Context& context) noexcept {
    const Range mine = context.team.share(args.tokens * args.groups);
    ops_of(context).rms_norm(args, mine.begin, mine.end);
    context.team.barrier();
  }

  static void causal_conv1d_silu(const ConvArgs& args, const Context& context) noexcept {
    const Range mine = context.team.share(args.channels, kChannelGranule);
    for (int64_t s = 0; s < args.batch.segments; ++s) ops_of(context).conv(args, s, mine.begin, mine.end);
    context.team.barrier();
  }

  static void selective_scan(const ScanArgs& args, const Context& context) noexcept {
    const Range mine = context.team.share(args.channels, kChannelGranule);
    for (int64_t s = 0; s < args.batch.segments; ++s) ops_of(context).scan(args, s, mine.begin, mine.end);
    context.team.barrier();
  }

  static void ssd(const SsdArgs& args, const Context& context) noexcept {
    const Range mine = context.team.share(args.heads);
    for (int64_t s = 0; s < args.batch.segments; ++s) ops_of(context).ssd(args, s, mine.begin, mine.end);
    context.team.barrier();
  }

  static void rotary_table(const RotaryTableArgs& args, const Context& context) noexcept {
    for (int64_t s = 0; s < args.batch.segments; ++s) {
      const auto* inverse_frequency = static_cast<const float*>(args.inverse_frequency[s]);
      const RowRange segment = args.batch.segment[s];
      const Range mine = context.team.share(segment.end - segment.begin);
      for (int64_t row = segment.begin + mine.begin; row < segment.begin + mine.end; ++row) {
        float* cos = args.table + row * 2 * args.half;
        float* sin = cos + args.half;
        for (int64_t i = 0; i < args.half; ++i) {
          const double angle =
              static_cast<double>(args.batch.position[row]) * static_cast<double>(inverse_frequency[i]);
          cos[i] = static_cast<float>(std::cos(angle));
          sin[i] = static_cast<float>(std::sin(angle));
        }
      }
    }
    context.team.barrier();
  }

  static void extend_cache(const ExtendCacheArgs& args, const Context& context) noexcept {
    const Range mine = context.team.share(args.batch.rows);
    for (int64_t s = 0; s < args.batch.segments; ++s) {
      const RowRange segment = args.batch.segment[s];
      const int64_t begin = std::max<int64_t>(segment.begin, mine.begin);
      const int64_t end = std::min<int64_t>(segment.end, mine.end);
      if (begin < end) ops_of(context).extend_cache(args, s, begin, end);
    }
    context.team.barrier();
  }

  static void attention(const AttentionArgs& args, const Context& context) noexcept {
    const cpu::Ops& ops = ops_of(context);
    const int64_t heads = args.cache.heads;
    // Few heads for many threads: their queries are split further.
    const int64_t shares = (context.team.size() + heads - 1) / heads;
    float* memory = on_cpu(context).own(ops.attention_floats(args.cache, kRowsAtOnce));
    if (on_cpu(context).measures) return;
    int64_t turn = 0;
    for (int64_t s = 0; s < args.batch.segments; ++s) {
      const RowRange segment = args.batch.segment[s];
      const int64_t rows = (segment.end - segment.begin) * (args.query_heads / heads);
      const int64_t at_once = std::clamp<int64_t>((rows + shares - 1) / shares, 1, kRowsAtOnce);
      // In turn, not in contiguous shares: later queries see more keys.
      for (int64_t begin = 0; begin < rows; begin += at_once) {
        for (int64_t head = 0; head < heads; ++head, ++turn) {
          if (turn % context.team.size() != context.team.rank()) continue;
          ops.attend(args, s, head, begin, std::min(begin + at_once, rows), memory);
        }
      }
    }
    context.team.barrier();
  }

  static void gated_activation(const GatedActivationArgs& args, const Context& context) noexcept {
    const Range mine = context.team.share(args.dim, kChannelGranule);
    ops_of(context).gated_activation(args, mine.begin, mine.end);
    context.team.barrier();
  }

  static void most_likely(const MostLikelyArgs& args, const Context& context) noexcept {
    const Range mine = context.team.share(args.rows);
    for (int64_t i = mine.begin; i < mine.end; ++i) {
      args.token[i] = most_likely_of({args.logits + i * args.vocabulary, static_cast<size_t>(args.vocabulary)});
    }
    context.team.barrier();
  }

  template <class Args>
  static void nothing(const Args&, const Context&) noexcept {}
};

}  // namespace

const Operations& cpu_operations() noexcept {
  static constexpr Operations kOperations = {.linear = Cpu::linear,
                                             .gather_rows = Cpu::gather_rows,
                                             .copy_rows = Cpu::copy_rows,
                                             .rms_norm = Cpu::rms_norm,
                                             .causal_conv1d_silu = Cpu::causal_conv1d_silu,
                                             .selective_scan = Cpu::selective_scan,
                                             .ssd = Cpu::ssd,
                                             .rotary_table = Cpu::rotary_table,
                                             .extend_cache = Cpu::extend_cache,
                                             .attention = Cpu::attention,
                                             .gated_activation = Cpu::gated_activation,
                                             .most_likely = Cpu::most_likely};
  return kOperations;
}

const Operations& cpu_measuring_operations() noexcept {
  static constexpr Operations kOperations = {.linear = Cpu::linear,
                                             .gather_rows = Cpu::gather_rows,
                                             .copy_rows = Cpu::nothing,
                                             .rms_norm = Cpu::nothing,
                                             .causal_conv1d_silu = Cpu::nothing,
                                             .selective_scan = Cpu::nothing,
                                             .ssd = Cpu::nothing,
                                             .rotary_table = Cpu::nothing,
                                             .extend_cache = Cpu::nothing,
                                             .attention = Cpu::attention,
                                             .gated_activation = Cpu::nothing,
                                             .most_likely = Cpu::nothing};
  return kOperations;
}

}  // namespace hxq::kernels
