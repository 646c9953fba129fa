#include "io/shard_name.h"

#include <gtest/gtest.h>

namespace hxq {
namespace {

TEST(ShardName, IsTakenApart) {
  const auto name = read_shard_name("a-1-of-2-00001-of-00012.safetensors");
  ASSERT_TRUE(name);
  EXPECT_EQ(name->model, "a-1-of-2");
  EXPECT_EQ(name->number, "00001");
  EXPECT_EQ(name->count, "00012");
  EXPECT_EQ(read_shard_name("-1-of-2.safetensors").value().model, "");
}

TEST(ShardName, OthersHaveNone) {
  for (const char* name : {"", ".safetensors", "model.safetensors", "model-1-of-2", "model-1-of-2.safetensors.part",
                           "model-1-of-.safetensors", "model--of-2.safetensors", "1-of-2.safetensors",
                           "model-1-2.safetensors", "model-1-of-2x.safetensors"}) {
    EXPECT_FALSE(read_shard_name(name)) << name;
  }
}

}  // namespace
}  // namespace hxq
