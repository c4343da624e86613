// Attention on a GPU, in float32 with fused multiply-adds: tiles of 64 queries by 64 keys, each thread 4 by 4
// of them, and 4 by 4 values of the result of every 64 columns. Scores are never held: the forward pass
// corrects its sums when it meets a larger score, the backward pass computes them again.
//
//     attend            a block per tile of queries; over the tiles of keys
//     query_gradients   the same twice: the mean gradient of a query's scores, then its gradient
//     key_gradients     a block per tile of keys; over the tiles of queries
//
// Each sum has one order, whatever the grid: no atomic operations. Probabilities stay float32 for bfloat16
// too. Heads of more than 128 values are taken 128 columns at a time, and their scores once for each.
//
// Tensor cores are left out: the emulator cannot execute them. On a GPU torch's scaled_dot_product_attention,
// which uses them, is the faster one in bfloat16; see docs/gpu.md.
#include <math.h>

#include <cstdint>
#include <type_traits>

#include "attention/attention.h"
#include "core/bfloat16.h"
#include "core/cuda.cuh"
#include "core/deferred.h"

namespace tenfold::attention::cuda {
namespace {

constexpr int kThreads = 256, kWarp = 32;
constexpr int kLeastBlocks = 2;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr unsigned kAll = 0xffffffffu;

constexpr int kTile = 64;              // queries or keys; columns of a slab
constexpr int kOwn = 4;                // of them a thread's
constexpr int kAcross = kTile / kOwn;  // threads side by side, and quads in a row of weights
constexpr int kDepth = 32;             // values of a head that lie in shared memory for scores
constexpr int kDepthQuads = kDepth / 4, kQuads = kTile / 4;
constexpr int kRight = kTile * kDepthQuads;  // where the right operand of scores lies
constexpr int kWeightStride = kQuads + 1;    // rows 4 apart fall into different banks
constexpr int kMostSlabs = 2;
constexpr int kTurns = 2;  // loads of a thread at once
constexpr float kLog2e = 1.44269504088896341f;

static_assert(kThreads == kAcross * kAcross && kTile == 2 * kWarp && kMostSlabs * kTile == 128);

struct alignas(16) Quad {
  float of[4];
};

template <class T, int count>
struct alignas(sizeof(T) * count) Vector {
  T values[count];
};

__device__ __forceinline__ int down() { return static_cast<int>(threadIdx.x) / kAcross * kOwn; }
__device__ __forceinline__ int across() { return static_cast<int>(threadIdx.x) % kAcross; }

// Over the threads side by side; known to each of them.
__device__ __forceinline__ float max_across(float x) {
#pragma unroll
  for (int lanes = kAcross / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, lanes));
  return x;
}
__device__ __forceinline__ float sum_across(float x) {
#pragma unroll
  for (int lanes = kAcross / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAll, x, lanes);
  return x;
}

// ---- sequences ----

// Where the samples' rows begin: offsets, or samples of one length.
struct Layout {
  const int32_t* offsets;
  int64_t length, samples, rows;

  __device__ int64_t begin(int64_t n) const { return offsets != nullptr ? offsets[n] : n * length; }
  __device__ int count(int64_t n) const {
    return offsets != nullptr ? offsets[n + 1] - offsets[n] : static_cast<int>(length);
  }
  // Tiles that no sample shares. With offsets more than needed: sample n has those from offsets[n] / kTile +
  // n on, which nobody has to count.
  __host__ __device__ int64_t tiles() const {
    return offsets != nullptr ? rows / kTile + samples : samples * ((length + kTile - 1) / kTile);
  }
};

struct Place {
  int64_t sample;
  int first;  // row of the sample; beyond its last one where the tile is not needed
};

__device__ Place place_of(const Layout& layout, int64_t tile) {
  if (layout.offsets == nullptr) {
    const int64_t tiles = (layout.length + kTile - 1) / kTile;
    return {tile / tiles, static_cast<int>(tile % tiles) * kTile};
  }
  int64_t low = 0, high = layout.samples;  // the last sample that begins at or before the tile
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (layout.offsets[middle] / kTile + middle <= tile ? low : high) = middle;
  }
  return {low, static_cast<int>(tile - layout.offsets[low] / kTile - low) * kTile};
}

