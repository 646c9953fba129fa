// A codec that the tests add to the library: a byte per weight, and a scale for every row.
//
//     W[r, c] = row_scales[r] * row_int8[r, c]

#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstring>
#include <nlohmann/json.hpp>

#include "codec/encoder.h"
#include "codec/module_parts.h"
#include "hxq/error.h"

namespace hxq {

extern const Codec kRowInt8;

namespace {

// ---- Reading ----

constexpr PartSpec kParts[] = {
    {"row_int8", PartSpec::Kind::needed},    // I8 [rows, cols]
    {"row_scales", PartSpec::Kind::needed},  // F32 [rows]
};

struct RowInt8Matrix final : StoredMatrix {
  RowInt8Matrix() : StoredMatrix(&kRowInt8) {}

  std::span<const std::byte> values;  // [rows, cols]
  std::vector<float> scales;          // [rows]

  void decode_rows(int64_t begin, int64_t end, std::span<float> out) const noexcept override {
    for (int64_t r = begin; r < end; ++r) {
      for (int64_t c = 0; c < cols; ++c) {
        const auto value = static_cast<int8_t>(values[static_cast<size_t>(r * cols + c)]);
        out[static_cast<size_t>((r - begin) * cols + c)] = scales[static_cast<size_t>(r)] * static_cast<float>(value);
      }
    }
  }

  int64_t bytes_read() const noexcept override {
    return static_cast<int64_t>(values.size() + scales.size() * sizeof(float));
  }
};

Shape shape(const Checkpoint& checkpoint, std::string_view module) {
  const ModuleParts parts(checkpoint, module);
  const Shape& found = parts.get("row_int8").shape;
  parts.require_matrix("row_int8", found, {});
  return found;
}

std::unique_ptr<const StoredMatrix> read(const Checkpoint& checkpoint, std::string_view module, const Shape& expected) {
  const ModuleParts parts(checkpoint, module);
  const TensorView& values = parts.get("row_int8", DType::i8);
  parts.require_matrix("row_int8", values.shape, expected);
  parts.require_shape("row_scales", {values.shape[0]});
  auto matrix = std::make_unique<RowInt8Matrix>();
  matrix->rows = values.shape[0];
  matrix->cols = values.shape[1];
  matrix->values = values.bytes;
  matrix->scales = parts.floats("row_scales");
  return matrix;
}

StoredForm describe(const Checkpoint&, std::string_view) { return {.text = "int8 per row", .dtype = DType::i8}; }

// ---- Encoding ----

int64_t expected_bytes(const Shape& shape, const EncodeOptions&) noexcept { return shape[0] * shape[1] + 4 * shape[0]; }

std::vector<PartPlan> largest_parts(const Shape& shape, const EncodeOptions&) {
  return {{"row_int8", DType::i8, shape}, {"row_scales", DType::f32, {shape[0]}}};
}

EncodedTensor encode(const TensorView& source, const EncodeOptions&) {
  const auto rows = static_cast<size_t>(source.shape[0]), cols = static_cast<size_t>(source.shape[1]);
  const std::vector<float> weights = to_float(source);
  if (!std::ranges::all_of(weights, [](float w) { return std::isfinite(w); })) throw Error("weights are not finite");
  std::vector<std::byte> values(rows * cols), scales(rows * sizeof(float));
  std::vector<float> decoded(rows * cols);
  for (size_t r = 0; r < rows; ++r) {
    float largest = 0;
    for (size_t c = 0; c < cols; ++c) largest = std::max(largest, std::fabs(weights[r * cols + c]));
    const float scale = largest / 127;
    for (size_t c = 0; c < cols && scale > 0; ++c) {
      const auto value = static_cast<int8_t>(std::clamp(std::nearbyint(weights[r * cols + c] / scale), -127.f, 127.f));
      values[r * cols + c] = static_cast<std::byte>(value);
      decoded[r * cols + c] = scale * static_cast<float>(value);
    }
    std::memcpy(scales.data() + r * sizeof(float), &scale, sizeof(float));
  }
  return {.parts = {{"row_int8", DType::i8, source.shape, std::move(values)},
                    {"row_scales", DType::f32, {source.shape[0]}, std::move(scales)}},
          .fidelity = compare(source, decoded)};
}

nlohmann::json config(const EncodeOptions&) { return {{"bits", 8}}; }

}  // namespace

// ---- The rows of the tables ----

constinit const Codec kRowInt8 = {
    .id = "row_int8", .parts = kParts, .shape = shape, .read = read, .describe = describe};

namespace {

constinit const Encoder kRowInt8Encoder = {.codec = &kRowInt8,
                                           .keeps_outliers = false,
                                           .has_low_rank = false,
                                           .expected_bytes = expected_bytes,
                                           .largest_parts = largest_parts,
                                           .encode = encode,
                                           .config = config};

const bool kRegistered = (register_codec(kRowInt8), register_encoder(kRowInt8Encoder), true);

}  // namespace
}  // namespace hxq
