// Masked patches on a GPU: the same results as patches_cpu.cpp, bit for bit.
//
// A task is a run of rows of one sample; blocks stride over the tasks. Within a task the threads stand in
// groups, one group a row, each thread moving units of up to 16 bytes, so every byte of a row is read and
// written once; ids are read once per task (restore_rows: all of a sample's). Ids are checked on the way: a
// wrong one is written to `bad` (core/deferred.h), and no memory outside the rows is touched. A gathered row
// whose id is out of range becomes all ones (NaN in every floating type); what restore_rows and sum_chunks
// give for a sample with a wrong id is defined by the other ids. Nothing waits for the device.
#include <cstdint>

#include "core/bfloat16.h"
#include "core/cuda.cuh"
#include "core/deferred.h"
#include "core/philox.h"
#include "patches/patches.h"

namespace tenfold::patches::cuda {
namespace {

constexpr int kThreads = 256, kWarp = 32;
constexpr int kLeastBlocks = 3;  // of a multiprocessor: up to 80 registers a thread, so that none is spilled
constexpr int kBlocksPerMultiprocessor = 8;
constexpr int kTaskBytes = 32 << 10;  // rows of one task: enough that finding them costs nothing
constexpr int kMostRows = 128;        // of one task
constexpr int kSeenWords = 1024;      // bits of tokens already named, a window at a time
constexpr int64_t kSeenTokens = int64_t{kSeenWords} * 32;

struct Tiling {
  int64_t rows, chunks, tasks;  // rows of a task, tasks of a sample, tasks
  int lanes_log2;               // threads of a group
};

template <int bytes>
struct UnitOf;
template <>
struct UnitOf<16> {
  using type = uint4;
};
template <>
struct UnitOf<8> {
  using type = uint2;
};
template <>
struct UnitOf<4> {
  using type = uint32_t;
};
template <>
struct UnitOf<2> {
  using type = uint16_t;
};
template <>
struct UnitOf<1> {
  using type = uint8_t;
};

__device__ __forceinline__ int64_t read_id(const Ids& ids, int64_t sample, int64_t position) {
  const char* const at = ids.data + sample * ids.batch_stride + position * ids.stride;
  return ids.wide ? *reinterpret_cast<const int64_t*>(at) : *reinterpret_cast<const int32_t*>(at);
}

__device__ __forceinline__ void write_id(const Ids& ids, int64_t sample, int64_t position, int64_t value) {
  char* const at = ids.data + sample * ids.batch_stride + position * ids.stride;
  if (ids.wide) {
    *reinterpret_cast<int64_t*>(at) = value;
  } else {
    *reinterpret_cast<int32_t*>(at) = static_cast<int32_t>(value);
  }
}

__device__ __forceinline__ bool inside(int64_t id, int64_t tokens) {
  return static_cast<uint64_t>(id) < static_cast<uint64_t>(tokens);
}

// One of the wrong ids is kept; which one does not matter.
__device__ void report(DeferredWord* bad, int64_t sample, int64_t position) {
  *bad = deferred_place(sample, position);
}

// Reports ids of a sample that are doubled. Called by whole blocks; leaves range checks to others.
template <class Bits>
__device__ void check_unique(Bits& seen, const Ids& ids, int64_t sample, int64_t count, int64_t tokens,
                             DeferredWord* bad) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t begin = 0; begin < tokens; begin += kSeenTokens) {
    __syncthreads();
    for (int word = thread; word < kSeenWords; word += kThreads) seen[word] = 0;
    __syncthreads();
    for (int64_t k = thread; k < count; k += kThreads) {
      const int64_t at = read_id(ids, sample, k) - begin;
      if (!inside(at, kSeenTokens)) continue;
      const uint32_t bit = 1u << (at % 32);
      if ((atomicOr(&seen[static_cast<int>(at / 32)], bit) & bit) != 0) report(bad, sample, k);
    }
  }
}

// Where the byte `at` of a row lies, counted from the row's beginning.
template <bool strided>
__device__ __forceinline__ int64_t offset(const Rows& rows, int64_t at) {
  if constexpr (!strided) {
    return at;
  } else {
    int64_t chunk = at / rows.chunk;
    int64_t result = at - chunk * rows.chunk;
    for (int i = 0; i < rows.outer; ++i) {
      const int64_t next = chunk / rows.size[i];
      result += (chunk - next * rows.size[i]) * rows.stride[i];
      chunk = next;
    }
    return result;
  }
}

