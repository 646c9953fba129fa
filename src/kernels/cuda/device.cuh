// What every kernel needs: elements of any type, sums over lanes, launches.

#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_runtime.h>

#include <cstdint>
#include <initializer_list>

#include "kernels/cuda/host_device.h"
#include "kernels/cuda/types.h"

namespace hxq::cuda {

inline constexpr unsigned kAllLanes = 0xffffffffu;

/// The number of the thread, as if it were new each time: what follows from it is worked out where it is used, and
/// takes no register, of which some kernels have none to spare.
__device__ inline uint32_t thread_of_block() {
  uint32_t thread = threadIdx.x;
  asm volatile("" : "+r"(thread));
  return thread;
}

constexpr bool is_activation(DType dtype) { return dtype == DType::f32 || dtype == DType::bf16 || dtype == DType::f16; }
constexpr int64_t element_bytes(DType dtype) { return dtype == DType::f32 ? 4 : 2; }

/// Element i of an array of F32, BF16 or F16.
__device__ inline float load_element(const void* data, DType dtype, int64_t i) {
  if (dtype == DType::f32) return static_cast<const float*>(data)[i];
  if (dtype == DType::bf16) return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
  return __half2float(static_cast<const __half*>(data)[i]);
}

template <class T>
__device__ inline void load_run_as(const T* from, int count, float (&out)[16]) {
  if (count >= 16 && reinterpret_cast<uintptr_t>(from) % 16 == 0) {
    constexpr int kLoads = 16 * sizeof(T) / 16;
    uint4 raw[kLoads];
#pragma unroll
    for (int i = 0; i < kLoads; ++i) raw[i] = reinterpret_cast<const uint4*>(from)[i];
#pragma unroll
    for (int i = 0; i < 16; ++i) out[i] = static_cast<float>(reinterpret_cast<const T*>(raw)[i]);
  } else {
#pragma unroll
    for (int i = 0; i < 16; ++i) out[i] = i < count ? static_cast<float>(from[i]) : 0.0f;
  }
}

/// Elements [begin, begin + 16) of an array, those from begin + count on as zeros.
__device__ inline void load_run(const void* data, DType dtype, int64_t begin, int count, float (&out)[16]) {
  if (dtype == DType::f32) {
    load_run_as(static_cast<const float*>(data) + begin, count, out);
  } else if (dtype == DType::bf16) {
    load_run_as(static_cast<const __nv_bfloat16*>(data) + begin, count, out);
  } else {
    load_run_as(static_cast<const __half*>(data) + begin, count, out);
  }
}

/// The same of memory that is 16-byte aligned: all 16 elements, or zeros.
__device__ inline void load_whole_run(const void* data, DType dtype, int64_t begin, bool exists, float (&out)[16]) {
  if (dtype == DType::f32) {
#pragma unroll
    for (int i = 0; i < 16; i += 4) {
      const float4 v = exists ? *reinterpret_cast<const float4*>(static_cast<const float*>(data) + begin + i)
                              : make_float4(0, 0, 0, 0);
      out[i] = v.x, out[i + 1] = v.y, out[i + 2] = v.z, out[i + 3] = v.w;
    }
    return;
  }
  uint4 raw[2] = {};
  if (exists) {
    raw[0] = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(data) + begin);
    raw[1] = *reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(data) + begin + 8);
  }
  const uint32_t words[8] = {raw[0].x, raw[0].y, raw[0].z, raw[0].w, raw[1].x, raw[1].y, raw[1].z, raw[1].w};
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const __half2_raw half{static_cast<unsigned short>(words[i]), static_cast<unsigned short>(words[i] >> 16)};
    const float2 v = dtype == DType::bf16
                         ? make_float2(__uint_as_float(words[i] << 16), __uint_as_float(words[i] & 0xffff0000u))
                         : __half22float2(__half2(half));
    out[2 * i] = v.x, out[2 * i + 1] = v.y;
  }
}

