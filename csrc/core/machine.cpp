#include "core/machine.h"

#include <pthread.h>

#include <climits>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#ifdef __linux__
#include <sys/mman.h>
#endif
#ifdef __GLIBC__
#include <malloc.h>
#endif

#ifdef _OPENMP
#include <dlfcn.h>
#include <omp.h>
#endif

namespace tenfold {

namespace {

// A cache's size as Linux prints it, such as 32768K; 0 where there is no such file. (sysconf is no help:
// glibc 2.36 multiplies the last level of some AMD processors by the number of cores of the package.)
int64_t cache_bytes(int index) {
  const std::string path = "/sys/devices/system/cpu/cpu0/cache/index" + std::to_string(index) + "/size";
  std::FILE* const file = std::fopen(path.c_str(), "r");
  if (file == nullptr) return 0;
  long long size = 0;
  char unit = ' ';
  const int found = std::fscanf(file, "%lld%c", &size, &unit);
  std::fclose(file);
  if (found < 1) return 0;
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

void advise_huge_pages(char* data, int64_t bytes) {
#ifdef MADV_HUGEPAGE
  constexpr uintptr_t kPage = 4096, kHugePage = uintptr_t{2} << 20;
  if (bytes < kHugePageMinimum) return;
  // Whole small pages inside the block; the kernel takes the huge ones that fit.
  const uintptr_t begin = (reinterpret_cast<uintptr_t>(data) + kPage - 1) & ~(kPage - 1);
  const uintptr_t end = (reinterpret_cast<uintptr_t>(data) + static_cast<uintptr_t>(bytes)) & ~(kPage - 1);
  if (end > begin + kHugePage) madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#else
  (void)data, (void)bytes;
#endif
}

bool keep_freed_memory(int64_t bytes) {
#ifdef __GLIBC__
  const char* const tunables = std::getenv("GLIBC_TUNABLES");
  const bool chosen = std::getenv("MALLOC_MMAP_THRESHOLD_") != nullptr ||
                      std::getenv("MALLOC_TRIM_THRESHOLD_") != nullptr ||
                      (tunables != nullptr && std::strstr(tunables, "glibc.malloc.") != nullptr);
  if (chosen) return false;
  const auto most = static_cast<int>(bytes < kMostKept ? bytes : kMostKept);
  // The top of the heap is given back from a size that it then hardly reaches.
  return mallopt(M_MMAP_THRESHOLD, most) == 1 && mallopt(M_TRIM_THRESHOLD, INT_MAX) == 1;
#else
  (void)bytes;
  return false;
#endif
}

bool forked() {
  static bool is_child = false;
  static const int watched = pthread_atfork(nullptr, nullptr, [] { is_child = true; });
  (void)watched;
  return is_child;
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
