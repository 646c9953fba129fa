#include "desc/rope.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>
#include <optional>

#include "desc/config_reader.h"

namespace hxq {
namespace {

RopeDesc::Type type_of(const ConfigReader& parameters) {
  // "type" is how configs before transformers 4.43 spell it.
  const char* key = parameters.has("rope_type") ? "rope_type" : "type";
  const std::string name = parameters.text_or(key, "default");
  if (name == "default") return RopeDesc::Type::standard;
  if (name == "linear") return RopeDesc::Type::linear;
  if (name == "dynamic") return RopeDesc::Type::dynamic;
  if (name == "llama3") return RopeDesc::Type::llama3;
  parameters.fail(key, "\"default\", \"linear\", \"dynamic\" or \"llama3\"");
}

double positive(const ConfigReader& config, const char* key, double fallback) {
  const double value = config.number_or(key, fallback);
  if (!(value > 0) || !std::isfinite(value)) config.fail(key, "a positive number");
  return value;
}

double required_factor(const ConfigReader& parameters) {
  const double factor = parameters.number_or("factor", 0);
  if (!(factor >= 1) || !std::isfinite(factor)) parameters.fail("factor", "a number of at least 1");
  return factor;
}

/// Llama 3.1: wavelengths beyond trained / low are stretched by the factor, those within trained / high stay.
double llama3_frequency(const RopeDesc& rope, double frequency) {
  const double turns = static_cast<double>(rope.trained_positions) * frequency / (2 * std::numbers::pi);
  if (turns > rope.high_freq_factor) return frequency;
  if (turns < rope.low_freq_factor) return frequency / rope.factor;
  const double smooth = (turns - rope.low_freq_factor) / (rope.high_freq_factor - rope.low_freq_factor);
  return (1 - smooth) * frequency / rope.factor + smooth * frequency;
}

}  // namespace

RopeDesc read_rope(const ConfigReader& config, int64_t head_dim) {
  if (head_dim % 2 != 0) config.fail("head_dim", "an even number, or hidden_size / num_attention_heads to be one");
  RopeDesc rope{.head_dim = head_dim, .theta = positive(config, "rope_theta", 10000)};
  const std::optional<ConfigReader> scaling = config.section("rope_scaling");
  const std::optional<ConfigReader> given = scaling ? scaling : config.section("rope_parameters");
  if (!given) return rope;
  const ConfigReader& parameters = *given;

  for (const char* nested : {"full_attention", "sliding_attention"}) {
    if (parameters.has(nested)) parameters.fail(nested, "nothing: one set of parameters for all layers");
  }
  if (parameters.number_or("partial_rotary_factor", 1) != 1) parameters.fail("partial_rotary_factor", "1");
  rope.type = type_of(parameters);
  rope.theta = positive(parameters, "rope_theta", rope.theta);
  if (rope.type != RopeDesc::Type::standard) rope.factor = required_factor(parameters);
  if (rope.type == RopeDesc::Type::dynamic) {
    rope.trained_positions = config.size("max_position_embeddings");
    if (head_dim == 2) config.fail("head_dim", "more than 2 for dynamic rotary scaling");
  }
  if (rope.type == RopeDesc::Type::llama3) {
    rope.low_freq_factor = positive(parameters, "low_freq_factor", 1);
    rope.high_freq_factor = positive(parameters, "high_freq_factor", 4);
    if (rope.high_freq_factor <= rope.low_freq_factor) parameters.fail("high_freq_factor", "more than low_freq_factor");
    const char* key = "original_max_position_embeddings";
    rope.trained_positions = parameters.has(key) ? parameters.size(key) : config.size("max_position_embeddings");
  }
  return rope;
}

std::vector<float> inverse_frequencies(const RopeDesc& rope, int64_t sequence_length) {
  const auto dim = static_cast<double>(rope.head_dim);
  double theta = rope.theta;
  if (rope.type == RopeDesc::Type::dynamic && sequence_length > rope.trained_positions) {
    const double stretch = static_cast<double>(sequence_length) / static_cast<double>(rope.trained_positions);
    theta *= std::pow(rope.factor * stretch - (rope.factor - 1), dim / (dim - 2));
  }
  std::vector<float> frequencies(static_cast<size_t>(rope.head_dim / 2));
  for (size_t i = 0; i < frequencies.size(); ++i) {
    double frequency = std::pow(theta, -2 * static_cast<double>(i) / dim);
    if (rope.type == RopeDesc::Type::linear) frequency /= rope.factor;
    if (rope.type == RopeDesc::Type::llama3) frequency = llama3_frequency(rope, frequency);
    frequencies[i] = static_cast<float>(frequency);
  }
  return frequencies;
}

int64_t context_limit(const ConfigReader& config, const RopeDesc& rope) {
  if (!config.has("max_position_embeddings")) return 0;
  const int64_t positions = config.size("max_position_embeddings");
  if (rope.type != RopeDesc::Type::linear && rope.type != RopeDesc::Type::dynamic) return positions;
  constexpr double kMost = std::numeric_limits<int32_t>::max();
  return static_cast<int64_t>(std::min(static_cast<double>(positions) * rope.factor, kMost));
}

}  // namespace hxq
