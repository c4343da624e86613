// The mixing method on a GPU: one block a sample, which ends when its sample does.
//
// C = S S^T lies in global memory, shared by all samples, its rows and columns in the order of the visits. A
// sample's free variables are listed once, and what its inputs add to their g; sweeps go over the free ones
// alone, in groups (groups.cuh). Sums are added up in one order, which is not the processor's: results agree
// to rounding and are the same in every run. Every sample has the Gram form; nothing waits for the device.
#include <cmath>
#include <cstdint>
#include <string>

#include "core/cuda.cuh"
#include "core/deferred.h"
#include "core/error.h"
#include "core/philox.h"
#include "mixing/block.cuh"
#include "mixing/groups.cuh"
#include "mixing/mixing.h"
#include "mixing/products.cuh"
#include "mixing/starts.cuh"

namespace tenfold::mixing::cuda {
namespace {

constexpr int kBlocksPerMultiprocessor = 4;
constexpr float kInversePi = 0.318309886183790672f;

// ---- scratch ----

struct alignas(8) Pair {  // components 0 and 1 of a vector
  float first, second;
};

// What a call needs: C, and for each sample the memory of its free variables, and a Pair per place.
struct Scratch {
  float* x;
  Slot* slots;
  Pair* pairs;
  int32_t* places;
  float* diagonal;
  float* C;

  static int64_t floats(const Sizes& sizes) {
    constexpr int64_t kOfVariable = (sizeof(Slot) + sizeof(Pair) + sizeof(int32_t)) / sizeof(float);
    return sizes.variables * (sizes.variables + 1) +
           sizes.samples * (sizes.variables * (padded_width(sizes.width) + kOfVariable) + kPadding);
  }

  Scratch(float* memory, const Sizes& sizes) {
    const int64_t all = sizes.samples * sizes.variables;
    x = memory;  // first what lies at multiples of 16 bytes
    slots = reinterpret_cast<Slot*>(x + all * padded_width(sizes.width));
    pairs = reinterpret_cast<Pair*>(slots + all);
    places = reinterpret_cast<int32_t*>(pairs + all);
    diagonal = reinterpret_cast<float*>(places + all + sizes.samples * kPadding);
    C = diagonal + sizes.variables;
  }