template <int bytes, bool strided>
__device__ __forceinline__ void copy_row(char* to, const char* from, const Rows& rows, int lane, int lanes) {
  using Unit = typename UnitOf<bytes>::type;
  for (int64_t at = int64_t{lane} * bytes; at < rows.row_bytes; at += int64_t{lanes} * bytes) {
    *reinterpret_cast<Unit*>(to + at) = *reinterpret_cast<const Unit*>(from + offset<strided>(rows, at));
  }
}

template <int bytes>
__device__ __forceinline__ void set_row(char* to, int64_t row_bytes, int value, int lane, int lanes) {
  using Unit = typename UnitOf<bytes>::type;
  const uint32_t word = value == 0 ? 0u : 0xffffffffu;
  Unit unit;
  if constexpr (bytes == 16) {
    unit = make_uint4(word, word, word, word);
  } else if constexpr (bytes == 8) {
    unit.x = unit.y = word;
  } else {
    unit = static_cast<Unit>(word);
  }
  for (int64_t at = int64_t{lane} * bytes; at < row_bytes; at += int64_t{lanes} * bytes) {
    *reinterpret_cast<Unit*>(to + at) = unit;
  }
}

template <int bytes, bool strided>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    gather_rows(const __grid_constant__ Rows out, const __grid_constant__ Rows x, const Ids ids,
                const Sizes sizes, const Tiling tiling, DeferredWord* bad) {
  TENFOLD_SHARED(uint32_t, seen, kSeenWords);
  const int lanes = 1 << tiling.lanes_log2, groups = kThreads >> tiling.lanes_log2;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int group = static_cast<int>(threadIdx.x) >> tiling.lanes_log2;
  for (int64_t task = blockIdx.x; task < tiling.tasks; task += gridDim.x) {
    const int64_t sample = task / tiling.chunks, chunk = task - sample * tiling.chunks;
    const int64_t first = chunk * tiling.rows;
    const int64_t last = first + tiling.rows < sizes.keep ? first + tiling.rows : sizes.keep;
    for (int64_t k = first + group; k < last; k += groups) {
      const int64_t id = read_id(ids, sample, k);
      char* const to = out.data + sample * out.batch_stride + k * out.row_stride;
      if (inside(id, sizes.tokens)) {
        const char* const from = x.data + sample * x.batch_stride + id * x.row_stride;
        copy_row<bytes, strided>(to, from, x, lane, lanes);
      } else {
        if (lane == 0) report(bad, sample, k);
        set_row<bytes>(to, out.row_bytes, -1, lane, lanes);
      }
    }
    if (chunk == 0) check_unique(seen, ids, sample, sizes.keep, sizes.tokens, bad);
  }
}

// Fills row_of[i] with the row of y that token first + i takes, or -1. `ids` name tokens.
template <class Map>
__device__ void invert(Map& row_of, const Ids& ids, int64_t sample, int64_t first, int64_t count,
                       const Sizes& sizes, DeferredWord* bad) {
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t i = thread; i < count; i += kThreads) row_of[i] = -1;
  __syncthreads();
  for (int64_t k = thread; k < sizes.keep; k += kThreads) {
    const int64_t id = read_id(ids, sample, k);
    if (!inside(id, sizes.tokens)) report(bad, sample, k);
    if (!inside(id - first, count)) continue;
    // Of a doubled id the last row wins: wrong in any case, but the same at every run.
    const int before = atomicMax(&row_of[id - first], static_cast<int>(k));
    if (before >= 0) report(bad, sample, before > k ? before : k);
  }
}

// The same where `ids` are the ranks of the tokens: a rank of `keep` or more is a dropped token.
template <class Map>
__device__ void read_ranks(Map& row_of, const Ids& ids, int64_t sample, int64_t first, int64_t count,
                           const Sizes& sizes, DeferredWord* bad) {
  for (int64_t i = threadIdx.x; i < count; i += kThreads) {
    const int64_t rank = read_id(ids, sample, first + i);
    if (!inside(rank, sizes.tokens)) report(bad, sample, first + i);
    row_of[i] = inside(rank, sizes.keep) ? static_cast<int>(rank) : -1;
  }
}

