#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>
#include <optional>

#include "codec/stored_tensors.h"
#include "compress/completeness.h"
#include "compress/side_files.h"
#include "compress/staged_folder.h"
#include "folder/model_folder.h"
#include "hxq/compress.h"
#include "hxq/error.h"
#include "io/half.h"
#include "io/json.h"
#include "io/sharded_writer.h"
#include "io/system_error.h"

namespace hxq {
namespace {

/// Weights decoded at a time, between conversions to the output's type.
constexpr int64_t kBlockWeights = int64_t{1} << 20;

void store_as(DType dtype, std::span<const float> values, std::byte* out) {
  if (dtype == DType::f32) {
    std::memcpy(out, values.data(), values.size_bytes());
    return;
  }
  const auto narrow = dtype == DType::f16 ? f16_from_float : bf16_from_float;
  const auto widen = dtype == DType::f16 ? float_from_f16 : float_from_bf16;
  for (size_t i = 0; i < values.size(); ++i) {
    const uint16_t bits = narrow(values[i]);
    if (!std::isfinite(widen(bits))) {
      throw Error(fmt::format("weight {} is too large for {}; decompress to F32", values[i], name_of(dtype)));
    }
    std::memcpy(out + 2 * i, &bits, 2);
  }
}

/// The matrix that x is multiplied with: decoded, channel scales folded in.
std::vector<std::byte> decode_matrix(const StoredMatrix& matrix, DType dtype) {
  const size_t element = size_of(dtype);
  std::vector<std::byte> out(static_cast<size_t>(matrix.rows * matrix.cols) * element);
  const int64_t block_rows = std::max<int64_t>(1, kBlockWeights / std::max<int64_t>(1, matrix.cols));
  std::vector<float> block;
  for (int64_t begin = 0; begin < matrix.rows; begin += block_rows) {
    const int64_t end = std::min(begin + block_rows, matrix.rows);
    block.resize(static_cast<size_t>((end - begin) * matrix.cols));
    decode_dense_rows(matrix, begin, end, block);
    store_as(dtype, block, out.data() + static_cast<size_t>(begin * matrix.cols) * element);
  }
  return out;
}

/// `dtype` is that of the decoded matrices; without any, config.json says what it said.
nlohmann::ordered_json dense_config(nlohmann::ordered_json config, std::optional<DType> dtype) {
  config.erase("quantization_config");
  if (!dtype) return config;
  const char* name = dtype == DType::f32 ? "float32" : dtype == DType::f16 ? "float16" : "bfloat16";
  config[config.contains("dtype") ? "dtype" : "torch_dtype"] = name;
  return config;
}

int64_t decompress_folder(const std::filesystem::path& source, const std::filesystem::path& destination,
                          const DecompressOptions& options) {
  if (!is_float(options.dtype)) {
    throw Error(fmt::format("cannot decompress to {}: expected F32, F16 or BF16", name_of(options.dtype)));
  }
  const ModelFolder model = ModelFolder::open(source);
  const Checkpoint& checkpoint = model.checkpoint;
  model.check_dtypes();
  if (const std::vector<Error> faults = completeness_faults(model); !faults.empty()) throw faults.front();
  std::vector<StoredTensor> tensors = list_tensors(checkpoint);
  std::vector<TensorPlan> plan;
  int64_t total = 0;
  for (StoredTensor& tensor : tensors) {
    tensor.shape = model.shape_of(tensor);
    const DType dtype = tensor.codec ? options.dtype : checkpoint.find(tensor.name)->dtype;
    plan.push_back({tensor.name, dtype, tensor.shape});
    total += element_count(tensor.shape) * static_cast<int64_t>(size_of(dtype));
  }

  StagedFolder folder(destination);
  const SideFiles side_files = find_side_files(checkpoint, std::array{folder.path(), destination});
  if (options.notice && !side_files.left_out.empty()) options.notice(left_out_text(side_files.left_out));
  const bool none = std::ranges::none_of(tensors, [](const StoredTensor& tensor) { return tensor.codec != nullptr; });
  if (options.notice && none) options.notice("no tensor is compressed: all are copied as they are, in their dtypes");
  ShardedWriter writer(folder.path(), plan, options.max_shard_bytes, checkpoint.metadata());
  int64_t done = 0;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const StoredTensor& tensor = tensors[i];
    if (options.progress) options.progress(tensor.name, done, total);
    const int64_t bytes = element_count(tensor.shape) * static_cast<int64_t>(size_of(plan[i].dtype));
    writer.begin_group(bytes);
    if (tensor.codec) {
      const auto matrix = tensor.codec->read(checkpoint, tensor.module, tensor.shape);
      std::vector<std::byte> decoded;
      try {
        decoded = decode_matrix(*matrix, options.dtype);
      } catch (const Error& error) {
        throw Error(error.what(), {.file = source.string(), .tensor = tensor.name});
      }
      writer.add(tensor.name, options.dtype, tensor.shape, decoded);
    } else {
      const TensorView& view = *checkpoint.find(tensor.name);
      writer.add(tensor.name, view.dtype, view.shape, view.bytes);
      checkpoint.drop(view);
    }
    done += bytes;
  }
  if (options.progress) options.progress({}, done, total);
  writer.finish();
  if (!checkpoint.config().is_null()) {
    folder.write("config.json", json_text(dense_config(load_json_to_edit(source / "config.json"),
                                                       none ? std::nullopt : std::optional(options.dtype))) +
                                    "\n");
  }
  copy_side_files(source, side_files, folder);
  folder.commit();
  return total;
}

}  // namespace

int64_t decompress(const std::filesystem::path& source, const std::filesystem::path& destination,
                   const DecompressOptions& options) {
  return with_file_errors([&] { return decompress_folder(source, destination, options); });
}

}  // namespace hxq
