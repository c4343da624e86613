// The mixing method on a GPU: one block a sample, which ends when its sample does.
//
// C = S S^T lies in global memory, shared by all samples. For one update the block's warps share out the
// variables j of g_i = sum of C_ij v_j, a lane having one component of v: rows of V are read whole, and the
// row of C passes through shared memory. V lies in shared memory where it fits, else in the global memory
// that the caller keeps it in. Sums are added up in one order, which is not the processor's: results agree to
// rounding and are the same in every run. Every sample has the Gram form; nothing waits for the device.
#include <cmath>
#include <cstdint>
#include <string>

#include "core/cuda.cuh"
#include "core/deferred.h"
#include "core/error.h"
#include "core/philox.h"
#include "mixing/mixing.h"

namespace tenfold::mixing::cuda {
namespace {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;
constexpr int kBlocksPerMultiprocessor = 4;
constexpr int kSharedFloats = 8192;  // of V: 32 KiB, beside 10 KiB of what follows
constexpr int kRowFloats = 1024;     // of a row of C, a piece at a time
constexpr int kMostWidth = 1024;     // k
constexpr float kPi = 3.14159265358979324f, kInversePi = 0.318309886183790672f;

// ---- products of matrices ----

constexpr int kTile = 64, kTileDepth = 16;  // of the result and of what is added up at once
constexpr int kEach = 4;                    // rows, and columns, of one thread

// What is multiplied: C = S S^T; M, the sum over samples of U V^T; (M + M^T) S.
enum Product : int { kGram = 0, kOuter = 1, kGradient = 2 };

struct Operands {
  const float* left;
  const float* right;
  int64_t variables, clauses, width;  // N, m, k
};

// (B, N, k) seen as (N, B k).
__device__ __forceinline__ float of_sample(const float* vectors, const Operands& p, int64_t i, int64_t d) {
  const int64_t sample = d / p.width;
  return vectors[(sample * p.variables + i) * p.width + d - sample * p.width];
}

template <int product>
__device__ __forceinline__ float left(const Operands& p, int64_t i, int64_t d) {
  if constexpr (product == kGram) return p.left[i * p.clauses + d];
  if constexpr (product == kOuter) return of_sample(p.left, p, i, d);
  return p.left[i * p.variables + d] + p.left[d * p.variables + i];
}

template <int product>
__device__ __forceinline__ float right(const Operands& p, int64_t j, int64_t d) {
  if constexpr (product == kGram) return p.right[j * p.clauses + d];
  if constexpr (product == kOuter) return of_sample(p.right, p, j, d);
  return p.right[d * p.clauses + j];
}

// out (rows, columns) = the sum over d of left(i, d) right(j, d), in the order of d.
template <int product>
__global__ void __launch_bounds__(kThreads, 2)
    multiply(float* out, int64_t rows, int64_t columns, int64_t depth, const __grid_constant__ Operands p) {
  TENFOLD_SHARED(float, a, kTileDepth*(kTile + 1));
  TENFOLD_SHARED(float, b, kTileDepth*(kTile + 1));
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread / (kTile / kEach) * kEach, column = thread % (kTile / kEach) * kEach;
  const int64_t across = (columns + kTile - 1) / kTile, tiles = (rows + kTile - 1) / kTile * across;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first_row = tile / across * kTile, first_column = tile % across * kTile;
    float sum[kEach][kEach] = {};
    for (int64_t d = 0; d < depth; d += kTileDepth) {
      __syncthreads();
      for (int at = thread; at < kTileDepth * kTile; at += kThreads) {
        const int i = at / kTileDepth, k = at % kTileDepth;
        const bool inside = d + k < depth;
        a[k * (kTile + 1) + i] =
            inside && first_row + i < rows ? left<product>(p, first_row + i, d + k) : 0.0f;
        b[k * (kTile + 1) + i] =
            inside && first_column + i < columns ? right<product>(p, first_column + i, d + k) : 0.0f;
      }
      __syncthreads();
      for (int k = 0; k < kTileDepth; ++k) {
        float mine[kEach];
#pragma unroll
        for (int j = 0; j < kEach; ++j) mine[j] = b[k * (kTile + 1) + column + j];
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          const float value = a[k * (kTile + 1) + row + i];
#pragma unroll
          for (int j = 0; j < kEach; ++j) sum[i][j] += value * mine[j];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const int64_t r = first_row + row + i, c = first_column + column + j;
        if (r < rows && c < columns) out[r * columns + c] = sum[i][j];
      }
    }
  }
}

template <int product>
void start_product(float* out, int64_t rows, int64_t columns, int64_t depth, const Operands& operands,
                   void* stream) {
  const int64_t tiles = ((rows + kTile - 1) / kTile) * ((columns + kTile - 1) / kTile);
  launch(stream, grid_for(tiles, 2), kThreads, multiply<product>, out, rows, columns, depth, operands);
}

// ---- random numbers ----

__device__ __forceinline__ uint32_t random_words(uint32_t (&word)[4], uint64_t seed) {
  philox4x32<1>(&word[0], &word[1], &word[2], &word[3], static_cast<uint32_t>(seed),
                static_cast<uint32_t>(seed >> 32));
  return word[0];
}

__device__ __forceinline__ void start_words(uint32_t (&word)[4], const Start& start, int64_t sample,
                                            int64_t variable, int64_t block) {
  word[0] = static_cast<uint32_t>(variable);
  word[1] = static_cast<uint32_t>(block);
  word[2] = static_cast<uint32_t>(start.first_sample + sample);
  word[3] = kDrawStart;
  random_words(word, start.seed);
}

// Variables in the order of a random word each, and of their numbers where two words are equal: each thread
// counts what comes before its own.
__global__ void __launch_bounds__(kThreads, 2)
    rank_variables(int32_t* order, int64_t variables, uint64_t seed) {
  TENFOLD_SHARED(uint32_t, keys, kThreads);
  const int thread = static_cast<int>(threadIdx.x);
  const auto key_of = [&](int64_t variable) {
    uint32_t word[4] = {static_cast<uint32_t>(variable), 0, 0, kDrawOrder};
    return random_words(word, seed);
  };
  for (int64_t first = int64_t{blockIdx.x} * kThreads; first < variables;
       first += int64_t{gridDim.x} * kThreads) {
    const int64_t mine = first + thread;
    const uint32_t key = key_of(mine);
    int64_t before = 0;
    for (int64_t other = 0; other < variables; other += kThreads) {
      __syncthreads();
      keys[thread] = key_of(other + thread);
      __syncthreads();
      for (int t = 0; t < kThreads; ++t) {
        const int64_t j = other + t;
        if (j > 0 && j < variables && (keys[t] < key || (keys[t] == key && j < mine))) ++before;
      }
    }
    if (mine > 0 && mine < variables) order[before] = static_cast<int32_t>(mine);
  }
}

struct Circle {
  float cos, sin;
};

// cos and sin of 2 pi x, as core/vecmath.h computes them: CUDA's own would need local memory.
__device__ __forceinline__ Circle turn(float x) {
  const float quarters = rintf(x * 4.0f), r = (x - quarters * 0.25f) * (2.0f * kPi), square = r * r;
  const int quarter = static_cast<int>(quarters);
  const float s =
      ((-1.9515295891e-4f * square + 8.3321608736e-3f) * square - 1.6666654611e-1f) * square * r + r;
  const float c =
      ((2.443315711809948e-5f * square - 1.388731625493765e-3f) * square + 4.166664568298827e-2f) *
          (square * square) -
      0.5f * square + 1.0f;
  const bool odd = (quarter & 1) != 0;
  const float cos = odd ? s : c, sin = odd ? c : s;
  return {((quarter + 1) & 2) != 0 ? -cos : cos, (quarter & 2) != 0 ? -sin : sin};
}

__device__ __forceinline__ float uniform(uint32_t word) {
  return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f;
}

// Component c of a start; its pair of words gives two components.
__device__ float draw_normal(const Start& start, int64_t sample, int64_t variable, int64_t c) {
  uint32_t word[4];
  start_words(word, start, sample, variable, c / 4);
  const bool second_pair = c % 4 >= 2;
  const float radius = sqrtf(-2.0f * logf(uniform(second_pair ? word[2] : word[0])));
  const Circle angle = turn(uniform(second_pair ? word[3] : word[1]));
  return radius * (c % 2 == 0 ? angle.cos : angle.sin);
}

// ---- sums over a block ----

__device__ __forceinline__ float warp_sum(float value) {
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
  return value;
}

// The same bits in every thread. `parts` holds kWarps floats.
template <class Shared>
__device__ float block_sum(Shared& parts, float value) {
  const int thread = static_cast<int>(threadIdx.x);
  value = warp_sum(value);
  __syncthreads();
  if (thread % kWarp == 0) parts[thread / kWarp] = value;
  __syncthreads();
  float sum = 0.0f;
  for (int warp = 0; warp < kWarps; ++warp) sum += parts[warp];
  return sum;
}

// g (k) = the sum over j != i of C_ij x_j; read by all threads after a barrier that comes first thing in what
// follows. x is an array of rows of `width`, in shared or in global memory.
template <class X, class Row, class Parts, class Sums>
__device__ void gather(Sums& g, const X& x, Row& row, Parts& parts, const float* C, int64_t i,
                       int64_t variables, int64_t width) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  for (int64_t c = 0; c < width; c += kWarp) {
    float sum = 0.0f;
    for (int64_t first = 0; first < variables; first += kRowFloats) {
      const int64_t count = variables - first < kRowFloats ? variables - first : kRowFloats;
      __syncthreads();
      for (int64_t j = thread; j < count; j += kThreads)
        row[static_cast<int>(j)] = first + j == i ? 0.0f : C[i * variables + first + j];
      __syncthreads();
      if (c + lane < width) {
        for (int64_t j = warp; j < count; j += kWarps)
          sum += row[static_cast<int>(j)] * x[static_cast<int>((first + j) * width + c) + lane];
      }
    }
    parts[warp * kWarp + lane] = sum;
    __syncthreads();
    if (warp == 0 && c + lane < width) {
      float total = 0.0f;
      for (int w = 0; w < kWarps; ++w) total += parts[w * kWarp + lane];
      g[static_cast<int>(c) + lane] = total;
    }
  }
}

