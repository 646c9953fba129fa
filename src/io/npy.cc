#include "io/npy.h"

#include <fmt/format.h>
#include <zip.h>

#include <algorithm>
#include <charconv>
#include <cstring>
#include <memory>

#include "hxq/error.h"

namespace hxq {
namespace {

constexpr std::string_view kMagic = "\x93NUMPY";

struct NpyHeader {
  std::string_view descr;
  std::optional<bool> fortran_order;
  std::optional<Shape> shape;
};

/// Reads the header, a Python dict literal: {'descr': '<f4', 'fortran_order': False, 'shape': (3, 4), }
class NpyHeaderReader {
 public:
  NpyHeaderReader(std::string_view text, const std::string& file, uint64_t offset)
      : text_(text), file_(file), offset_(offset) {}

  NpyHeader read() {
    NpyHeader header;
    expect("{");
    while (!accept("}")) {
      const std::string_view key = string();
      expect(":");
      if (key == "descr") {
        header.descr = string();
      } else if (key == "fortran_order") {
        header.fortran_order = boolean();
      } else if (key == "shape") {
        header.shape = tuple();
      } else {
        fail(fmt::format("unknown key '{}' in the .npy header", key));
      }
      if (accept(",")) continue;
      expect("}");
      break;
    }
    skip_space();
    if (at_ != text_.size()) fail(".npy header goes on after its dict");
    if (header.descr.empty() || !header.fortran_order || !header.shape) {
      fail(".npy header does not give descr, fortran_order and shape");
    }
    return header;
  }

 private:
  [[noreturn]] void fail(const std::string& message) const {
    throw Error(message, {.file = file_, .offset = offset_ + at_});
  }

  void skip_space() { at_ = std::min(text_.find_first_not_of(" \n", at_), text_.size()); }

  bool accept(std::string_view token) {
    skip_space();
    if (!text_.substr(at_).starts_with(token)) return false;
    at_ += token.size();
    return true;
  }

  void expect(std::string_view token) {
    if (!accept(token)) fail(fmt::format("malformed .npy header, expected '{}'", token));
  }

  std::string_view string() {
    expect("'");
    const size_t end = text_.find('\'', at_);
    if (end == text_.npos) fail("malformed .npy header, a string does not end");
    const std::string_view value = text_.substr(at_, end - at_);
    at_ = end + 1;
    return value;
  }

  bool boolean() {
    if (accept("True")) return true;
    expect("False");
    return false;
  }

  Shape tuple() {
    Shape shape;
    expect("(");
    while (!accept(")")) {
      skip_space();
      int64_t dimension = 0;
      const auto [end, error] = std::from_chars(text_.data() + at_, text_.data() + text_.size(), dimension);
      if (error != std::errc() || dimension < 0) fail("malformed .npy header, expected a non-negative integer");
      at_ = static_cast<size_t>(end - text_.data());
      shape.push_back(dimension);
      if (accept(",")) continue;
      expect(")");
      break;
    }
    return shape;
  }

