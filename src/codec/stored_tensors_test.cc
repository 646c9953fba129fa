#include "codec/stored_tensors.h"

#include <gtest/gtest.h>

#include "hxq/error.h"
#include "test_checkpoint.h"

namespace hxq {
namespace {

using testing::TestCheckpoint;

void add_module(TestCheckpoint& files, const std::string& module) {
  files.set(module + ".codebook", DType::f32, {2}, std::vector<float>{1, 2});
  files.set(module + ".indices", DType::u8, {1, 2}, std::vector<uint8_t>{0, 1});
}

/// The names listed, compressed ones as "name <- module".
std::vector<std::string> listing(const Checkpoint& checkpoint) {
  std::vector<std::string> lines;
  for (const StoredTensor& tensor : list_tensors(checkpoint)) {
    lines.push_back(tensor.codec ? tensor.name + " <- " + tensor.module : tensor.name);
  }
  return lines;
}

TEST(StoredTensors, ListsParametersAndNotTheirParts) {
  TestCheckpoint files;
  add_module(files, "a.proj");
  for (const char* part :
       {"sidecar_values", "svd_U", "svd_s", "svd_Vt", "channel_scales", "_sidecar_vq_vals", "_sidecar_deltas"}) {
    files.set(std::string("a.proj.") + part, DType::f32, {0}, std::vector<float>{});
  }
  for (const char* part : {"sidecar_positions", "sidecar_indices", "_sidecar_rows", "_sidecar_cols"}) {
    files.set(std::string("a.proj.") + part, DType::i64, {0}, std::vector<int64_t>{});
  }
  files.set("a.proj.codebook_f16", DType::f16, {2}, std::vector<uint16_t>{1, 2});
  files.set("a.proj.bias", DType::f32, {1}, std::vector<float>{3});
  files.set("a.proj.weight", DType::f32, {0}, std::vector<float>{});
  files.set("a.norm", DType::f32, {1}, std::vector<float>{3});
  files.set("a.empty", DType::f32, {0}, std::vector<float>{});
  EXPECT_EQ(listing(files.open()),
            (std::vector<std::string>{"a.empty", "a.norm", "a.proj.bias", "a.proj.weight <- a.proj"}));
}

TEST(StoredTensors, LeavesOutDtypesThatNobodyReadsUnlessAModuleNeedsThem) {
  const auto open = [](const std::string& key) {
    const std::string header = R"({"m.codebook":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},)"
                               R"("m.indices":{"dtype":"U8","shape":[1,1],"data_offsets":[4,5]},")" +
                               key + R"(":{"dtype":"F6_E2M3","shape":[1],"data_offsets":[5,6]}})";
    const auto length = static_cast<char>(header.size());
    const testing::TempDir dir;
    return Checkpoint::open(
        dir.write("model.safetensors", std::string{length, 0, 0, 0, 0, 0, 0, 0} + header + "......"));
  };
  for (const char* key : {"junk", "m.codebook_f16", "n.sidecar_values"}) {
    EXPECT_EQ(listing(open(key)), std::vector<std::string>{"m.weight <- m"}) << key;
  }
  EXPECT_THROW(listing(open("m.sidecar_values")), Error);
}

TEST(StoredTensors, TheExactOneCountsWhenBothAreThere) {
  TestCheckpoint files;
  add_module(files, "a.A_log");
  add_module(files, "a.proj");
  files.set("a.A_log", DType::f32, {1, 2}, std::vector<float>{3, 4});
  files.set("a.proj.weight", DType::f32, {1, 2}, std::vector<float>{3, 4});
  const Checkpoint checkpoint = files.open();
  EXPECT_EQ(listing(checkpoint), (std::vector<std::string>{"a.A_log", "a.proj.weight"}));
  EXPECT_FALSE(find_tensor(checkpoint, "a.A_log")->codec);
  EXPECT_FALSE(find_tensor(checkpoint, "a.proj.weight")->codec);
}

TEST(StoredTensors, FindsByTheParametersName) {
  TestCheckpoint files;
  add_module(files, "a.proj");
  add_module(files, "a.A_log");
  files.set("a.D", DType::bf16, {3}, std::vector<uint16_t>{1, 2, 3});
  const Checkpoint checkpoint = files.open();
  const std::optional<StoredTensor> weight = find_tensor(checkpoint, "a.proj.weight");
  ASSERT_TRUE(weight && weight->codec);
  EXPECT_EQ(weight->module, "a.proj");
  EXPECT_EQ(weight->shape, (Shape{1, 2}));
  const std::optional<StoredTensor> a_log = find_tensor(checkpoint, "a.A_log");
  ASSERT_TRUE(a_log && a_log->codec);
  EXPECT_EQ(a_log->module, "a.A_log");
  EXPECT_EQ(find_tensor(checkpoint, "a.D")->shape, Shape{3});
  EXPECT_FALSE(find_tensor(checkpoint, "a"));
  EXPECT_FALSE(find_tensor(checkpoint, "a.proj.bias"));
}

TEST(StoredTensors, NamesLikePartsAreTensorsWhereThereIsNoModule) {
  TestCheckpoint files;
  files.set("quantizer.codebook", DType::f32, {2}, std::vector<float>{1, 2});
  files.set("router.indices", DType::i64, {2}, std::vector<int64_t>{1, 2});
  EXPECT_EQ(listing(files.open()), (std::vector<std::string>{"quantizer.codebook", "router.indices"}));
}

TEST(StoredTensors, ATreesOwnNameForAModuleCounts) {
  const testing::TempDir dir;
  const std::string npy = "{'descr': '<f4', 'fortran_order': False, 'shape': (1,), }";
  const std::string header = std::string("\x93NUMPY\x01\x00", 8) + static_cast<char>(npy.size()) + '\0' + npy;
  for (const std::string name : {"x.A_log", "x.proj.weight"}) {
    dir.write(name + ".cdnav3/meta.json", R"({"shape": [1, 1], "tensor_name": ")" + name + "\"}");
    dir.write(name + ".cdnav3/codebook.npy", header + std::string(4, '\0'));
    dir.write(name + ".cdnav3/indices.bin", std::string(1, '\0'));
  }
  const Checkpoint checkpoint = Checkpoint::open(dir.path());
  EXPECT_EQ(listing(checkpoint), (std::vector<std::string>{"x.A_log <- x.A_log", "x.proj.weight <- x.proj"}));
  EXPECT_TRUE(find_tensor(checkpoint, "x.A_log"));
  EXPECT_FALSE(find_tensor(checkpoint, "x.A_log.weight"));
  EXPECT_FALSE(find_tensor(checkpoint, "x.proj"));
}

}  // namespace
}  // namespace hxq
