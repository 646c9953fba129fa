// Which layers become one kernel, and in which order kernels come: with launchers that only tell what was asked of
// them.

#include "kernels/cuda_device/cuda_context.h"

#include <gtest/gtest.h>

#include <string>
#include <utility>

namespace hxq::kernels {
namespace {

std::string launched;

bool fits(int64_t rows, int64_t first_rows) noexcept { return rows > 0 && rows == first_rows; }

/// A table that takes layers of one width, of h that lies somewhere, with memory to exchange something through.
constexpr cuda::Kernels kTable = [] {
  cuda::Kernels table = {};
  table.supports_mamba_layers = [](const cuda::MambaLayersArgs& args) noexcept {
    bool all = args.h.data != nullptr && args.exchange != nullptr;
    for (int64_t i = 0; i < args.count; ++i) all &= fits(args.layers[i].in_proj.rows, args.layers[0].in_proj.rows);
    return all;
  };
  table.mamba_layers = [](const cuda::MambaLayersArgs& args, cuda::Stream) noexcept {
    launched += "mamba " + std::to_string(args.count) + ", ";
    return cuda::Status::ok;
  };
  table.supports_transformer_layers = [](const cuda::TransformerLayersArgs& args) noexcept {
    bool all = args.h.data != nullptr && args.exchange != nullptr;
    for (int64_t i = 0; i < args.count; ++i) all &= fits(args.layers[i].weight[0].rows, args.layers[0].weight[0].rows);
    return all;
  };
  table.transformer_layers = [](const cuda::TransformerLayersArgs& args, cuda::Stream) noexcept {
    launched +=
        "transformer " + std::to_string(args.count) + " from " + std::to_string(args.layers[0].weight[0].k) + ", ";
    return cuda::Status::ok;
  };
  return table;
}();

class Collecting : public ::testing::Test {
 protected:
  /// number: of the layer.
  bool transformer(int32_t number, int64_t rows = 8, int h = 0, float eps = 0.1f) {
    cuda::TransformerLayer layer;
    layer.weight[0].k = number;
    layer.weight[0].rows = rows;
    return context_.collect(layer, {.batch = {}, .h = {.data = &memory_[h]}, .eps = eps});
  }
  bool mamba() {
    cuda::MambaLayer layer;
    layer.in_proj.rows = 8;
    return context_.collect(layer, {.batch = {}, .h = {.data = &memory_[0]}});
  }
  void run(const char* what) {
    context_.run(what, [&] {
      launched += std::string(what) + ", ";
      return cuda::Status::ok;
    });
  }
  std::string all() {
    context_.launch_collected();
    return std::exchange(launched, {});
  }

  float memory_[2] = {};
  CudaLaunches launches_{.mamba = {.exchange = &memory_}, .transformer = {.exchange = &memory_}};
  CudaContext context_{kTable, nullptr, {}, Precision::fast, launches_};
};

TEST_F(Collecting, AdjacentLayersAreOneKernel) {
  EXPECT_TRUE(transformer(1) && transformer(2) && transformer(3));
  run("a norm");
  EXPECT_TRUE(transformer(4));
  EXPECT_EQ(all(), "transformer 3 from 1, a norm, transformer 1 from 4, ");
  EXPECT_EQ(all(), "") << "launched already";
}

TEST_F(Collecting, LayersOfAnotherKindOrShapeAreAnotherKernel) {
  EXPECT_TRUE(transformer(1) && transformer(2) && mamba() && mamba() && transformer(3));
  EXPECT_EQ(all(), "transformer 2 from 1, mamba 2, transformer 1 from 3, ");
  EXPECT_TRUE(transformer(1) && transformer(2, 16) && transformer(3, 16, 1) && transformer(4, 16, 1, 0.2f));
  EXPECT_EQ(all(), "transformer 1 from 1, transformer 1 from 2, transformer 1 from 3, transformer 1 from 4, ");
}

TEST_F(Collecting, WhatNoKernelTakesIsLeftAlone) {
  EXPECT_TRUE(transformer(1));
  EXPECT_FALSE(transformer(2, 0));
  EXPECT_EQ(all(), "transformer 1 from 1, ");
  launches_.transformer.exchange = nullptr;
  EXPECT_FALSE(transformer(3));
  context_.measures = true;
  EXPECT_FALSE(mamba());
  EXPECT_EQ(all(), "");
}

}  // namespace
}  // namespace hxq::kernels
