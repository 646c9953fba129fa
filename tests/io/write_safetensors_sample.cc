// write_safetensors_sample FILE: one tensor of every dtype and of odd and large sizes; byte i of the n-th is (i + n) %
// 256.

#include <string>
#include <vector>

#include "io/safetensors_writer.h"

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  using namespace hxq;
  std::vector<TensorPlan> tensors = {{"small.odd", DType::u8, {3}},
                                     {"large.indices", DType::u8, {512, 256}},
                                     {"large.odd", DType::u8, {333, 777}},
                                     {"codebook", DType::f32, {256}},
                                     {"positions", DType::i64, {5}},
                                     {"bf16", DType::bf16, {7}},
                                     {"f16", DType::f16, {3, 1}},
                                     {"f64", DType::f64, {2}},
                                     {"i32", DType::i32, {3}},
                                     {"i16", DType::i16, {3}},
                                     {"u16", DType::u16, {70001}},
                                     {"i8", DType::i8, {5}},
                                     {"empty", DType::f32, {0, 4}},
                                     {"scalar", DType::f32, {}},
                                     {"large.f32", DType::f32, {300, 100}}};
  SafetensorsWriter writer(argv[1], tensors);
  for (size_t n = 0; n < tensors.size(); ++n) {
    const TensorPlan& tensor = tensors[n];
    std::vector<std::byte> bytes(static_cast<size_t>(element_count(tensor.shape)) * size_of(tensor.dtype));
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>((i + n) % 256);
    writer.add(tensor.name, tensor.dtype, tensor.shape, bytes);
  }
  writer.finish();
}
