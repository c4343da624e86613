// The part of CUDA that tenfold's kernels use, executed on the host: kernels compile with g++ unchanged.
//
// This header takes the place of the toolkit's <cuda_runtime.h>. One block runs at a time, each of its
// threads as a fiber; the schedule comes from a seed. What this can show and what it cannot: docs/gpu.md.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <type_traits>

#include "simt.h"

#define TENFOLD_SIMT 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__

// ---- types ----

using uint3 = simt::Index;
using dim3 = simt::Dim;
using simt::blockDim, simt::blockIdx, simt::gridDim, simt::threadIdx;
struct alignas(8) uint2 {
  unsigned x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

inline constexpr int warpSize = simt::kWarp;

// ---- runtime API ----

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76
};
struct CUstream_st;
using cudaStream_t = CUstream_st*;
struct cudaLaunchAttribute {};
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  cudaLaunchAttribute* attrs = nullptr;
  unsigned numAttrs = 0;
};
inline constexpr unsigned cudaHostAllocPortable = 1, cudaHostAllocMapped = 2;

inline const char* cudaGetErrorName(cudaError_t status) {
  switch (status) {
    case cudaSuccess:
      return "cudaSuccess";
    case cudaErrorInvalidValue:
      return "cudaErrorInvalidValue";
    case cudaErrorInvalidConfiguration:
      return "cudaErrorInvalidConfiguration";
    case cudaErrorInsufficientDriver:
      return "cudaErrorInsufficientDriver";
    case cudaErrorNoDevice:
      return "cudaErrorNoDevice";
    case cudaErrorInvalidDevice:
      return "cudaErrorInvalidDevice";
  }
  return "unknown";
}
inline const char* cudaGetErrorString(cudaError_t status) { return cudaGetErrorName(status); }
inline cudaError_t cudaGetLastError() { return cudaSuccess; }

// Two devices with few multiprocessors, so that device guards are exercised and grids are strided.
inline constexpr int kSimtDevices = 2, kSimtMultiprocessors = 3;
inline int simt_device = 0;

inline cudaError_t cudaGetDeviceCount(int* count) { return *count = kSimtDevices, cudaSuccess; }
inline cudaError_t cudaGetDevice(int* device) { return *device = simt_device, cudaSuccess; }
inline cudaError_t cudaSetDevice(int device) {
  if (device < 0 || device >= kSimtDevices) return cudaErrorInvalidDevice;
  return simt_device = device, cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device) {
  if (device < 0 || device >= kSimtDevices) return cudaErrorInvalidDevice;
  *value = attribute == cudaDevAttrMultiProcessorCount ? kSimtMultiprocessors : 0;
  return cudaSuccess;
}
struct cudaDeviceProp {
  char name[256];
  int major, minor;
};
inline cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device) {
  if (device < 0 || device >= kSimtDevices) return cudaErrorInvalidDevice;
  *properties = {"emulated on the host", 9, 0};
  return cudaSuccess;
}
inline cudaError_t cudaDriverGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaRuntimeGetVersion(int* version) { return *version = 13000, cudaSuccess; }
inline cudaError_t cudaDeviceSynchronize() { return cudaSuccess; }
inline cudaError_t cudaHostAlloc(void** data, size_t bytes, unsigned) {
  *data = std::calloc(1, bytes);
  return *data != nullptr ? cudaSuccess : cudaErrorInvalidValue;
}
template <class... Params, class... Args>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params...), Args&&... args) {
  const dim3 grid = config->gridDim, block = config->blockDim;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (grid.x == 0 || grid.y == 0 || grid.z == 0 || grid.y > 65535 || grid.z > 65535) {
    return cudaErrorInvalidConfiguration;
  }
  if (threads == 0 || threads > 1024 || config->dynamicSmemBytes > simt::kSharedLimit) {
    return cudaErrorInvalidConfiguration;
  }
  const auto body = [&] { kernel(static_cast<Params>(args)...); };
  simt::launch({grid, block, config->dynamicSmemBytes, simt::Call::of(body)});
  return cudaSuccess;
}

// ---- device functions ----