/// Words of bytes from any address: whole ones around them, none of which lies behind the word of `last`, the last byte
/// that belongs to the array.
template <int kWords>
__device__ inline void load_words_unaligned(const unsigned char* from, const unsigned char* last,
                                            uint32_t (&out)[kWords]) {
  const uint32_t shift = static_cast<uint32_t>(reinterpret_cast<uintptr_t>(from) % 4) * 8;
  const auto* words = reinterpret_cast<const uint32_t*>(from - shift / 8);
  uint32_t w[kWords + 1];
#pragma unroll
  for (int i = 0; i <= kWords; ++i) {
    w[i] = reinterpret_cast<const unsigned char*>(words + i) <= last ? __ldg(words + i) : 0u;
  }
#pragma unroll
  for (int i = 0; i < kWords; ++i) out[i] = __funnelshift_r(w[i], w[i + 1], shift);
}

__device__ inline void store_element(void* data, DType dtype, int64_t i, float value) {
  if (dtype == DType::f32) {
    static_cast<float*>(data)[i] = value;
  } else if (dtype == DType::bf16) {
    static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(value);
  } else {
    static_cast<__half*>(data)[i] = __float2half_rn(value);
  }
}

/// Calls with a zero of that type.
template <class Body>
__device__ inline void with_type(DType dtype, const Body& body) {
  switch (dtype) {
    case DType::f32:
      return body(float());
    case DType::bf16:
      return body(__nv_bfloat16());
    default:
      return body(__half());
  }
}

__device__ inline float load_at(const Input& x, int64_t row, int64_t col) {
  return load_element(x.data, x.dtype, row * x.stride + col);
}
__device__ inline float load_at(const Output& y, int64_t row, int64_t col) {
  return load_element(y.data, y.dtype, row * y.stride + col);
}
__device__ inline void store_at(const Output& y, int64_t row, int64_t col, float value) {
  store_element(y.data, y.dtype, row * y.stride + col, value);
}

/// Four adjacent elements, from where four of the type are aligned.
template <class Rows>
__device__ inline float4 load_four(const Rows& x, int64_t row, int64_t col) {
  const int64_t at = row * x.stride + col;
  if (x.dtype == DType::f32) return *reinterpret_cast<const float4*>(static_cast<const float*>(x.data) + at);
  const uint2 raw = *reinterpret_cast<const uint2*>(static_cast<const uint16_t*>(x.data) + at);
  const auto element = [&](int i) { return load_element(&raw, x.dtype, i); };
  return make_float4(element(0), element(1), element(2), element(3));
}

__device__ inline void store_four(const Output& y, int64_t row, int64_t col, float4 v) {
  const int64_t at = row * y.stride + col;
  if (y.dtype == DType::f32) {
    *reinterpret_cast<float4*>(static_cast<float*>(y.data) + at) = v;
    return;
  }
  uint2 raw;
  const float four[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) store_element(&raw, y.dtype, i, four[i]);
  *reinterpret_cast<uint2*>(static_cast<uint16_t*>(y.data) + at) = raw;
}

/// Whether rows can be read or written four elements at a time, from every fourth column on.
template <class Rows>
inline bool has_fours(const Rows& rows) {
  return rows.stride % 4 == 0 && is_aligned(rows.data, static_cast<size_t>(4 * element_bytes(rows.dtype)));
}

/// The sum over groups of `lanes` (a power of two) adjacent lanes, known to all of them.
__device__ inline float sum_lanes(float value, int lanes = 32) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

/// The same for a number of lanes that is known beforehand.
template <int kLanes>
__device__ inline float sum_lanes(float value) {
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2) value += __shfl_xor_sync(kAllLanes, value, offset);
  return value;
}

__device__ inline float max_lanes(float value, int lanes = 32) {
  for (int offset = lanes / 2; offset > 0; offset /= 2) value = fmaxf(value, __shfl_xor_sync(kAllLanes, value, offset));
  return value;
}

/// Lanes that are `offset` apart, then half of that and so on, trade halves of what they hold until each has one sum.
/// Returns how far apart they would be next.
template <int kCount>
__device__ inline int trade_halves(float (&value)[kCount], int offset) {
#pragma unroll
  for (int count = kCount; count > 1; count /= 2, offset /= 2) {
    const bool upper = threadIdx.x & static_cast<unsigned>(offset);
#pragma unroll
    for (int i = 0; i < count / 2; ++i) {
      const float sent = upper ? value[i] : value[i + count / 2];
      const float kept = upper ? value[i + count / 2] : value[i];
      value[i] = kept + __shfl_xor_sync(kAllLanes, sent, offset);
    }
  }
  return offset;
}

