// Blocks of CUDA threads as fibers on one thread of the host. Kernels see this through cuda_runtime.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <stdexcept>
#include <string>

namespace simt {

inline constexpr int kWarp = 32;
inline constexpr size_t kSharedLimit = 48 << 10;  // of a block, without cudaFuncSetAttribute

struct Index {
  unsigned x, y, z;
};
struct Dim {
  unsigned x, y, z;
  constexpr Dim(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
extern thread_local Index threadIdx, blockIdx;
extern thread_local Dim blockDim, gridDim;

// Something a GPU would answer with a crash, a hang or a wrong result. The message names block and thread.
struct Fault : std::runtime_error {
  using std::runtime_error::runtime_error;
};
[[noreturn]] void fault(const std::string& what);

// A reference to a callable, so that launch() is no template.
struct Call {
  const void* object;
  void (*invoke)(const void*);
  template <class F>
  static Call of(const F& f) {
    return {&f, [](const void* object) { (*static_cast<const F*>(object))(); }};
  }
  void operator()() const { invoke(object); }
};

struct Launch {
  Dim grid, block;
  size_t dynamic_bytes;
  Call body;  // the kernel with its arguments
};

// Runs every block, in an order and with a schedule of threads that TENFOLD_SIMT_SEED determines: 0 (or
// unset) is in order, anything else shuffles and preempts. Throws Fault.
void launch(const Launch& launch);

// ---- called by running threads ----

void barrier();

enum class Shuffle { sync, index, up, down, exclusive_or, ballot };
struct WarpOp {
  Shuffle kind;
  int lane;   // source, delta or mask of lanes
  int width;  // lanes of a group, a power of 2
  uint64_t payload;
};
uint64_t warp(unsigned mask, const WarpOp& op);

// Maybe lets another thread of the block run.
void preempt();

// Shared memory of the running block: the same for every thread that names it, poisoned (NaN in every
// floating type) when a block starts. `name` is a literal and identifies the array.
void* shared_bytes(const char* name, size_t bytes);
void* dynamic_bytes(size_t* bytes);
[[noreturn]] void out_of_range(const char* name, int64_t index, int64_t count);

// An array in shared memory: every access is checked, and may be preceded by other threads' work.
template <class T>
class Shared {
 public:
  Shared(const char* name, int64_t count)
      : name_(name),
        data_(static_cast<T*>(shared_bytes(name, sizeof(T) * static_cast<size_t>(count)))),
        count_(count) {}
  static Shared dynamic(const char* name) {
    size_t bytes = 0;
    void* const data = dynamic_bytes(&bytes);
    return Shared(name, static_cast<T*>(data), static_cast<int64_t>(bytes / sizeof(T)));
  }
  T& operator[](int64_t index) const {
    if (index < 0 || index >= count_) out_of_range(name_, index, count_);
    preempt();
    return data_[index];
  }

 private:
  Shared(const char* name, T* data, int64_t count) : name_(name), data_(data), count_(count) {}
  const char* name_;
  T* data_;
  int64_t count_;
};

}  // namespace simt
