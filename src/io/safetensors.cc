#include "io/safetensors.h"

#include <fmt/format.h>

#include <algorithm>
#include <cstring>
#include <optional>
#include <set>
#include <tuple>
#include <utility>
#include <vector>

#include "hxq/error.h"
#include "io/json.h"

namespace hxq {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;
constexpr size_t kLengthBytes = 8;
constexpr size_t kMaxRank = 64;  // as many as any framework knows

struct Range {
  uint64_t begin;
  uint64_t end;
  std::string name;
};

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

/// The ranges must cover [0, data_size) exactly.
void check_coverage(std::vector<Range> ranges, size_t data_begin, uint64_t data_size, const std::string& file) {
  std::ranges::sort(ranges,
                    [](const Range& a, const Range& b) { return std::tie(a.begin, a.end) < std::tie(b.begin, b.end); });
  uint64_t end = 0;
  for (const Range& range : ranges) {
    if (range.begin != end) {
      throw Error(fmt::format("data begins at {}, but the tensor before it ends at {}", range.begin, end),
                  {.file = file, .tensor = range.name, .offset = data_begin + range.begin});
    }
    end = range.end;
  }
  if (end != data_size) {
    throw Error(fmt::format("tensors end at {} of {} bytes of data", end, data_size),
                {.file = file, .offset = data_begin + end});
  }
}

/// The text of the header.
std::string_view header_of(std::span<const std::byte> bytes, const std::string& file) {
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
  const std::string_view text(reinterpret_cast<const char*>(bytes.data()) + kLengthBytes, length);
  if (!text.starts_with('{')) {
    throw Error("not a safetensors file: header does not start with '{'", {.file = file, .offset = kLengthBytes});
  }
  return text;
}

/// Reads the header while it is parsed, so that nothing is kept of it but what was checked.
class HeaderReader : public JsonEvents {
 public:
  HeaderReader(std::span<const std::byte> data, const std::string& file) : data_(data), file_(file) {}

  void key(std::string_view name) override {
    if (depth_ == 1) {
      entry_ = {.name = std::string(name)};
      if (is_known(name)) fail(fmt::format("key '{}' is there twice", name));
    } else if (depth_ == 2) {
      field_ = name;
      if (!fields_.insert(field_).second) fail(fmt::format("key '{}' is there twice", name));
    }
  }

  void begin(bool object) override {
    ++depth_;
    if (depth_ == 2 && is_metadata() && !object) fail("__metadata__ is not an object");
    if (depth_ == 2 && !is_metadata() && !object) fail("header entry is not an object");
    if (depth_ == 2) fields_.clear();
    if (depth_ == 3 && is_metadata()) fail("__metadata__ has a value that is not a string");
    if (depth_ == 3) begin_field(object);
    if (depth_ == 4 && field_ == "shape") fail("shape is not a list of non-negative integers");
    if (depth_ == 4 && field_ == "data_offsets") fail("data_offsets is not a list of two non-negative integers");
  }

  void end() override {
    if (depth_ == 2 && !is_metadata()) finish_entry();
    --depth_;
  }

  void number(uint64_t value) override {
    if (depth_ == 3 && field_ == "shape") {
      if (value > INT64_MAX) fail("shape is not a list of non-negative integers");
      if (entry_.shape->size() == kMaxRank) fail(fmt::format("shape has more than {} dimensions", kMaxRank));
      entry_.shape->push_back(static_cast<int64_t>(value));
    } else if (depth_ == 3 && field_ == "data_offsets") {
      if (entry_.offsets->size() == 2) fail("data_offsets is not a list of two non-negative integers");
      entry_.offsets->push_back(value);
    } else {
      other();
    }
  }

  void string(std::string_view value) override {
    if (depth_ == 2 && is_metadata()) {
      contents_.metadata.emplace(field_, value);
    } else if (depth_ == 2 && field_ == "dtype") {
      entry_.dtype = value;
    } else {
      other();
    }
  }

