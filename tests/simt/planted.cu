// Right kernels, and the same ones with a bug of each class that the emulator is there to find.
// Prints "right", "wrong" or "fault: ..." for the case named on the command line.
#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "core/cuda.cuh"

namespace {

constexpr int kThreads = 128, kBlocks = 5, kCount = kThreads * kBlocks - 37;  // the last block is ragged
constexpr unsigned kAll = 0xffffffffu;

enum class Bug {
  none,
  missing_barrier,
  shared_out_of_range,
  global_out_of_range,
  divergent_shuffle,
  shuffle_from_outside,
  race,
  unwritten_output,
  stale_shared,
  early_return,
  skipped_barrier,
  dynamic_out_of_range,
  warp_race,
  cross_warp,
  trap,
  deep_stack,
};

// One sum per block: a tree in shared memory, then shuffles within the first warp.
template <Bug bug>
__global__ void block_sums(const int* values, int count, int* sums) {
  TENFOLD_SHARED(int, tile, kThreads);
  TENFOLD_DYNAMIC_SHARED(int, extra);
  const int thread = static_cast<int>(threadIdx.x);
  const int i = static_cast<int>(blockIdx.x) * kThreads + thread;
  if (bug == Bug::early_return && i >= count) return;
  if (bug == Bug::global_out_of_range) {
    tile[thread] = values[i];  // past the end in the last block
    if (i >= count) tile[thread] = 0;
  } else if (bug == Bug::stale_shared) {
    if (i < count) tile[thread] = values[i];  // the rest keeps what was there
  } else {
    tile[thread] = i < count ? values[i] : 0;
  }
  if (bug == Bug::shared_out_of_range) tile[thread + 1] = tile[thread + 1];
  if (bug == Bug::dynamic_out_of_range) extra[thread + 1] = 0;
  if (bug == Bug::trap && i == 77) __trap();
  if (bug != Bug::missing_barrier) __syncthreads();
  for (int half = kThreads / 2; half >= 32; half /= 2) {
    if (thread < half) tile[thread] += tile[thread + half];
    if (bug == Bug::skipped_barrier && thread >= half) break;
    if (bug != Bug::missing_barrier) __syncthreads();
  }
  if (bug == Bug::divergent_shuffle ? thread < 16 : thread < 32) {
    int sum = tile[thread];
    for (int lanes = 16; lanes > 0; lanes /= 2) {
      const unsigned mask = bug == Bug::shuffle_from_outside ? 0xffffu : kAll;
      if (bug == Bug::shuffle_from_outside && thread >= 16) break;
      sum += __shfl_down_sync(mask, sum, static_cast<unsigned>(lanes));
    }
    if (thread == 0 && !(bug == Bug::unwritten_output && blockIdx.x == 2)) sums[blockIdx.x] = sum;
  }
}

// Counts values by their last bits. The racing form adds without an atomic operation.
template <Bug bug>
__global__ void histogram(const int* values, int count, int* bins) {
  TENFOLD_SHARED(int, local, 8);
  const int thread = static_cast<int>(threadIdx.x);
  if (thread < 8) local[thread] = 0;
  __syncthreads();
  for (int i = static_cast<int>(blockIdx.x) * kThreads + thread; i < count;
       i += static_cast<int>(gridDim.x) * kThreads) {
    int& bin = local[values[i] & 7];
    if (bug == Bug::race) {
      const int old = bin;
      bin = local[values[i] & 7] - local[values[i] & 7] + old + 1;  // others may run in between
    } else {
      atomicAdd(&bin, 1);
    }
  }
  __syncthreads();
  if (thread < 8) atomicAdd(&bins[thread], local[thread]);
}

// Neighbours exchange through shared memory inside one warp.
template <Bug bug>
__global__ void rotate(const int* values, int* rotated) {
  TENFOLD_SHARED(int, tile, kThreads);
  const int thread = static_cast<int>(threadIdx.x);
  const int base = thread / 32 * 32, lane = thread % 32;
  tile[thread] = values[thread];
  if (bug != Bug::warp_race) __syncwarp();
  rotated[thread] = tile[base + (lane + 1) % 32];
}

// A running count over passes; each warp's part goes through shared memory that the next pass uses again.
template <Bug bug>
__global__ void ranks(const int* values, int count, int* rank) {
  TENFOLD_SHARED(int, parts, kThreads / 32);
  const int thread = static_cast<int>(threadIdx.x);
  int before = 0;
  for (int begin = 0; begin < count; begin += kThreads) {
    const int i = begin + thread;
    const bool odd = i < count && (values[i] & 1) != 0;
    const unsigned votes = __ballot_sync(kAll, odd);
    if (bug != Bug::cross_warp) __syncthreads();  // the pass before may still be reading parts
    if (thread % 32 == 0) parts[thread / 32] = __popc(votes);
    __syncthreads();
    int mine = before + __popc(votes & ((1u << (thread % 32)) - 1u));
    for (int warp = 0; warp < kThreads / 32; ++warp) {
      const int part = parts[warp];
      if (warp < thread / 32) mine += part;
      before += part;
    }
    if (i < count) rank[i] = mine;
  }
}

template <Bug bug>
__device__ int deep(int depth) {
  volatile char page[1024];
  page[depth % 1024] = static_cast<char>(depth);
  return depth == 0 ? page[0] : deep<bug>(depth - 1) + page[depth % 1024];
}

__global__ void recurse(int* out) { out[0] = deep<Bug::deep_stack>(1000); }

template <class T>
struct Buffer {  // of exactly this size, so that AddressSanitizer sees one element past the end
  explicit Buffer(size_t count) : data(new T[count]), count(count) {
    std::memset(data, 0xA5, count * sizeof(T));
  }
  ~Buffer() { delete[] data; }
  T* data;
  size_t count;
};

int value(int i) { return i * 7 % 31 + 1; }

template <Bug bug>
bool sums_are_right() {
  Buffer<int> values(kCount), sums(kBlocks);
  for (int i = 0; i < kCount; ++i) values.data[i] = value(i);
  cudaLaunchConfig_t config{};
  config.gridDim = dim3(kBlocks);
  config.blockDim = dim3(kThreads);
  config.dynamicSmemBytes = kThreads * sizeof(int);
  const int count = kCount;
  tenfold::check(
      cudaLaunchKernelEx(&config, block_sums<bug>, static_cast<const int*>(values.data), count, sums.data),
      "launch");
  for (int block = 0; block < kBlocks; ++block) {
    int want = 0;
    for (int i = block * kThreads; i < kCount && i < (block + 1) * kThreads; ++i) want += value(i);
    if (sums.data[block] != want) return false;
  }
  return true;
}

template <Bug bug>
bool histogram_is_right() {
  Buffer<int> values(kCount), bins(8);
  int want[8] = {};
  for (int i = 0; i < kCount; ++i) values.data[i] = value(i);
  for (int i = 0; i < kCount; ++i) ++want[value(i) & 7];
  for (int i = 0; i < 8; ++i) bins.data[i] = 0;
  tenfold::launch(nullptr, 2, kThreads, histogram<bug>, values.data, kCount, bins.data);
  return std::memcmp(bins.data, want, sizeof want) == 0;
}

template <Bug bug>
bool rotation_is_right() {
  Buffer<int> values(kThreads), rotated(kThreads);
  for (int i = 0; i < kThreads; ++i) values.data[i] = value(i);
  tenfold::launch(nullptr, 1, kThreads, rotate<bug>, values.data, rotated.data);
  for (int i = 0; i < kThreads; ++i) {
    if (rotated.data[i] != value(i / 32 * 32 + (i % 32 + 1) % 32)) return false;
  }
  return true;
}

template <Bug bug>
bool ranks_are_right() {
  Buffer<int> values(kCount), rank(kCount);
  for (int i = 0; i < kCount; ++i) values.data[i] = value(i);
  tenfold::launch(nullptr, 1, kThreads, ranks<bug>, values.data, kCount, rank.data);
  int want = 0;
  for (int i = 0; i < kCount; ++i) {
    if (rank.data[i] != want) return false;
    want += value(i) & 1;
  }
  return true;
}

bool recursion_ends() {
  int out = 0;
  tenfold::launch(nullptr, 1, 32, recurse, &out);
  return true;
}

struct Case {
  const char* name;
  bool (*run)();
};

constexpr Case kCases[] = {
    {"sums", sums_are_right<Bug::none>},
    {"histogram", histogram_is_right<Bug::none>},
    {"rotation", rotation_is_right<Bug::none>},
    {"ranks", ranks_are_right<Bug::none>},
    {"missing_barrier", sums_are_right<Bug::missing_barrier>},
    {"shared_out_of_range", sums_are_right<Bug::shared_out_of_range>},
    {"dynamic_out_of_range", sums_are_right<Bug::dynamic_out_of_range>},
    {"global_out_of_range", sums_are_right<Bug::global_out_of_range>},
    {"divergent_shuffle", sums_are_right<Bug::divergent_shuffle>},
    {"shuffle_from_outside", sums_are_right<Bug::shuffle_from_outside>},
    {"unwritten_output", sums_are_right<Bug::unwritten_output>},
    {"stale_shared", sums_are_right<Bug::stale_shared>},
    {"early_return", sums_are_right<Bug::early_return>},
    {"skipped_barrier", sums_are_right<Bug::skipped_barrier>},
    {"trap", sums_are_right<Bug::trap>},
    {"race", histogram_is_right<Bug::race>},
    {"warp_race", rotation_is_right<Bug::warp_race>},
    {"cross_warp", ranks_are_right<Bug::cross_warp>},
    {"deep_stack", recursion_ends},
};

}  // namespace

int main(int argc, char** argv) {
  for (const Case& one : kCases) {
    if (argc != 2 || std::strcmp(one.name, argv[1]) != 0) continue;
    try {
      std::puts(one.run() ? "right" : "wrong");
    } catch (const std::exception& error) {
      std::printf("fault: %s\n", error.what());
    }
    return 0;
  }
  return 2;
}