struct Shape {
  Layout queries, keys;
  const uint8_t* key_mask;
  int64_t mask_sample, mask_key;
  int64_t heads;
  int width;
  float power;  // scores to powers of 2
};

enum Side { kQueries, kKeys, kValues, kOutGrads, kSides };

struct Arrays {
  Rows q, k, v, out_grad;  // the last one null in the forward pass

  __device__ const Rows& of(Side side) const {
    return side == kQueries ? q : side == kKeys ? k : side == kValues ? v : out_grad;
  }
};

// Where the rows of one head of a sample begin.
__device__ __forceinline__ int64_t start_of(const Rows& rows, const Layout& layout, int64_t n, int64_t head) {
  return head * rows.head + (layout.offsets != nullptr ? layout.offsets[n] * rows.row : n * rows.sample);
}

// Distances in bytes, not pointers: through one that lies in shared memory the compiler would not know that
// it reads global memory.
struct Sequence {
  int64_t start, mask_start;
  int count;

  // Whether row i is there, and not one that the mask leaves out.
  __device__ bool has(const Shape& s, Side side, int i) const {
    if (i >= count) return false;
    return side == kQueries || side == kOutGrads || s.key_mask == nullptr ||
           s.key_mask[mask_start + i * s.mask_key] != 0;
  }
};

// What a block does: one head of one sample, the tile at row `first`, columns from `column` on.
struct Task {
  int64_t next;  // the task after it
  int64_t n, head;
  int64_t kept;  // the place of the head's first query in arrays of (heads, rows)
  int first, column;
  bool found;
};

template <int slabs>
__host__ __device__ int slices_of(int width) {
  return (width + slabs * kTile - 1) / (slabs * kTile);
}
// The block's next task, of tiles of queries or of keys, and where the rows that it reads begin: to shared
// memory, for they would take too many registers. False where there is none. The first thread begins with
// task[0].next, and passes over tiles that are not needed.
template <int slabs, Side side, class Tasks, class Sides>
__device__ __forceinline__ bool take(Tasks& task, Sides& sides, const Shape& s, const Arrays& in) {
  __syncthreads();  // the task before may still be read
  if (threadIdx.x == 0) {
    const Layout& layout = side == kKeys ? s.keys : s.queries;
    const int slices = slices_of<slabs>(s.width);
    const int64_t tasks = layout.tiles() * slices * s.heads;
    int64_t t = task[0].next;
    bool found = false;
    for (; t < tasks && !found; t += gridDim.x) {
      const int64_t head = t % s.heads, rest = t / s.heads;
      const Place place = place_of(layout, rest / slices);
      found = place.first < layout.count(place.sample);
      if (!found) continue;
      const int64_t n = place.sample, mask = n * s.mask_sample;
      const int queries = s.queries.count(n), keys = s.keys.count(n);
      task[0] = {t,           n,
                 head,        head * s.queries.rows + s.queries.begin(n),
                 place.first, static_cast<int>(rest % slices) * (slabs * kTile),
                 true};
      sides[kQueries] = {start_of(in.q, s.queries, n, head), 0, queries};
      sides[kKeys] = {start_of(in.k, s.keys, n, head), mask, keys};
      sides[kValues] = {start_of(in.v, s.keys, n, head), mask, keys};
      sides[kOutGrads] = {start_of(in.out_grad, s.queries, n, head), 0, queries};
    }
    task[0].next = t;
    task[0].found = found;
  }
  __syncthreads();
  return task[0].found;
}

// Whether a tile of keys has any that count. Every warp looks at all of them, so a block agrees.
template <class Sides>
__device__ __forceinline__ bool any_key(const Shape& s, Sides& sides, int first) {
  const Sequence keys = sides[kKeys];
  if (s.key_mask == nullptr) return first < keys.count;
  const int mine = first + static_cast<int>(threadIdx.x) % kWarp;
  return __any_sync(kAll, keys.has(s, kKeys, mine) || keys.has(s, kKeys, mine + kWarp));
}

// ---- wrong offsets ----

