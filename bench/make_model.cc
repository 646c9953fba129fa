// Writes a random HXQ model folder of a well-known shape: config.json and model.safetensors, no tokenizer.
//
//     make_model --shape tinyllama-1.1b|llama-7b|qwen2-0.5b|mamba-130m|mamba-1.4b|mamba2-130m|mamba2-1.3b|zamba2-1.2b
//                [--grouped BITS GROUP] DST
//
// --grouped: matrices with indices of BITS, 3 to 8, and a scale for every GROUP columns, instead of the published
// format; BITS 8u: uniform levels.
//
// For measuring speed: the weights are about normal and mean nothing. The same bytes every time.

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <numeric>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "compress/encoding.h"
#include "compress/policy.h"
#include "desc/model_desc.h"
#include "hxq/error.h"
#include "io/safetensors_writer.h"

namespace {

using namespace hxq;

/// Every sixth layer of Zamba2-1.2B has the shared transformer as well.
std::vector<std::string> zamba2_layers() {
  std::vector<std::string> layers(38, "mamba");
  for (size_t i = 5; i < layers.size(); i += 6) layers[i] = "hybrid";
  return layers;
}

const std::map<std::string, nlohmann::ordered_json>& shapes() {
  static const std::map<std::string, nlohmann::ordered_json> all = {
      {"tinyllama-1.1b",
       {{"model_type", "llama"},
        {"vocab_size", 32000},
        {"hidden_size", 2048},
        {"num_hidden_layers", 22},
        {"intermediate_size", 5632},
        {"num_attention_heads", 32},
        {"num_key_value_heads", 4},
        {"max_position_embeddings", 2048},
        {"rms_norm_eps", 1e-5},
        {"rope_theta", 10000.0}}},
      {"llama-7b",
       {{"model_type", "llama"},
        {"vocab_size", 32000},
        {"hidden_size", 4096},
        {"num_hidden_layers", 32},
        {"intermediate_size", 11008},
        {"num_attention_heads", 32},
        {"num_key_value_heads", 32},
        {"max_position_embeddings", 4096},
        {"rms_norm_eps", 1e-5},
        {"rope_theta", 10000.0}}},
      {"qwen2-0.5b",
       {{"model_type", "qwen2"},
        {"vocab_size", 151936},
        {"hidden_size", 896},
        {"num_hidden_layers", 24},
        {"intermediate_size", 4864},
        {"num_attention_heads", 14},
        {"num_key_value_heads", 2},
        {"max_position_embeddings", 32768},
        {"rope_theta", 1000000.0},
        {"tie_word_embeddings", true}}},
      {"mamba-130m",
       {{"model_type", "mamba"},
        {"vocab_size", 50280},
        {"hidden_size", 768},
        {"num_hidden_layers", 24},
        {"state_size", 16},
        {"intermediate_size", 1536},
        {"time_step_rank", 48},
        {"conv_kernel", 4}}},
      {"mamba-1.4b",
       {{"model_type", "mamba"},
        {"vocab_size", 50280},
        {"hidden_size", 2048},
        {"num_hidden_layers", 48},
        {"state_size", 16},
        {"intermediate_size", 4096},
        {"time_step_rank", 128},
        {"conv_kernel", 4}}},
      {"mamba2-130m",
       {{"model_type", "mamba2"},
        {"vocab_size", 50288},
        {"hidden_size", 768},
        {"num_hidden_layers", 24},
        {"state_size", 128},
        {"num_heads", 24},
        {"head_dim", 64},
        {"n_groups", 1},
        {"expand", 2},
        {"conv_kernel", 4},
        {"tie_word_embeddings", true}}},
      {"mamba2-1.3b",
       {{"model_type", "mamba2"},
        {"vocab_size", 50288},
        {"hidden_size", 2048},
        {"num_hidden_layers", 48},
        {"state_size", 128},
        {"num_heads", 64},
        {"head_dim", 64},
        {"n_groups", 1},
        {"expand", 2},
        {"conv_kernel", 4},
        {"tie_word_embeddings", true}}},
      {"zamba2-1.2b",
       {{"model_type", "zamba2"},
        {"vocab_size", 32000},
        {"hidden_size", 2048},
        {"num_hidden_layers", 38},
        {"layers_block_type", zamba2_layers()},
        {"num_mem_blocks", 1},
        {"intermediate_size", 8192},
        {"num_attention_heads", 32},
        {"num_key_value_heads", 32},
        {"attention_head_dim", 128},
        {"adapter_rank", 128},
        {"use_shared_mlp_adapter", true},
        {"use_mem_rope", true},
        {"mamba_d_state", 64},
        {"mamba_d_conv", 4},
        {"mamba_expand", 2},
        {"mamba_headdim", 64},
        {"n_mamba_heads", 64},
        {"mamba_ngroups", 1},
        {"max_position_embeddings", 4096},
        {"tie_word_embeddings", true}}},
  };
  return all;
}

/// SplitMix64 (Steele, Lea & Flood 2014).
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}
  uint64_t next() {
    uint64_t z = state_ += 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
  }
  /// About standard normal: a sum of twelve uniform numbers.
  double normal() {
    double sum = -6;
    for (int i = 0; i < 12; ++i) sum += static_cast<double>(next() >> 11) * 0x1p-53;
    return sum;
  }

 private:
  uint64_t state_;
};