  /// Any other value.
  void other() override {
    if (depth_ == 1 && !is_metadata()) fail("header entry is not an object");
    if (depth_ == 1) fail("__metadata__ is not an object");
    if (depth_ == 2 && is_metadata()) fail("__metadata__ has a value that is not a string");
    if (depth_ == 2 && field_ == "dtype") fail("dtype is not a string");
    if ((depth_ == 2 || depth_ == 3) && field_ == "shape") {
      fail(depth_ == 2 ? "shape is not a list" : "shape is not a list of non-negative integers");
    }
    if ((depth_ == 2 || depth_ == 3) && field_ == "data_offsets") {
      fail("data_offsets is not a list of two non-negative integers");
    }
  }

  void null() override {
    if (depth_ == 1 && is_metadata()) return;  // so the reference writes that there is none
    other();
  }

  SafetensorsContents finish(size_t data_begin) {
    check_coverage(std::move(ranges_), data_begin, data_.size(), file_);
    return std::move(contents_);
  }

 private:
  struct Entry {
    std::string name = {};
    std::optional<std::string> dtype = {};
    std::optional<Shape> shape = {};
    std::optional<std::vector<uint64_t>> offsets = {};
  };

  bool is_known(std::string_view name) {
    if (name == "__metadata__") return std::exchange(has_metadata_, true);
    return contents_.tensors.contains(name) || contents_.unsupported.contains(name);
  }

  bool is_metadata() const { return entry_.name == "__metadata__"; }

  [[noreturn]] void fail(const std::string& message) const {
    throw Error(message, {.file = file_, .tensor = is_metadata() ? std::string() : entry_.name});
  }

  void begin_field(bool object) {
    if (field_ == "dtype") fail("dtype is not a string");
    if (field_ == "shape") {
      if (object) fail("shape is not a list");
      entry_.shape.emplace();
    } else if (field_ == "data_offsets") {
      if (object) fail("data_offsets is not a list of two non-negative integers");
      entry_.offsets.emplace();
    }
  }

  void finish_entry() {
    const ErrorPlace place{.file = file_, .tensor = entry_.name};
    if (!entry_.dtype) fail("header entry has no 'dtype'");
    if (!entry_.shape) fail("header entry has no 'shape'");
    if (!entry_.offsets) fail("header entry has no 'data_offsets'");
    if (entry_.offsets->size() != 2) fail("data_offsets is not a list of two non-negative integers");
    const uint64_t begin = entry_.offsets->front(), end = entry_.offsets->back();
    if (begin > end || end > data_.size()) {
      fail(fmt::format("data_offsets are [{}, {}], expected ascending and within the {} bytes of data", begin, end,
                       data_.size()));
    }
    ranges_.push_back({begin, end, entry_.name});
    const std::optional<DType> dtype = find_dtype(*entry_.dtype);
    if (!dtype) {
      contents_.unsupported.emplace(entry_.name, *entry_.dtype);
      return;
    }
    const uint64_t size = byte_size(*dtype, *entry_.shape, place);
    if (size != end - begin) {
      fail(fmt::format("{} bytes of data, expected {} for {} {}", end - begin, size, name_of(*dtype),
                       to_string(*entry_.shape)));
    }
    contents_.tensors.emplace(entry_.name, TensorView{*dtype, std::move(*entry_.shape), data_.subspan(begin, size)});
  }

  std::span<const std::byte> data_;
  const std::string& file_;
  int depth_ = 0;
  Entry entry_;
  std::string field_;
  std::set<std::string, std::less<>> fields_;  // of the entry
  bool has_metadata_ = false;
  std::vector<Range> ranges_;
  SafetensorsContents contents_;
};

}  // namespace

SafetensorsContents parse_safetensors(std::span<const std::byte> bytes, const std::string& file) {
  const std::string_view header = header_of(bytes, file);
  const size_t data_begin = kLengthBytes + header.size();
  HeaderReader reader(bytes.subspan(data_begin), file);
  read_json(header, file, reader, kLengthBytes);
  return reader.finish(data_begin);
}

SafetensorsFile SafetensorsFile::open(const std::filesystem::path& path) {
  MappedFile file = MappedFile::open(path);
  SafetensorsContents contents = parse_safetensors(file.bytes(), path.string());
  return {std::move(file), std::move(contents)};
}

}  // namespace hxq