struct Words {
  DeferredWord* queries;
  DeferredWord* keys;
};

template <class Flag>
__device__ __forceinline__ void check_offsets(const Layout& layout, Flag& wrong, DeferredWord* word) {
  if (layout.offsets == nullptr) return;
  for (int64_t n = threadIdx.x; n <= layout.samples; n += kThreads) {
    const int64_t at = layout.offsets[n];
    const bool good =
        (n > 0 ? at >= layout.offsets[n - 1] : at == 0) && (n < layout.samples || at == layout.rows);
    if (good) continue;
    atomicOr(&wrong[0], 1);
    if (blockIdx.x == 0) *word = deferred_place(0, n);
  }
}

// Whether any offset is wrong, of queries or keys: every block looks at all of them, so they agree.
template <class Flag>
__device__ __forceinline__ bool any_wrong(const Shape& s, Flag& wrong, const Words& words) {
  if (s.queries.offsets == nullptr && s.keys.offsets == nullptr) return false;
  if (threadIdx.x == 0) wrong[0] = 0;
  __syncthreads();
  check_offsets(s.queries, wrong, words.queries);
  check_offsets(s.keys, wrong, words.keys);
  __syncthreads();
  return wrong[0] != 0;
}

__device__ void clear_numbers(float* numbers, int64_t count) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < count; i += threads) numbers[i] = 0.0f;
}

template <class T>
__device__ void clear_rows(const Rows& rows, const Layout& layout, const Shape& s) {
  const int64_t threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < layout.rows * s.heads * s.width;
       i += threads) {
    const int64_t d = i % s.width, head = i / s.width % s.heads, r = i / s.width / s.heads;
    const bool packed = layout.offsets != nullptr;
    const int64_t n = packed ? 0 : r / layout.length, row = packed ? r : r % layout.length;
    reinterpret_cast<T*>(rows.data + n * rows.sample + row * rows.row + head * rows.head)[d] = T{0};
  }
}

// ---- tiles in shared memory ----

// Where a quad of row 4 `group` + `row` lies: shuffled, so that neither threads whose rows are 4 apart nor
// those that stage two rows meet a bank twice.
template <int quads>
__device__ __forceinline__ int place(int group, int row, int quad) {
  return (group * 4 + row) * quads + (quad ^ (group & 7) ^ ((row & 1) * 4));
}

// kTile rows of `quads` quads to tile[begin ...]: columns from `column` on. Zeros for rows that are not
// there, for those the mask leaves out, and beyond the width. Four threads share a
// row; `turns` loads of each are on their way at once.
template <class T, int count, int turns, int quads, class Tile, class Sides>
__device__ __forceinline__ void stage(Tile& tile, int begin, const Shape& s, const Arrays& in, Sides& sides,
                                      Side side, int first_row, int column) {
  constexpr int kSharing = kThreads / kTile, kStep = count > 4 ? count : 4;
  const int row = static_cast<int>(threadIdx.x) / kSharing,
            first = static_cast<int>(threadIdx.x) % kSharing * kStep;
  const Sequence from = sides[side];
  const bool there = from.has(s, side, first_row + row);
  const T* const line =
      reinterpret_cast<const T*>(in.of(side).data + from.start + (first_row + row) * in.of(side).row) +
      column + first;
#pragma unroll(turns)
  for (int step = 0; step < quads * 4; step += kSharing * kStep) {
    float values[kStep] = {};
#pragma unroll
    for (int k = 0; k < kStep; k += count) {
      if (!there || column + first + step + k >= s.width) continue;
      const auto some = *reinterpret_cast<const Vector<T, count>*>(line + step + k);
#pragma unroll
      for (int at = 0; at < count; ++at) values[k + at] = to_float(some.values[at]);
    }
#pragma unroll
    for (int k = 0; k < kStep; k += 4) {
      tile[begin + place<quads>(row >> 2, row & 3, (first + step + k) >> 2)] = {values[k], values[k + 1],
                                                                                values[k + 2], values[k + 3]};
    }
  }
}

using Block = float[kOwn][kOwn];

