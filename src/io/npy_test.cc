#include "io/npy.h"

#include <gtest/gtest.h>
#include <zip.h>

#include <cstring>

#include "hxq/error.h"
#include "io/mapped_file.h"
#include "temp_dir.h"

namespace hxq {
namespace {

constexpr char kF32[] = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), }\n";

std::string npy(std::string_view dict, size_t data_bytes, char major = 1) {
  std::string file = "\x93NUMPY";
  file += {major, '\0'};
  const auto length = static_cast<uint32_t>(dict.size());
  file.append(reinterpret_cast<const char*>(&length), major == 1 ? 2 : 4);
  file += dict;
  for (size_t i = 0; i < data_bytes; ++i) file += static_cast<char>(i);
  return file;
}

/// A copy of exactly its own size, for the address sanitizer.
std::vector<std::byte> bytes_of(std::string_view text) {
  const auto bytes = std::as_bytes(std::span(text));
  return {bytes.begin(), bytes.end()};
}

TEST(Npy, ReadsVersionsOneToThree) {
  for (char major : {'\1', '\2', '\3'}) {
    const std::vector<std::byte> file = bytes_of(npy(kF32, 24, major));
    const TensorView view = parse_npy(file, "x");
    EXPECT_EQ(view.dtype, DType::f32);
    EXPECT_EQ(view.shape, (Shape{2, 3}));
    ASSERT_EQ(view.bytes.size(), 24u);
    EXPECT_EQ(view.bytes[23], std::byte{23});
  }
}

TEST(Npy, ReadsOneDimensionAndScalars) {
  EXPECT_EQ(parse_npy(bytes_of(npy("{'descr': '<f2', 'fortran_order': False, 'shape': (4,), }", 8)), "x").shape,
            Shape{4});
  EXPECT_EQ(parse_npy(bytes_of(npy("{'shape':(),'fortran_order':False,'descr':'|u1'}", 1)), "x").shape, Shape{});
}

TEST(Npy, RefusesEveryTruncation) {
  const std::vector<std::byte> whole = bytes_of(npy(kF32, 24));
  for (size_t size = 0; size < whole.size(); ++size) {
    const std::vector<std::byte> cut(whole.begin(), whole.begin() + static_cast<ptrdiff_t>(size));
    EXPECT_THROW(parse_npy(cut, "x"), Error) << size;
  }
}

TEST(Npy, RefusesWhatIsMalformedOrNotSupported) {
  const std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': ";
  for (const std::string& file : {
           npy(kF32, 25),
           npy(kF32, 24, 0),
           npy(kF32, 24, 4),
           npy("{'descr': '>f4', 'fortran_order': False, 'shape': (2, 3), }", 24),
           npy("{'descr': '|O', 'fortran_order': False, 'shape': (2, 3), }", 24),
           npy("{'descr': '<f4', 'fortran_order': True, 'shape': (2, 3), }", 24),
           npy("{'descr': '<f4', 'shape': (2, 3), }", 24),
           npy("{'descr': '<f4', 'fortran_order': False, }", 24),
           npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), 'more': 1}", 24),
           npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3), } x", 24),
           npy("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 3)", 24),
           npy("{'descr': '<f4", 24),
           npy("", 24),
           npy(header + "(-2, 3)}", 24),
           npy(header + "(2 3)}", 24),
           npy(header + "(2.0, 3)}", 24),
           npy(header + "6}", 24),
           npy(header + "(4294967296, 4294967296, 4)}", 0),
           npy(header + "(99999999999999999999,)}", 0),
       }) {
    EXPECT_THROW(parse_npy(bytes_of(file), "x"), Error) << file;
  }
}

/// An archive with one deflated member.
std::string npz(const testing::TempDir& dir, const char* member, const std::string& content) {
  const std::string path = (dir.path() / "made.npz").string();
  zip_t* archive = zip_open(path.c_str(), ZIP_CREATE | ZIP_TRUNCATE, nullptr);
  zip_file_add(archive, member, zip_source_buffer(archive, content.data(), content.size(), 0), 0);
  zip_close(archive);
  const MappedFile file = MappedFile::open(path);
  return {reinterpret_cast<const char*>(file.bytes().data()), file.bytes().size()};
}

TEST(Npz, InflatesAMember) {
  const testing::TempDir dir;
  const std::string content = npy(kF32, 24);
  const std::string archive = npz(dir, "values.npy", content);
  const auto inflated = read_npz_member(bytes_of(archive), "values.npy", content.size(), "x");
  ASSERT_TRUE(inflated);
  EXPECT_EQ(*inflated, bytes_of(content));
  EXPECT_FALSE(read_npz_member(bytes_of(archive), "positions.npy", 100, "x"));
  EXPECT_THROW(read_npz_member(bytes_of(archive), "values.npy", content.size() - 1, "x"), Error);
}

TEST(Npz, NeverReturnsOtherBytesThanWereStored) {
  const testing::TempDir dir;
  const std::string content = npy(kF32, 24);
  const std::string archive = npz(dir, "values.npy", content);
  const auto read = [&](const std::string& bytes) -> std::optional<std::vector<std::byte>> {
    try {
      return read_npz_member(bytes_of(bytes), "values.npy", 1 << 20, "x");
    } catch (const Error&) {
      return std::nullopt;
    }
  };
  for (size_t size = 0; size < archive.size(); ++size) EXPECT_FALSE(read(archive.substr(0, size))) << size;
  for (size_t i = 0; i < archive.size(); ++i) {
    std::string damaged = archive;
    damaged[i] = static_cast<char>(damaged[i] ^ 0x55);
    const auto inflated = read(damaged);
    EXPECT_EQ(inflated.value_or(bytes_of(content)), bytes_of(content)) << i;
  }
}

}  // namespace
}  // namespace hxq
