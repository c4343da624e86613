#include "core/machine.h"

#include <fstream>
#include <string>

#ifdef _OPENMP
#include <dlfcn.h>
#include <omp.h>
#endif

namespace tenfold {

namespace {

// A cache's size as Linux prints it, such as 32768K; 0 where there is no such file. (sysconf is no help:
// glibc 2.36 multiplies the last level of some AMD processors by the number of cores of the package.)
int64_t cache_bytes(int index) {
  std::ifstream file("/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size");
  int64_t size = 0;
  char unit = ' ';
  if (!(file >> size)) return 0;
  file >> unit;
  return unit == 'K' ? size << 10 : unit == 'M' ? size << 20 : size;
}

}  // namespace

int64_t last_level_cache() {
  static const int64_t bytes = [] {
    int64_t largest = 0;
    for (int index = 0; index < 5; ++index) {
      const int64_t found = cache_bytes(index);
      if (found > largest) largest = found;
    }
    return largest > 0 ? largest : kDefaultCache;
  }();
  return bytes;
}

const char* openmp_runtime() {
#ifdef _OPENMP
  Dl_info info;
  if (dladdr(reinterpret_cast<void*>(&omp_get_max_threads), &info) != 0) return info.dli_fname;
  return "unknown";
#else
  return "none";
#endif
}

}  // namespace tenfold
