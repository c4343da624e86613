// Loops over OpenMP threads whose results do not depend on the number of threads.
#pragma once

#include <cstdint>
#include <new>

#ifdef _OPENMP
#include <omp.h>
#endif

#include "core/level.h"
#include "core/machine.h"

namespace tenfold {
TENFOLD_LEVEL_BEGIN

// Threads that a loop may use: what torch.set_num_threads or OMP_NUM_THREADS said, but one inside another
// loop and in a forked process.
inline int available_threads() {
#ifdef _OPENMP
  return omp_in_parallel() || forked() ? 1 : omp_get_max_threads();
#else
  return 1;
#endif
}

// Calls body(begin, end) on contiguous, disjoint parts that cover [0, count), each at least `grain` long
// (so that a small loop never pays for waking threads). The body must not throw, must write each element
// independently of where the parts are cut, and must bound its scratch memory per call.
template <class Body>
void parallel_for(int64_t count, int64_t grain, Body&& body) {
  if (count <= 0) return;
  if (grain < 1) grain = 1;
  int64_t parts = (count + grain - 1) / grain;
  if (parts > 1) {
    const int64_t threads = available_threads();
    if (parts > threads) parts = threads;
  }
  if (parts <= 1) {
    body(int64_t{0}, count);
    return;
  }
#ifdef _OPENMP
#pragma omp parallel num_threads(static_cast<int>(parts))
  {
    // The runtime may give fewer threads than asked for, so the cut uses what it gave.
    const int64_t given = omp_get_num_threads();
    const int64_t me = omp_get_thread_num();
    const int64_t begin = count * me / given;
    const int64_t end = count * (me + 1) / given;
    if (begin < end) body(begin, end);
  }
#endif
}

// The same for tasks that take long or differ: threads take the next one as they become free. Calls
// body(next) once on each thread; next() gives the number of another task, or one from `count` on when there
// is none left. The body must write each task's results independently of who runs it.
template <class Body>
void parallel_tasks(int64_t count, Body&& body) {
  if (count <= 0) return;
  int64_t taken = 0;
  const int64_t threads = available_threads();
  if (threads == 1 || count == 1) {
    body([&] { return taken++; });
    return;
  }
#ifdef _OPENMP
#pragma omp parallel num_threads(static_cast<int>(threads < count ? threads : count))
  body([&] {
    int64_t mine;
#pragma omp atomic capture
    mine = taken++;
    return mine;
  });
#endif
}

// Memory for one call of a loop's body. Not std::vector: its functions are weak symbols outside our
// namespace (see level.h). Contents start undefined.
template <class T>
class Scratch {
 public:
  explicit Scratch(int64_t count)
      : data_(count <= kInline ? inline_ : new T[static_cast<unsigned long>(count)]) {}
  ~Scratch() {
    if (data_ != inline_) delete[] data_;
  }
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  T* data() { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }

 private:
  static constexpr int64_t kInline = 1024;
  T inline_[kInline];
  T* data_;
};

// The same for vectors of float: aligned to a cache line.
class FloatScratch {
 public:
  explicit FloatScratch(int64_t count)
      : data_(static_cast<float*>(
            ::operator new(static_cast<unsigned long>(count + 1) * sizeof(float), kLine))) {}
  ~FloatScratch() { ::operator delete(data_, kLine); }
  FloatScratch(const FloatScratch&) = delete;
  FloatScratch& operator=(const FloatScratch&) = delete;
  float* data() { return data_; }

 private:
  static constexpr std::align_val_t kLine{64};
  float* data_;
};

TENFOLD_LEVEL_END
}  // namespace tenfold