struct Reports {
  DeferredWord *S, *z, *inputs, *order;
};

// The variable to be visited now, or 0 where it is given, or no variable.
__device__ __forceinline__ int64_t free_at(const Problem& problem, int64_t sample, int64_t at,
                                           DeferredWord* bad) {
  const int64_t i = problem.order[at];
  if (i < 1 || i >= problem.sizes.variables) {
    if (threadIdx.x == 0) *bad = deferred_place(0, at);
    return 0;
  }
  return problem.given(sample, i) ? 0 : i;
}

// ---- forward ----

// The start of variable i, its length scaled to 1 by the warp that calls.
__device__ void write_start(float* to, const Problem& problem, const Start& start, int64_t sample, int64_t i,
                            int lane) {
  const int64_t width = problem.sizes.width;
  const float* const from =
      start.V0 != nullptr ? start.V0 + (sample * problem.sizes.variables + i) * width : nullptr;
  float square = 0.0f;
  for (int64_t c = lane; c < width; c += kWarp) {
    const float value = from != nullptr ? from[c] : draw_normal(start, sample, i, c);
    to[c] = value;
    square += value * value;
  }
  square = warp_sum(square);
  const bool fine = square >= kLeastSquare;
  const float factor = fine ? 1.0f / sqrtf(square) : 0.0f;
  for (int64_t c = lane; c < width; c += kWarp) to[c] = fine ? to[c] * factor : (c == 0 ? 1.0f : 0.0f);
}

