#pragma once

#include <cstring>
#include <map>
#include <string>
#include <vector>

#include "hxq/tensor.h"
#include "io/checkpoint.h"
#include "io/safetensors_writer.h"
#include "temp_dir.h"

namespace hxq::testing {

template <class T>
std::vector<std::byte> bytes_of(const std::vector<T>& values) {
  const auto bytes = std::as_bytes(std::span(values));
  return {bytes.begin(), bytes.end()};
}

/// Tensors to be opened as a checkpoint.
class TestCheckpoint {
 public:
  /// Adds or replaces a tensor; `values` are its elements in memory.
  template <class T>
  void set(const std::string& name, DType dtype, const Shape& shape, const std::vector<T>& values) {
    tensors_[name] = {{name, dtype, shape}, bytes_of(values)};
  }

  /// Writes one file and opens it. The file is gone afterwards; its mapping stays.
  Checkpoint open() const {
    const TempDir dir;
    std::vector<TensorPlan> plan;
    for (const auto& [name, tensor] : tensors_) plan.push_back(tensor.plan);
    const std::filesystem::path path = dir.path() / "model.safetensors";
    SafetensorsWriter writer(path, plan);
    for (const auto& [name, tensor] : tensors_) writer.add(name, tensor.plan.dtype, tensor.plan.shape, tensor.bytes);
    writer.finish();
    return Checkpoint::open(path);
  }

 private:
  struct Tensor {
    TensorPlan plan;
    std::vector<std::byte> bytes;
  };
  std::map<std::string, Tensor> tensors_;
};

}  // namespace hxq::testing