  std::string_view text_;
  const std::string& file_;
  uint64_t offset_;
  size_t at_ = 0;
};

DType dtype_of(std::string_view descr, const std::string& file) {
  struct Known {
    std::string_view descr;
    DType dtype;
  };
  static constexpr Known kKnown[] = {
      {"<f4", DType::f32}, {"<f2", DType::f16}, {"<f8", DType::f64}, {"<i8", DType::i64}, {"<i4", DType::i32},
      {"<i2", DType::i16}, {"<u2", DType::u16}, {"|u1", DType::u8},  {"|i1", DType::i8},  {"|b1", DType::boolean}};
  for (const Known& known : kKnown) {
    if (known.descr == descr) return known.dtype;
  }
  throw Error(fmt::format("NumPy dtype '{}' is not supported", descr), {.file = file});
}

/// Text of the header and where it begins.
std::string_view header_text(std::span<const std::byte> bytes, const std::string& file) {
  const std::string_view all(reinterpret_cast<const char*>(bytes.data()), bytes.size());
  const auto truncated = [&] { return Error("not a .npy file: too short", {.file = file}); };
  if (!all.starts_with(kMagic)) throw Error("not a .npy file: wrong magic", {.file = file});
  if (all.size() < 8) throw truncated();
  const auto major = static_cast<uint8_t>(bytes[6]);
  if (major < 1 || major > 3) throw Error(fmt::format(".npy version {}, expected 1 to 3", major), {.file = file});
  const size_t length_bytes = major == 1 ? 2 : 4;
  if (all.size() < 8 + length_bytes) throw truncated();
  uint32_t length = 0;
  std::memcpy(&length, bytes.data() + 8, length_bytes);
  if (length > all.size() - 8 - length_bytes) throw truncated();
  return all.substr(8 + length_bytes, length);
}

}  // namespace

TensorView parse_npy(std::span<const std::byte> bytes, const std::string& file) {
  const std::string_view text = header_text(bytes, file);
  const auto header_begin = static_cast<size_t>(text.data() - reinterpret_cast<const char*>(bytes.data()));
  const NpyHeader header = NpyHeaderReader(text, file, header_begin).read();
  const DType dtype = dtype_of(header.descr, file);
  if (*header.fortran_order) throw Error("array is in Fortran order, expected C order", {.file = file});
  const std::span<const std::byte> data = bytes.subspan(header_begin + text.size());
  uint64_t size = size_of(dtype);
  for (int64_t dimension : *header.shape) {
    if (__builtin_mul_overflow(size, static_cast<uint64_t>(dimension), &size)) {
      throw Error(fmt::format("shape {} is too large", to_string(*header.shape)), {.file = file});
    }
  }
  if (size != data.size()) {
    throw Error(fmt::format("{} bytes of data, expected {} for {} {}", data.size(), size, name_of(dtype),
                            to_string(*header.shape)),
                {.file = file});
  }
  return {dtype, *header.shape, data};
}

std::optional<std::vector<std::byte>> read_npz_member(std::span<const std::byte> archive, const std::string& member,
                                                      size_t max_bytes, const std::string& file) {
  const auto fail = [&](const char* text) { return Error(fmt::format("not a valid .npz: {}", text), {.file = file}); };
  zip_error_t error;
  zip_error_init(&error);
  zip_source_t* source = zip_source_buffer_create(archive.data(), archive.size(), 0, &error);
  if (source == nullptr) throw fail(zip_error_strerror(&error));
  zip_t* opened = zip_open_from_source(source, ZIP_RDONLY, &error);
  if (opened == nullptr) {
    zip_source_free(source);
    throw fail(zip_error_strerror(&error));
  }
  const std::unique_ptr<zip_t, void (*)(zip_t*)> zip(opened, zip_discard);
  zip_stat_t status;
  if (zip_stat(zip.get(), member.c_str(), 0, &status) != 0) return std::nullopt;
  if ((status.valid & ZIP_STAT_SIZE) == 0 || status.size > max_bytes) {
    throw fail(
        fmt::format("member {} inflates to {} bytes, expected at most {}", member, status.size, max_bytes).c_str());
  }
  const std::unique_ptr<zip_file_t, int (*)(zip_file_t*)> reader(zip_fopen_index(zip.get(), status.index, 0),
                                                                 zip_fclose);
  if (!reader) throw fail(zip_strerror(zip.get()));
  std::vector<std::byte> bytes(status.size);
  const zip_int64_t got = zip_fread(reader.get(), bytes.data(), bytes.size());
  // The checksum is compared when the end is reached.
  std::byte beyond;
  const zip_int64_t more = got < 0 ? got : zip_fread(reader.get(), &beyond, 1);
  if (more < 0) throw fail(zip_file_strerror(reader.get()));
  if (more != 0 || static_cast<zip_uint64_t>(got) != status.size)
    throw fail("a member is not as long as the archive says");
  return bytes;
}

}  // namespace hxq
