// CUDA devices as this build and machine have them. Every build has these functions; one without CUDA says
// so.
#pragma once

#include <string>
#include <vector>

namespace tenfold {

#ifdef TENFOLD_HAVE_CUDA
inline constexpr bool kBuiltWithCuda = true;
#else
inline constexpr bool kBuiltWithCuda = false;
#endif

std::string cuda_architectures();  // such as "80-real;90a-real", "" without CUDA
int cuda_device_count();           // 0 where there is none that can be used, for whatever reason
std::string cuda_reason();         // why there is none, "" where there is one

struct CudaDevice {
  std::string name;
  int major, minor;  // compute capability
};
std::vector<CudaDevice> cuda_devices();

}  // namespace tenfold
