// Times operations along sequences on one GPU and checks every answer; prints rows for results.csv.
//
//     gpu_sequences [attention] [scan] [ssd]      all without names
//     gpu_sequences attention N [BEFORE]          of N tokens after BEFORE others
//
// Launches follow each other in one CUDA graph, median of its replays, a few sets of arrays in turn. Answers are
// checked against the recurrences in double, of some channels or heads; of gradients not those of B and C.

#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <random>
#include <string>
#include <tuple>
#include <vector>

#include "gpu_bench.h"
#include "kernels/cuda/attention.h"
#include "kernels/cuda/sequence.h"
#include "kernels/cuda/sequence_gradients.h"

namespace {

using namespace hxq;
using namespace hxq::cuda;
using namespace hxq::cuda::bench;

constexpr int kSets = 4;  ///< of arrays

std::vector<float> normals(size_t count, unsigned seed, float scale = 1) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> values(count);
  for (float& value : values) value = scale * normal(engine);
  return values;
}

double softplus(double x) { return x > 20 ? x : std::log1p(std::exp(x)); }
double sigmoid(double x) { return 1 / (1 + std::exp(-x)); }

/// One sequence from its beginning.
struct OneSegment {
  RowRange* segment;
  void** states;
  float* state;
  Batch batch;

  OneSegment(int32_t rows, size_t state_size)
      : segment(upload(std::vector<RowRange>{{0, rows}})),
        states(nullptr),
        state(upload(std::vector<float>(state_size))),
        batch{.segments = segment, .count = 1, .max_rows = rows, .total_rows = rows} {
    states = upload(std::vector<void*>{state});
  }
  OneSegment(const OneSegment&) = delete;
  OneSegment& operator=(const OneSegment&) = delete;
  ~OneSegment() { free_all({segment, states, state}); }
};

