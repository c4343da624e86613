// What every *_cuda.cu uses besides CUDA itself. Kernels that keep to it are executed on the host too, by the
// emulator of tests/simt, which puts its own <cuda_runtime.h> in front of the toolkit's.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <stdexcept>
#include <string>

// Shared memory of a block: TENFOLD_SHARED(float, tile, 256) is used as tile[i]. The emulator checks every
// index, so take no pointer into it but &tile[i] for an atomic operation.
#ifdef TENFOLD_SIMT
#define TENFOLD_TEXT_(x) #x
#define TENFOLD_TEXT(x) TENFOLD_TEXT_(x)
#define TENFOLD_SHARED(type, name, count) \
  simt::Shared<type> name("shared array " #name " at " __FILE__ ":" TENFOLD_TEXT(__LINE__), count)
#define TENFOLD_DYNAMIC_SHARED(type, name) \
  auto name = simt::Shared<type>::dynamic("dynamic shared array " #name " at " __FILE__)
#else
#define TENFOLD_SHARED(type, name, count) __shared__ type name[count]
#define TENFOLD_DYNAMIC_SHARED(type, name)                        \
  extern __shared__ __align__(16) unsigned char tenfold_shared[]; \
  type* const name = reinterpret_cast<type*>(tenfold_shared)
#endif

namespace tenfold {

inline void check(cudaError_t status, const char* what) {
  if (status == cudaSuccess) return;
  throw std::runtime_error(std::string("CUDA: ") + what + ": " + cudaGetErrorString(status) + " (" +
                           cudaGetErrorName(status) + ")");
}

// Makes a device the current one until the end of the scope.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    __atomic_fetch_or(&used_, uint64_t{1} << (device % 64), __ATOMIC_RELAXED);
    check(cudaGetDevice(&before_), "cudaGetDevice");
    if (before_ != device) check(cudaSetDevice(device), "cudaSetDevice");
    changed_ = before_ != device;
  }
  ~DeviceGuard() {
    if (changed_) cudaSetDevice(before_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;
  static uint64_t used() { return __atomic_load_n(&used_, __ATOMIC_RELAXED); }  // a bit a device

 private:
  inline static uint64_t used_ = 0;
  int before_ = 0;
  bool changed_ = false;
};

// Blocks that fill the current device: enough for a grid-stride loop over `tasks`.
inline unsigned grid_for(int64_t tasks, int blocks_per_multiprocessor) {
  int device = 0, multiprocessors = 0;
  check(cudaGetDevice(&device), "cudaGetDevice");
  check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, device),
        "cudaDeviceGetAttribute");
  const int64_t most = int64_t{multiprocessors} * blocks_per_multiprocessor;
  return static_cast<unsigned>(tasks < most ? tasks : most);
}

// Starts a kernel on a stream of the current device; returns before it has run.
template <class... Params, class... Args>
void launch(void* stream, unsigned grid, unsigned block, void (*kernel)(Params...), Args... args) {
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(grid);
  config.blockDim = dim3(block);
  config.stream = static_cast<cudaStream_t>(stream);
  check(cudaLaunchKernelEx(&config, kernel, static_cast<Params>(args)...), "kernel launch");
}

}  // namespace tenfold