template <int slabs>
__device__ __forceinline__ void clear(Block (&sums)[slabs]) {
#pragma unroll
  for (int slab = 0; slab < slabs; ++slab) {
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
#pragma unroll
      for (int c = 0; c < kOwn; ++c) sums[slab][i][c] = 0.0f;
    }
  }
}

template <class Weights>
__device__ __forceinline__ void write(Weights& weights, const Block& block) {
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    weights[(down() + i) * kWeightStride + across()] = {block[i][0], block[i][1], block[i][2], block[i][3]};
  }
}

template <class Weights>
__device__ __forceinline__ void read(Block& block, Weights& weights) {
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const Quad mine = weights[(down() + i) * kWeightStride + across()];
#pragma unroll
    for (int j = 0; j < kOwn; ++j) block[i][j] = mine.of[j];
  }
}

// products[i][j] = row i of a thread's rows of `a`, times row j of its rows of `b`.
template <class T, int count, int turns, class Tile, class Sides>
__device__ __forceinline__ void multiply_rows(Block& products, Tile& tile, const Shape& s, const Arrays& in,
                                              Sides& sides, Side a, int a_row, Side b, int b_row) {
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
#pragma unroll
    for (int j = 0; j < kOwn; ++j) products[i][j] = 0.0f;
  }
  const int top = down() / kOwn, left = across();
  for (int column = 0; column < s.width; column += kDepth) {
    __syncthreads();  // the tile may still be read
    stage<T, count, turns, kDepthQuads>(tile, 0, s, in, sides, a, a_row, column);
    stage<T, count, turns, kDepthQuads>(tile, kRight, s, in, sides, b, b_row, column);
    __syncthreads();
    const int quads = s.width - column < kDepth ? (s.width - column + 3) / 4 : kDepthQuads;
#pragma unroll 1
    for (int c = 0; c < quads; ++c) {
      Quad right[kOwn];
#pragma unroll
      for (int j = 0; j < kOwn; ++j) right[j] = tile[kRight + place<kDepthQuads>(left, j, c)];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
        const Quad mine = tile[place<kDepthQuads>(top, i, c)];
#pragma unroll
        for (int j = 0; j < kOwn; ++j) {
#pragma unroll
          for (int k = 0; k < 4; ++k) products[i][j] = fmaf(mine.of[k], right[j].of[k], products[i][j]);
        }
      }
    }
  }
}

// sums[slab] += weights (tile by tile) times the rows of `b`, at the thread's columns of each slab.
template <class T, int count, int turns, int slabs, class Weights, class Tile, class Sides>
__device__ __forceinline__ void add_rows(Block (&sums)[slabs], Weights& weights, Tile& tile, const Shape& s,
                                         const Arrays& in, Sides& sides, Side b, int b_row, int column) {
  const int top = down(), mine = across();
  const int rows = sides[b].count - b_row;
  const int quads = rows < kTile ? (rows + 3) / 4 : kQuads;
#pragma unroll
  for (int slab = 0; slab < slabs; ++slab) {
    if (column + slab * kTile >= s.width) continue;
    __syncthreads();  // the weights are written, and the tile may still be read
    stage<T, count, turns, kQuads>(tile, 0, s, in, sides, b, b_row, column + slab * kTile);
    __syncthreads();
#pragma unroll 1
    for (int j = 0; j < quads; ++j) {
      Quad left[kOwn];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) left[i] = weights[(top + i) * kWeightStride + j];
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        const Quad right = tile[place<kQuads>(j, k, mine)];
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
#pragma unroll
          for (int c = 0; c < 4; ++c) sums[slab][i][c] = fmaf(left[i].of[k], right.of[c], sums[slab][i][c]);
        }
      }
    }
  }
}

