// The mixing method: coordinate descent on the relaxation of MAXSAT that SATNet solves in its layer, and its
// gradient (Wang, Donti, Wilder, Kolter, "SATNet", ICML 2019; Wang, Chang, Kolter, "The mixing method",
// 2017).
//
// Variable 0 is true, 1 ... n are the user's, the rest auxiliary: N in all. Row s_i of S (N, m) is variable
// i's part in m clauses; v_i is a unit vector of width k. An input z_i stands for
// v_i = (-cos(pi z_i), sigma_i |sin(pi z_i)|, 0, ...), sigma_i a random sign; the others are free. With
// C = S S^T, a sweep sets each free v_i in turn to -g_i / |g_i|, g_i = sum over j != i of C_ij v_j. Sweeps
// end after the one whose change of the objective, sum of |g_i| |change of v_i|^2, is below eps times the
// first's.
//
// Blocks of free variables are visited together: what other blocks add to their g_i is one matrix product,
// what they add to each other follows in turn. So the iterates are those of one variable after the other, but
// for rounding. Three forms do the same; which one depends on the sizes and the sample alone:
//   lanes     problems small enough that V of as many samples as a register has lanes fits the first-level
//             cache;
//   gram      g from rows of C: n_f k multiplications for each of n_f free variables;
//   low rank  g = s_i W with W = S^T V kept up to date: 2 m k.
//
// The upper half is what other code calls: views in, checks, errors. The lower half is what each
// instruction-set level provides.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/tensor.h"

namespace tenfold::mixing {

// float32, bool and int32, all dense. Those of a solution are written by forward and read by backward.
struct Inputs {
  const TensorView& S;         // (N, m)
  const TensorView& z;         // (B, n), from 0 to 1; only inputs count
  const TensorView& is_input;  // (B, n) or (n) bool, with at least one free variable per sample
};
struct Solution {
  const TensorView& z;         // (B, n): inputs as given
  const TensorView& V;         // (B, N, k); (0) where nobody wants it, and then the next two are (0) too
  const TensorView& norms;     // (B, N): |g_i| of the last sweep, 0 for inputs
  const TensorView& negative;  // (B, N) bool: an input's sigma is -1
  const TensorView& order;     // (N - 1) int32: a permutation of 1 ... N - 1
  const TensorView& counts;    // (3, B) int32: see below
};
// counts[0]: the number of the sweep, from 0, that ended a sample early, else max_iter; the public code's
// niter. counts[1]: free variables with |g_i| = 0, which keep their v_i. counts[2]: free outputs of the user
// within 3e-7 of 0 or 1, where z has no finite derivative: their gradient fades out.

// The largest sum of squares of a row of S times N, the number of variables: |g|^2 stays finite below it.
inline constexpr float kMostSquares = 1e18f;

struct Options {
  int64_t width;  // k
  int64_t max_iter;
  float eps;
  uint64_t seed;
  int64_t first_sample;  // sample b draws the numbers of sample first_sample + b
  bool draw_order;       // else `order` is read
};

// V0 (B, N, k), or null: where free variables start (scaled to 1) instead of at random; inputs take the sign
// of its second component. Scratch on the CPU: 4 N^2 bytes where a sample has the Gram form, and per thread
// 16 n_f max(min(n_f, 2 m), m) + 48 n_f (k + 16) bytes for n_f free variables; on a GPU 4 N (N + 1) + 4 B (N
// (K + 7) + 32), K being k rounded up to 32, 64, 128, ... 1024.
int64_t forward_scratch(const Inputs& inputs, int64_t width);
void forward(const Inputs& inputs, const TensorView* V0, const Options& options, const Solution& out,
             char* scratch);

struct Adjoint {
  const TensorView& z_grad;  // (B, n)
  float prox_lam;            // added to |g_i|
  int64_t sweeps;            // -1: as many as counts[0] says
  bool official;  // the public code's gradient of inputs, and no gradient for a sample with an event
};

// Gradients of S and z, null where not wanted; free z get 0. Scratch as forward, and 8 B N k + 4 N^2 bytes
// for that of S (or 4 B k m in place of the last, where that takes less time); on a GPU those of forward
// and 4 N^2 + 4 B N K.
int64_t backward_scratch(const Inputs& inputs, const Solution& solution);
void backward(const Inputs& inputs, const Solution& solution, const Adjoint& adjoint,
              const TensorView* S_grad, const TensorView* z_grad, char* scratch);

// ---- what one level provides ----

struct Sizes {
  int64_t samples, variables, user, clauses, width;  // B, N, n, m, k
};

struct Problem {
  Sizes sizes;
  const float* S;
  const float* z;
  const uint8_t* is_input;
  int64_t input_stride;  // from sample to sample; 0 where all have the same
  const int32_t* order;

  TENFOLD_HOST_DEVICE bool given(int64_t sample, int64_t variable) const {
    return variable <= sizes.user && (variable == 0 || is_input[sample * input_stride + variable - 1] != 0);
  }
};

struct Start {
  const float* V0;  // or null
  uint64_t seed;
  int64_t first_sample;
};

struct Stop {
  int32_t max_iter;
  float eps;
};

struct State {
  float* z;
  float* V;  // null where not wanted, then the next two are too
  float* norms;
  uint8_t* negative;
  int32_t* counts;
};

struct Backward {
  const float* V;
  const float* norms;
  const uint8_t* negative;
  const int32_t* counts;
  const float* z_grad;
  float prox_lam;
  int32_t sweeps;
  bool official;
};

struct Gradients {
  float* S;  // either may be null
  float* z;
};

// Counter of the random words (core/philox.h): variable, number of the block of four, sample, purpose.
inline constexpr uint32_t kDrawStart = 0, kDrawOrder = 1;

inline constexpr float kLeastSine = 1e-6f;  // of a free output's angle
inline constexpr float kLeastSquare =
    1.17549435e-38f;  // a squared norm below this is not a normal float: zero

// 16 samples with N k = 320 need 20 KiB, which leaves room in a first-level cache of 32.
inline constexpr int64_t kMostInLanes = 320;

enum class Form { lanes, gram, low_rank };

inline Form form_of(const Sizes& sizes, int64_t free) {
  if (sizes.variables * sizes.width <= kMostInLanes) return Form::lanes;
  return free <= 2 * sizes.clauses ? Form::gram : Form::low_rank;
}

struct Kernels {
  void (*forward)(const Problem& problem, const Start& start, const Stop& stop, const State& out);
  void (*backward)(const Problem& problem, const Backward& solution, const Gradients& out);
};

namespace baseline {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace cuda {
int64_t forward_floats(const Sizes& sizes);  // of scratch
int64_t backward_floats(const Sizes& sizes);
void draw_order(int32_t* order, int64_t variables, uint64_t seed, Queue queue);
void forward(const Problem& problem, const Start& start, const Stop& stop, const State& out, float* scratch,
             Queue queue);
void backward(const Problem& problem, const Backward& solution, const Gradients& out, float* scratch,
              Queue queue);
}  // namespace cuda

}  // namespace tenfold::mixing
