// Sweeps over one sample by one block: groups of free variables, as csrc/mixing/blocked.h has them.
//
// Warp 0 visits the variables of a group one after the other; a lane has one component (or more) of all their
// g. Meanwhile the other warps gather the g of the next group, but for what the variables being visited give,
// which follows when they have moved. Sums lie in registers, and are added up over the warps in one order;
// entries of C pass through shared memory; rows of x come from global memory, that is from the first-level
// cache, where 705 rows of 32 take 90 KB. No dynamic shared memory: two blocks fit a multiprocessor, and one
// can gather while the other waits.
//
// By count, not measured (sm_90a, k = 32, 705 free variables, groups of 32): a warp takes some 420
// instructions, 256 of them multiplications, for a chunk of 8 variables. 85 chunks for 7 warps, two of them
// on a scheduler, are 26 x 420 = 10900 cycles a group, or 340 a variable; multiplications alone would take
// 176. A visit is 120 instructions in a chain of 5 shuffles and a reciprocal root, some 250 cycles, which
// hide behind that. So what limits Sudoku is the rate of instructions; where free variables are few, as in
// 4x4, it is the chain.
#pragma once

#include <cstdint>

#include "core/cuda.cuh"
#include "mixing/block.cuh"
#include "mixing/mixing.h"

namespace tenfold::mixing::cuda {
namespace {

constexpr int kTileFloats = 1024;  // of a group's g: variables times components
constexpr int kMostWidth = kTileFloats;
constexpr int kTileQuads = kTileFloats / 4;
constexpr int kPadding = kWarp;    // of a list of places: as many as a chunk has, at most
constexpr int kChunkFloats = 256;  // of C, staged by a warp at a time; it has two such buffers

// The shape of a group: how many variables of which width, and what of its g a lane has.
template <int rows>
struct Group {
  static constexpr int kRows = rows, kWidth = kTileFloats / rows;  // kWidth: k rounded up
  static constexpr int kColumns = kWidth / kWarp;                  // of a lane that visits
  static constexpr int kOwnRows = rows < 8 ? rows : 8;             // of a lane that gathers,
  static constexpr int kOwnQuads = 8 / kOwnRows;                   // times 4 components
  static constexpr int kRowLanes = rows / kOwnRows, kColumnLanes = kWarp / kRowLanes;
  static constexpr int kChunk = kChunkFloats / rows < kWarp ? kChunkFloats / rows : kWarp;  // variables
  static constexpr int kEach = kChunk * rows / kWarp;  // entries of C that a lane brings
  static constexpr int kKeyQuads = (rows + 3) / 4;     // of a row of entries within a group
};

inline int64_t padded_width(int64_t width) {
  int64_t padded = kWarp;
  while (padded < width && padded < kMostWidth) padded *= 2;
  return padded;
}

// What a free variable has beside its vectors.
struct alignas(16) Slot {
  float constant[3];  // of the constant part of g, see Descend and Adjust
  float norm;         // |g|, or the factor of Adjust
};

// A sample being solved. Free variables are counted in the order of the visits.
struct Sample {
  const float* C;         // (N, N), by place; 0 in its diagonal
  uint32_t row_bytes;     // of C
  const int32_t* places;  // (free); kPadding more may be read
  Slot* slots;            // (free)
  float* x;               // (free, kWidth): V, or U
  int free;               // fewer than 2^31, as rows of S are
};

template <class G>
__device__ __forceinline__ float* row_of(const Sample& s, int i) {
  return s.x + int64_t{i} * G::kWidth;
}

// What lies `rows` rows of C below an entry.
__device__ __forceinline__ const float* below(const float* entry, int rows, const Sample& s) {
  return reinterpret_cast<const float*>(reinterpret_cast<const char*>(entry) +
                                        uint64_t{static_cast<uint32_t>(rows)} * s.row_bytes);
}

// The c-th component of a lane that visits.
template <class G>
__device__ __forceinline__ int component_of(int c) {
  return c * kWarp + lane_of_thread();
}

struct Rows {
  int first, count;
};

__device__ __forceinline__ Rows rows_within(int first, int end, int most) {
  const int left = end - first;
  if (left <= 0) return {0, 0};
  return {first, left < most ? left : most};
}

// ---- gathering ----

// Entries of C, on their way to shared memory: those that free variables `from` have in `column`, which is
// that of a lane's own variable; and those of whatever follows, up to a chunk. C is symmetric: they are read
// where neighbours in a warp are neighbours in memory. Nothing waits for them before `store`.
template <class G>
class Entries {
 public:
  __device__ __forceinline__ void load(const Sample& s, const Rows& from, const float* column) {
    const int32_t* const places = s.places + from.first + lane_of_thread() / G::kRows;
    int32_t other[G::kEach];
#pragma unroll
    for (int u = 0; u < G::kEach; ++u) other[u] = places[u * kWarp / G::kRows];
#pragma unroll
    for (int u = 0; u < G::kEach; ++u) value_[u] = *below(column, other[u], s);
  }