// The thread's rows of the result, each times a factor; none beyond the last row.
template <class T, int count, int slabs, class Tasks>
__device__ __forceinline__ void store_rows(const Rows& to, const Layout& layout, Tasks& tasks, int rows,
                                           int width, const Block (&sums)[slabs],
                                           const float (&factors)[kOwn]) {
  constexpr int kOnce = count < 4 ? count : 4;
  const Task task = tasks[0];
  char* const data = to.data + start_of(to, layout, task.n, task.head);
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const int row = task.first + down() + i;
    if (row >= rows) continue;
    T* const line = reinterpret_cast<T*>(data + row * to.row) + task.column + across() * kOwn;
#pragma unroll
    for (int slab = 0; slab < slabs; ++slab) {
#pragma unroll
      for (int c = 0; c < kOwn; c += kOnce) {
        if (task.column + across() * kOwn + slab * kTile + c >= width) continue;
        Vector<T, kOnce> some;
#pragma unroll
        for (int k = 0; k < kOnce; ++k) round_to(some.values[k], sums[slab][i][c + k] * factors[i]);
        *reinterpret_cast<Vector<T, kOnce>*>(line + slab * kTile + c) = some;
      }
    }
  }
}

// The same for rows of keys; zeros for those that the mask leaves out.
template <class T, int count, int slabs, class Tasks, class Sides>
__device__ __forceinline__ void store_keys(const Rows& to, const Shape& s, Tasks& task, Sides& sides,
                                           Block (&sums)[slabs], float factor) {
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    const bool counts = sides[kKeys].has(s, kKeys, task[0].first + down() + i);
#pragma unroll
    for (int slab = 0; slab < slabs; ++slab) {
#pragma unroll
      for (int c = 0; c < kOwn; ++c) sums[slab][i][c] = counts ? sums[slab][i][c] : 0.0f;
    }
  }
  store_rows<T, count>(to, s.keys, task, sides[kKeys].count, s.width, sums, {factor, factor, factor, factor});
}

// ---- forward ----

// A tile's scores become weights; what was summed up before is brought to the largest score so far.
template <int slabs, class Weights>
__device__ __forceinline__ void add_powers(const Block& scores, const bool (&counts)[kOwn], float power,
                                           float (&most)[kOwn], float (&total)[kOwn], Block (&sums)[slabs],
                                           Weights& weights) {
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    float largest = most[i];
#pragma unroll
    for (int j = 0; j < kOwn; ++j) largest = counts[j] ? fmaxf(largest, scores[i][j]) : largest;
    largest = max_across(largest);
    const float shrink = exp2f((most[i] - largest) * power);
    most[i] = largest;
    total[i] *= shrink;
#pragma unroll
    for (int slab = 0; slab < slabs; ++slab) {
#pragma unroll
      for (int c = 0; c < kOwn; ++c) sums[slab][i][c] *= shrink;
    }
    Quad powers;
#pragma unroll
    for (int j = 0; j < kOwn; ++j) {
      powers.of[j] = counts[j] ? exp2f((scores[i][j] - largest) * power) : 0.0f;
      total[i] += powers.of[j];
    }
    weights[(down() + i) * kWeightStride + across()] = powers;
  }
}

template <class T, int count, int slabs>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    attend(const Shape s, const Arrays in, const Rows out, float* statistics, const Words words) {
  TENFOLD_SHARED(Quad, tile, 2 * kRight);
  TENFOLD_SHARED(Quad, weights, kTile * kWeightStride);
  TENFOLD_SHARED(Sequence, sides, kSides);
  TENFOLD_SHARED(Task, task, 1);
  TENFOLD_SHARED(int, wrong, 1);
  const int64_t queries = s.heads * s.queries.rows;
  if (any_wrong(s, wrong, words)) {
    clear_numbers(statistics, 2 * queries);
    return clear_rows<T>(out, s.queries, s);
  }
  if (threadIdx.x == 0) task[0].next = blockIdx.x;
  while (take<slabs, kQueries>(task, sides, s, in)) {
    Block sums[slabs];
    clear(sums);
    float most[kOwn], total[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      most[i] = -INFINITY;
      total[i] = 0.0f;
    }
    bool seen = false;
    for (int first = 0; first < sides[kKeys].count; first += kTile) {
      if (!any_key(s, sides, first)) continue;  // so that `most` is a score from here on
      seen = true;
      Block scores;
      multiply_rows<T, count, kTurns>(scores, tile, s, in, sides, kQueries, task[0].first, kKeys, first);
      bool counts[kOwn];
#pragma unroll
      for (int j = 0; j < kOwn; ++j) counts[j] = sides[kKeys].has(s, kKeys, first + across() * kOwn + j);
      add_powers(scores, counts, s.power, most, total, sums, weights);
      add_rows<T, count, kTurns>(sums, weights, tile, s, in, sides, kValues, first, task[0].column);
    }
    float inverse[kOwn];
#pragma unroll
    for (int i = 0; i < kOwn; ++i) inverse[i] = seen ? 1.0f / sum_across(total[i]) : 0.0f;
    store_rows<T, count>(out, s.queries, task, sides[kQueries].count, s.width, sums, inverse);
    if (task[0].column > 0 || across() > 0) continue;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int row = task[0].first + down() + i;
      if (row >= sides[kQueries].count) continue;
      statistics[task[0].kept + row] = seen ? most[i] : 0.0f;
      statistics[task[0].kept + row + queries] = inverse[i];
    }
  }
}