struct Bench : Rows {
  /// Causal attention of a prompt after `before` tokens, queries and outputs in float.
  void attention(int32_t rows, int32_t before, int64_t query_heads, int64_t heads, int64_t dim, DType cache,
                 Precision precision) {
    const int64_t tile = KvCacheView::kTile, tiles = (before + rows + tile - 1) / tile, width = query_heads * dim;
    const size_t tile_elements = static_cast<size_t>(2 * heads * dim * tile), elements = tile_elements * tiles;
    std::mt19937 engine(5);
    std::normal_distribution<float> normal;
    std::vector<float> q(static_cast<size_t>(rows * width)), held(elements);
    for (float& value : q) value = normal(engine);
    std::vector<__half> half(elements);
    for (size_t i = 0; i < elements; ++i) {
      half[i] = __float2half(normal(engine));
      held[i] = __half2float(half[i]);
    }
    const auto* bytes =
        cache == DType::f32 ? reinterpret_cast<char*>(upload(held)) : reinterpret_cast<char*>(upload(half));
    std::vector<const void*> table;
    for (int64_t i = 0; i < tiles; ++i)
      table.push_back(bytes + static_cast<size_t>(i) * tile_elements * (cache == DType::f32 ? 4 : 2));
    std::vector<int32_t> positions(static_cast<size_t>(rows));
    std::iota(positions.begin(), positions.end(), before);
    const void** device_table = upload(table);
    auto* table_of = upload(std::vector<void*>{device_table});
    auto* segment = upload(std::vector<RowRange>{{0, rows}});
    auto* position = upload(positions);
    float* device_q = upload(q);
    auto* y = allocate<float>(q.size());
    cudaMemset(y, 0xff, q.size() * 4);
    AttentionArgs args{
        .batch = {.segments = segment, .positions = position, .count = 1, .max_rows = rows, .total_rows = rows},
        .q = {.data = device_q, .stride = width},
        .y = {.data = y, .stride = width},
        .query_heads = query_heads,
        .scale = 1 / std::sqrt(static_cast<float>(dim)),
        .seen_positions = before + rows,
        .cache = {.heads = heads, .head_dim = dim, .padded_dim = dim, .dtype = cache, .tiles = table_of},
        .precision = precision};
    const size_t workspace_bytes = attention_workspace(args);
    auto* workspace = allocate<char>(workspace_bytes);
    args.workspace = {.data = workspace, .bytes = workspace_bytes};
    constexpr int kLaunches = 10;
    const double seconds = graph_seconds(stream, [&] {
      for (int i = 0; i < kLaunches; ++i) require(cuda::attention(args, stream), "attention");
    });
    const auto got = download(y, q.size());
    double worst = 0;
    for (int64_t t = 0; t < rows; t += 1 + rows / 7) {
      for (int64_t h = 0; h < query_heads; h += 1 + query_heads / 3) {
        const int64_t kv = h / (query_heads / heads);
        const auto in_cache = [&](int64_t p, int64_t of_head, int64_t at) {
          return double{
              held[static_cast<size_t>(p / tile) * tile_elements + static_cast<size_t>(of_head * dim * tile + at)]};
        };
        std::vector<double> score(static_cast<size_t>(before + t + 1));
        for (int64_t p = 0; p <= before + t; ++p) {
          double dot = 0;
          for (int64_t i = 0; i < dim; ++i)
            dot += q[static_cast<size_t>(t * width + h * dim + i)] * in_cache(p, kv, i * tile + p % tile);
          score[static_cast<size_t>(p)] = dot * args.scale;
        }
        const double largest = *std::max_element(score.begin(), score.end());
        double total = 0;
        for (double& value : score) total += value = std::exp(value - largest);
        for (int64_t i = 0; i < dim; ++i) {
          double sum = 0, size = 0;
          for (int64_t p = 0; p <= before + t; ++p) {
            const double term = score[static_cast<size_t>(p)] / total * in_cache(p, heads + kv, p % tile * dim + i);
            sum += term;
            size += std::fabs(term);
          }
          const double error = std::fabs(got[static_cast<size_t>(t * width + h * dim + i)] - sum) / size;
          worst = worse(worst, error);
        }
      }
    }
    const std::string what =
        "attention " + std::to_string(query_heads) + "/" + std::to_string(heads) + " heads of " + std::to_string(dim) +
        ",M=" + std::to_string(rows) + (before > 0 ? " after " + std::to_string(before) : "") + "," +
        (cache == DType::f32 ? "f32 cache" : "f16 cache") + (precision == Precision::fast ? " fast" : " exact");
    const size_t moved = 2 * q.size() * 4 + elements * (cache == DType::f32 ? 4 : 2);
    row(what, seconds / kLaunches, static_cast<double>(moved), worst, precision == Precision::fast ? 0x1p-8 : 1e-5);
    free_all({bytes, device_table, table_of, segment, position, device_q, y, workspace});
  }