  template <class Tiles>
  __device__ __forceinline__ void store(Tiles& tiles, int begin) const {
    const unsigned lane = lane_of_thread();
#pragma unroll
    for (int u = 0; u < G::kEach; ++u) tiles[begin + u * (kWarp / 4) + lane / 4].of[lane % 4] = value_[u];
  }

 private:
  float value_[G::kEach];
};

// A lane's part of a group's g.
template <class G>
struct Sums {
  float of[G::kOwnRows][4 * G::kOwnQuads];

  __device__ __forceinline__ void clear() {
#pragma unroll
    for (int i = 0; i < G::kOwnRows; ++i) {
#pragma unroll
      for (int c = 0; c < 4 * G::kOwnQuads; ++c) of[i][c] = 0.0f;
    }
  }

  // Adds the products of staged entries of C and rows of x.
  template <class Tiles>
  __device__ __forceinline__ void add(Tiles& tiles, int begin, const Sample& s, const Rows& from) {
    const unsigned row = lane_of_thread() / G::kColumnLanes * G::kOwnRows;
    const Quad* x =
        reinterpret_cast<const Quad*>(row_of<G>(s, from.first)) + lane_of_thread() % G::kColumnLanes;
    unsigned at = 4 * begin + row;
    // Registers do not allow more.
    [[maybe_unused]] constexpr int kUnroll = G::kOwnQuads > 2 ? 1 : (G::kRows > 8 ? 4 : 2);
#pragma unroll(kUnroll)
    for (int j = 0; j < from.count; ++j) {
      float entry[G::kOwnRows];
      read_entries(entry, tiles, at);
#pragma unroll
      for (int q = 0; q < G::kOwnQuads; ++q) {
        const Quad value = x[q * G::kColumnLanes];
#pragma unroll
        for (int i = 0; i < G::kOwnRows; ++i) {
#pragma unroll
          for (int c = 0; c < 4; ++c) of[i][4 * q + c] += entry[i] * value.of[c];
        }
      }
      x += G::kWidth / 4;
      at += G::kRows;
    }
  }

  template <class Tiles>
  __device__ __forceinline__ void store(Tiles& tiles, int begin) const {
    const unsigned row = lane_of_thread() / G::kColumnLanes * G::kOwnRows;
    const unsigned quad = lane_of_thread() % G::kColumnLanes;
#pragma unroll
    for (int i = 0; i < G::kOwnRows; ++i) {
#pragma unroll
      for (int q = 0; q < G::kOwnQuads; ++q) {
        tiles[begin + (row + i) * (G::kWidth / 4) + q * G::kColumnLanes + quad] = {
            of[i][4 * q], of[i][4 * q + 1], of[i][4 * q + 2], of[i][4 * q + 3]};
      }
    }
  }