// ---- backward ----

// Of each query, (heads, rows): what forward() kept, and the mean of its scores' gradients.
struct Kept {
  const float* most;
  const float* inverse;
  float* mean;
};
enum { kMost = 0, kInverse = kQuads, kMean = 2 * kQuads };  // where they lie for a tile of queries

// What is kept of a tile's queries, to shared memory; a query that is not there has no probabilities.
template <class Numbers>
__device__ __forceinline__ void read_kept(Numbers& numbers, const Kept& kept, int64_t begin, int first,
                                          int queries, bool with_mean) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= kTile) return;
  const bool there = first + i < queries;
  const int64_t at = begin + first + i;
  numbers[kMost + i / 4].of[i % 4] = there ? kept.most[at] : 0.0f;
  numbers[kInverse + i / 4].of[i % 4] = there ? kept.inverse[at] : 0.0f;
  numbers[kMean + i / 4].of[i % 4] = there && with_mean ? kept.mean[at] : 0.0f;
}

// Once there for the mean, and back for the gradient; the last tile of keys serves both.
template <class T, int count, int slabs>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    query_gradients(const Shape s, const Arrays in, const Rows q_grad, const float scale, const Kept kept,
                    const Words words) {
  TENFOLD_SHARED(Quad, tile, 2 * kRight);
  TENFOLD_SHARED(Quad, weights, kTile * kWeightStride);
  TENFOLD_SHARED(Quad, numbers, 3 * kQuads);
  TENFOLD_SHARED(Sequence, sides, kSides);
  TENFOLD_SHARED(Task, task, 1);
  TENFOLD_SHARED(int, wrong, 1);
  if (any_wrong(s, wrong, words)) return clear_rows<T>(q_grad, s.queries, s);
  if (threadIdx.x == 0) task[0].next = blockIdx.x;
  while (take<slabs, kQueries>(task, sides, s, in)) {
    Block sums[slabs];
    clear(sums);
    float mean[kOwn] = {};
    read_kept(numbers, kept, task[0].kept, task[0].first, sides[kQueries].count, false);
    const int tiles = (sides[kKeys].count + kTile - 1) / kTile;
    for (int step = 0; step < 2 * tiles - 1; ++step) {
      const int first = (step < tiles ? step : 2 * tiles - 2 - step) * kTile;
      const bool any = any_key(s, sides, first);
      Block probabilities, grads;
      if (any) {
        multiply_rows<T, count, kTurns>(probabilities, tile, s, in, sides, kQueries, task[0].first, kKeys,
                                        first);
        const Quad most = numbers[kMost + down() / 4], inverse = numbers[kInverse + down() / 4];
#pragma unroll
        for (int j = 0; j < kOwn; ++j) {
          const bool counts = sides[kKeys].has(s, kKeys, first + across() * kOwn + j);
#pragma unroll
          for (int i = 0; i < kOwn; ++i) {
            const float p = exp2f((probabilities[i][j] - most.of[i]) * s.power) * inverse.of[i];
            probabilities[i][j] = counts ? p : 0.0f;
          }
        }
        write(weights, probabilities);  // to be read again: registers are short
        multiply_rows<T, count, kTurns>(grads, tile, s, in, sides, kOutGrads, task[0].first, kValues, first);
        read(probabilities, weights);
#pragma unroll
        for (int i = 0; i < kOwn; ++i) {
#pragma unroll
          for (int j = 0; j < kOwn; ++j) mean[i] += step < tiles ? probabilities[i][j] * grads[i][j] : 0.0f;
        }
      }
      if (step == tiles - 1) {
#pragma unroll
        for (int i = 0; i < kOwn; ++i) mean[i] = sum_across(mean[i]);
      }
      if (!any || step < tiles - 1) continue;
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
#pragma unroll
        for (int j = 0; j < kOwn; ++j) grads[i][j] = probabilities[i][j] * (grads[i][j] - mean[i]);
      }
      write(weights, grads);
      add_rows<T, count, kTurns>(sums, weights, tile, s, in, sides, kKeys, first, task[0].column);
    }
    store_rows<T, count>(q_grad, s.queries, task, sides[kQueries].count, s.width, sums,
                         {scale, scale, scale, scale});
    if (task[0].column > 0 || across() > 0) continue;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      const int row = task[0].first + down() + i;
      if (row < sides[kQueries].count) kept.mean[task[0].kept + row] = mean[i];
    }
  }
}

