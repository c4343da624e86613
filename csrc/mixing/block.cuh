// What the kernels of mixing share: a block's shape, sums over a warp and over a block.
#pragma once

#include <cstdint>

#include "core/cuda.cuh"

namespace tenfold::mixing::cuda {
namespace {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;
constexpr unsigned kAllLanes = 0xffffffffu;

struct alignas(16) Quad {  // read and written as 16 bytes
  float of[4];
};

__device__ __forceinline__ unsigned lane_of_thread() { return threadIdx.x % kWarp; }
__device__ __forceinline__ int warp_of_thread() { return static_cast<int>(threadIdx.x / kWarp); }

// The same bits in every lane.
__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(kAllLanes, value, lanes);
  return value;
}

// The same bits in every thread. `parts` holds kWarps floats.
template <class Parts>
__device__ float block_sum(Parts& parts, float value) {
  value = warp_sum(value);
  __syncthreads();
  if (lane_of_thread() == 0) parts[warp_of_thread()] = value;
  __syncthreads();
  float sum = 0.0f;
  for (int warp = 0; warp < kWarps; ++warp) sum += parts[warp];
  return sum;
}

}  // namespace
}  // namespace tenfold::mixing::cuda