template <int bytes, bool strided>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    restore_rows(const __grid_constant__ Rows out, const __grid_constant__ Rows y,
                 const __grid_constant__ Rows fill, const Ids ids, const bool ranks, const Sizes sizes,
                 const Tiling tiling, DeferredWord* bad) {
  TENFOLD_SHARED(int, row_of, kMostRows);
  TENFOLD_SHARED(uint32_t, seen, kSeenWords);
  const int lanes = 1 << tiling.lanes_log2, groups = kThreads >> tiling.lanes_log2;
  const int lane = static_cast<int>(threadIdx.x) & (lanes - 1);
  const int group = static_cast<int>(threadIdx.x) >> tiling.lanes_log2;
  for (int64_t task = blockIdx.x; task < tiling.tasks; task += gridDim.x) {
    const int64_t sample = task / tiling.chunks, chunk = task - sample * tiling.chunks;
    const int64_t first = chunk * tiling.rows;
    const int64_t count = first + tiling.rows < sizes.tokens ? tiling.rows : sizes.tokens - first;
    __syncthreads();  // the task before may still be reading row_of
    if (ranks) {
      read_ranks(row_of, ids, sample, first, count, sizes, bad);
    } else {
      invert(row_of, ids, sample, first, count, sizes, bad);
    }
    __syncthreads();
    for (int64_t i = group; i < count; i += groups) {
      char* const to = out.data + sample * out.batch_stride + (first + i) * out.row_stride;
      const int row = row_of[i];
      if (row >= 0) {
        const char* const from = y.data + sample * y.batch_stride + row * y.row_stride;
        copy_row<bytes, strided>(to, from, y, lane, lanes);
      } else if (fill.data != nullptr) {
        copy_row<bytes, strided>(to, fill.data, fill, lane, lanes);
      } else {
        set_row<bytes>(to, out.row_bytes, 0, lane, lanes);
      }
    }
    if (ranks && chunk == 0) check_unique(seen, ids, sample, sizes.tokens, sizes.tokens, bad);
  }
}

// ---- the gradient of mask_token: the CPU's additions, in the CPU's order ----

constexpr int kSumThreads = 64;  // few, for there are only kSumChunks times the columns to work on
constexpr int kAtOnce = 8;       // rows on their way from memory while one is added

template <class T, int count>
struct alignas(sizeof(T) * count) Vector {
  T values[count];
};

// partial[chunk, d] = sum of x's dropped rows over the samples of the chunk, one thread per `count` columns.
template <class T, class Sum, int count>
__global__ void __launch_bounds__(kSumThreads, kLeastBlocks)
    sum_chunks(Sum* partial, const Rows x, const Ids ids, const Sizes sizes, const int64_t width,
               const int64_t tiles, DeferredWord* bad) {
  TENFOLD_SHARED(uint32_t, kept, kSeenWords);
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t task = blockIdx.x; task < kSumChunks * tiles; task += gridDim.x) {
    const int64_t chunk = task / tiles, tile = task - chunk * tiles;
    const int64_t column = (tile * kSumThreads + thread) * count;
    Sum sum[count] = {};
    for (int64_t b = sizes.batch * chunk / kSumChunks; b < sizes.batch * (chunk + 1) / kSumChunks; ++b) {
      const char* const rows = x.data + b * x.batch_stride + column * static_cast<int64_t>(sizeof(T));
      for (int64_t begin = 0; begin < sizes.tokens; begin += kSeenTokens) {
        const int64_t end = begin + kSeenTokens < sizes.tokens ? begin + kSeenTokens : sizes.tokens;
        __syncthreads();
        for (int word = thread; word < kSeenWords; word += kSumThreads) kept[word] = 0;
        __syncthreads();
        for (int64_t k = thread; k < sizes.keep; k += kSumThreads) {
          const int64_t id = read_id(ids, b, k);
          if (!inside(id, sizes.tokens)) report(bad, b, k);
          if (!inside(id - begin, kSeenTokens)) continue;
          const uint32_t bit = 1u << ((id - begin) % 32);
          if ((atomicOr(&kept[static_cast<int>((id - begin) / 32)], bit) & bit) != 0) report(bad, b, k);
        }
        __syncthreads();
        if (column >= width) continue;
        for (int64_t n = begin; n < end; n += kAtOnce) {
          const uint32_t word = kept[static_cast<int>((n - begin) / 32)] >> ((n - begin) % 32);
          Vector<T, count> row[kAtOnce] = {};
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {
            const bool dropped = n + i < end && (word >> i & 1u) == 0;
            if (dropped) row[i] = *reinterpret_cast<const Vector<T, count>*>(rows + (n + i) * x.row_stride);
          }
#pragma unroll
          for (int i = 0; i < kAtOnce; ++i) {
            const bool dropped = n + i < end && (word >> i & 1u) == 0;
            if (!dropped) continue;
#pragma unroll
            for (int c = 0; c < count; ++c) sum[c] += to_float(row[i].values[c]);
          }
        }
      }
    }
    if (column >= width) continue;
#pragma unroll
    for (int c = 0; c < count; ++c) partial[chunk * width + column + c] = sum[c];
  }
}

