#include "compress/cdnav3_write.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "codec/codec.h"
#include "codec/stored_tensors.h"
#include "hxq/error.h"
#include "io/checkpoint.h"
#include "refusal.h"
#include "temp_dir.h"

namespace hxq {
namespace {

namespace fs = std::filesystem;
using testing::refusal;

struct Source {
  std::vector<float> values;
  TensorView view;

  Source(int64_t rows, int64_t cols) {
    for (int64_t i = 0; i < rows * cols; ++i) values.push_back(std::sin(static_cast<float>(i)));
    view = {DType::f32, {rows, cols}, std::as_bytes(std::span(values))};
  }
};

std::vector<std::string> names_in(const fs::path& folder) {
  std::vector<std::string> names;
  for (const auto& entry : fs::directory_iterator(folder)) names.push_back(entry.path().filename().string());
  std::ranges::sort(names);
  return names;
}

TEST(WriteCdnav3, IsReadAsATree) {
  const testing::TempDir dir;
  const Source matrix(20, 30), vector(1, 7);
  const nlohmann::json stats = write_cdnav3(dir.path(), "a.b.weight", matrix.view, {.sidecar_fraction = 0.01});
  write_cdnav3_exact(dir.path(), "a.norm", vector.view);
  EXPECT_EQ(stats["num_outliers"], 6);
  EXPECT_EQ(names_in(dir.path()),
            (std::vector<std::string>{"a_b_weight.cdnav3", "a_norm.npy", "a_norm.npy.meta.json"}));

  const Checkpoint tree = Checkpoint::open(dir.path());
  const auto stored = read_matrix(tree, find_tensor(tree, "a.b.weight").value().module);
  std::vector<float> decoded(matrix.values.size());
  stored->decode_rows(0, stored->rows, decoded);
  for (size_t i = 0; i < decoded.size(); ++i) EXPECT_NEAR(decoded[i], matrix.values[i], 0.01);
  EXPECT_EQ(to_float(*tree.find("a.norm")), vector.values);
}

TEST(WriteCdnav3, ReplacesWhatAnEarlierCallWroteAsAWhole) {
  const testing::TempDir dir;
  const Source matrix(20, 30);
  write_cdnav3(dir.path(), "w", matrix.view, {.sidecar_fraction = 0.01});
  EXPECT_TRUE(fs::exists(dir.path() / "w.cdnav3/sidecar.npz"));
  write_cdnav3(dir.path(), "w", matrix.view, {.sidecar_fraction = 0});
  EXPECT_FALSE(fs::exists(dir.path() / "w.cdnav3/sidecar.npz"));
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"w.cdnav3"});
}

TEST(WriteCdnav3, NoTensorTakesThePlaceOfAnother) {
  const testing::TempDir dir;
  const Source matrix(20, 30), other(30, 20), vector(1, 7), longer(1, 9);
  write_cdnav3(dir.path(), "a.b", matrix.view, {});
  write_cdnav3_exact(dir.path(), "a.norm", vector.view);
  EXPECT_NE(refusal([&] { write_cdnav3(dir.path(), "a_b", other.view, {}); }).find("is of tensor 'a.b'"),
            std::string::npos);
  EXPECT_NE(refusal([&] { write_cdnav3_exact(dir.path(), "a/norm", longer.view); }).find("is of tensor 'a.norm'"),
            std::string::npos);
  // A tree that has a tensor twice cannot be read.
  EXPECT_NE(refusal([&] { write_cdnav3_exact(dir.path(), "a.b", matrix.view); }).find("holds 'a.b' already"),
            std::string::npos);
  EXPECT_NE(refusal([&] { write_cdnav3(dir.path(), "a.norm", matrix.view, {}); }).find("holds 'a.norm' already"),
            std::string::npos);
  const Checkpoint tree = Checkpoint::open(dir.path());
  EXPECT_EQ(find_tensor(tree, "a.b").value().shape, matrix.view.shape);
  EXPECT_EQ(tree.find("a.norm")->shape, vector.view.shape);
  write_cdnav3_exact(dir.path(), "a.norm", longer.view);
  EXPECT_EQ(Checkpoint::open(dir.path()).find("a.norm")->shape, longer.view.shape);
}

TEST(WriteCdnav3, LeavesOtherFoldersAndFailedOnesAlone) {
  const testing::TempDir dir;
  Source matrix(20, 30);
  dir.write("w.cdnav3/mine.txt", "keep");
  EXPECT_THROW(write_cdnav3(dir.path(), "w", matrix.view, {}), Error);
  EXPECT_EQ(names_in(dir.path() / "w.cdnav3"), std::vector<std::string>{"mine.txt"});
  matrix.values[3] = NAN;
  EXPECT_THROW(write_cdnav3(dir.path(), "v", matrix.view, {}), Error);
  EXPECT_EQ(names_in(dir.path()), std::vector<std::string>{"w.cdnav3"});
}

}  // namespace
}  // namespace hxq
