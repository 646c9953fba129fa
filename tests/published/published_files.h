#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>
#include <nlohmann/json.hpp>
#include <random>
#include <string>
#include <vector>

#include "hxq/model.h"
#include "io/safetensors_writer.h"
#include "model_runner.h"
#include "test_checkpoint.h"

namespace hxq::testing {

/// What a published folder stores of one module beside codebook and indices.
struct ModuleParts {
  int64_t outliers = 256;
  int64_t rank = 0;      ///< of the low-rank term
  float scale = 0;       ///< of the weights; 0: one over the root of the columns
  bool uniform = false;  ///< evenly spaced levels
};

/// One set of random weights, stored dense (decoded here, by the definition) and as the oldest of the published writers
/// stores it.
class PublishedFiles {
 public:
  static constexpr int64_t kLevels = 256;

  /// A tensor that both store as F32.
  void exact(const std::string& name, const Shape& shape, float scale, float mean = 0) {
    dense_[name] = published_[name] = {DType::f32, shape, bytes_of(noise(element_count(shape), scale, mean))};
  }

  /// A tensor that the published folder alone has and that nobody needs.
  void junk(const std::string& name, const Shape& shape) {
    published_[name] = {DType::f32, shape, bytes_of(noise(element_count(shape), 100))};
  }

  void compressed(const std::string& module, int64_t rows, int64_t cols, const ModuleParts& parts = {}) {
    const float scale = parts.scale > 0 ? parts.scale : 1 / std::sqrt(static_cast<float>(cols));
    std::vector<float> codebook = noise(kLevels, scale);
    for (size_t i = 0; parts.uniform && i < codebook.size(); ++i) {
      codebook[i] = scale * (static_cast<float>(i) * 4 / 255 - 2);
    }
    const std::vector<uint8_t> indices = random_bytes(rows * cols);
    std::vector<float> weight(indices.size());
    for (size_t i = 0; i < weight.size(); ++i) weight[i] = codebook[indices[i]];
    set(module + ".codebook", DType::f32, {kLevels}, codebook);
    set(module + ".indices", DType::u8, {rows, cols}, indices);
    if (parts.outliers > 0) add_outliers(module, rows * cols, parts.outliers, 3 * scale, weight);
    if (parts.rank > 0) add_low_rank(module, rows, cols, parts.rank, scale, weight);
    dense_[module + ".weight"] = {DType::f32, {rows, cols}, bytes_of(weight)};
    modules_.push_back(module);
  }

  /// Dense copies of tensors under another prefix, the first weight of each plus `change`.
  void copy_dense(const std::string& from, const std::string& to, float change) {
    for (const auto& [name, tensor] : Tensors(dense_)) {
      if (!name.starts_with(from)) continue;
      Tensor copy = tensor;
      float first;
      std::memcpy(&first, copy.bytes.data(), sizeof first);
      first += change;
      std::memcpy(copy.bytes.data(), &first, sizeof first);
      dense_[to + name.substr(from.size())] = copy;
    }
  }

  int64_t modules() const { return static_cast<int64_t>(modules_.size()); }
  int64_t keys() const { return static_cast<int64_t>(published_.size()); }

  void write_dense(const std::filesystem::path& dir, const nlohmann::json& config) const { write(dir, dense_, config); }

  void write_published(const std::filesystem::path& dir, nlohmann::json config) const {
    config["quantization_config"] = {{"quant_method", "hxq"},
                                     {"bits", 8},
                                     {"n_clusters", kLevels},
                                     {"compressed_modules", modules_},
                                     {"n_svd_routed", 0}};
    write(dir, published_, config);
  }

 private:
  struct Tensor {
    DType dtype;
    Shape shape;
    std::vector<std::byte> bytes;
  };
  using Tensors = std::map<std::string, Tensor>;

  template <class T>
  void set(const std::string& name, DType dtype, const Shape& shape, const std::vector<T>& values) {
    published_[name] = {dtype, shape, bytes_of(values)};
  }