 private:
  template <class Tiles>
  static __device__ __forceinline__ void read_entries(float (&entry)[G::kOwnRows], Tiles& tiles,
                                                      unsigned at) {
    if constexpr (G::kOwnRows >= 4) {
#pragma unroll
      for (int i = 0; i < G::kOwnRows; i += 4) {
        const Quad quad = tiles[at / 4 + i / 4];
#pragma unroll
        for (int e = 0; e < 4; ++e) entry[i + e] = quad.of[e];
      }
    } else {
#pragma unroll
      for (int i = 0; i < G::kOwnRows; ++i) entry[i] = tiles[(at + i) / 4].of[(at + i) % 4];
    }
  }
};

// Adds what all variables but those of the group `left` out give, in chunks: warps 1, 2, ... in turns.
template <class G, class Tiles>
__device__ __forceinline__ void gather(Sums<G>& sums, Tiles& tiles, const Sample& s, const Rows& left,
                                       const float* column) {
  const int before = (left.first + G::kChunk - 1) / G::kChunk, after = left.first + left.count;
  const int chunks = before + (s.free - after + G::kChunk - 1) / G::kChunk;
  const auto chunk_at = [&](int chunk) {
    if (chunk < before) return rows_within(chunk * G::kChunk, left.first, G::kChunk);
    return rows_within(after + (chunk - before) * G::kChunk, s.free, G::kChunk);
  };
  const int warp = warp_of_thread();
  int begin = warp * kTileQuads;
  Entries<G> entries;
  Rows now = chunk_at(warp - 1);
  entries.load(s, now, column);
  for (int chunk = warp - 1; chunk < chunks; chunk += kWarps - 1) {
    entries.store(tiles, begin);
    __syncwarp();  // also: the other buffer, filled next, is no longer read
    const Rows next = chunk_at(chunk + kWarps - 1);
    entries.load(s, next, column);
    sums.add(tiles, begin, s, now);
    now = next;
    begin ^= kChunkFloats / 4;
  }
  __syncwarp();
}

// ---- visiting ----

// Entries of C within a group, as the visits want them: row r holds those of variables r, r + 1, ... in the
// row of variable r - 1; 0 where there is none.
template <class G, class Within>
__device__ __forceinline__ void write_within(Within& within, int begin, const Sample& s, const Rows& group) {
  constexpr unsigned kKeys = 4 * G::kKeyQuads;
  for (unsigned at = threadIdx.x - kWarp; at < G::kRows * kKeys; at += kThreads - kWarp) {
    const int r = static_cast<int>(at / kKeys), t = r + static_cast<int>(at % kKeys);
    const bool there = r > 0 && r < group.count && t < group.count;
    within[begin + at / 4].of[at % 4] =
        there ? *below(s.C + s.places[group.first + t], s.places[group.first + r - 1], s) : 0.0f;
  }
}

// Visits the variables of a group. A warp; g[t] is that of the t-th variable from the one being visited. What
// a visit changes reaches the next variable's g at once and all others while that one's norm is added up.
template <class G, class Totals, class Within, class Move>
__device__ __forceinline__ void visit(Totals& totals, Within& within, int begin, const Sample& s,
                                      const Rows& group, Move& move) {
  constexpr int kSteps = 5;  // of a sum over a warp
  const unsigned lane = lane_of_thread();
  float g[G::kRows][G::kColumns], change[G::kColumns];
#pragma unroll
  for (int r = 0; r < G::kRows; ++r) {
#pragma unroll
    for (int c = 0; c < G::kColumns; ++c)
      g[r][c] = totals[r * (G::kWidth / 4) + c * (kWarp / 4) + lane / 4].of[lane % 4];
  }
#pragma unroll
  for (int c = 0; c < G::kColumns; ++c) change[c] = 0.0f;
  typename Move::Row ahead = move.read(s, group.first);
  float key_ahead = 0.0f;
  for (int r = 0; r < group.count; ++r) {
    const typename Move::Row row = ahead;
    const float key = key_ahead;
    const int next = r + 1 < group.count ? r + 1 : r;
    ahead = move.read(s, group.first + next);
    key_ahead = within[begin + next * G::kKeyQuads].of[0];
    Quad keys[G::kKeyQuads];
#pragma unroll
    for (int q = 0; q < G::kKeyQuads; ++q) keys[q] = within[begin + r * G::kKeyQuads + q];
    float mine[G::kColumns];
#pragma unroll
    for (int c = 0; c < G::kColumns; ++c)
      mine[c] = g[0][c] + move.constant(row, c) + (G::kRows > 1 ? key * change[c] : 0.0f);
    float sum = move.product(row, mine);
#pragma unroll
    for (int step = 0; step < kSteps; ++step) {  // warp_sum, and the g of variables below meanwhile
      const float other = __shfl_xor_sync(kAllLanes, sum, kWarp / 2 >> step);
#pragma unroll
      for (int t = 1 + step * (G::kRows - 1) / kSteps; t < 1 + (step + 1) * (G::kRows - 1) / kSteps; ++t) {
#pragma unroll
        for (int c = 0; c < G::kColumns; ++c) g[t - 1][c] = g[t][c] + keys[t / 4].of[t % 4] * change[c];
      }
      sum += other;
    }
    move.step(s, group.first + r, row, mine, sum, change);
  }
}

// A lane's components of a row: read ahead of their use, where there are registers for them.
template <class G>
class Components {
 public:
  explicit __device__ __forceinline__ Components(const float* row) : row_(row) {
#pragma unroll
    for (int c = 0; c < kHeld; ++c) held_[c] = row_[component_of<G>(c)];
  }
  __device__ __forceinline__ float operator[](int c) const {
    if constexpr (kHeld > 0) return held_[c];
    return row_[component_of<G>(c)];
  }