  /// A layer of Mamba-1, all in float; then its gradient.
  void scan(int32_t rows, int64_t channels, int64_t states) {
    const auto wide = static_cast<size_t>(rows * channels), narrow = static_cast<size_t>(rows * states);
    const auto u = normals(wide, 1), dt = normals(wide, 2, 2), z = normals(wide, 3), g = normals(wide, 4),
               b = normals(narrow, 5), c = normals(narrow, 6), d = normals(static_cast<size_t>(channels), 7);
    auto a = normals(static_cast<size_t>(states * channels), 8);
    for (float& value : a) value = -std::exp(value);
    const float *device_a = upload(a), *device_d = upload(d);
    const OneSegment one(rows, a.size());
    struct Set {
      const float *u, *dt, *z, *g, *b, *c;
      float *y, *du, *ddt, *dz;
    };
    std::vector<Set> sets;
    for (int i = 0; i < kSets; ++i) {
      sets.push_back({.u = upload(u),
                      .dt = upload(dt),
                      .z = upload(z),
                      .g = upload(g),
                      .b = upload(b),
                      .c = upload(c),
                      .y = allocate<float>(wide),
                      .du = allocate<float>(wide),
                      .ddt = allocate<float>(wide),
                      .dz = allocate<float>(wide)});
    }
    float *db = allocate<float>(narrow), *dc = allocate<float>(narrow), *da_log = allocate<float>(a.size()),
          *dd = allocate<float>(d.size()), *dbias = allocate<float>(d.size());
    ScanGradientArgs gradient{.batch = 1,
                              .tokens = rows,
                              .channels = channels,
                              .state_size = states,
                              .bc_stride = states,
                              .z_stride = channels,
                              .a = device_a,
                              .d = device_d,
                              .db = db,
                              .dc = dc,
                              .da_log = da_log,
                              .dd = dd,
                              .ddt_bias = dbias};
    const size_t bytes = scan_gradient_workspace(gradient);
    gradient.workspace = {.data = allocate<char>(bytes), .bytes = bytes};
    const auto forward = [&](const Set& set) {
      require(selective_scan({.batch = one.batch,
                              .u = {.data = set.u, .stride = channels},
                              .dt = {.data = set.dt, .stride = channels},
                              .b = {.data = set.b, .stride = states},
                              .c = {.data = set.c, .stride = states},
                              .z = {.data = set.z, .stride = channels},
                              .a = device_a,
                              .d = device_d,
                              .states = one.states,
                              .y = {.data = set.y, .stride = channels},
                              .channels = channels,
                              .state_size = states},
                             stream),
              "scan");
    };
    const auto backward = [&](const Set& set) {
      ScanGradientArgs args = gradient;
      args.u = set.u, args.dt = set.dt, args.b = set.b, args.c = set.c, args.z = set.z, args.g = set.g;
      args.du = set.du, args.ddt = set.ddt, args.dz = set.dz;
      require(selective_scan_gradient(args, stream), "gradient of the scan");
    };
    forward(sets[0]);
    backward(sets[0]);
    const auto y = download(sets[0].y, wide), du = download(sets[0].du, wide), ddt = download(sets[0].ddt, wide),
               dz = download(sets[0].dz, wide), sum_of_a = download(da_log, a.size()),
               sum_of_d = download(dd, d.size()), sum_of_bias = download(dbias, d.size());
    double forward_error = 0, backward_error = 0;
    for (int64_t channel = 0; channel < channels; channel += 1 + channels / 11) {
      const auto at = [&](int64_t t) { return static_cast<size_t>(t * channels + channel); };
      std::vector<double> h(static_cast<size_t>((rows + 1) * states)), size(h);
      for (int64_t t = 0; t < rows; ++t) {
        const double delta = softplus(dt[at(t)]), gate = z[at(t)] * sigmoid(z[at(t)]);
        double sum = d[static_cast<size_t>(channel)] * u[at(t)], total = std::fabs(sum);
        for (int64_t n = 0; n < states; ++n) {
          const auto now = static_cast<size_t>((t + 1) * states + n), before = now - static_cast<size_t>(states);
          const double decay = std::exp(delta * a[static_cast<size_t>(n * channels + channel)]),
                       added = delta * u[at(t)] * b[before], of_c = c[before];
          h[now] = decay * h[before] + added;
          size[now] = decay * size[before] + std::fabs(added);
          sum += h[now] * of_c;
          total += size[now] * std::fabs(of_c);
        }
        forward_error = worse(forward_error, std::fabs(y[at(t)] - sum * gate) / (total * std::fabs(gate)));
        // dz: what is before the gate, times the gate's slope
        const double curve = z[at(t)] * (1 - sigmoid(z[at(t)])), slope = sigmoid(z[at(t)]) * (1 + curve);
        const double slope_size = sigmoid(z[at(t)]) * (1 + std::fabs(curve));
        backward_error = worse(
            backward_error, std::fabs(dz[at(t)] - g[at(t)] * sum * slope) / (total * std::fabs(g[at(t)]) * slope_size));
      }
      std::vector<double> carry(static_cast<size_t>(states)), carry_size(carry), d_a(carry), d_a_size(carry);
      double d_skip = 0, d_skip_size = 0, d_bias = 0, d_bias_size = 0;
      for (int64_t t = rows - 1; t >= 0; --t) {
        const double delta = softplus(dt[at(t)]), dp = g[at(t)] * z[at(t)] * sigmoid(z[at(t)]);
        double d_u = dp * d[static_cast<size_t>(channel)], d_u_size = std::fabs(d_u), d_delta = 0, d_delta_size = 0;
        for (int64_t n = 0; n < states; ++n) {
          const auto i = static_cast<size_t>(n), before = static_cast<size_t>(t * states + n);
          const double rate = a[static_cast<size_t>(n * channels + channel)], decay = std::exp(delta * rate),
                       dh = carry[i] + dp * c[before], dh_size = carry_size[i] + std::fabs(dp * c[before]);
          d_u += dh * delta * b[before];
          d_u_size += dh_size * std::fabs(delta * b[before]);
          d_delta += dh * (decay * rate * h[before] + u[at(t)] * b[before]);
          d_delta_size += dh_size * (std::fabs(decay * rate) * size[before] + std::fabs(u[at(t)] * b[before]));
          d_a[i] += dh * delta * decay * rate * h[before];
          d_a_size[i] += dh_size * std::fabs(delta * decay * rate) * size[before];
          carry[i] = dh * decay;
          carry_size[i] = dh_size * decay;
        }
        d_skip += dp * u[at(t)];
        d_skip_size += std::fabs(dp * u[at(t)]);
        const double slope = sigmoid(dt[at(t)]);
        backward_error = worse(backward_error, std::fabs(du[at(t)] - d_u) / d_u_size);
        d_bias += d_delta * slope;
        d_bias_size += d_delta_size * slope;
        backward_error = worse(backward_error, std::fabs(ddt[at(t)] - d_delta * slope) / (d_delta_size * slope));
      }
      const auto c_at = static_cast<size_t>(channel);
      for (size_t i = 0; i < d_a.size(); ++i) {
        backward_error = worse(backward_error, std::fabs(sum_of_a[c_at * d_a.size() + i] - d_a[i]) / d_a_size[i]);
      }
      backward_error = worse(backward_error, std::fabs(sum_of_d[c_at] - d_skip) / d_skip_size);
      backward_error = worse(backward_error, std::fabs(sum_of_bias[c_at] - d_bias) / d_bias_size);
    }
    const std::string what = std::to_string(channels) + " channels,M=" + std::to_string(rows) + ",f32";
    constexpr int kLaunches = 5 * kSets;
    const auto time = [&](const auto& launch) {
      return graph_seconds(stream,
                           [&] {
                             for (int i = 0; i < kLaunches; ++i) launch(sets[static_cast<size_t>(i % kSets)]);
                           }) /
             kLaunches;
    };
    row("scan " + what, time(forward), 16.0 * static_cast<double>(wide), forward_error, 1e-5);
    row("scan gradient " + what, time(backward), 28.0 * static_cast<double>(wide), backward_error, 1e-5);
    for (const Set& s : sets) free_all({s.u, s.dt, s.z, s.g, s.b, s.c, s.y, s.du, s.ddt, s.dz});
    free_all({device_a, device_d, db, dc, da_log, dd, dbias, gradient.workspace.data});
  }