/// The form of grouped matrices; bits 0: matrices are stored in the published format.
struct Grouped {
  int bits = 0;
  int64_t group = 0;
  bool is_uniform = false;
};

/// 2^bits levels for normal weights, whole numbers as the encoder's: up to 127 for 16 or uniform ones, 2047 for 64,
/// 32767 above.
std::vector<float> make_levels(Grouped form) {
  std::vector<float> levels(size_t{1} << form.bits);
  const double largest = form.bits <= 4 ? 127 : form.bits <= 6 ? 2047 : 32767;
  if (form.is_uniform) {
    std::iota(levels.begin(), levels.end(), -128.0f);
    return levels;
  }
  const double middle = static_cast<double>(levels.size() - 1) / 2;
  for (size_t i = 0; i < levels.size(); ++i) {
    const double place = (static_cast<double>(i) - middle) / middle;
    levels[i] = static_cast<float>(std::nearbyint(largest * (place + place * place * place) / 2));
  }
  return levels;
}

/// Scales a 64th of an octave apart, around the one that gives levels that are equally frequent this deviation.
std::vector<float> make_scales(Grouped form, double deviation) {
  double squares = 0;
  const std::vector<float> levels = make_levels(form);
  for (const float level : levels) squares += static_cast<double>(level) * static_cast<double>(level);
  const double middle = deviation / std::sqrt(squares / static_cast<double>(levels.size()));
  std::vector<float> scales(256);
  for (size_t i = 0; i < scales.size(); ++i) {
    scales[i] = static_cast<float>(middle * std::exp2((static_cast<double>(i) - 128) / 64));
  }
  return scales;
}

/// 256 levels for normal weights of this deviation: like the encoder's, each has 11 significant bits and all are whole
/// multiples of one power of two.
std::vector<float> make_codebook(double deviation) {
  std::vector<float> levels(256);
  const double unit = std::exp2(std::floor(std::log2(4 * deviation)) - 10);
  for (size_t i = 0; i < levels.size(); ++i) {
    const double place = (static_cast<double>(i) - 127.5) / 128;  // denser around zero, out to 4 deviations
    levels[i] = static_cast<float>(std::nearbyint(deviation * (2 * place + 2 * place * place * place) / unit) * unit);
  }
  return levels;
}

/// One tensor that will be written.
struct Part {
  TensorPlan plan;
  const WeightDesc* weight;
  std::string_view kind;  ///< "exact", or the part's name
  Grouped grouped = {};
};

constexpr int64_t kWeightsPerOutlier = 1000;

void plan_grouped(const WeightDesc& weight, const std::string& module, Grouped form, std::vector<Part>& parts) {
  const int64_t rows = weight.shape[0], cols = weight.shape[1];
  const auto add = [&](std::string_view part, DType dtype, Shape shape) {
    parts.push_back({{fmt::format("{}.{}", module, part), dtype, std::move(shape)}, &weight, part, form});
  };
  add("grouped_levels", DType::f32, {int64_t{1} << form.bits});
  add("grouped_indices", DType::u8, {rows, (cols * form.bits + 7) / 8});
  add("grouped_scales", DType::u8, {rows, (cols + form.group - 1) / form.group});
  add("grouped_scale_levels", DType::f32, {256});
  add("grouped_shape", DType::i64, {2});
}

std::vector<Part> plan_parts(const ModelDesc& model, Grouped form) {
  std::vector<Part> parts;
  for (const WeightDesc& weight : model.weights) {
    if (weight.optional) continue;
    if (choose_codec(find_encoding({}), weight.role, weight.shape, DType::bf16) == nullptr) {
      parts.push_back({{weight.name, DType::f32, weight.shape}, &weight, "exact"});
      continue;
    }
    const std::string module = weight.name.substr(0, weight.name.rfind('.'));
    if (form.bits > 0) {
      plan_grouped(weight, module, form, parts);
      continue;
    }
    const int64_t outliers = element_count(weight.shape) / kWeightsPerOutlier;
    parts.push_back({{module + ".codebook", DType::f32, {256}}, &weight, "codebook"});
    parts.push_back({{module + ".indices", DType::u8, weight.shape}, &weight, "indices"});
    parts.push_back({{module + ".sidecar_positions", DType::i64, {outliers}}, &weight, "sidecar_positions"});
    parts.push_back({{module + ".sidecar_values", DType::f32, {outliers}}, &weight, "sidecar_values"});
  }
  return parts;
}

/// Values under which activations stay in bounds.
std::vector<float> exact_values(const WeightDesc& weight, Random& random) {
  std::vector<float> values(static_cast<size_t>(element_count(weight.shape)));
  for (size_t i = 0; i < values.size(); ++i) {
    double value = 0.2 * random.normal();
    if (weight.role == Role::norm) value = 1;
    if (weight.name.ends_with("A_log")) value = std::log(1 + static_cast<double>(i % 16));
    if (weight.name.ends_with("dt_proj.bias")) value = -4;
    values[i] = static_cast<float>(value);
  }
  return values;
}