__device__ void write_input(float* to, uint8_t* negative, const Problem& problem, const Start& start,
                            int64_t sample, int64_t i, int lane) {
  const Sizes& sizes = problem.sizes;
  bool minus = false;
  if (i > 0 && start.V0 != nullptr) {
    minus = __float_as_uint(start.V0[(sample * sizes.variables + i) * sizes.width + 1]) >> 31 != 0;
  } else if (i > 0) {
    uint32_t word[4];
    start_words(word, start, sample, i, 0);
    minus = word[1] >> 31 != 0;
  }
  const Circle half = turn(i == 0 ? 0.5f : 0.5f * problem.z[sample * sizes.user + i - 1]);
  const float second = minus ? -fabsf(half.sin) : fabsf(half.sin);
  for (int64_t c = lane; c < sizes.width; c += kWarp) to[c] = c == 0 ? -half.cos : (c == 1 ? second : 0.0f);
  if (lane == 0 && negative != nullptr) *negative = minus ? 1 : 0;
}

// Whether the sample can be solved; reports why not.
template <class Parts>
__device__ bool check_sample(Parts& parts, const Problem& problem, int64_t sample, const float* C,
                             const Reports& reports) {
  const Sizes& sizes = problem.sizes;
  float free = 0.0f, wrong = 0.0f;
  for (int64_t i = threadIdx.x; i < sizes.variables; i += kThreads) {
    const float squares = C[i * sizes.variables + i];  // of the row, added up
    if (squares * static_cast<float>(sizes.variables) <= kMostSquares) continue;
    wrong = 1.0f;
    *reports.S = deferred_place(i, 0);
  }
  for (int64_t i = threadIdx.x; i < sizes.user; i += kThreads) {
    const float z = problem.z[sample * sizes.user + i];
    if (!problem.given(sample, i + 1)) free = 1.0f;
    if (z >= 0.0f && z <= 1.0f) continue;
    wrong = 1.0f;
    *reports.z = deferred_place(sample, i);
  }
  const bool none = block_sum(parts, free) == 0.0f, bad = block_sum(parts, wrong) != 0.0f;
  if (none && threadIdx.x == 0) *reports.inputs = deferred_place(sample, 0);
  return !none && !bad;
}