// Keys down and queries across, so that the weights are those of the keys' rows.
template <class T, int count, int slabs>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    key_gradients(const Shape s, const Arrays in, const Rows k_grad, const Rows v_grad, const float scale,
                  const Kept kept, const Words words) {
  constexpr int kHere = slabs > 1 && count < 8 ? 1 : kTurns;  // both sums leave no registers for more
  TENFOLD_SHARED(Quad, tile, 2 * kRight);
  TENFOLD_SHARED(Quad, weights, kTile * kWeightStride);
  TENFOLD_SHARED(Quad, numbers, 3 * kQuads);
  TENFOLD_SHARED(Sequence, sides, kSides);
  TENFOLD_SHARED(Task, task, 1);
  TENFOLD_SHARED(int, wrong, 1);
  if (any_wrong(s, wrong, words)) {
    clear_rows<T>(k_grad, s.keys, s);
    return clear_rows<T>(v_grad, s.keys, s);
  }
  if (threadIdx.x == 0) task[0].next = blockIdx.x;
  while (take<slabs, kKeys>(task, sides, s, in)) {
    Block k_sums[slabs], v_sums[slabs];
    clear(k_sums);
    clear(v_sums);
    const bool any = any_key(s, sides, task[0].first);
    for (int first = 0; any && first < sides[kQueries].count; first += kTile) {
      read_kept(numbers, kept, task[0].kept, first, sides[kQueries].count, true);
      Block probabilities, grads;
      multiply_rows<T, count, kHere>(probabilities, tile, s, in, sides, kKeys, task[0].first, kQueries,
                                     first);
      const Quad most = numbers[kMost + across()], inverse = numbers[kInverse + across()];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
#pragma unroll
        for (int j = 0; j < kOwn; ++j) {
          probabilities[i][j] = exp2f((probabilities[i][j] - most.of[j]) * s.power) * inverse.of[j];
        }
      }
      write(weights, probabilities);
      add_rows<T, count, kHere>(v_sums, weights, tile, s, in, sides, kOutGrads, first, task[0].column);
      multiply_rows<T, count, kHere>(grads, tile, s, in, sides, kValues, task[0].first, kOutGrads, first);
      read(probabilities, weights);
      const Quad mean = numbers[kMean + across()];
#pragma unroll
      for (int i = 0; i < kOwn; ++i) {
#pragma unroll
        for (int j = 0; j < kOwn; ++j) grads[i][j] = probabilities[i][j] * (grads[i][j] - mean.of[j]);
      }
      write(weights, grads);
      add_rows<T, count, kHere>(k_sums, weights, tile, s, in, sides, kQueries, first, task[0].column);
    }
    // Of a key that the mask leaves out nothing was read, and nothing of its sums is meant.
    store_keys<T, count>(k_grad, s, task, sides, k_sums, scale);
    store_keys<T, count>(v_grad, s, task, sides, v_sums, 1.0f);
  }
}

// ---- launches ----