  // What a block works with; the free variables are yet to be listed.
  template <class G>
  __device__ __forceinline__ Sample sample(int64_t number, int64_t variables) const {
    const int64_t at = number * variables;
    return {C,
            static_cast<uint32_t>(variables * sizeof(float)),
            places_of(number, variables),
            slots + at,
            x + at * G::kWidth,
            0};
  }
  __device__ __forceinline__ int32_t* places_of(int64_t number, int64_t variables) const {
    return places + number * (variables + kPadding);
  }
};

// ---- the order of the visits ----

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

// ---- what both directions begin with ----

// Lists the places of a sample's free variables. Returns how many there are.
template <class Counts>
__device__ int list_free(Counts& counts, const Problem& problem, int64_t sample, int32_t* places,
                         DeferredWord* bad_order) {
  const int64_t variables = problem.sizes.variables;
  const unsigned lane = lane_of_thread();
  const int warp = warp_of_thread();
  int free = 0;
  for (int64_t first = 0; first + 1 < variables; first += kThreads) {
    const int64_t place = first + threadIdx.x, i = variable_at(problem.order, variables, place);
    if (i == 0 && place + 1 < variables) *bad_order = deferred_place(0, place);
    const bool mine = i > 0 && !problem.given(sample, i);
    const unsigned votes = __ballot_sync(kAllLanes, mine);
    __syncthreads();
    if (lane == 0) counts[warp] = __popc(votes);
    __syncthreads();
    int at = free + __popc(votes & ((1u << lane) - 1u));
    for (int other = 0; other < kWarps; ++other) {
      const int count = counts[other];
      if (other < warp) at += count;
      free += count;
    }
    if (!mine) continue;
    places[at] = static_cast<int32_t>(place);
  }
  if (threadIdx.x < kPadding) places[free + threadIdx.x] = 0;  // a place, whichever
  return free;
}

__device__ __forceinline__ int64_t variable_of(const Sample& s, int i, const Problem& problem) {
  return variable_at(problem.order, problem.sizes.variables, s.places[i]);
}

// The sum over all places of a row of C times what lies there; a warp, the same bits in every lane.
__device__ __forceinline__ Pair product_of_row(const float* row, const Pair* pairs, int64_t variables) {
  Pair sum{0.0f, 0.0f};
#pragma unroll 8
  for (int64_t j = lane_of_thread(); j < variables; j += kWarp) {
    const float entry = row[j];
    const Pair pair = pairs[j];
    sum.first += entry * pair.first;
    sum.second += entry * pair.second;
  }
  return {warp_sum(sum.first), warp_sum(sum.second)};
}

// The squared sine of the angle of v, of which a lane brings components lane, lane + 32, ...
template <class Component>
__device__ __forceinline__ float squared_sine(int64_t width, const Component& component) {
  float square = 0.0f;
  for (int64_t c = lane_of_thread(); c < width; c += kWarp) {
    const float value = component(c);
    square += c > 0 ? value * value : 0.0f;
  }
  return warp_sum(square);
}

// ---- forward ----

struct Reports {
  DeferredWord *S, *z, *inputs, *order;
};

// Whether the sample can be solved; reports why not.
template <class Parts>
__device__ bool check_sample(Parts& parts, const Problem& problem, int64_t sample, const float* diagonal,
                             const Reports& reports) {
  const Sizes& sizes = problem.sizes;
  float free = 0.0f, wrong = 0.0f;
  for (int64_t place = threadIdx.x; place < sizes.variables; place += kThreads) {
    const float squares = diagonal[place];  // of the variable's row of S, added up
    if (squares * static_cast<float>(sizes.variables) <= kMostSquares) continue;
    wrong = 1.0f;
    *reports.S = deferred_place(variable_at(problem.order, sizes.variables, place), 0);
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

// Outputs of what is no free variable: those of inputs, or of a sample that cannot be solved. Until the
// sample is solved those of free variables are NaN, which they stay where `order` leaves one out.
__device__ void write_inputs(const Problem& problem, const Start& start, const State& out, int64_t sample,
                             bool solved) {
  const Sizes& sizes = problem.sizes;
  for (int64_t i = threadIdx.x; i < sizes.user; i += kThreads) {
    const int64_t at = sample * sizes.user + i;
    out.z[at] = solved && problem.given(sample, i + 1) ? problem.z[at] : NAN;
  }
  for (int64_t i = threadIdx.x; !solved && i < 3; i += kThreads) out.counts[i * sizes.samples + sample] = 0;
  if (out.V == nullptr) return;
  for (int64_t i = warp_of_thread(); i < sizes.variables; i += kWarps) {
    const int64_t at = sample * sizes.variables + i;
    const bool given = solved && problem.given(sample, i);
    const InputVector v = given ? input_vector(problem, start, sample, i) : InputVector{NAN, NAN, false};
    const float others = given ? 0.0f : NAN;
    for (int64_t c = lane_of_thread(); c < sizes.width; c += kWarp)
      out.V[at * sizes.width + c] = c == 0 ? v.first : (c == 1 ? v.second : others);
    if (lane_of_thread() != 0) continue;
    out.norms[at] = 0.0f;
    out.negative[at] = v.negative ? 1 : 0;
  }
}

// The starts of a sample, and what its inputs add to g.
template <class G>
__device__ void start_sample(const Sample& s, Pair* pairs, const Problem& problem, const Start& start,
                             int64_t sample) {
  const int64_t variables = problem.sizes.variables;
  for (int64_t place = threadIdx.x; place < variables; place += kThreads) {
    const int64_t i = variable_at(problem.order, variables, place);
    Pair pair{0.0f, 0.0f};
    if (problem.given(sample, i)) {
      const InputVector v = input_vector(problem, start, sample, i);
      pair = {v.first, v.second};
    }
    pairs[place] = pair;
  }
  for (int i = warp_of_thread(); i < s.free; i += kWarps)
    write_start(row_of<G>(s, i), problem, start, sample, variable_of(s, i, problem), G::kWidth);
  __syncthreads();
  for (int i = warp_of_thread(); i < s.free; i += kWarps) {
    const Pair pair = product_of_row(below(s.C, s.places[i], s), pairs, variables);
    if (lane_of_thread() != 0) continue;
    s.slots[i] = {{pair.first, pair.second, 0.0f}, 0.0f};
  }
}

template <class G, class Parts>
__device__ void write_outputs(Parts& parts, const Sample& s, const Problem& problem, const State& out,
                              int64_t sample, int32_t niter) {
  const Sizes& sizes = problem.sizes;
  float zero_norms = 0.0f, saturated = 0.0f;  // counts below 2^24 are exact
  for (int i = warp_of_thread(); i < s.free; i += kWarps) {
    const float norm = s.slots[i].norm;
    const int64_t variable = variable_of(s, i, problem), at = sample * sizes.variables + variable;
    const float* const x = row_of<G>(s, i);
    const float sine = sqrtf(squared_sine(sizes.width, [&](int64_t c) { return x[c]; }));
    for (int64_t c = lane_of_thread(); out.V != nullptr && c < sizes.width; c += kWarp)
      out.V[at * sizes.width + c] = x[c];
    if (lane_of_thread() != 0) continue;
    if (out.norms != nullptr) out.norms[at] = norm;
    zero_norms += norm == 0.0f ? 1.0f : 0.0f;
    if (variable > sizes.user) continue;
    saturated += sine < kLeastSine ? 1.0f : 0.0f;
    out.z[sample * sizes.user + variable - 1] = atan2f(sine, -x[0]) * kInversePi;
  }
  const float all_zero = block_sum(parts, zero_norms), all_saturated = block_sum(parts, saturated);
  if (threadIdx.x != 0) return;
  out.counts[sample] = niter;
  out.counts[sizes.samples + sample] = static_cast<int32_t>(all_zero);
  out.counts[2 * sizes.samples + sample] = static_cast<int32_t>(all_saturated);
}

// rows: of a group; k is at most 1024 / rows.
template <int rows>
__global__ void __launch_bounds__(kThreads, 2)
    solve(const __grid_constant__ Problem problem, const __grid_constant__ Start start, Stop stop,
          const __grid_constant__ State out, const __grid_constant__ Scratch scratch, Reports reports) {
  using G = Group<rows>;
  TENFOLD_SHARED(Quad, tiles, kWarps * kTileQuads);
  TENFOLD_SHARED(Quad, totals, kTileQuads);
  TENFOLD_SHARED(Quad, within, 2 * G::kRows * G::kKeyQuads);
  TENFOLD_SHARED(float, parts, kWarps);
  TENFOLD_SHARED(int, counts, kWarps);
  const Sizes& sizes = problem.sizes;
  for (int64_t sample = blockIdx.x; sample < sizes.samples; sample += gridDim.x) {
    __syncthreads();
    const bool fine = check_sample(parts, problem, sample, scratch.diagonal, reports);
    write_inputs(problem, start, out, sample, fine);
    if (!fine) continue;
    Sample s = scratch.sample<G>(sample, sizes.variables);
    Pair* const pairs = scratch.pairs + sample * sizes.variables;
    s.free = list_free(counts, problem, sample, scratch.places_of(sample, sizes.variables), reports.order);
    __syncthreads();
    start_sample<G>(s, pairs, problem, start, sample);
    __syncthreads();
    int32_t niter = stop.max_iter;
    if (s.free > 0) {
      Descend<G> move{stop.eps};
      niter = run_sweeps<G>(tiles, totals, within, counts, s, move, stop.max_iter);
    }
    write_outputs<G>(parts, s, problem, out, sample, niter);
  }
}

// ---- backward ----

// v in the order of the visits, x = 0 and the slots' constants. True where there is a gradient: always, but
// for the public code's rule.
template <class G, class Parts>
__device__ bool start_adjoint(Parts& parts, const Sample& s, float* v, const Problem& problem,
                              const Backward& from, int64_t sample) {
  const Sizes& sizes = problem.sizes;
  float lost = 0.0f;
  for (int i = warp_of_thread(); i < s.free; i += kWarps) {
    const int64_t variable = variable_of(s, i, problem), at = sample * sizes.variables + variable;
    const float* const row = from.V + at * sizes.width;
    for (int c = lane_of_thread(); c < G::kWidth; c += kWarp) {
      row_of<G>(s, i)[c] = 0.0f;
      v[int64_t{i} * G::kWidth + c] = c < sizes.width ? row[c] : 0.0f;
    }
    const float square = squared_sine(sizes.width, [&](int64_t c) { return row[c]; });
    if (lane_of_thread() != 0) continue;
    const float norm = from.norms[at], sine = sqrtf(square);
    float slope = 0.0f;
    if (variable <= sizes.user)
      slope = from.z_grad[sample * sizes.user + variable - 1] * kInversePi / fmaxf(sine, kLeastSine);
    const float factor = norm == 0.0f ? 0.0f : -1.0f / (norm + from.prox_lam);
    s.slots[i] = {{slope * square, -slope * row[0], 0.0f}, factor};  // 1 - v_0^2 without cancellation
    if (norm == 0.0f || sine < kLeastSine) lost = 1.0f;
  }
  return block_sum(parts, lost) == 0.0f || !from.official;
}

// U (N, kWidth) of a sample, and where `to` is not null gradients of its z.
template <class G>
__device__ void write_gradients(const Sample& s, Pair* pairs, float* U, const Problem& problem,
                                const Backward& from, float* to, int64_t sample, bool has) {
  const Sizes& sizes = problem.sizes;
  for (int64_t at = threadIdx.x; at < sizes.variables * G::kWidth; at += kThreads) U[at] = 0.0f;
  for (int64_t place = threadIdx.x; place < sizes.variables; place += kThreads) pairs[place] = {0.0f, 0.0f};
  for (int64_t i = threadIdx.x; to != nullptr && i < sizes.user; i += kThreads)
    to[sample * sizes.user + i] = 0.0f;
  __syncthreads();
  for (int i = warp_of_thread(); i < s.free; i += kWarps) {
    const float* const x = row_of<G>(s, i);
    const int64_t variable = variable_of(s, i, problem);
    for (int c = lane_of_thread(); c < G::kWidth; c += kWarp) U[variable * G::kWidth + c] = x[c];
    if (lane_of_thread() == 0) pairs[s.places[i]] = {x[0], x[1]};
  }
  __syncthreads();
  if (to == nullptr || !has) return;
  for (int64_t place = warp_of_thread(); place < sizes.variables; place += kWarps) {
    const int64_t i = variable_at(problem.order, sizes.variables, place);
    if (i == 0 || !problem.given(sample, i)) continue;
    const Pair sum = product_of_row(s.C + place * sizes.variables, pairs, sizes.variables);
    if (lane_of_thread() != 0) continue;
    const int64_t at = sample * sizes.user + i - 1;
    const Circle half = turn(0.5f * problem.z[at]);
    const float cos = kPi * half.cos, sin = kPi * half.sin, grad = from.z_grad[at];
    const float sign = from.negative[sample * sizes.variables + i] != 0 ? -1.0f : 1.0f;
    to[at] = from.official ? (grad + sum.first) * sin + sum.second * sign * fabsf(cos) * kPi
                           : grad + sum.first * sin + sum.second * sign * cos;
  }
}

// all_U (B, N, kWidth); while a sample is solved its part keeps v of the free variables.
template <int rows>
__global__ void __launch_bounds__(kThreads, 2)
    solve_adjoint(const __grid_constant__ Problem problem, const __grid_constant__ Backward from,
                  float* all_U, const __grid_constant__ Scratch scratch, float* z_grad,
                  DeferredWord* bad_order) {
  using G = Group<rows>;
  TENFOLD_SHARED(Quad, tiles, kWarps * kTileQuads);
  TENFOLD_SHARED(Quad, totals, kTileQuads);
  TENFOLD_SHARED(Quad, within, 2 * G::kRows * G::kKeyQuads);
  TENFOLD_SHARED(float, parts, kWarps);
  TENFOLD_SHARED(int, counts, kWarps);
  const Sizes& sizes = problem.sizes;
  for (int64_t sample = blockIdx.x; sample < sizes.samples; sample += gridDim.x) {
    __syncthreads();
    Sample s = scratch.sample<G>(sample, sizes.variables);
    float* const U = all_U + sample * sizes.variables * G::kWidth;
    s.free = list_free(counts, problem, sample, scratch.places_of(sample, sizes.variables), bad_order);
    __syncthreads();
    const bool has = start_adjoint<G>(parts, s, U, problem, from, sample);
    const int32_t sweeps = !has ? 0 : from.sweeps < 0 ? from.counts[sample] : from.sweeps;
    __syncthreads();
    if (sweeps > 0 && s.free > 0) {
      Adjust<G> move{U};
      run_sweeps<G>(tiles, totals, within, counts, s, move, sweeps);
    }
    __syncthreads();
    write_gradients<G>(s, scratch.pairs + sample * sizes.variables, U, problem, from, z_grad, sample, has);
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

void start_gram(const Scratch& scratch, const Problem& problem, void* stream) {
  const Sizes& sizes = problem.sizes;
  start_product<kGram>(scratch.C, sizes.variables, sizes.variables, sizes.clauses,
                       {problem.S, problem.S, problem.order, scratch.diagonal, sizes.variables, sizes.clauses,
                        sizes.width, sizes.width},
                       stream);
}

DeferredWord* order_word() {
  static const DeferredSlot slot("order", "mixing", "no variable, want each from 1 to N - 1 once");
  return slot.word();
}

// The kernel for k, of those for groups of 32, 16, ... 1.
template <class Kernel>
Kernel kernel_for(int64_t width, const Kernel (&kernels)[6]) {
  int at = 0;
  for (int64_t padded = padded_width(width); padded > kWarp; padded /= 2) ++at;
  return kernels[at];
}

using Solve = void (*)(Problem, Start, Stop, State, Scratch, Reports);
using SolveAdjoint = void (*)(Problem, Backward, float*, Scratch, float*, DeferredWord*);
constexpr Solve kSolve[] = {solve<32>, solve<16>, solve<8>, solve<4>, solve<2>, solve<1>};
constexpr SolveAdjoint kSolveAdjoint[] = {solve_adjoint<32>, solve_adjoint<16>, solve_adjoint<8>,
                                          solve_adjoint<4>,  solve_adjoint<2>,  solve_adjoint<1>};

}  // namespace

int64_t forward_floats(const Sizes& sizes) { return Scratch::floats(sizes); }

int64_t backward_floats(const Sizes& sizes) {
  return Scratch::floats(sizes) +
         sizes.variables * (sizes.variables + sizes.samples * padded_width(sizes.width));
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
  const Scratch parts(scratch, sizes);
  start_gram(parts, problem, queue.stream);
  launch(queue.stream, grid_for(sizes.samples, kBlocksPerMultiprocessor), kThreads,
         kernel_for(sizes.width, kSolve), problem, start, stop, out, parts,
         Reports{wrong_S.word(), wrong_z.word(), all_inputs.word(), order_word()});
}

void backward(const Problem& problem, const Backward& from, const Gradients& out, float* scratch,
              Queue queue) {
  const Sizes& sizes = problem.sizes;
  want_width(sizes);
  const DeviceGuard guard(queue.device);
  const Scratch parts(scratch, sizes);
  float* const M = parts.C + sizes.variables * sizes.variables;
  float* const U = M + sizes.variables * sizes.variables;
  if (sizes.samples > 0) {
    start_gram(parts, problem, queue.stream);
    launch(queue.stream, grid_for(sizes.samples, kBlocksPerMultiprocessor), kThreads,
           kernel_for(sizes.width, kSolveAdjoint), problem, from, U, parts, out.z, order_word());
  }
  if (out.S == nullptr) return;
  start_product<kOuter>(M, sizes.variables, sizes.variables, sizes.samples * sizes.width,
                        {U, from.V, problem.order, nullptr, sizes.variables, sizes.clauses, sizes.width,
                         padded_width(sizes.width)},
                        queue.stream);
  start_product<kGradient>(out.S, sizes.variables, sizes.clauses, sizes.variables,
                           {M, problem.S, problem.order, nullptr, sizes.variables, sizes.clauses, sizes.width,
                            padded_width(sizes.width)},
                           queue.stream);
}

}  // namespace tenfold::mixing::cuda