// What cannot be solved becomes NaN.
__device__ void give_up(const Problem& problem, const State& out, float* V, int64_t sample) {
  const Sizes& sizes = problem.sizes;
  const float nan = NAN;
  for (int64_t i = threadIdx.x; i < sizes.user; i += kThreads) out.z[sample * sizes.user + i] = nan;
  for (int64_t i = threadIdx.x; i < sizes.variables * sizes.width; i += kThreads) V[i] = nan;
  for (int64_t i = threadIdx.x; out.norms != nullptr && i < sizes.variables; i += kThreads) {
    out.norms[sample * sizes.variables + i] = 0.0f;
    out.negative[sample * sizes.variables + i] = 0;
  }
  for (int64_t i = threadIdx.x; i < 3; i += kThreads) out.counts[i * sizes.samples + sample] = 0;
}

template <class Parts>
__device__ void write_outputs(Parts& parts, const Problem& problem, const State& out, const float* V,
                              const float* norms, int64_t sample, int32_t niter) {
  const Sizes& sizes = problem.sizes;
  float zero_norms = 0.0f, saturated = 0.0f;  // counts below 2^24 are exact
  for (int64_t i = threadIdx.x; i < sizes.variables; i += kThreads) {
    if (problem.given(sample, i)) {
      if (i > 0) out.z[sample * sizes.user + i - 1] = problem.z[sample * sizes.user + i - 1];
      continue;
    }
    zero_norms += norms[i] == 0.0f ? 1.0f : 0.0f;
    if (i > sizes.user) continue;
    float square = 0.0f;
    for (int64_t c = 1; c < sizes.width; ++c) square += V[i * sizes.width + c] * V[i * sizes.width + c];
    const float sine = sqrtf(square);
    saturated += sine < kLeastSine ? 1.0f : 0.0f;
    out.z[sample * sizes.user + i - 1] = atan2f(sine, -V[i * sizes.width]) * kInversePi;
  }
  const float all_zero = block_sum(parts, zero_norms), all_saturated = block_sum(parts, saturated);
  if (threadIdx.x != 0) return;
  out.counts[sample] = niter;
  out.counts[sizes.samples + sample] = static_cast<int32_t>(all_zero);
  out.counts[2 * sizes.samples + sample] = static_cast<int32_t>(all_saturated);
}

// Where V is while a sample is solved: in shared memory, or where the caller keeps it.
template <bool shared>
struct Place;
template <>
struct Place<true> {
  static constexpr int kFloats = kSharedFloats;
};
template <>
struct Place<false> {
  static constexpr int kFloats = 1;
};

template <class X, class G, class Parts>
__device__ float move_free(X& x, const G& g, Parts&, float* norm_of, int64_t i, int64_t width) {
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  __syncthreads();  // g is there
  float square = 0.0f;
  for (int64_t c = lane; c < width; c += kWarp) square += g[static_cast<int>(c)] * g[static_cast<int>(c)];
  square = warp_sum(square);  // the same bits in every warp
  const bool moves = square >= kLeastSquare;
  const float norm = moves ? sqrtf(square) : 0.0f, factor = moves ? -1.0f / norm : 0.0f;
  if (thread == 0) norm_of[i] = norm;
  float delta = 0.0f;
  for (int64_t c = thread; moves && c < width; c += kThreads) {
    const float next = g[static_cast<int>(c)] * factor, change = next - x[static_cast<int>(i * width + c)];
    x[static_cast<int>(i * width + c)] = next;
    delta += norm * (change * change);
  }
  return delta;
}