Shape shape_of(const Problem& p) {
  return {{p.q_offsets, p.q_length, p.samples, p.q_rows},
          {p.k_offsets, p.k_length, p.samples, p.k_rows},
          p.key_mask,
          p.mask_sample,
          p.mask_key,
          p.heads,
          static_cast<int>(p.width),
          p.scale * kLog2e};
}

int64_t bits_of(const Rows& rows) {
  return reinterpret_cast<int64_t>(rows.data) | rows.sample | rows.row | rows.head;
}

// Calls f(T, count, slabs): the element type, how many of them every address allows to move at once, and how
// many times 64 columns a block takes.
template <class F>
void with_kernel(const Problem& p, int64_t bits, F&& f) {
  const auto choose = [&](auto zero) {
    constexpr int kCount = 16 / static_cast<int>(sizeof zero);
    const auto choose_slabs = [&](auto count) {
      if (p.width <= kTile) return f(zero, count, std::integral_constant<int, 1>{});
      f(zero, count, std::integral_constant<int, kMostSlabs>{});
    };
    if (bits % 16 == 0 && p.width % kCount == 0) return choose_slabs(std::integral_constant<int, kCount>{});
    choose_slabs(std::integral_constant<int, 1>{});
  };
  p.bf16 ? choose(uint16_t{}) : choose(float{});
}

// 0 where there is nothing to do; at least one block where there are offsets to check.
unsigned grid_of(const Problem& p, const Layout& layout, int64_t slices) {
  const int64_t tasks = layout.tiles() * slices * p.heads;
  const bool offsets = p.q_offsets != nullptr || p.k_offsets != nullptr;
  return grid_for(tasks == 0 && offsets ? 1 : tasks, kBlocksPerMultiprocessor);
}

const Words& words_of(bool backward) {
  const auto words = [](const char* op) {
    constexpr const char* kFault = "out of order, want ascending numbers from 0 to the number of rows";
    return Words{DeferredSlot("q_offsets", op, kFault).word(), DeferredSlot("k_offsets", op, kFault).word()};
  };
  static const Words there = words("attention"), back = words("the gradient of attention");
  return backward ? back : there;
}

}  // namespace

void forward(const Problem& p, const Rows& out, float* statistics, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  const Shape shape = shape_of(p);
  const int64_t bits = bits_of(p.q) | bits_of(p.k) | bits_of(p.v) | bits_of(out);
  with_kernel(p, bits, [&](auto zero, auto count, auto slabs) {
    const unsigned grid = grid_of(p, shape.queries, slices_of<slabs()>(shape.width));
    if (grid == 0) return;
    launch(queue.stream, grid, kThreads, attend<decltype(zero), count(), slabs()>, shape,
           Arrays{p.q, p.k, p.v, {}}, out, statistics, words_of(false));
  });
}

void backward(const Problem& p, const float* statistics, const Rows& out_grad, const Rows& q_grad,
              const Rows& k_grad, const Rows& v_grad, float* scratch, const Queue& queue) {
  const DeviceGuard guard(queue.device);
  const Shape shape = shape_of(p);
  const Arrays in{p.q, p.k, p.v, out_grad};
  const Kept kept{statistics, statistics + p.heads * p.q_rows, scratch};
  const int64_t bits = bits_of(p.q) | bits_of(p.k) | bits_of(p.v) | bits_of(out_grad) | bits_of(q_grad) |
                       bits_of(k_grad) | bits_of(v_grad);
  with_kernel(p, bits, [&](auto zero, auto count, auto slabs) {
    using T = decltype(zero);
    const int64_t slices = slices_of<slabs()>(shape.width);
    if (const unsigned grid = grid_of(p, shape.queries, slices); grid > 0) {
      launch(queue.stream, grid, kThreads, query_gradients<T, count(), slabs()>, shape, in, q_grad, p.scale,
             kept, words_of(true));
    }
    if (const unsigned grid = grid_of(p, shape.keys, slices); grid > 0) {
      launch(queue.stream, grid, kThreads, key_gradients<T, count(), slabs()>, shape, in, k_grad, v_grad,
             p.scale, kept, words_of(true));
    }
  });
}

}  // namespace tenfold::attention::cuda