inline void __syncthreads() { simt::barrier(); }
inline void __threadfence() {}
inline void __threadfence_block() {}
[[noreturn]] inline void __trap() { simt::fault("__trap"); }

inline constexpr unsigned kSimtFullMask = 0xffffffffu;

namespace simt {

template <class T>
uint64_t to_bits(T value) {
  static_assert(std::is_trivially_copyable_v<T> && sizeof(T) <= 8, "shuffles move at most 8 bytes");
  uint64_t bits = 0;
  std::memcpy(&bits, &value, sizeof value);
  return bits;
}

template <class T>
T from_bits(uint64_t bits) {
  T value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

template <class T>
T shuffle(unsigned mask, T value, int source, int width, Shuffle kind) {
  return from_bits<T>(warp(mask, WarpOp{kind, source, width, to_bits(value)}));
}

}  // namespace simt

inline void __syncwarp(unsigned mask = kSimtFullMask) {
  simt::warp(mask, {simt::Shuffle::sync, 0, simt::kWarp, 0});
}
template <class T>
T __shfl_sync(unsigned mask, T value, int source, int width = warpSize) {
  return simt::shuffle(mask, value, source, width, simt::Shuffle::index);
}
template <class T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  return simt::shuffle(mask, value, static_cast<int>(delta), width, simt::Shuffle::up);
}
template <class T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = warpSize) {
  return simt::shuffle(mask, value, static_cast<int>(delta), width, simt::Shuffle::down);
}
template <class T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = warpSize) {
  return simt::shuffle(mask, value, lanes, width, simt::Shuffle::exclusive_or);
}
inline unsigned __ballot_sync(unsigned mask, int predicate) {
  return static_cast<unsigned>(simt::warp(mask, {simt::Shuffle::ballot, 0, simt::kWarp, predicate != 0}));
}
inline int __any_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) != 0; }
inline int __all_sync(unsigned mask, int predicate) { return __ballot_sync(mask, predicate) == mask; }

// Threads of a block run one after another, so reading and writing is atomic by itself; each operation first
// lets others run. The builtins tell ThreadSanitizer that it is atomic, and orders nothing else.
template <class T, class Update>
T simt_atomic(T* at, Update update) {
  simt::preempt();
  T old, next;
  __atomic_load(at, &old, __ATOMIC_RELAXED);
  next = update(old);
  __atomic_store(at, &next, __ATOMIC_RELAXED);
  return old;
}
template <class T>
using SimtSame = std::type_identity_t<T>;
template <class T>
T atomicAdd(T* at, SimtSame<T> value) {
  return simt_atomic(at, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
T atomicMax(T* at, SimtSame<T> value) {
  return simt_atomic(at, [=](T old) { return old > value ? old : value; });
}
template <class T>
T atomicMin(T* at, SimtSame<T> value) {
  return simt_atomic(at, [=](T old) { return old < value ? old : value; });
}
template <class T>
T atomicOr(T* at, SimtSame<T> value) {
  return simt_atomic(at, [=](T old) { return old | value; });
}
template <class T>
T atomicAnd(T* at, SimtSame<T> value) {
  return simt_atomic(at, [=](T old) { return old & value; });
}
template <class T>
T atomicExch(T* at, SimtSame<T> value) {
  return simt_atomic(at, [=](T) { return value; });
}
template <class T>
T atomicCAS(T* at, SimtSame<T> compare, SimtSame<T> value) {
  return simt_atomic(at, [=](T old) { return old == compare ? value : old; });
}

template <class T>
T __ldg(const T* from) {
  return *from;
}
template <class T>
T __ldcs(const T* from) {
  return *from;
}
template <class T>
void __stcs(T* to, T value) {
  *to = value;
}
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline int __popcll(unsigned long long value) { return __builtin_popcountll(value); }
inline int __clz(int value) { return value == 0 ? 32 : __builtin_clz(static_cast<unsigned>(value)); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline float __uint_as_float(unsigned bits) { return simt::from_bits<float>(bits); }
inline unsigned __float_as_uint(float value) { return static_cast<unsigned>(simt::to_bits(value)); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((static_cast<uint64_t>(a) * b) >> 32);
}
