#include "io/safetensors_writer.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <utility>
#include <vector>

#include "hxq/error.h"
#include "io/temporary_file.h"

namespace hxq {
namespace {

constexpr uint64_t kAlignment = 64;            // of the data area in the file
constexpr size_t kStreamedAtLeast = 64 << 10;  // bytes; smaller tensors wait for their place at the end
constexpr size_t kCopyBuffer = 1 << 20;        // bytes
constexpr uint64_t kLengthBytes = 8;           // header length field

struct Entry {
  std::string key;  // the name as a JSON string
  DType dtype;
  Shape shape;
  uint64_t size;      // bytes
  uint64_t position;  // in the data area, or in the spool while it waits there
};

std::string json_string(std::string_view name) {
  try {
    return nlohmann::json(name).dump();
  } catch (const nlohmann::json::exception&) {
    throw Error("tensor name is not valid UTF-8");
  }
}

std::string header_entry(std::string_view key, DType dtype, const Shape& shape, uint64_t begin, uint64_t end) {
  return fmt::format(R"(,{}:{{"dtype":"{}","shape":[{}],"data_offsets":[{},{}]}})", key, name_of(dtype),
                     fmt::join(shape, ","), begin, end);
}

uint64_t byte_size(DType dtype, const Shape& shape) {
  return static_cast<uint64_t>(element_count(shape)) * size_of(dtype);
}

uint64_t round_up(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }

/// Where the data area begins: room for the header with every planned tensor and the largest offsets it can have.
/// The header up to its first tensor.
std::string header_begin(const Metadata& metadata) {
  std::string text = R"({"__metadata__":{"format":"pt")";
  for (const auto& [key, value] : metadata) {
    if (key != "format") text += fmt::format(",{}:{}", json_string(key), json_string(value));
  }
  return text + '}';
}

uint64_t data_begin_for(std::span<const TensorPlan> plan, const std::string& begin) {
  uint64_t total = 0;
  for (const TensorPlan& tensor : plan) total += byte_size(tensor.dtype, tensor.shape);
  uint64_t header = begin.size() + 1;
  for (const TensorPlan& tensor : plan) {
    header += header_entry(json_string(tensor.name), tensor.dtype, tensor.shape, total, total).size();
  }
  return round_up(kLengthBytes + header, kAlignment);
}

}  // namespace

struct SafetensorsWriter::State {
  State(const std::filesystem::path& target, std::span<const TensorPlan> plan, const Metadata& metadata)
      : path(target),
        begin(header_begin(metadata)),
        data_begin(data_begin_for(plan, begin)),
        file(target),
        spool(target) {
    spool.unlink();
  }
  State(const std::filesystem::path& target, std::span<const TensorPlan> plan, const Metadata& metadata, Leftovers)
      : path(target),
        begin(header_begin(metadata)),
        data_begin(data_begin_for(plan, begin)),
        file(target, ".part"),
        spool(target, ".small") {}

  std::filesystem::path path;
  std::string begin;    // of the header
  uint64_t data_begin;  // offset of the data area in the file
  TemporaryFile file;
  TemporaryFile spool;
  uint64_t data_size = 0;
  uint64_t spool_size = 0;
  std::vector<Entry> placed = {};   // in order of position
  std::vector<Entry> waiting = {};  // in order of arrival
  std::set<std::string, std::less<>> names = {};

  /// Any multiple of 8 keeps the next tensor aligned, whatever its type.
  static bool is_streamed(uint64_t bytes) { return bytes >= kStreamedAtLeast && bytes % 8 == 0; }
  Entry place(std::string_view name, DType dtype, const Shape& shape, uint64_t bytes);
  void copy_from_spool(const Entry& entry);
  std::string header() const;
};

/// The next tensor's entry, noted: large ones stay where they are written.
Entry SafetensorsWriter::State::place(std::string_view name, DType dtype, const Shape& shape, uint64_t bytes) {
  const ErrorPlace where{.file = path.string(), .tensor = std::string(name)};
  if (!names.emplace(name).second) throw Error("is added twice", where);
  if (bytes != byte_size(dtype, shape)) {
    throw Error(fmt::format("{} bytes for {} {}", bytes, name_of(dtype), to_string(shape)), where);
  }
  const bool streamed = is_streamed(bytes);
  uint64_t& end = streamed ? data_size : spool_size;
  Entry entry{json_string(name), dtype, shape, bytes, std::exchange(end, end + bytes)};
  (streamed ? placed : waiting).push_back(entry);
  return entry;
}

void SafetensorsWriter::State::copy_from_spool(const Entry& entry) {
  std::vector<std::byte> buffer(std::min<uint64_t>(entry.size, kCopyBuffer));
  for (uint64_t done = 0; done < entry.size;) {
    const std::span<std::byte> part(buffer.data(), std::min<uint64_t>(buffer.size(), entry.size - done));
    spool.read(part, entry.position + done, path);
    file.write(part, data_begin + data_size + done, path);
    done += part.size();
  }
  Entry moved = entry;
  moved.position = data_size;
  data_size += entry.size;
  placed.push_back(std::move(moved));
}

/// Length field and header, padded with spaces up to the data area.
std::string SafetensorsWriter::State::header() const {
  std::string text = begin;
  for (const Entry& entry : placed) {
    text += header_entry(entry.key, entry.dtype, entry.shape, entry.position, entry.position + entry.size);
  }
  text += '}';
  const uint64_t room = data_begin - kLengthBytes;
  if (text.size() > room) {
    throw Error(fmt::format("header is {} bytes, the plan left {}", text.size(), room), {.file = path.string()});
  }
  text.resize(room, ' ');
  std::string length(kLengthBytes, '\0');
  std::memcpy(length.data(), &room, kLengthBytes);
  return length + text;
}

SafetensorsWriter::SafetensorsWriter(const std::filesystem::path& path, std::span<const TensorPlan> plan,
                                     const Metadata& metadata, Leftovers leftovers)
    : state_(leftovers == Leftovers::take_up ? std::make_unique<State>(path, plan, metadata, leftovers)
                                             : std::make_unique<State>(path, plan, metadata)) {}

SafetensorsWriter::~SafetensorsWriter() = default;

void SafetensorsWriter::add(std::string_view name, DType dtype, const Shape& shape, std::span<const std::byte> bytes) {
  State& state = *state_;
  const Entry entry = state.place(name, dtype, shape, bytes.size());
  if (state.is_streamed(bytes.size())) {
    state.file.write(bytes, state.data_begin + entry.position, state.path);
  } else {
    state.spool.write(bytes, entry.position, state.path);
  }
}

bool SafetensorsWriter::take_up(std::string_view name, DType dtype, const Shape& shape,
                                const std::function<bool(std::span<const std::byte>)>& is_right) {
  State& state = *state_;
  const Entry entry = state.place(name, dtype, shape, byte_size(dtype, shape));
  return state.is_streamed(entry.size) ? state.file.check(state.data_begin + entry.position, entry.size, is_right)
                                       : state.spool.check(entry.position, entry.size, is_right);
}

void SafetensorsWriter::finish() {
  State& state = *state_;
  std::ranges::stable_sort(state.waiting, std::greater<>(), [](const Entry& entry) { return size_of(entry.dtype); });
  for (const Entry& entry : state.waiting) state.copy_from_spool(entry);
  state.waiting.clear();
  state.file.truncate(state.data_begin + state.data_size, state.path);
  const std::string header = state.header();
  state.file.write(std::as_bytes(std::span(header)), 0, state.path);
  state.file.sync_and_rename(state.path);
}

}  // namespace hxq