template <class T, class Sum>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    sum_totals(T* out, const Sum* partial, const int64_t width) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t d = int64_t{blockIdx.x} * kThreads + threadIdx.x; d < width; d += threads) {
    Sum total = 0;
    for (int64_t chunk = 0; chunk < kSumChunks; ++chunk) total += partial[chunk * width + d];
    round_to(out[d], total);
  }
}

// ---- ids ----

__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    invert_ranks(const Ids restore_ids, const Ids keep_ids, const Sizes sizes, DeferredWord* bad) {
  TENFOLD_SHARED(uint32_t, seen, kSeenWords);
  for (int64_t sample = blockIdx.x; sample < sizes.batch; sample += gridDim.x) {
    // Where a rank is missing there is no id: none that could be used.
    for (int64_t k = threadIdx.x; k < sizes.keep; k += kThreads) write_id(keep_ids, sample, k, -1);
    __syncthreads();
    for (int64_t n = threadIdx.x; n < sizes.tokens; n += kThreads) {
      const int64_t rank = read_id(restore_ids, sample, n);
      if (!inside(rank, sizes.tokens)) report(bad, sample, n);
      if (inside(rank, sizes.keep)) write_id(keep_ids, sample, rank, n);
    }
    check_unique(seen, restore_ids, sample, sizes.tokens, sizes.tokens, bad);
  }
}

constexpr int kDraws = 1024;  // swaps whose partners are drawn before they are made

// Writes the ascending order of the first `keep` entries and of the rest: a running count of kept tokens.
// restore_ids holds 1 for kept tokens and 0 for others when it is called.
template <class Counts>
__device__ void write_ordered(Counts& counts, const Ids& keep_ids, const Ids& restore_ids, int64_t sample,
                              const Sizes& sizes) {
  constexpr int kWarps = kThreads / kWarp;
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  int64_t before = 0;  // kept tokens of the passes so far
  for (int64_t begin = 0; begin < sizes.tokens; begin += kThreads) {
    const int64_t n = begin + thread;
    const bool kept = n < sizes.tokens && read_id(restore_ids, sample, n) != 0;
    const unsigned votes = __ballot_sync(0xffffffffu, kept);
    __syncthreads();  // the pass before may still be reading counts
    if (lane == 0) counts[warp] = __popc(votes);
    __syncthreads();
    int64_t mine = before + __popc(votes & ((1u << lane) - 1u));
    for (int other = 0; other < kWarps; ++other) {
      const int count = counts[other];
      if (other < warp) mine += count;
      before += count;
    }
    if (n >= sizes.tokens) continue;
    if (kept) write_id(keep_ids, sample, mine, n);
    write_id(restore_ids, sample, n, kept ? mine : sizes.keep + n - mine);
  }
}

