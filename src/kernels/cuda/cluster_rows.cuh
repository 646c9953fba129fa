// Matrices that share a kernel whose clusters own adjacent rows.

#pragma once

#include <algorithm>
#include <span>

#include "kernels/cuda/device.cuh"
#include "kernels/cuda/gemv_plan.h"
#include "kernels/cuda/hopper_cluster.cuh"
#include "kernels/cuda/linear.h"

namespace hxq::cuda {

/// One of the products, and the clusters that have it.
struct ClusterPart {
  FusedProduct product;
  BlockShare share;
  int first_cluster;
};

/// The rows of a cluster, and the block's place in it.
struct ClusterRows {
  int64_t first;
  int count, block;

  __device__ ClusterRows(const ClusterPart& part, int cluster) {
    first = part.share.begin(cluster - part.first_cluster);
    count = part.share.count(cluster - part.first_cluster);
    block = static_cast<int>(hopper::block_in_cluster());
  }
};

/// `sum` of a row and a token, and what the product adds to it beside levels and outliers.
__device__ inline float add_beside(const FusedProduct& product, int64_t row, int token, float sum) {
  const CodebookWeight& weight = product.weight;
  if (product.bias) sum += product.bias[row];
#pragma unroll 1
  for (int n = 0; n < weight.rank; ++n) {
    sum = fmaf(weight.low_rank_u[row * weight.rank + n], product.low_rank_product[token * weight.rank + n], sum);
  }
  return product.accumulate ? sum + load_at(product.y, token, row) : sum;
}

/// Rows of the matrices of a launch together.
inline int64_t all_rows_of(std::span<const FusedProduct> products) {
  int64_t rows = 0;
  for (const FusedProduct& product : products) rows += product.weight.rows;
  return rows;
}

/// What shares of a plan's clusters come to.
struct ClusterShares {
  int64_t clusters = 0, most_rows = 0;  ///< of all parts, and of a cluster
};

/// Gives each product its part of the clusters.
inline ClusterShares share_clusters(std::span<const FusedProduct> products, int64_t clusters, ClusterPart* part) {
  int64_t rows[kMaxFusedProducts], share[kMaxFusedProducts];
  for (size_t i = 0; i < products.size(); ++i) rows[i] = products[i].weight.rows;
  share_blocks({rows, products.size()}, clusters, share);
  ClusterShares all;
  for (size_t i = 0; i < products.size(); ++i) {
    part[i] = {.product = products[i], .share = {rows[i], share[i]}, .first_cluster = static_cast<int>(all.clusters)};
    all.clusters += share[i];
    all.most_rows = std::max(all.most_rows, ceil_div(rows[i], share[i]));
  }
  return all;
}

/// Whether kernels take the matrix that read 16 bytes of x and of a row at once, and look levels up as 11 bits.
inline bool takes_whole_units(const CodebookWeight& weight, const LinearArgs& args) {
  return weight.d == 1 && weight.index_bits == 8 && weight.k <= 256 && weight.cols % 16 == 0 &&
         !weight.channel_scales && is_aligned(weight.indices, 16) && is_aligned(args.x.data, 16) &&
         args.x.stride * element_bytes(args.x.dtype) % 16 == 0 &&
         (args.precision == Precision::fast || weight.levels_fit_half);
}

}  // namespace hxq::cuda