 private:
  static constexpr int kHeld = G::kColumns <= 2 ? G::kColumns : 0;
  const float* row_;
  float held_[kHeld > 0 ? kHeld : 1];
};

// v = -g / |g|; the constant part of g lies in components 0 and 1, and constant[2] is 0.
template <class G>
struct Descend {
  float eps;
  float delta = 0.0f, first = 0.0f;  // the objective's change in this sweep, a lane's part; in the first

  struct Row {
    float constant;
    Components<G> x;
  };

  __device__ __forceinline__ Row read(const Sample& s, int i) const {
    const unsigned lane = lane_of_thread();
    return {s.slots[i].constant[lane < 2 ? lane : 2], Components<G>(row_of<G>(s, i))};
  }

  __device__ __forceinline__ float constant(const Row& row, int c) const {
    return c == 0 ? row.constant : 0.0f;
  }

  __device__ __forceinline__ float product(const Row&, const float (&g)[G::kColumns]) const {
    float square = 0.0f;
#pragma unroll
    for (int c = 0; c < G::kColumns; ++c) square += g[c] * g[c];
    return square;
  }

  __device__ __forceinline__ void step(const Sample& s, int i, const Row& row, const float (&g)[G::kColumns],
                                       float square, float (&change)[G::kColumns]) {
    const bool moves = square >= kLeastSquare;
    const float inverse = moves ? rsqrtf(square) : 0.0f, norm = moves ? square * inverse : 0.0f;
#pragma unroll
    for (int c = 0; c < G::kColumns; ++c) {
      const float before = row.x[c], after = moves ? -g[c] * inverse : before;
      change[c] = after - before;
      delta += norm * (change[c] * change[c]);
      row_of<G>(s, i)[component_of<G>(c)] = after;
    }
    if (lane_of_thread() == 0) s.slots[i].norm = norm;
  }

  __device__ __forceinline__ bool ends(int32_t sweep) {
    const float all = warp_sum(delta);
    delta = 0.0f;
    if (sweep > 0) return all < eps * first;
    first = all;
    return false;
  }
};

// u = factor (I - v v^T) g; the constant part of g is constant[0] in component 0, constant[1] v in the
// others.
template <class G>
struct Adjust {
  const float* v;  // (free, kWidth)

  struct Row {
    Slot slot;
    Components<G> x, v;
  };