/// Sums of kCount (a power of two up to 32) values over a warp: lane l gets that of value l / (32 / kCount). 8 sums
/// take 9 shuffles.
template <int kCount>
__device__ inline float sum_lanes_each(float (&value)[kCount]) {
  const int offset = trade_halves(value, 16);
  return sum_lanes(value[0], 2 * offset);
}

/// The same over groups of `lanes` (a power of two, at least kCount) adjacent lanes, without a jump.
template <int kCount>
__device__ inline float sum_lanes_each(float (&value)[kCount], int lanes) {
  const int offset = trade_halves(value, lanes / 2);
#pragma unroll
  for (int step = 16 / kCount; step > 0; step /= 2) {
    const float other = __shfl_xor_sync(kAllLanes, value[0], step);
    if (step <= offset) value[0] += other;
  }
  return value[0];
}

/// Sums of kCount (a power of two up to kLanes) values over groups of kLanes adjacent lanes: lane l of a group gets
/// that of value l / (kLanes / kCount). It unrolls wholly; the loops of `sum_lanes_each` stay loops from 16 values on.
template <int kLanes, int kCount, int kSize>
__device__ inline float sum_each(float (&value)[kSize]) {
  if constexpr (kLanes == 1) {
    return value[0];
  } else {
    constexpr int kOffset = kLanes / 2, kLeft = kCount > 1 ? kCount / 2 : 1;
    if constexpr (kCount > 1) {
      const bool upper = threadIdx.x & static_cast<unsigned>(kOffset);
#pragma unroll
      for (int i = 0; i < kLeft; ++i) {
        const float sent = upper ? value[i] : value[i + kLeft], kept = upper ? value[i + kLeft] : value[i];
        value[i] = kept + __shfl_xor_sync(kAllLanes, sent, kOffset);
      }
    } else {
      value[0] += __shfl_xor_sync(kAllLanes, value[0], kOffset);
    }
    return sum_each<kLanes / 2, kLeft>(value);
  }
}

/// The sum over a block of whole warps, known to all threads; `shared` holds 32 floats. Callers may reuse it at once.
__device__ inline float sum_block(float value, float* shared) {
  value = sum_lanes(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  const int warps = static_cast<int>(blockDim.x / 32);
  return sum_lanes(static_cast<int>(threadIdx.x % 32) < warps ? shared[threadIdx.x % 32] : 0.0f);
}

/// The largest of values >= 0 of a block of whole warps, known to all threads; `shared` holds 32 floats.
__device__ inline float max_block(float value, float* shared) {
  value = max_lanes(value);
  __syncthreads();
  if (threadIdx.x % 32 == 0) shared[threadIdx.x / 32] = value;
  __syncthreads();
  return max_lanes(threadIdx.x % 32 < blockDim.x / 32 ? shared[threadIdx.x % 32] : 0.0f);
}

/// The power of two that brings `largest`, of a token's x, into [2^14, 2^15) when x is divided by it; 1 for nothing to
/// scale.
__device__ inline float scale_for(float largest) {
  const int exponent = __float_as_int(largest) >> 23;  // 255: infinite
  return largest > 0 && exponent < 255 ? __int_as_float(max(exponent - 14, 1) << 23) : 1.0f;
}

/// 1 / scale, of a power of two from 2^-126 to 2^126.
__device__ inline float inverse_of_scale(float scale) { return __int_as_float((254 << 23) - __float_as_int(scale)); }

/// Starts to copy kBytes (4 or 16, aligned) to shared memory; 16 bytes pass by the first-level cache.
template <int kBytes>
__device__ inline void copy_async(void* shared, const void* global) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(global) : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2;" ::"r"(to), "l"(global), "n"(kBytes) : "memory");
  }
}

/// The same for 16 bytes, or zeros in their place.
__device__ inline void copy_async_or_zero(void* shared, const void* global, bool exists) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(global), "r"(exists ? 16 : 0) : "memory");
}

/// Makes a group of the copies that the thread started since its last group.
__device__ inline void end_copy_group() { asm volatile("cp.async.commit_group;" ::: "memory"); }

/// Waits for the thread's copies, but for its last kLater groups.
template <int kLater>
__device__ inline void wait_for_copies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kLater) : "memory");
}

