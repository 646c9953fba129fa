#include "io/sharded_writer.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <fstream>

#include "hxq/error.h"
#include "io/checkpoint.h"
#include "temp_dir.h"

namespace hxq {
namespace {

namespace fs = std::filesystem;

/// Tensor i of some: large and small ones, which the writer treats differently.
std::vector<std::byte> bytes_of(int i) {
  std::vector<std::byte> bytes(static_cast<size_t>(i % 3 == 0 ? 80'000 : 100 + i));
  std::ranges::fill(bytes, static_cast<std::byte>(i));
  return bytes;
}

constexpr int kTensors = 20;

std::vector<TensorPlan> plan() {
  std::vector<TensorPlan> plan;
  for (int i = 0; i < kTensors; ++i) {
    plan.push_back({"t" + std::to_string(i), DType::u8, {static_cast<int64_t>(bytes_of(i).size())}});
  }
  return plan;
}

/// Writes tensors from the first on, those before `begin` taken up; true if all could be.
bool write(ShardedWriter& writer, int begin, int end) {
  for (int i = 0; i < end; ++i) {
    const std::vector<std::byte> bytes = bytes_of(i);
    const Shape shape = {static_cast<int64_t>(bytes.size())};
    writer.begin_group(shape[0]);
    const auto is_right = [&](std::span<const std::byte> there) { return std::ranges::equal(there, bytes); };
    if (i >= begin) {
      writer.add(plan()[static_cast<size_t>(i)].name, DType::u8, shape, bytes);
    } else if (!writer.take_up(plan()[static_cast<size_t>(i)].name, DType::u8, shape, is_right)) {
      return false;
    }
  }
  return true;
}

std::map<std::string, std::string> files_of(const fs::path& folder) {
  std::map<std::string, std::string> files;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    std::ifstream file(entry.path(), std::ios::binary);
    files[entry.path().filename().string()] = {std::istreambuf_iterator<char>(file), {}};
  }
  return files;
}

class ShardedWriterTest : public ::testing::TestWithParam<int64_t> {};

TEST_P(ShardedWriterTest, IsReadAsACheckpointAndTakenUpAtAnyTensor) {
  const testing::TempDir whole;
  ShardedWriter writer(whole.path(), plan(), GetParam());
  ASSERT_TRUE(write(writer, 0, kTensors));
  writer.finish();
  const Checkpoint checkpoint = Checkpoint::open(whole.path());
  ASSERT_EQ(checkpoint.tensors().size(), static_cast<size_t>(kTensors));
  for (int i = 0; i < kTensors; ++i) {
    EXPECT_TRUE(std::ranges::equal(checkpoint.find("t" + std::to_string(i))->bytes, bytes_of(i)));
  }
  for (int done = 0; done <= kTensors; ++done) {
    const testing::TempDir dir;
    const pid_t child = fork();
    if (child == 0) {
      ShardedWriter killed(dir.path(), plan(), GetParam());
      write(killed, 0, done);
      if (done == kTensors) killed.finish();
      _exit(0);  // as a killed process: nothing is cleaned up
    }
    waitpid(child, nullptr, 0);
    ShardedWriter next(dir.path(), plan(), GetParam());
    ASSERT_TRUE(write(next, done, kTensors)) << done;
    next.finish();
    EXPECT_EQ(files_of(dir.path()), files_of(whole.path())) << done;
  }
}

INSTANTIATE_TEST_SUITE_P(Sizes, ShardedWriterTest, ::testing::Values(int64_t{1} << 40, 200'000, 1));

TEST(ShardedWriter, RefusesWhatIsNotWhatWasWritten) {
  const testing::TempDir dir;
  dir.write("shard-00001.safetensors.part", std::string(4000, 'x'));
  ShardedWriter writer(dir.path(), plan(), 1'000'000);
  EXPECT_FALSE(write(writer, 1, 1));
  EXPECT_THROW(ShardedWriter(dir.path(), plan(), 0), Error);
}

}  // namespace
}  // namespace hxq