// V (B, N, k) and norms (B, N) are always there; those of `out` are null where nobody wants them.
template <bool shared>
__global__ void __launch_bounds__(kThreads, 2)
    solve(const __grid_constant__ Problem problem, const __grid_constant__ Start start, Stop stop,
          const __grid_constant__ State out, float* all_V, float* all_norms, const float* C,
          Reports reports) {
  TENFOLD_SHARED(float, kept, Place<shared>::kFloats);
  TENFOLD_SHARED(float, row, kRowFloats);
  TENFOLD_SHARED(float, parts, kThreads);
  TENFOLD_SHARED(float, g, kMostWidth);
  const Sizes& sizes = problem.sizes;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp, warp = thread / kWarp;
  for (int64_t sample = blockIdx.x; sample < sizes.samples; sample += gridDim.x) {
    float* const V = all_V + sample * sizes.variables * sizes.width;
    float* const norms = all_norms + sample * sizes.variables;
    __syncthreads();
    if (!check_sample(parts, problem, sample, C, reports)) {
      give_up(problem, out, V, sample);
      continue;
    }
    for (int64_t i = warp; i < sizes.variables; i += kWarps) {
      uint8_t* const negative =
          out.negative != nullptr ? out.negative + sample * sizes.variables + i : nullptr;
      if (lane == 0) norms[i] = 0.0f;
      if (problem.given(sample, i)) {
        write_input(V + i * sizes.width, negative, problem, start, sample, i, lane);
      } else {
        write_start(V + i * sizes.width, problem, start, sample, i, lane);
        if (lane == 0 && negative != nullptr) *negative = 0;
      }
    }
    __syncthreads();
    const int64_t count = sizes.variables * sizes.width;
    if constexpr (shared) {
      for (int64_t at = thread; at < count; at += kThreads) kept[static_cast<int>(at)] = V[at];
    }
    int32_t niter = stop.max_iter;
    float first = 0.0f;
    for (int32_t t = 0; t < stop.max_iter; ++t) {
      float delta = 0.0f;
      for (int64_t at = 0; at + 1 < sizes.variables; ++at) {
        const int64_t i = free_at(problem, sample, at, reports.order);
        if (i == 0) continue;
        if constexpr (shared) {
          gather(g, kept, row, parts, C, i, sizes.variables, sizes.width);
          delta += move_free(kept, g, parts, norms, i, sizes.width);
        } else {
          gather(g, V, row, parts, C, i, sizes.variables, sizes.width);
          delta += move_free(V, g, parts, norms, i, sizes.width);
        }
      }
      delta = block_sum(parts, delta);
      if (t == 0) {
        first = delta;
      } else if (delta < stop.eps * first) {
        niter = t;
        break;
      }
    }
    __syncthreads();
    if constexpr (shared) {
      for (int64_t at = thread; at < count; at += kThreads) V[at] = kept[static_cast<int>(at)];
      __syncthreads();
    }
    write_outputs(parts, problem, out, V, norms, sample, niter);
  }
}

// ---- backward ----

__device__ __forceinline__ float sine_of(const float* v, int64_t width) {
  float square = 0.0f;
  for (int64_t c = 1; c < width; ++c) square += v[c] * v[c];
  return sqrtf(square);
}

template <class Parts>
__device__ bool has_gradient(Parts& parts, const Problem& problem, const Backward& from, int64_t sample) {
  if (!from.official) return true;
  const Sizes& sizes = problem.sizes;
  float lost = 0.0f;
  for (int64_t i = threadIdx.x; i < sizes.variables; i += kThreads) {
    if (problem.given(sample, i)) continue;
    const int64_t at = sample * sizes.variables + i;
    if (from.norms[at] == 0.0f || sine_of(from.V + at * sizes.width, sizes.width) < kLeastSine) lost = 1.0f;
  }
  return block_sum(parts, lost) == 0.0f;
}

