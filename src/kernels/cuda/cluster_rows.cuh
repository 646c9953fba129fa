// Matrices that share a kernel whose clusters own adjacent rows.

#pragma once

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

}  // namespace hxq::cuda