// A block per sample. The shuffle is the CPU's: all threads draw, one swaps. `scratch` holds the ids of a
// block where a sample has more than kShuffleTokens.
template <bool in_shared>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    shuffle_ids(const Ids keep_ids, const Ids restore_ids, int32_t* scratch, const Sizes sizes,
                const uint64_t seed, const uint64_t offset, const bool ordered) {
  TENFOLD_SHARED(int32_t, local, in_shared ? kShuffleTokens : 1);
  TENFOLD_SHARED(int32_t, partner, kDraws);
  TENFOLD_SHARED(int, counts, kThreads / kWarp);
  const int thread = static_cast<int>(threadIdx.x);
  int32_t* const far = scratch + (in_shared ? 0 : blockIdx.x * sizes.tokens);
  const auto ids = [&](int64_t n) -> int32_t& {
    if constexpr (in_shared) {
      return local[n];
    } else {
      return far[n];
    }
  };
  for (int64_t b = blockIdx.x; b < sizes.batch; b += gridDim.x) {
    const uint64_t sample = offset + static_cast<uint64_t>(b);
    __syncthreads();  // the sample before may still be read
    for (int64_t n = thread; n < sizes.tokens; n += kThreads) ids(n) = static_cast<int32_t>(n);
    for (int64_t begin = 0; begin < sizes.keep; begin += kDraws) {
      const int64_t end = begin + kDraws < sizes.keep ? begin + kDraws : sizes.keep;
      __syncthreads();
      for (int64_t block = begin / 4 + thread; block * 4 < end; block += kThreads) {
        uint32_t words[4] = {static_cast<uint32_t>(block), 0, static_cast<uint32_t>(sample),
                             static_cast<uint32_t>(sample >> 32)};
        philox4x32<1>(&words[0], &words[1], &words[2], &words[3], static_cast<uint32_t>(seed),
                      static_cast<uint32_t>(seed >> 32));
#pragma unroll
        for (int i = 0; i < 4; ++i) {
          const int64_t k = block * 4 + i;
          if (k >= end) continue;
          const uint32_t range = static_cast<uint32_t>(sizes.tokens - k);
          partner[k - begin] = static_cast<int32_t>(k + below(words[i], range));
        }
      }
      __syncthreads();
      if (thread != 0) continue;
      for (int64_t k = begin; k < end; ++k) {
        const int32_t other = partner[k - begin], held = ids(k);
        ids(k) = ids(other);
        ids(other) = held;
      }
    }
    __syncthreads();
    for (int64_t i = thread; i < sizes.tokens; i += kThreads) {
      const int32_t id = ids(i);
      if (!ordered && i < sizes.keep) write_id(keep_ids, b, i, id);
      write_id(restore_ids, b, id, ordered ? i < sizes.keep : i);
    }
    if (!ordered) continue;
    __syncthreads();
    write_ordered(counts, keep_ids, restore_ids, b, sizes);
  }
}

// ---- launches ----

int64_t low_bits(const Rows& rows) {
  int64_t bits = reinterpret_cast<int64_t>(rows.data) | rows.batch_stride | rows.row_stride | rows.row_bytes |
                 rows.chunk;
  for (int i = 0; i < rows.outer; ++i) bits |= rows.stride[i];
  return bits;
}

int log2_of(int64_t value, int most) {  // of the power of 2 at or above `value`
  int result = 0;
  while (result < most && (int64_t{1} << result) < value) ++result;
  return result;
}

Tiling tile(int64_t batch, int64_t rows, int64_t row_bytes, int unit) {
  Tiling tiling{};
  tiling.lanes_log2 = log2_of((row_bytes + unit - 1) / unit, 8);
  int64_t most = kTaskBytes / (row_bytes + 1) + 1;
  most = most < kMostRows ? most : kMostRows;
  tiling.rows = rows < most ? rows : most;
  tiling.chunks = (rows + tiling.rows - 1) / tiling.rows;
  tiling.tasks = batch * tiling.chunks;
  return tiling;
}

// Calls f(unit, strided) with the widest unit that every address is a multiple of.
template <class F>
void with_unit(int64_t bits, bool strided, F&& f) {
  const auto choose = [&](auto unit) {
    if (strided) {
      f(unit, std::true_type{});
    } else {
      f(unit, std::false_type{});
    }
  };
  if (bits % 16 == 0) return choose(std::integral_constant<int, 16>{});
  if (bits % 8 == 0) return choose(std::integral_constant<int, 8>{});
  if (bits % 4 == 0) return choose(std::integral_constant<int, 4>{});
  if (bits % 2 == 0) return choose(std::integral_constant<int, 2>{});
  choose(std::integral_constant<int, 1>{});
}

template <class T, class Sum, int count>
void sum_with(void* out, void* partial, const Rows& x, const Ids& ids, Sizes sizes, void* stream,
              DeferredWord* bad) {
  const int64_t width = x.row_bytes / static_cast<int64_t>(sizeof(T));
  const int64_t tiles = (width + kSumThreads * count - 1) / (kSumThreads * count);
  launch(stream, grid_for(kSumChunks * tiles, 4 * kBlocksPerMultiprocessor), kSumThreads,
         sum_chunks<T, Sum, count>, static_cast<Sum*>(partial), x, ids, sizes, width, tiles, bad);
  launch(stream, grid_for((width + kThreads - 1) / kThreads, kBlocksPerMultiprocessor), kThreads,
         sum_totals<T, Sum>, static_cast<T*>(out), static_cast<const Sum*>(partial), width);
}