/// Waits until the kernels before this one have finished and their writes can be seen: nothing that they write may be
/// read, and nothing that they read written, before it.
__device__ inline void wait_for_predecessors() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

/// Lets the kernel after this one begin as multiprocessors become free; it waits for this one's writes as above.
__device__ inline void let_successors_begin() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

inline constexpr float kLog2E = 1.44269504f;  ///< e^x is 2^(kLog2E x)

/// 2^x within 2 units in the last place.
__device__ inline float fast_exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

__device__ inline float silu(float x) { return __fdividef(x, 1.0f + __expf(-x)); }

/// ln(1 + e^x) = max(x, 0) + ln(1 + e^-|x|), the latter within 2e-7 as a polynomial of e = e^-|x| up to 1 (least
/// largest relative error); e itself is within 4e-6 where x is far below zero.
__device__ inline float softplus(float x) {
  const float e = fast_exp2(-kLog2E * fabsf(x));
  float sum = 0.005232690833508968f;
  for (const float next : {-0.029505228623747826f, 0.07822594791650772f, -0.13663245737552643f, 0.19106008112430573f,
                           -0.2484298199415207f, 0.3331909775733948f, -0.4999949336051941f, 0.9999999403953552f}) {
    sum = fmaf(sum, e, next);
  }
  return fmaf(sum, e, fmaxf(x, 0.0f));
}

/// What launchers ask of the current device. Attributes are cached by the driver; no device memory is touched.
struct DeviceFacts {
  int multiprocessors = 0;
  int compute_capability = 0;  ///< 90 for 9.0
  int shared_bytes = 0;        ///< that a block may ask for
  static constexpr int kMostBlocks = 16;
  /// Clusters of so many blocks that run at once where a block fills a multiprocessor; 0: none. A cluster lies within a
  /// part of the GPU that may have more or fewer multiprocessors than a multiple of its size.
  int clusters[kMostBlocks + 1] = {};
};
DeviceFacts current_device() noexcept;

inline Status status_of(cudaError_t error) { return static_cast<Status>(error); }

struct LaunchShape {
  dim3 grid;
  dim3 block;
  size_t shared_bytes = 0;
  int cluster = 1;  ///< adjacent blocks that run side by side and see each other's shared memory
  /// All blocks run side by side. Then nothing of the kernel begins before its predecessor ends.
  bool cooperative = false;
};

/// Lets launches of the kernel on the current device ask for that much dynamic shared memory. The limit is the
/// device's, not a thread's, and is never lowered.
cudaError_t raise_shared_limit(const void* kernel, size_t bytes) noexcept;

/// Launches so that the kernel may begin before its predecessor ends (programmatic dependent launch): every kernel
/// calls wait_for_predecessors. Cooperative ones begin after it.
template <class... Parameters, class... Arguments>
Status launch(void (*kernel)(Parameters...), const LaunchShape& shape, Stream stream, Arguments&&... arguments) {
  // One division of a multiprocessor's memory for all kernels: to change it, a multiprocessor must run empty.
  cudaError_t error =
      cudaFuncSetAttribute(kernel, cudaFuncAttributePreferredSharedMemoryCarveout, cudaSharedmemCarveoutMaxShared);
  if (error == cudaSuccess && shape.shared_bytes > 48 * 1024) {  // more than a kernel gets unasked
    error = raise_shared_limit(reinterpret_cast<const void*>(kernel), shape.shared_bytes);
  }
  if (error == cudaSuccess && shape.cluster > 8) {
    error = cudaFuncSetAttribute(kernel, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  if (error != cudaSuccess) return status_of(error);
  cudaLaunchAttribute attributes[2] = {};
  if (shape.cooperative) {
    attributes[0].id = cudaLaunchAttributeCooperative;
    attributes[0].val.cooperative = 1;
  } else {
    attributes[0].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[0].val.programmaticStreamSerializationAllowed = 1;
  }
  attributes[1].id = cudaLaunchAttributeClusterDimension;
  attributes[1].val.clusterDim.x = static_cast<unsigned>(shape.cluster);
  attributes[1].val.clusterDim.y = attributes[1].val.clusterDim.z = 1;
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = shape.cluster > 1 ? 2 : 1;
  return status_of(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...));
}

}  // namespace hxq::cuda
