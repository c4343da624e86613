// Facts about the machine that kernels adapt to.
#pragma once

#include <cstdint>

namespace tenfold {

// Bytes of last-level cache of one processor, from the operating system; kDefaultCache where it does not say.
inline constexpr int64_t kDefaultCache = int64_t{32} << 20;
int64_t last_level_cache();

// Path of the OpenMP runtime's library in this process, "none" in a build without OpenMP.
const char* openmp_runtime();

}  // namespace tenfold
