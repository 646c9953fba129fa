#pragma once

/// Functions that both the kernels and the tests of the host use: which byte, row and level a thread works on.
#ifdef __CUDACC__
#define HXQ_HOST_DEVICE __host__ __device__
#else
#define HXQ_HOST_DEVICE
#endif