// u_i = -(I - v v^T)(g + bias) / (|g| + prox_lam). All threads of a warp work out what depends on v alone.
template <class U, class G>
__device__ void adjust(U& u, const G& g, const Problem& problem, const Backward& from, int64_t sample,
                       int64_t i) {
  const Sizes& sizes = problem.sizes;
  const int thread = static_cast<int>(threadIdx.x), lane = thread % kWarp;
  const float* const v = from.V + (sample * sizes.variables + i) * sizes.width;
  const float norm = from.norms[sample * sizes.variables + i];
  __syncthreads();  // g is there
  float slope = 0.0f, squared_sine = 0.0f;
  if (i <= sizes.user) {
    for (int64_t c = lane; c < sizes.width; c += kWarp) squared_sine += c > 0 ? v[c] * v[c] : 0.0f;
    squared_sine = warp_sum(squared_sine);
    const float sine = sqrtf(squared_sine);
    slope = from.z_grad[sample * sizes.user + i - 1] * kInversePi / (sine < kLeastSine ? kLeastSine : sine);
  }
  const float first = v[0];
  const auto with_bias = [&](int64_t c) {
    return g[static_cast<int>(c)] + (c == 0 ? slope * squared_sine : -slope * first * v[c]);
  };
  float along = 0.0f;
  for (int64_t c = lane; c < sizes.width; c += kWarp) along += with_bias(c) * v[c];
  along = warp_sum(along);
  const float factor = norm == 0.0f ? 0.0f : -1.0f / (norm + from.prox_lam);
  for (int64_t c = thread; c < sizes.width; c += kThreads)
    u[static_cast<int>(i * sizes.width + c)] = (with_bias(c) - along * v[c]) * factor;
}

// Gradients of the sample's z: a warp per input.
__device__ void write_input_gradients(float* to, const Problem& problem, const Backward& from, const float* U,
                                      const float* C, int64_t sample, bool has) {
  const Sizes& sizes = problem.sizes;
  const int lane = static_cast<int>(threadIdx.x) % kWarp, warp = static_cast<int>(threadIdx.x) / kWarp;
  for (int64_t i = 1 + warp; i <= sizes.user; i += kWarps) {
    const int64_t at = sample * sizes.user + i - 1;
    if (!has || !problem.given(sample, i)) {
      if (lane == 0) to[at] = 0.0f;
      continue;
    }
    float one = 0.0f, two = 0.0f;
    for (int64_t j = lane; j < sizes.variables; j += kWarp) {
      one += C[i * sizes.variables + j] * U[j * sizes.width];
      two += C[i * sizes.variables + j] * U[j * sizes.width + 1];
    }
    one = warp_sum(one);
    two = warp_sum(two);
    if (lane != 0) continue;
    const Circle half = turn(0.5f * problem.z[at]);
    const float cos = kPi * half.cos, sin = kPi * half.sin, grad = from.z_grad[at];
    const float sign = from.negative[sample * sizes.variables + i] != 0 ? -1.0f : 1.0f;
    to[at] = from.official ? (grad + one) * sin + two * sign * fabsf(cos) * kPi
                           : grad + one * sin + two * sign * cos;
  }
}

template <bool shared>
__global__ void __launch_bounds__(kThreads, 2)
    solve_adjoint(const __grid_constant__ Problem problem, const __grid_constant__ Backward from,
                  float* all_U, const float* C, float* z_grad, DeferredWord* bad_order) {
  TENFOLD_SHARED(float, kept, Place<shared>::kFloats);
  TENFOLD_SHARED(float, row, kRowFloats);
  TENFOLD_SHARED(float, parts, kThreads);
  TENFOLD_SHARED(float, g, kMostWidth);
  const Sizes& sizes = problem.sizes;
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t count = sizes.variables * sizes.width;
  for (int64_t sample = blockIdx.x; sample < sizes.samples; sample += gridDim.x) {
    float* const U = all_U + sample * count;
    __syncthreads();
    for (int64_t at = thread; at < count; at += kThreads) {
      U[at] = 0.0f;
      if constexpr (shared) kept[static_cast<int>(at)] = 0.0f;
    }
    const bool has = has_gradient(parts, problem, from, sample);
    const int32_t sweeps = !has ? 0 : from.sweeps < 0 ? from.counts[sample] : from.sweeps;
    for (int32_t t = 0; t < sweeps; ++t) {
      for (int64_t at = 0; at + 1 < sizes.variables; ++at) {
        const int64_t i = free_at(problem, sample, at, bad_order);
        if (i == 0) continue;
        if constexpr (shared) {
          gather(g, kept, row, parts, C, i, sizes.variables, sizes.width);
          adjust(kept, g, problem, from, sample, i);
        } else {
          gather(g, U, row, parts, C, i, sizes.variables, sizes.width);
          adjust(U, g, problem, from, sample, i);
        }
      }
    }
    __syncthreads();
    if constexpr (shared) {
      for (int64_t at = thread; at < count; at += kThreads) U[at] = kept[static_cast<int>(at)];
      __syncthreads();
    }
    if (z_grad != nullptr) write_input_gradients(z_grad, problem, from, U, C, sample, has);
  }
}