template <class T, class Sum>
void sum_any(void* out, void* partial, const Rows& x, const Ids& ids, Sizes sizes, void* stream,
             DeferredWord* bad) {
  constexpr int kCount = 16 / sizeof(T);
  if (low_bits(x) % 16 == 0) {
    sum_with<T, Sum, kCount>(out, partial, x, ids, sizes, stream, bad);
  } else {
    sum_with<T, Sum, 1>(out, partial, x, ids, sizes, stream, bad);
  }
}

}  // namespace

void gather(const Rows& out, const Rows& x, const Ids& ids, Sizes sizes, Queue queue) {
  if (sizes.batch * sizes.keep == 0) return;
  const DeviceGuard guard(queue.device);
  static const DeferredSlot slot("keep_ids", "gather_patches");
  with_unit(low_bits(out) | low_bits(x), x.outer > 0, [&](auto unit, auto strided) {
    const Tiling tiling = tile(sizes.batch, sizes.keep, x.row_bytes, unit());
    launch(queue.stream, grid_for(tiling.tasks, kBlocksPerMultiprocessor), kThreads,
           gather_rows<unit(), strided()>, out, x, ids, sizes, tiling, slot.word());
  });
}

void restore(const Rows& out, const Rows& y, const Ids& ids, bool ranks, const Rows* fill, Sizes sizes,
             Queue queue) {
  if (sizes.batch * sizes.tokens == 0) return;
  const DeviceGuard guard(queue.device);
  static const DeferredSlot by_id("keep_ids", "restore_patches"), by_rank("restore_ids", "restore_patches");
  Rows row{};
  int64_t bits = low_bits(out) | low_bits(y);
  bool strided = y.outer > 0;
  if (fill != nullptr) {
    row = *fill;
    bits |= low_bits(row);
    strided |= row.outer > 0;
  }
  with_unit(bits, strided, [&](auto unit, auto any) {
    const Tiling tiling = tile(sizes.batch, sizes.tokens, y.row_bytes, unit());
    launch(queue.stream, grid_for(tiling.tasks, kBlocksPerMultiprocessor), kThreads,
           restore_rows<unit(), any()>, out, y, row, ids, ranks, sizes, tiling,
           (ranks ? by_rank : by_id).word());
  });
}

void dropped_sum(char* out, char* partial, DType dtype, const Rows& x, const Ids& ids, Sizes sizes,
                 Queue queue) {
  if (x.row_bytes == 0) return;
  const DeviceGuard guard(queue.device);
  static const DeferredSlot slot("keep_ids", "the gradient of restore_patches");
  if (dtype == kFloat64) {
    sum_any<double, double>(out, partial, x, ids, sizes, queue.stream, slot.word());
  } else if (dtype == kFloat32) {
    sum_any<float, float>(out, partial, x, ids, sizes, queue.stream, slot.word());
  } else {
    sum_any<uint16_t, float>(out, partial, x, ids, sizes, queue.stream, slot.word());
  }
}

void keep_ids_from_ranks(const Ids& restore_ids, const Ids& keep_ids, Sizes sizes, Queue queue) {
  if (sizes.batch * sizes.tokens == 0) return;
  const DeviceGuard guard(queue.device);
  static const DeferredSlot slot("restore_ids", "restore_patches");
  launch(queue.stream, grid_for(sizes.batch, kBlocksPerMultiprocessor), kThreads, invert_ranks, restore_ids,
         keep_ids, sizes, slot.word());
}

int64_t shuffle_scratch(Sizes sizes, int device) {
  if (sizes.tokens <= kShuffleTokens) return 0;
  const DeviceGuard guard(device);
  return int64_t{grid_for(sizes.batch, kBlocksPerMultiprocessor)} * sizes.tokens;
}

void random_keep_ids(const Ids& keep_ids, const Ids& restore_ids, int32_t* scratch, Sizes sizes,
                     uint64_t seed, uint64_t offset, bool ordered, Queue queue) {
  if (sizes.batch * sizes.tokens == 0) return;
  const DeviceGuard guard(queue.device);
  launch(queue.stream, grid_for(sizes.batch, kBlocksPerMultiprocessor), kThreads,
         sizes.tokens <= kShuffleTokens ? shuffle_ids<true> : shuffle_ids<false>, keep_ids, restore_ids,
         scratch, sizes, seed, offset, ordered);
}

}  // namespace tenfold::patches::cuda
