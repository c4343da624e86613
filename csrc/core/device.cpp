#include "core/device.h"

#include <cstdint>
#include <mutex>
#include <string>

#include "core/deferred.h"
#include "core/error.h"

#ifdef TENFOLD_HAVE_CUDA
#include "core/cuda.cuh"
#endif

namespace tenfold {

std::string cuda_architectures() { return TENFOLD_CUDA_ARCHITECTURES; }

#ifndef TENFOLD_HAVE_CUDA

int cuda_device_count() { return 0; }
std::string cuda_reason() { return TENFOLD_CUDA_REASON; }
std::vector<CudaDevice> cuda_devices() { return {}; }
void raise_deferred() {}
void synchronize_devices() {}

#else

namespace {

constexpr int kMostSlots = 64;
constexpr int kPositionBits = 31;

struct Slots {
  std::mutex mutex;
  DeferredWord* words = nullptr;  // host memory that every device sees under the same address
  int count = 0;
  const char* arguments[kMostSlots] = {};
  const char* ops[kMostSlots] = {};
  const char* faults[kMostSlots] = {};
};

Slots& slots() {
  static Slots all;
  return all;
}

cudaError_t count_devices(int* count) {
  *count = 0;
  const cudaError_t status = cudaGetDeviceCount(count);
  if (status != cudaSuccess) {
    *count = 0;
    cudaGetLastError();  // the next call must not meet this error again
  }
  return status;
}

std::string version(int number) {
  return std::to_string(number / 1000) + "." + std::to_string(number % 1000 / 10);
}

}  // namespace

std::vector<CudaDevice> cuda_devices() {
  int count = 0;
  count_devices(&count);
  std::vector<CudaDevice> devices;
  for (int device = 0; device < count; ++device) {
    cudaDeviceProp properties{};
    check(cudaGetDeviceProperties(&properties, device), "cudaGetDeviceProperties");
    devices.push_back({properties.name, properties.major, properties.minor});
  }
  return devices;
}

int cuda_device_count() {
  int count = 0;
  count_devices(&count);
  return count;
}

std::string cuda_reason() {
  int count = 0;
  const cudaError_t status = count_devices(&count);
  if (status == cudaErrorInsufficientDriver) {
    int driver = 0, runtime = 0;
    cudaDriverGetVersion(&driver);
    cudaRuntimeGetVersion(&runtime);
    if (driver == 0) return "no NVIDIA driver is installed";
    return "the NVIDIA driver is for CUDA " + version(driver) + ", want " + version(runtime) + " or newer";
  }
  if (status != cudaSuccess) return std::string(cudaGetErrorName(status)) + ": " + cudaGetErrorString(status);
  return count > 0 ? "" : "the driver reports no device";
}

DeferredSlot::DeferredSlot(const char* argument, const char* op, const char* fault) {
  Slots& all = slots();
  const std::lock_guard lock(all.mutex);
  if (all.words == nullptr) {
    void* memory = nullptr;
    check(cudaHostAlloc(&memory, kMostSlots * sizeof(DeferredWord),
                        cudaHostAllocPortable | cudaHostAllocMapped),
          "cudaHostAlloc");
    all.words = static_cast<DeferredWord*>(memory);
    for (int i = 0; i < kMostSlots; ++i) all.words[i] = 0;
  }
  if (all.count == kMostSlots) throw std::logic_error("more deferred slots than there is room for");
  all.arguments[all.count] = argument;
  all.ops[all.count] = op;
  all.faults[all.count] = fault;
  word_ = all.words + all.count++;
}

void raise_deferred() {
  Slots& all = slots();
  const std::lock_guard lock(all.mutex);
  std::string found;
  for (int i = 0; i < all.count; ++i) {
    const DeferredWord word = __atomic_exchange_n(all.words + i, DeferredWord{0}, __ATOMIC_RELAXED);
    if (word == 0 || !found.empty()) continue;
    const std::string sample = std::to_string((word - 1) >> kPositionBits);
    const std::string position = std::to_string((word - 1) & ((DeferredWord{1} << kPositionBits) - 1));
    found = std::string(all.arguments[i]) + "[" + sample + ", " + position + "] of " + all.ops[i] +
            " on a GPU was " + all.faults[i] + " (sample " + sample + ", position " + position +
            "; found after the call had returned)";
  }
  if (!found.empty()) throw ValueError(found);
}

void synchronize_devices() {
  const uint64_t used = DeviceGuard::used();
  for (int device = 0; device < 64; ++device) {
    if ((used >> device & 1u) == 0) continue;
    const DeviceGuard guard(device);
    check(cudaDeviceSynchronize(), "cudaDeviceSynchronize");
  }
  raise_deferred();
}

#endif

}  // namespace tenfold