void want_width(const Sizes& sizes) {
  if (sizes.width > kMostWidth) {
    throw ValueError("k is " + std::to_string(sizes.width) + ", want at most " + std::to_string(kMostWidth) +
                     " on a GPU");
  }
  if (sizes.variables * sizes.width > INT32_MAX) {
    throw ValueError("S has " + std::to_string(sizes.variables) + " rows, want fewer than 2^31 / k on a GPU");
  }
}

void start_gram(float* C, const Problem& problem, void* stream) {
  const Sizes& sizes = problem.sizes;
  start_product<kGram>(C, sizes.variables, sizes.variables, sizes.clauses,
                       {problem.S, problem.S, sizes.variables, sizes.clauses, sizes.width}, stream);
}

DeferredWord* order_word() {
  static const DeferredSlot slot("order", "mixing", "no variable, want each from 1 to N - 1 once");
  return slot.word();
}

bool fits_shared(const Sizes& sizes) { return sizes.variables * sizes.width <= kSharedFloats; }

}  // namespace

int64_t forward_floats(const Sizes& sizes) {
  return sizes.variables * sizes.variables + sizes.samples * sizes.variables * (sizes.width + 1);
}

int64_t backward_floats(const Sizes& sizes) {
  return 2 * sizes.variables * sizes.variables + sizes.samples * sizes.variables * sizes.width;
}

void draw_order(int32_t* order, int64_t variables, uint64_t seed, Queue queue) {
  const DeviceGuard guard(queue.device);
  launch(queue.stream, grid_for((variables + kThreads - 1) / kThreads, kBlocksPerMultiprocessor), kThreads,
         rank_variables, order, variables, seed);
}

void forward(const Problem& problem, const Start& start, const Stop& stop, const State& out, float* scratch,
             Queue queue) {
  static const DeferredSlot wrong_S("S", "mixing",
                                    "in a row whose squares add up to too large a number, or none");
  static const DeferredSlot wrong_z("z", "mixing", "not a probability, want a number from 0 to 1");
  static const DeferredSlot all_inputs("is_input", "mixing",
                                       "True as the whole sample, want a variable that is not given");
  const Sizes& sizes = problem.sizes;
  want_width(sizes);
  if (sizes.samples == 0) return;
  const DeviceGuard guard(queue.device);
  float* const C = scratch;
  float* const V = out.V != nullptr ? out.V : C + sizes.variables * sizes.variables;
  float* const norms = out.norms != nullptr
                           ? out.norms
                           : C + sizes.variables * (sizes.variables + sizes.samples * sizes.width);
  start_gram(C, problem, queue.stream);
  launch(queue.stream, grid_for(sizes.samples, kBlocksPerMultiprocessor), kThreads,
         fits_shared(sizes) ? solve<true> : solve<false>, problem, start, stop, out, V, norms, C,
         Reports{wrong_S.word(), wrong_z.word(), all_inputs.word(), order_word()});
}

void backward(const Problem& problem, const Backward& from, const Gradients& out, float* scratch,
              Queue queue) {
  const Sizes& sizes = problem.sizes;
  want_width(sizes);
  const DeviceGuard guard(queue.device);
  float* const C = scratch;
  float* const M = C + sizes.variables * sizes.variables;
  float* const U = M + sizes.variables * sizes.variables;
  if (sizes.samples > 0) {
    start_gram(C, problem, queue.stream);
    launch(queue.stream, grid_for(sizes.samples, kBlocksPerMultiprocessor), kThreads,
           fits_shared(sizes) ? solve_adjoint<true> : solve_adjoint<false>, problem, from, U, C, out.z,
           order_word());
  }
  if (out.S == nullptr) return;
  start_product<kOuter>(M, sizes.variables, sizes.variables, sizes.samples * sizes.width,
                        {U, from.V, sizes.variables, sizes.clauses, sizes.width}, queue.stream);
  start_product<kGradient>(out.S, sizes.variables, sizes.clauses, sizes.variables,
                           {M, problem.S, sizes.variables, sizes.clauses, sizes.width}, queue.stream);
}

}  // namespace tenfold::mixing::cuda
