#include "io/safetensors_writer.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "file_size_limit.h"
#include "hxq/error.h"
#include "io/safetensors.h"
#include "temp_dir.h"

namespace hxq {
namespace {

namespace fs = std::filesystem;

struct Sample {
  TensorPlan plan;
  std::vector<std::byte> bytes;
};

Sample sample(std::string name, DType dtype, Shape shape, int seed) {
  std::vector<std::byte> bytes(static_cast<size_t>(element_count(shape)) * size_of(dtype));
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<std::byte>(i * 31 + i / 251 + seed);
  return {{std::move(name), dtype, std::move(shape)}, std::move(bytes)};
}

/// Small and large ones of every element size, odd sizes, an empty one, a name that needs escapes.
std::vector<Sample> samples() {
  return {sample("odd", DType::u8, {3}, 1),
          sample("large", DType::u8, {1024, 512}, 2),
          sample("large odd", DType::u8, {333, 775}, 3),
          sample("f32", DType::f32, {5}, 4),
          sample("i64", DType::i64, {3}, 5),
          sample("bf16", DType::bf16, {7}, 6),
          sample("large f32", DType::f32, {200, 100}, 7),
          sample("empty", DType::f16, {0}, 8),
          sample("scalar", DType::f32, {}, 9),
          sample("quo\"te\\\n\u00e9", DType::i64, {2, 1}, 10),
          sample("large f16 of 4k + 2", DType::f16, {40001}, 11)};
}

std::vector<TensorPlan> plan_of(const std::vector<Sample>& all) {
  std::vector<TensorPlan> plan;
  for (const Sample& each : all) plan.push_back(each.plan);
  return plan;
}

void write_all(const fs::path& path, const std::vector<Sample>& all, const std::vector<TensorPlan>& plan) {
  SafetensorsWriter writer(path, plan);
  for (const Sample& each : all) writer.add(each.plan.name, each.plan.dtype, each.plan.shape, each.bytes);
  writer.finish();
}

std::string read_all(const fs::path& path) {
  std::ostringstream text;
  text << std::ifstream(path, std::ios::binary).rdbuf();
  return text.str();
}

size_t files_in(const fs::path& dir) {
  return static_cast<size_t>(std::distance(fs::directory_iterator(dir), fs::directory_iterator()));
}

TEST(SafetensorsWriter, WhatIsWrittenReadsBack) {
  const testing::TempDir dir;
  const fs::path path = dir.path() / "model.safetensors";
  write_all(path, samples(), plan_of(samples()));
  EXPECT_EQ(files_in(dir.path()), 1u);
  const SafetensorsFile file = SafetensorsFile::open(path);
  EXPECT_EQ(file.contents.metadata.at("format"), "pt");
  EXPECT_EQ(file.contents.tensors.size(), samples().size());
  for (const Sample& each : samples()) {
    ASSERT_TRUE(file.contents.tensors.contains(each.plan.name)) << each.plan.name;
    const TensorView& view = file.contents.tensors.at(each.plan.name);
    EXPECT_EQ(view.dtype, each.plan.dtype);
    EXPECT_EQ(view.shape, each.plan.shape);
    EXPECT_TRUE(std::ranges::equal(view.bytes, each.bytes)) << each.plan.name;
  }
}

TEST(SafetensorsWriter, EveryTensorIsAlignedInTheFile) {
  const testing::TempDir dir;
  const fs::path path = dir.path() / "model.safetensors";
  write_all(path, samples(), plan_of(samples()));
  const SafetensorsFile file = SafetensorsFile::open(path);
  const std::byte* lowest = file.file.bytes().data() + file.file.bytes().size();
  for (const auto& [name, view] : file.contents.tensors) {
    EXPECT_EQ(static_cast<size_t>(view.bytes.data() - file.file.bytes().data()) % size_of(view.dtype), 0u) << name;
    lowest = std::min(lowest, view.bytes.data());
  }
  EXPECT_EQ(static_cast<size_t>(lowest - file.file.bytes().data()) % 64, 0u);
}

TEST(SafetensorsWriter, SameCallsGiveSameBytes) {
  const testing::TempDir dir;
  write_all(dir.path() / "a", samples(), plan_of(samples()));
  write_all(dir.path() / "b", samples(), plan_of(samples()));
  EXPECT_EQ(read_all(dir.path() / "a"), read_all(dir.path() / "b"));
}

TEST(SafetensorsWriter, APlanMayBeLargerThanWhatIsWritten) {
  const testing::TempDir dir;
  std::vector<TensorPlan> plan = plan_of(samples());
  plan.push_back({"never added", DType::f32, {1 << 20, 1 << 10}});
  for (TensorPlan& tensor : plan) {
    for (int64_t& dimension : tensor.shape) dimension *= 100;
  }
  write_all(dir.path() / "model.safetensors", samples(), plan);
  EXPECT_EQ(SafetensorsFile::open(dir.path() / "model.safetensors").contents.tensors.size(), samples().size());
}

TEST(SafetensorsWriter, AHeaderBeyondThePlanIsRefusedAndLeavesNothing) {
  const testing::TempDir dir;
  EXPECT_THROW(write_all(dir.path() / "model.safetensors", samples(), {}), Error);
  EXPECT_EQ(files_in(dir.path()), 0u);
}

TEST(SafetensorsWriter, WritesAFileWithoutTensors) {
  const testing::TempDir dir;
  write_all(dir.path() / "model.safetensors", {}, {});
  EXPECT_TRUE(SafetensorsFile::open(dir.path() / "model.safetensors").contents.tensors.empty());
}

TEST(SafetensorsWriter, LeavesTheOldFileAndNoOtherWithoutFinish) {
  const testing::TempDir dir;
  const fs::path path = dir.write("model.safetensors", "old");
  {
    SafetensorsWriter writer(path, plan_of(samples()));
    for (const Sample& each : samples()) writer.add(each.plan.name, each.plan.dtype, each.plan.shape, each.bytes);
    EXPECT_EQ(files_in(dir.path()), 2u);
  }
  EXPECT_EQ(files_in(dir.path()), 1u);
  EXPECT_EQ(read_all(path), "old");
  write_all(path, samples(), plan_of(samples()));
  EXPECT_NO_THROW(SafetensorsFile::open(path));
}

TEST(SafetensorsWriter, RefusesWrongCalls) {
  const testing::TempDir dir;
  SafetensorsWriter writer(dir.path() / "x", plan_of(samples()));
  const std::vector<std::byte> bytes(4);
  writer.add("a", DType::f32, {1}, bytes);
  EXPECT_THROW(writer.add("a", DType::f32, {1}, bytes), Error);
  EXPECT_THROW(writer.add("b", DType::f32, {2}, bytes), Error);
  EXPECT_THROW(writer.add("\xff", DType::f32, {1}, bytes), Error);
  EXPECT_THROW(SafetensorsWriter(dir.path() / "absent" / "x", plan_of(samples())), Error);
}

TEST(SafetensorsWriter, AWriteErrorNamesTheFileAndLeavesNothing) {
  const testing::TempDir dir;
  const fs::path path = dir.path() / "model.safetensors";
  try {
    const testing::FileSizeLimit limit(100'000);
    write_all(path, samples(), plan_of(samples()));
    ADD_FAILURE() << "wrote beyond the limit";
  } catch (const Error& error) {
    EXPECT_EQ(error.place().file, path.string());
    EXPECT_NE(std::string(error.what()).find("File too large"), std::string::npos) << error.what();
  }
  EXPECT_EQ(files_in(dir.path()), 0u);
}

}  // namespace
}  // namespace hxq