  std::vector<float> noise(int64_t count, float scale, float mean = 0) {
    std::normal_distribution<float> normal(mean, scale);
    std::vector<float> values(static_cast<size_t>(count));
    for (float& value : values) value = normal(random_);
    return values;
  }

  std::vector<uint8_t> random_bytes(int64_t count) {
    std::vector<uint64_t> words(static_cast<size_t>(count + 7) / 8);
    for (uint64_t& word : words) word = random_();
    std::vector<uint8_t> bytes(static_cast<size_t>(count));
    std::memcpy(bytes.data(), words.data(), bytes.size());
    return bytes;
  }

  void add_outliers(const std::string& module, int64_t weights, int64_t count, float scale,
                    std::vector<float>& weight) {
    const std::vector<float> values = noise(count, scale);
    std::vector<int64_t> positions;
    for (int64_t i = 0; i < count; ++i) {
      positions.push_back(i * weights / count);
      weight[static_cast<size_t>(positions.back())] = values[static_cast<size_t>(i)];
    }
    set(module + ".sidecar_positions", DType::i64, {count}, positions);
    set(module + ".sidecar_values", DType::f32, {count}, values);
  }

  void add_low_rank(const std::string& module, int64_t rows, int64_t cols, int64_t rank, float scale,
                    std::vector<float>& weight) {
    const std::vector<float> u = noise(rows * rank, 1), vt = noise(rank * cols, scale);
    std::vector<float> s;
    for (int64_t i = 0; i < rank; ++i) s.push_back(0.5f / static_cast<float>(i + 1));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t i = 0; i < rank; ++i) {
        const double factor = static_cast<double>(u[static_cast<size_t>(r * rank + i)]) * s[static_cast<size_t>(i)];
        for (int64_t c = 0; c < cols; ++c) {
          float& w = weight[static_cast<size_t>(r * cols + c)];
          w = static_cast<float>(w + factor * vt[static_cast<size_t>(i * cols + c)]);
        }
      }
    }
    set(module + ".svd_U", DType::f32, {rows, rank}, u);
    set(module + ".svd_s", DType::f32, {rank}, s);
    set(module + ".svd_Vt", DType::f32, {rank, cols}, vt);
  }

  static void write(const std::filesystem::path& dir, const Tensors& tensors, const nlohmann::json& config) {
    std::ofstream(dir / "config.json") << config;
    std::vector<TensorPlan> plan;
    for (const auto& [name, tensor] : tensors) plan.push_back({name, tensor.dtype, tensor.shape});
    SafetensorsWriter writer(dir / "model.safetensors", plan);
    for (const auto& [name, tensor] : tensors) writer.add(name, tensor.dtype, tensor.shape, tensor.bytes);
    writer.finish();
  }

  std::mt19937_64 random_{1};
  Tensors dense_, published_;
  std::vector<std::string> modules_;
};

/// Logits of every one of `count` tokens, [count, vocab].
inline std::vector<float> logits_of(const Model& model, int count) {
  const int64_t vocab = model.info().vocab_size;
  std::vector<int32_t> tokens;
  for (int64_t i = 0; i < count; ++i) tokens.push_back(static_cast<int32_t>((i * 7919 + 5) % vocab));
  testing::ModelRunner runner(model);
  std::vector<float> logits(tokens.size() * static_cast<size_t>(vocab));
  runner.prefill(tokens, Logits::all, logits);
  return logits;
}

/// Both sets of logits are the same but for the order of sums: 1e-4 of the largest.
inline void expect_same_logits(const std::vector<float>& got, const std::vector<float>& expected) {
  ASSERT_EQ(got.size(), expected.size());
  float largest = 0, smallest = 0;
  for (const float logit : expected) {
    largest = std::max(largest, logit);
    smallest = std::min(smallest, logit);
  }
  ASSERT_GT(largest - smallest, 0.5f) << "a model that says nothing";
  const float bound = 1e-4f * std::max(largest, -smallest);
  for (size_t i = 0; i < got.size(); ++i) ASSERT_NEAR(got[i], expected[i], bound) << i;
}

}  // namespace hxq::testing
