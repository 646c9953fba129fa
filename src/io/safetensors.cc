#include "io/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <vector>

#include "hxq/error.h"
#include "io/json.h"

namespace hxq {
namespace {

using Json = nlohmann::json;

constexpr uint64_t kMaxHeader = 100'000'000;
constexpr size_t kLengthBytes = 8;

struct Range {
  uint64_t begin;
  uint64_t end;
  std::string_view name;
};

const Json& field(const Json& entry, const char* key, const ErrorPlace& place) {
  const auto found = entry.find(key);
  if (found == entry.end()) throw Error(fmt::format("header entry has no '{}'", key), place);
  return *found;
}

Shape read_shape(const Json& entry, const ErrorPlace& place) {
  const Json& json = field(entry, "shape", place);
  if (!json.is_array()) throw Error("shape is not a list", place);
  Shape shape;
  for (const Json& dimension : json) {
    if (!dimension.is_number_unsigned() || dimension.get<uint64_t>() > INT64_MAX) {
      throw Error("shape is not a list of non-negative integers", place);
    }
    shape.push_back(dimension.get<int64_t>());
  }
  return shape;
}

Range read_range(const Json& entry, std::string_view name, uint64_t data_size, const ErrorPlace& place) {
  const Json& json = field(entry, "data_offsets", place);
  if (!json.is_array() || json.size() != 2 || !json[0].is_number_unsigned() || !json[1].is_number_unsigned()) {
    throw Error("data_offsets is not a list of two non-negative integers", place);
  }
  const Range range{json[0].get<uint64_t>(), json[1].get<uint64_t>(), name};
  if (range.begin > range.end || range.end > data_size) {
    throw Error(fmt::format("data_offsets are [{}, {}], expected ascending and within the {} bytes of data",
                            range.begin, range.end, data_size),
                place);
  }
  return range;
}

/// Bytes of a tensor. Throws on overflow.
uint64_t byte_size(DType dtype, const Shape& shape, const ErrorPlace& place) {
  uint64_t size = size_of(dtype);
  for (int64_t dimension : shape) {
    if (__builtin_mul_overflow(size, static_cast<uint64_t>(dimension), &size)) {
      throw Error(fmt::format("shape {} is too large", to_string(shape)), place);
    }
  }
  return size;
}

Json read_header(std::span<const std::byte> bytes, const std::string& file, size_t& data_begin) {
  if (bytes.size() < kLengthBytes) {
    throw Error(fmt::format("not a safetensors file: {} bytes, expected at least {}", bytes.size(), kLengthBytes),
                {.file = file});
  }
  uint64_t length = 0;
  std::memcpy(&length, bytes.data(), kLengthBytes);
  if (length > kMaxHeader) {
    throw Error(fmt::format("not a safetensors file: header length is {}, expected at most {}", length, kMaxHeader),
                {.file = file, .offset = 0});
  }
  if (length > bytes.size() - kLengthBytes) {
    throw Error(
        fmt::format("not a safetensors file, or one that was cut off: header length is {}, but only {} bytes follow",
                    length, bytes.size() - kLengthBytes),
        {.file = file, .offset = 0});
  }
  data_begin = kLengthBytes + length;
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, length);
  if (!text.starts_with('{')) {
    throw Error("not a safetensors file: header does not start with '{'", {.file = file, .offset = kLengthBytes});
  }
  return parse_json(text, file, {.unique_keys = true, .base_offset = kLengthBytes});
}

void read_metadata(const Json& json, const std::string& file, SafetensorsContents& contents) {
  const auto text = [&](const Json& value) {
    if (!value.is_string()) throw Error("__metadata__ has a value that is not a string", {.file = file});
    return value.get<std::string>();
  };
  if (!json.is_object()) throw Error("__metadata__ is not an object", {.file = file});
  for (const auto& [key, value] : json.items()) contents.metadata.emplace(key, text(value));
}

/// The ranges must cover [0, data_size) exactly.
void check_coverage(std::vector<Range> ranges, size_t data_begin, uint64_t data_size, const std::string& file) {
  std::ranges::sort(ranges,
                    [](const Range& a, const Range& b) { return std::tie(a.begin, a.end) < std::tie(b.begin, b.end); });
  uint64_t end = 0;
  for (const Range& range : ranges) {
    if (range.begin != end) {
      throw Error(fmt::format("data begins at {}, but the tensor before it ends at {}", range.begin, end),
                  {.file = file, .tensor = std::string(range.name), .offset = data_begin + range.begin});
    }
    end = range.end;
  }
  if (end != data_size) {
    throw Error(fmt::format("tensors end at {} of {} bytes of data", end, data_size),
                {.file = file, .offset = data_begin + end});
  }
}

}  // namespace

SafetensorsContents parse_safetensors(std::span<const std::byte> bytes, const std::string& file) {
  size_t data_begin = 0;
  const Json header = read_header(bytes, file, data_begin);
  const std::span<const std::byte> data = bytes.subspan(data_begin);
  SafetensorsContents contents;
  std::vector<Range> ranges;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") {
      read_metadata(entry, file, contents);
      continue;
    }
    const ErrorPlace place{.file = file, .tensor = name};
    if (!entry.is_object()) throw Error("header entry is not an object", place);
    const Json& dtype_name = field(entry, "dtype", place);
    if (!dtype_name.is_string()) throw Error("dtype is not a string", place);
    Shape shape = read_shape(entry, place);
    const Range range = read_range(entry, name, data.size(), place);
    ranges.push_back(range);
    const std::optional<DType> dtype = find_dtype(dtype_name.get_ref<const std::string&>());
    if (!dtype) {
      contents.unsupported.emplace(name, dtype_name.get<std::string>());
      continue;
    }
    const uint64_t size = byte_size(*dtype, shape, place);
    if (size != range.end - range.begin) {
      throw Error(fmt::format("{} bytes of data, expected {} for {} {}", range.end - range.begin, size, name_of(*dtype),
                              to_string(shape)),
                  place);
    }
    contents.tensors.emplace(name, TensorView{*dtype, std::move(shape), data.subspan(range.begin, size)});
  }
  check_coverage(std::move(ranges), data_begin, data.size(), file);
  return contents;
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  MappedFile file = MappedFile::open(path);
  SafetensorsContents contents = parse_safetensors(file.bytes(), path.string());
  return {std::move(file), std::move(contents)};
}

}  // namespace hxq