  /// A layer of Mamba-2 with one group, all in float.
  void state_space_duality(int32_t rows, int64_t heads, int64_t head_dim, int64_t states) {
    const int64_t channels = heads * head_dim;
    const auto wide = static_cast<size_t>(rows * channels), narrow = static_cast<size_t>(rows * states);
    const auto x = normals(wide, 1), z = normals(wide, 2), b = normals(narrow, 3), c = normals(narrow, 4),
               dt = normals(static_cast<size_t>(rows * heads), 5), d = normals(static_cast<size_t>(heads), 6),
               bias = normals(static_cast<size_t>(heads), 7);
    auto a = normals(static_cast<size_t>(heads), 8);
    for (float& value : a) value = -std::exp(value);
    std::vector<std::vector<const float*>> inputs;
    std::vector<float*> outputs;
    for (int i = 0; i < kSets; ++i) {
      inputs.push_back({upload(x), upload(b), upload(c), upload(dt), upload(z)});
      outputs.push_back(allocate<float>(wide));
    }
    const float *device_a = upload(a), *device_d = upload(d), *device_bias = upload(bias);
    OneSegment one(rows, static_cast<size_t>(channels * states));
    SsdArgs args{.batch = one.batch,
                 .x = {.stride = channels},
                 .b = {.stride = states},
                 .c = {.stride = states},
                 .dt = {.stride = heads},
                 .dt_bias = device_bias,
                 .dt_max = INFINITY,
                 .a = device_a,
                 .d = device_d,
                 .z = {.data = inputs[0][4], .stride = channels},
                 .states = one.states,
                 .y = {.stride = channels},
                 .heads = heads,
                 .head_dim = head_dim,
                 .groups = 1,
                 .state_size = states};
    const size_t bytes = ssd_workspace(args);
    args.workspace = {.data = allocate<char>(bytes), .bytes = bytes};
    const auto launch = [&](int i) {
      const auto& from = inputs[static_cast<size_t>(i % kSets)];
      args.x.data = from[0], args.b.data = from[1], args.c.data = from[2], args.dt.data = from[3];
      args.z.data = from[4], args.y.data = outputs[static_cast<size_t>(i % kSets)];
      require(ssd(args, stream), "state-space duality");
    };
    launch(0);
    const auto y = download(outputs[0], wide);
    double worst = 0;
    for (int64_t head = 0; head < heads; head += 1 + heads / 5) {
      for (int64_t p = 0; p < head_dim; p += 1 + head_dim / 5) {
        std::vector<double> h(static_cast<size_t>(states)), size(h);
        for (int64_t t = 0; t < rows; ++t) {
          const auto at = static_cast<size_t>(t * channels + head * head_dim + p);
          const double delta = softplus(double{dt[static_cast<size_t>(t * heads + head)]} +
                                        bias[static_cast<size_t>(head)]),
                       decay = std::exp(delta * a[static_cast<size_t>(head)]), gate = z[at] * sigmoid(z[at]);
          double sum = d[static_cast<size_t>(head)] * x[at], total = std::fabs(sum);
          for (int64_t n = 0; n < states; ++n) {
            const auto i = static_cast<size_t>(n), bc = static_cast<size_t>(t * states + n);
            h[i] = decay * h[i] + delta * b[bc] * x[at];
            size[i] = decay * size[i] + std::fabs(delta * b[bc] * x[at]);
            sum += h[i] * c[bc];
            total += size[i] * std::fabs(c[bc]);
          }
          worst = worse(worst, std::fabs(y[at] - sum * gate) / (total * std::fabs(gate)));
        }
      }
    }
    constexpr int kLaunches = 5 * kSets;
    const double seconds = graph_seconds(stream,
                                         [&] {
                                           for (int i = 0; i < kLaunches; ++i) launch(i);
                                         }) /
                           kLaunches;
    row("SSD " + std::to_string(heads) + " heads of " + std::to_string(head_dim) + ",M=" + std::to_string(rows) +
            ",f32",
        seconds, 12.0 * static_cast<double>(wide), worst, 1e-5);
    for (const auto& set : inputs) {
      for (const float* array : set) free_all({array});
    }
    for (const float* array : outputs) free_all({array});
    free_all({device_a, device_d, device_bias, args.workspace.data});
  }
};

}  // namespace

