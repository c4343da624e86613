// Facts about the machine that kernels adapt to.
#pragma once

#include <cstdint>

namespace tenfold {

// Bytes of last-level cache of one processor, from the operating system; kDefaultCache where it does not say.
inline constexpr int64_t kDefaultCache = int64_t{32} << 20;
int64_t last_level_cache();

// Asks the operating system for huge pages under memory that is about to be written for the first time. With
// small pages the faults cost ten times the writing, and glibc maps blocks beyond 32 MiB anew at every call.
// numpy does the same for its own arrays from 4 MiB on. Only a hint: nothing happens where it is not heeded.
inline constexpr int64_t kHugePageMinimum = int64_t{4} << 20;
void advise_huge_pages(char* data, int64_t bytes);

// Tells glibc to keep freed memory for the next allocation: blocks below `bytes` (at most 1 GiB) come from
// the heap, which is not given back, instead of being mapped anew each time. Holds for the whole process.
// False, and nothing done, where the C library is another one or the user has set its thresholds by
// environment variables.
inline constexpr int64_t kMostKept = int64_t{1} << 30;
bool keep_freed_memory(int64_t bytes);

// Whether this process was forked from one that had loaded tenfold. GNU's OpenMP waits for ever for the
// threads that its parent had, so loops then run on one thread.
bool forked();

// Path of the OpenMP runtime's library in this process, "none" in a build without OpenMP.
const char* openmp_runtime();

}  // namespace tenfold