  __device__ __forceinline__ Row read(const Sample& s, int i) const {
    return {s.slots[i], Components<G>(row_of<G>(s, i)), Components<G>(v + int64_t{i} * G::kWidth)};
  }

  __device__ __forceinline__ float constant(const Row& row, int c) const {
    return component_of<G>(c) == 0 ? row.slot.constant[0] : row.slot.constant[1] * row.v[c];
  }

  __device__ __forceinline__ float product(const Row& row, const float (&g)[G::kColumns]) const {
    float along = 0.0f;
#pragma unroll
    for (int c = 0; c < G::kColumns; ++c) along += g[c] * row.v[c];
    return along;
  }

  __device__ __forceinline__ void step(const Sample& s, int i, const Row& row, const float (&g)[G::kColumns],
                                       float along, float (&change)[G::kColumns]) {
#pragma unroll
    for (int c = 0; c < G::kColumns; ++c) {
      const float after = (g[c] - along * row.v[c]) * row.slot.norm;
      change[c] = after - row.x[c];
      row_of<G>(s, i)[component_of<G>(c)] = after;
    }
  }

  __device__ __forceinline__ bool ends(int32_t) { return false; }
};

// Up to `most` sweeps, one or more, of a sample with a free variable or more. Returns the number of the
// sweep that ended the sample, from 0, or `most`. Begins and ends with all threads at one place.
//
// tiles: kWarps kTileQuads Quads, in turns a warp's two buffers of entries and its sums; totals: kTileQuads;
// within: two groups' entries; ended: one int.
template <class G, class Move, class Tiles, class Totals, class Within, class Ended>
__device__ int32_t run_sweeps(Tiles& tiles, Totals& totals, Within& within, Ended& ended, const Sample& s,
                              Move& move, int32_t most) {
  const int thread = static_cast<int>(threadIdx.x), lane = lane_of_thread(), warp = warp_of_thread();
  const int last = (s.free - 1) / G::kRows * G::kRows;
  Rows visited = rows_within(last, s.free, G::kRows);  // at first by nobody: it only lies before the first
  int32_t sweep = -1;
  for (int keys = 0;; keys ^= G::kRows * G::kKeyQuads) {
    const bool sweep_ends = visited.first == last;
    const Rows next = rows_within(sweep_ends ? 0 : visited.first + G::kRows, s.free, G::kRows);
    const int row = lane % G::kRows;
    const float* const column = s.C + s.places[next.first + (row < next.count ? row : 0)];
    if (warp == 0 && sweep >= 0) {
      visit<G>(totals, within, keys ^ (G::kRows * G::kKeyQuads), s, visited, move);
      if (sweep_ends) {
        const bool ends = move.ends(sweep);
        if (lane == 0) ended[0] = ends ? 1 : 0;
      }
    }
    Sums<G> sums;
    sums.clear();
    if (warp > 0) {
      write_within<G>(within, keys, s, next);
      gather<G>(sums, tiles, s, visited, column);
    }
    const int begin = warp * G::kRows / kWarps, end = (warp + 1) * G::kRows / kWarps;
    const Rows mine = rows_within(visited.first + begin, visited.first + visited.count, end - begin);
    Entries<G> entries;
    entries.load(s, mine, column);
    __syncthreads();  // what was visited has moved, its g and entries are read
    if (sweep_ends) {
      if (sweep >= 0 && ended[0] != 0) return sweep;
      if (++sweep == most) return most;
    }
    entries.store(tiles, warp * kTileQuads);
    __syncwarp();
    sums.add(tiles, warp * kTileQuads, s, mine);
    __syncwarp();
    sums.store(tiles, warp * kTileQuads);
    __syncthreads();
    Quad total = tiles[thread];
    for (int other = 1; other < kWarps; ++other) {
      const Quad more = tiles[other * kTileQuads + thread];
#pragma unroll
      for (int e = 0; e < 4; ++e) total.of[e] += more.of[e];
    }
    totals[thread] = total;
    __syncthreads();
    visited = next;
  }
}

}  // namespace
}  // namespace tenfold::mixing::cuda