int main(int argc, char** argv) {
  const auto asked = [&](const char* name) {
    return argc == 1 ||
           std::any_of(argv + 1, argv + argc, [&](const char* given) { return !std::strcmp(given, name); });
  };
  std::vector<int32_t> numbers;
  for (int i = 1; i < argc; ++i) {
    const std::string given = argv[i];
    if (const int number = std::atoi(argv[i]); number > 0 && i > 1 && numbers.size() < 2) {
      numbers.push_back(number);
    } else if (given != "attention" && given != "scan" && given != "ssd") {
      std::fprintf(stderr, "gpu_sequences: '%s' is none of attention [N [BEFORE]], scan, ssd\n", argv[i]);
      return 2;
    }
  }
  Bench bench;
  if (asked("attention")) {
    using Tokens = std::pair<int32_t, int32_t>;  // of the prompt, before it
    std::vector<Tokens> prompts = {{2048, 0}, {2048, 6144}, {64, 8000}};
    if (!numbers.empty()) prompts = {{numbers[0], numbers.size() > 1 ? numbers[1] : 0}};
    for (const auto& [tokens, before] : prompts) {
      for (const auto& [query_heads, heads, dim] :
           {std::tuple<int64_t, int64_t, int64_t>{32, 4, 64}, {32, 32, 128}, {32, 8, 128}}) {
        for (const DType cache : {DType::f32, DType::f16}) {
          for (const Precision precision : {Precision::fast, Precision::exact}) {
            bench.attention(tokens, before, query_heads, heads, dim, cache, precision);
          }
        }
      }
    }
  }
  if (asked("scan")) {
    for (const int64_t channels : {512, 1536, 4096}) bench.scan(2048, channels, 16);
  }
  if (asked("ssd")) bench.state_space_duality(2048, 64, 64, 128);
  return bench.finish();
}