std::vector<std::byte> bytes_of(const auto& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

/// One over the root of the inputs; 1 for embeddings and a fifth for what layers add to them. Otherwise every layer
/// multiplies what rounding changed, and the logits of two implementations have little in common.
double deviation_of(const WeightDesc& weight) {
  if (weight.role == Role::embedding) return 1;
  const double deviation = 1 / std::sqrt(static_cast<double>(weight.shape.back()));
  const bool adds = weight.name.ends_with("out_proj.weight") || weight.name.ends_with("o_proj.weight") ||
                    weight.name.ends_with("down_proj.weight");
  return adds ? deviation / 5 : deviation;
}

std::vector<std::byte> random_bytes(size_t count, Random& random) {
  std::vector<uint64_t> words((count + 7) / 8);
  std::ranges::generate(words, [&] { return random.next(); });
  std::vector<std::byte> bytes = bytes_of(words);
  bytes.resize(count);
  return bytes;
}

/// Random indices, zeros after the last of a row.
std::vector<std::byte> grouped_indices(const Part& part, Random& random) {
  const auto rows = static_cast<size_t>(part.plan.shape[0]), row_bytes = static_cast<size_t>(part.plan.shape[1]);
  std::vector<std::byte> bytes = random_bytes(rows * row_bytes, random);
  const auto used = static_cast<size_t>(part.weight->shape[1] * part.grouped.bits);
  for (size_t row = 1; row <= rows; ++row) {
    bytes[row * row_bytes - 1] &= static_cast<std::byte>(0xff >> (row_bytes * 8 - used));
  }
  return bytes;
}

std::vector<std::byte> contents(const Part& part, Random& random) {
  const auto count = static_cast<size_t>(element_count(part.plan.shape));
  const double deviation = deviation_of(*part.weight);
  if (part.kind == "exact") return bytes_of(exact_values(*part.weight, random));
  if (part.kind == "codebook") return bytes_of(make_codebook(deviation));
  if (part.kind == "indices") return random_bytes(count, random);
  if (part.kind == "grouped_levels") return bytes_of(make_levels(part.grouped));
  if (part.kind == "grouped_indices") return grouped_indices(part, random);
  if (part.kind == "grouped_scale_levels") return bytes_of(make_scales(part.grouped, deviation));
  if (part.kind == "grouped_shape") return bytes_of(std::vector<int64_t>{part.weight->shape[1], part.grouped.group});
  if (part.kind == "grouped_scales") {
    std::vector<uint8_t> scales(count);
    std::ranges::generate(scales, [&] { return static_cast<uint8_t>(112 + random.next() % 32); });
    return bytes_of(scales);
  }
  if (part.kind == "sidecar_positions") {
    std::vector<int64_t> positions(count);
    for (size_t i = 0; i < count; ++i) {
      positions[i] =
          static_cast<int64_t>(i) * kWeightsPerOutlier + static_cast<int64_t>(random.next() % kWeightsPerOutlier);
    }
    return bytes_of(positions);
  }
  std::vector<float> outliers(count);
  for (float& value : outliers) value = static_cast<float>(5 * deviation * random.normal());
  return bytes_of(outliers);
}

void make_model(const std::string& shape, Grouped form, const std::filesystem::path& target) {
  nlohmann::ordered_json config = shapes().at(shape);
  config["quantization_config"] = {{"quant_method", "hxq"}};
  const ModelDesc model = describe(nlohmann::json(config), "config.json");
  std::filesystem::create_directories(target);
  std::ofstream(target / "config.json") << config.dump(2) << "\n";

  const std::vector<Part> parts = plan_parts(model, form);
  std::vector<TensorPlan> plan;
  for (const Part& part : parts) plan.push_back(part.plan);
  SafetensorsWriter writer(target / "model.safetensors", plan);
  Random random(1);
  for (const Part& part : parts) {
    writer.add(part.plan.name, part.plan.dtype, part.plan.shape, contents(part, random));
  }
  writer.finish();
}

}  // namespace

int main(int argc, char** argv) {
  const std::vector<std::string> arguments(argv + 1, argv + argc);
  Grouped form;
  bool understood = (arguments.size() == 3 || arguments.size() == 6) && arguments[0] == "--shape";
  if (understood && arguments.size() == 6) {
    form = {std::atoi(arguments[3].c_str()), std::atoll(arguments[4].c_str()), arguments[3] == "8u"};
    understood = arguments[2] == "--grouped" && form.bits >= 3 && form.bits <= 8 && form.group > 0;
  }
  if (!understood || !shapes().contains(arguments[1])) {
    std::vector<std::string> names;
    for (const auto& [name, config] : shapes()) names.push_back(name);
    fmt::print(stderr, "usage: make_model --shape {} [--grouped BITS GROUP] DST\n", fmt::join(names, "|"));
    return 2;
  }
  try {
    make_model(arguments[1], form, arguments.back());
  } catch (const std::exception& error) {
    fmt::print(stderr, "make_model: {}\n", error.what());
    return 1;
  }
}
