// The mixing method on one sample: blocks of kRows free variables, of which the part that comes from outside
// is one matrix product from registers, and the part from within follows in turn.
//
// Everything about free variables lies in the order of the visits. A panel holds, for each column of the
// matrix that multiplies (a row of C for the Gram form, of S for the low-rank form), its kRows elements of a
// block's rows side by side: the micro-kernel broadcasts them. x is V or, for the gradient, U.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/gemm.h"
#include "core/level.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "core/vecmath.h"
#include "mixing/draws.h"
#include "mixing/mixing.h"

namespace tenfold::mixing {
namespace TENFOLD_LEVEL {
namespace {

constexpr int kRows = gemm::kTileRows;

inline int64_t rounded(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// What a sample is solved in; made once per thread, for samples of up to `most_free` free variables.
class Workspace {
 public:
  Workspace(const Sizes& sizes, int64_t most_free)
      : width(rounded(sizes.width, kFloatLanes)),
        free(sizes.variables),
        inputs(sizes.variables),
        rows_(rounded(most_free, kRows)),
        panels_(panel_floats(sizes.clauses, most_free)),
        memory_(panels_ + rows_ * kRows + 3 * rows_ * width + sizes.clauses * width + 2 * kRows * width +
                2 * rounded(sizes.variables, kFloatLanes) + rows_) {
    float* next = memory_.data();
    const auto take = [&](int64_t count) {
      float* const mine = next;
      next += count;
      return mine;
    };
    x = take(rows_ * width), bias = take(rows_ * width), v = take(rows_ * width);
    w = take(sizes.clauses * width);
    block = take(kRows * width), changes = take(kRows * width);
    first = take(rounded(sizes.variables, kFloatLanes));
    second = take(rounded(sizes.variables, kFloatLanes));
    panels = take(panels_), within = take(rows_ * kRows), factors = take(rows_);
  }

  const int64_t width;      // of a row of x, with padding
  Scratch<int32_t> free;    // variables in the order of the visits
  Scratch<int32_t> inputs;  // variables, ascending
  int64_t free_count = 0, input_count = 0;
  float *x, *bias, *v;     // (free, width)
  float* w;                // (m, width): S^T x
  float *block, *changes;  // (kRows, width)
  float *first, *second;   // (N): components 0 and 1 of something
  float *panels, *within;  // (block, depth, kRows); (block, kRows, kRows): C of a block's own rows
  float* factors;          // (free)

 private:
  // The most that any sample of up to `most_free` free variables needs, in its form.
  static int64_t panel_floats(int64_t clauses, int64_t most_free) {
    const int64_t gram = gemm::lesser(most_free, 2 * clauses), low_rank = rounded(most_free, kRows) * clauses;
    const int64_t square = rounded(gram, kRows) * gram;
    return square > low_rank ? square : low_rank;
  }

  const int64_t rows_, panels_;
  FloatScratch memory_;
};

inline void list_variables(Workspace& work, const Problem& problem, int64_t sample) {
  work.free_count = work.input_count = 0;
  for (int64_t i = 0; i < problem.sizes.variables; ++i) {
    if (problem.given(sample, i)) work.inputs[work.input_count++] = static_cast<int32_t>(i);
  }
  for (int64_t i = 0; i + 1 < problem.sizes.variables; ++i) {
    const int32_t variable = problem.order[i];
    if (!problem.given(sample, variable)) work.free[work.free_count++] = variable;
  }
}

// ---- panels ----

// panels[b, d, r] = the element in column columns[d] (d itself where null) of row free[b kRows + r].
inline void pack(Workspace& work, const float* matrix, int64_t stride, const int32_t* columns,
                 int64_t depth) {
  for (int64_t first = 0; first < work.free_count; first += kRows) {
    float* const panel = work.panels + first * depth;
    const float* lines[kRows];
    const int64_t filled = gemm::lesser(work.free_count - first, kRows);
    for (int r = 0; r < kRows; ++r) lines[r] = matrix + work.free[first + (r < filled ? r : 0)] * stride;
    for (int64_t d = 0; d < depth; ++d) {
      const int64_t at = columns != nullptr ? columns[d] : d;
      for (int r = 0; r < kRows; ++r) panel[d * kRows + r] = lines[r][at];
    }
    for (int64_t d = 0; filled < kRows && d < depth; ++d) {
      for (int64_t r = filled; r < kRows; ++r) panel[d * kRows + r] = 0.0f;
    }
  }
}

// The Gram form: C of the free variables, without its diagonal.
inline void pack_gram(Workspace& work, const float* C, int64_t stride) {
  pack(work, C, stride, &work.free[0], work.free_count);
  for (int64_t i = 0; i < work.free_count; ++i) {
    const int64_t first = i / kRows * kRows;
    work.panels[first * work.free_count + i * kRows + (i - first)] = 0.0f;
  }
}

// The low-rank form: S, and S S^T within each block.
inline void pack_low_rank(Workspace& work, const float* S, int64_t clauses) {
  pack(work, S, clauses, nullptr, clauses);
  for (int64_t first = 0; first < work.free_count; first += kRows) {
    const float* const panel = work.panels + first * clauses;
    float* const within = work.within + first * kRows;
    float sum[kRows][kRows] = {};
    for (int64_t d = 0; d < clauses; ++d) {
      for (int s = 0; s < kRows; ++s) {
        for (int r = 0; r < kRows; ++r) sum[s][r] += panel[d * kRows + s] * panel[d * kRows + r];
      }
    }
    std::memcpy(within, sum, sizeof sum);
  }
}

// ---- the micro-kernels ----

// g[r] += the sum over d of panel[d, r] times row d of x, for `vectors` vectors of a row.
template <int vectors>
inline void multiply_rows(float* g, const float* panel, const float* x, int64_t width, int64_t depth) {
  Floats sum[kRows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) sum[r][v] = load(g + r * width + v * kFloatLanes);
  }
  for (int64_t d = 0; d < depth; ++d) {
    Floats row[vectors];
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) row[v] = load(x + d * width + v * kFloatLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
      for (int v = 0; v < vectors; ++v) sum[r][v] += panel[d * kRows + r] * row[v];
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) store(g + r * width + v * kFloatLanes, sum[r][v]);
  }
}

inline void multiply_block(float* g, const float* panel, const float* x, int64_t width, int64_t depth) {
  int64_t c = 0;
  for (; c + 2 * kFloatLanes <= width; c += 2 * kFloatLanes)
    multiply_rows<2>(g + c, panel, x + c, width, depth);
  if (c < width) multiply_rows<1>(g + c, panel, x + c, width, depth);
}

// Row d of w += the sum over r of panel[d, r] times changes[r].
template <int vectors>
inline void add_changes(float* w, const float* panel, const float* changes, int64_t width, int64_t depth) {
  Floats change[kRows][vectors];
#pragma GCC unroll 16
  for (int r = 0; r < kRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) change[r][v] = load(changes + r * width + v * kFloatLanes);
  }
  for (int64_t d = 0; d < depth; ++d) {
#pragma GCC unroll 2
    for (int v = 0; v < vectors; ++v) {
      // Two sums: one would wait for itself kRows times.
      Floats even = load(w + d * width + v * kFloatLanes), odd{};
#pragma GCC unroll 16
      for (int r = 0; r < kRows; r += 2) {
        even += panel[d * kRows + r] * change[r][v];
        odd += panel[d * kRows + r + 1] * change[r + 1][v];
      }
      store(w + d * width + v * kFloatLanes, even + odd);
    }
  }
}

inline void update_low_rank(float* w, const float* panel, const float* changes, int64_t width,
                            int64_t depth) {
  int64_t c = 0;
  for (; c + 2 * kFloatLanes <= width; c += 2 * kFloatLanes)
    add_changes<2>(w + c, panel, changes + c, width, depth);
  if (c < width) add_changes<1>(w + c, panel, changes + c, width, depth);
}

// ---- sweeps ----

// How a free variable moves, given its g of `vectors` vectors, or of `many` where `vectors` is 0: where the
// compiler knows the number a row stays in registers. Both write row i's new value and its change.
struct Descend {  // v = -g / |g|
  float* norms;   // (free)
  Floats delta;   // the objective's change in this sweep, in as many parts as a vector has lanes

  template <int vectors>
  void step(int64_t i, const Floats* g, int many, float* x, float* change, const float*) {
    const int count = vectors > 0 ? vectors : many;
    Floats square = g[0] * g[0];
#pragma GCC unroll 8
    for (int v = 1; v < count; ++v) square += g[v] * g[v];
    const float length = sum_of(square);
    if (!(length >= kLeastSquare)) {
      norms[i] = 0.0f;
      for (int v = 0; v < count; ++v) store(change + v * kFloatLanes, Floats{});
      return;
    }
    const float norm = __builtin_sqrtf(length), factor = -1.0f / norm;
    norms[i] = norm;
#pragma GCC unroll 8
    for (int v = 0; v < count; ++v) {
      const Floats mine = g[v] * factor, moved = mine - load(x + v * kFloatLanes);
      store(change + v * kFloatLanes, moved);
      store(x + v * kFloatLanes, mine);
      delta += norm * (moved * moved);
    }
  }
};

struct Adjust {          // u = factor (I - v v^T) g
  const float* factors;  // (free): -1 / (|g| + prox_lam) of the solution

  template <int vectors>
  void step(int64_t i, const Floats* g, int many, float* x, float* change, const float* of_v) {
    const int count = vectors > 0 ? vectors : many;
    Floats product = g[0] * load(of_v);
#pragma GCC unroll 8
    for (int v = 1; v < count; ++v) product += g[v] * load(of_v + v * kFloatLanes);
    const float along = sum_of(product), factor = factors[i];
#pragma GCC unroll 8
    for (int v = 0; v < count; ++v) {
      const Floats mine = (g[v] - along * load(of_v + v * kFloatLanes)) * factor;
      store(change + v * kFloatLanes, mine - load(x + v * kFloatLanes));
      store(x + v * kFloatLanes, mine);
    }
  }
};

// A sample being solved.
template <class Move>
struct Solving {
  Workspace& work;
  Form form;
  Move move;

  // What the block's variables get from outside, and from within before any of them moves. `from_zero`: x was
  // zero before this sweep.
  void begin_block(int64_t first, int64_t clauses, bool from_zero) {
    const bool gram = form == Form::gram;
    const int64_t width = work.width, depth = gram ? work.free_count : clauses;
    std::memcpy(work.block, work.bias + first * width, sizeof(float) * static_cast<size_t>(kRows * width));
    multiply_block(work.block, work.panels + first * depth, gram ? work.x : work.w, width,
                   gram && from_zero ? first : depth);
  }

  // Moves row r; its g lacks only what rows above it have changed.
  template <int vectors>
  void finish_row(int64_t first, int64_t r) {
    const bool gram = form == Form::gram;
    const int64_t width = work.width;
    const int many = static_cast<int>(width / kFloatLanes);
    const float* const within =
        gram ? work.panels + first * (work.free_count + kRows) : work.within + first * kRows;
    float* const x = work.x + (first + r) * width;
    float* const change = work.changes + r * width;
    float* const from = work.block + r * width;
    Floats registers[vectors > 0 ? vectors : 1];
    Floats* const g = vectors > 0 ? registers : reinterpret_cast<Floats*>(from);
    add_changes_above<vectors>(g, from, within, r, x, many);
    move.template step<vectors>(first + r, g, many, x, change, work.v + (first + r) * width);
  }

  template <int vectors>
  void add_changes_above(Floats* g, const float* from, const float* within, int64_t r, const float* x,
                         int many) {
    const int count = vectors > 0 ? vectors : many;
#pragma GCC unroll 8
    for (int v = 0; v < count; ++v) g[v] = load(from + v * kFloatLanes);
    if (form != Form::gram) {
      const float own = within[r * kRows + r];
#pragma GCC unroll 8
      for (int v = 0; v < count; ++v) g[v] -= own * load(x + v * kFloatLanes);
    }
    for (int64_t s = 0; s < r; ++s) {
      const float* const change = work.changes + s * work.width;
      const float weight = within[s * kRows + r];
#pragma GCC unroll 8
      for (int v = 0; v < count; ++v) g[v] += weight * load(change + v * kFloatLanes);
    }
  }

  void end_block(int64_t first, int64_t rows, int64_t clauses) {
    if (form == Form::gram) return;
    const int64_t width = work.width;
    std::memset(work.changes + rows * width, 0, sizeof(float) * static_cast<size_t>((kRows - rows) * width));
    update_low_rank(work.w, work.panels + first * clauses, work.changes, width, clauses);
  }

  int64_t rows_of_block(int64_t first) const {
    const int64_t left = work.free_count - first;
    return left < 0 ? 0 : gemm::lesser(left, kRows);
  }
};

// Samples in turns: while a row of one waits for its norm, those of the others are computed.
constexpr int kTogether = 4;

// One sweep of each of `samples`, of which there are `many`.
template <int vectors, class Move>
void sweep(Solving<Move>* const* samples, int many, int64_t clauses, bool from_zero) {
  int64_t most = 0;
  for (int s = 0; s < many; ++s) {
    if (samples[s]->work.free_count > most) most = samples[s]->work.free_count;
  }
  for (int64_t first = 0; first < most; first += kRows) {
    int64_t rows[kTogether];
    for (int s = 0; s < many; ++s) {
      rows[s] = samples[s]->rows_of_block(first);
      if (rows[s] > 0) samples[s]->begin_block(first, clauses, from_zero);
    }
    for (int64_t r = 0; r < kRows; ++r) {
      for (int s = 0; s < many; ++s) {
        if (r < rows[s]) samples[s]->template finish_row<vectors>(first, r);
      }
    }
    for (int s = 0; s < many; ++s) {
      if (rows[s] > 0) samples[s]->end_block(first, rows[s], clauses);
    }
  }
}

template <class Move>
void sweep(Solving<Move>* const* samples, int many, int64_t clauses, bool from_zero) {
  switch (samples[0]->work.width / kFloatLanes) {
    case 1:
      return sweep<1>(samples, many, clauses, from_zero);
    case 2:
      return sweep<2>(samples, many, clauses, from_zero);
    case 3:
      return sweep<3>(samples, many, clauses, from_zero);
    case 4:
      return sweep<4>(samples, many, clauses, from_zero);
    case 6:
      return sweep<6>(samples, many, clauses, from_zero);
    case 8:
      return sweep<8>(samples, many, clauses, from_zero);
    default:
      return sweep<0>(samples, many, clauses, from_zero);
  }
}

// ---- forward ----

inline void scale_to_one(float* x, int64_t width) {
  Floats square{};
  for (int64_t c = 0; c < width; c += kFloatLanes) square += load(x + c) * load(x + c);
  const float length = sum_of(square);
  if (!(length >= kLeastSquare)) {
    std::memset(x, 0, sizeof(float) * static_cast<size_t>(width));
    x[0] = 1.0f;
    return;
  }
  const float factor = 1.0f / __builtin_sqrtf(length);
  for (int64_t c = 0; c < width; c += kFloatLanes) store(x + c, load(x + c) * factor);
}

// x = the starts of the free variables.
inline void start_free(Workspace& work, const Problem& problem, const Start& start, int64_t sample) {
  const Sizes& sizes = problem.sizes;
  for (int64_t i = 0; i < work.free_count; ++i) {
    float* const x = work.x + i * work.width;
    std::memset(x + sizes.width, 0, sizeof(float) * static_cast<size_t>(work.width - sizes.width));
    if (start.V0 != nullptr) {
      const float* const from = start.V0 + (sample * sizes.variables + work.free[i]) * sizes.width;
      std::memcpy(x, from, sizeof(float) * static_cast<size_t>(sizes.width));
    } else {
      draw_start(x, sizes.width, start, sample, work.free[i]);
    }
    scale_to_one(x, work.width);
  }
}

// first, second = the components of the inputs, by their place in `inputs`; negative (N) their signs.
inline void start_inputs(Workspace& work, const Problem& problem, const Start& start, int64_t sample,
                         uint8_t* negative) {
  const Sizes& sizes = problem.sizes;
  for (int64_t i = 0; i < sizes.variables; i += kBlocks) {
    uint8_t signs[kBlocks];
    if (start.V0 == nullptr) draw_signs(signs, start, sample, i);
    for (int64_t j = i; j < i + kBlocks && j < sizes.variables; ++j) {
      if (start.V0 != nullptr)
        signs[j - i] = __builtin_signbit(start.V0[(sample * sizes.variables + j) * sizes.width + 1]) != 0;
      negative[j] = j > 0 && problem.given(sample, j) ? signs[j - i] : 0;
    }
  }
  const int64_t padded = rounded(work.input_count, kFloatLanes);
  for (int64_t i = 0; i < padded; ++i) {
    const int32_t variable = i < work.input_count ? work.inputs[i] : 0;
    work.first[i] = variable == 0 ? 1.0f : problem.z[sample * sizes.user + variable - 1];
  }
  for (int64_t i = 0; i < padded; i += kFloatLanes) {
    const InputVector v = input_vector(load(work.first + i));
    store(work.first + i, v.first);
    store(work.second + i, v.second);
  }
  for (int64_t i = 0; i < work.input_count; ++i) {
    if (negative[work.inputs[i]] != 0) work.second[i] = -work.second[i];
  }
}

// sums[i] += row[i] * a, sums2[i] += row[i] * b.
inline void add_two(float* to_a, float* to_b, const float* row, float a, float b, int64_t count) {
  for (int64_t i = 0; i < count; i += kFloatLanes) {
    const Floats value = load_some(row + i, count - i);
    store(to_a + i, load(to_a + i) + a * value);
    store(to_b + i, load(to_b + i) + b * value);
  }
}

// bias = what inputs add to the g of free variables.
inline void bias_of_inputs(Workspace& work, const float* C, int64_t stride, int64_t variables) {
  const int64_t padded = rounded(variables, kFloatLanes);
  FloatScratch sums(2 * padded);
  std::memset(sums.data(), 0, sizeof(float) * static_cast<size_t>(2 * padded));
  float* const one = sums.data();
  float* const two = one + padded;
  for (int64_t i = 0; i < work.input_count; ++i)
    add_two(one, two, C + work.inputs[i] * stride, work.first[i], work.second[i], variables);
  for (int64_t i = 0; i < work.free_count; ++i) {
    work.bias[i * work.width] = one[work.free[i]];
    work.bias[i * work.width + 1] = two[work.free[i]];
  }
}

// w = S^T V.
inline void start_low_rank(Workspace& work, const Problem& problem) {
  const int64_t clauses = problem.sizes.clauses, width = work.width;
  std::memset(work.w, 0, sizeof(float) * static_cast<size_t>(clauses * width));
  for (int64_t i = 0; i < work.input_count; ++i) {
    const float* const row = problem.S + work.inputs[i] * clauses;
    for (int64_t d = 0; d < clauses; ++d) {
      work.w[d * width] += row[d] * work.first[i];
      work.w[d * width + 1] += row[d] * work.second[i];
    }
  }
  for (int64_t first = 0; first < work.free_count; first += kRows)
    update_low_rank(work.w, work.panels + first * clauses, work.x + first * width, width, clauses);
}

inline void clear_rows(const Workspace& work, float* rows) {
  std::memset(rows, 0, sizeof(float) * static_cast<size_t>(rounded(work.free_count, kRows) * work.width));
}

inline float sine_of(const float* v, int64_t width) {
  float square = 0.0f;
  for (int64_t c = 1; c < width; ++c) square += v[c] * v[c];
  return __builtin_sqrtf(square);
}

// Sweeps until each sample ends. niter: the number of its last sweep, from 0, or max_iter where that is what
// ended it.
inline void descend(Solving<Descend>* samples, int count, const Stop& stop, int64_t clauses, int32_t* niter) {
  Solving<Descend>* active[kTogether];
  float first[kTogether];
  for (int s = 0; s < count; ++s) niter[s] = stop.max_iter;
  for (int32_t t = 0; t < stop.max_iter; ++t) {
    int left = 0;
    for (int s = 0; s < count; ++s) {
      samples[s].move.delta = Floats{};
      if (niter[s] == stop.max_iter) active[left++] = &samples[s];
    }
    if (left == 0) return;
    sweep(active, left, clauses, false);
    for (int s = 0; s < count; ++s) {
      const float delta = sum_of(samples[s].move.delta);
      if (t == 0)
        first[s] = delta;
      else if (niter[s] == stop.max_iter && delta < stop.eps * first[s])
        niter[s] = t;
    }
  }
}

inline void write_outputs(const Workspace& work, const Problem& problem, int64_t sample, const State& out,
                          const uint8_t* negative, const float* norms, int32_t niter) {
  const Sizes& sizes = problem.sizes;
  const size_t row_bytes = sizeof(float) * static_cast<size_t>(sizes.width);
  float* const z = out.z + sample * sizes.user;
  std::memcpy(z, problem.z + sample * sizes.user, sizeof(float) * static_cast<size_t>(sizes.user));
  int32_t zero_norms = 0, saturated = 0;
  constexpr float kInversePi = 0.318309886183790672f;
  for (int64_t i = 0; i < work.free_count; ++i) {
    zero_norms += norms[i] == 0.0f;
    if (work.free[i] > sizes.user) continue;
    const float* const v = work.x + i * work.width;
    const float sine = sine_of(v, sizes.width);
    saturated += sine < kLeastSine;
    z[work.free[i] - 1] = __builtin_atan2f(sine, -v[0]) * kInversePi;
  }
  out.counts[sample] = niter;
  out.counts[sizes.samples + sample] = zero_norms;
  out.counts[2 * sizes.samples + sample] = saturated;
  if (out.V == nullptr) return;
  float* const V = out.V + sample * sizes.variables * sizes.width;
  float* const all_norms = out.norms + sample * sizes.variables;
  std::memcpy(out.negative + sample * sizes.variables, negative, static_cast<size_t>(sizes.variables));
  for (int64_t i = 0; i < work.free_count; ++i) {
    std::memcpy(V + work.free[i] * sizes.width, work.x + i * work.width, row_bytes);
    all_norms[work.free[i]] = norms[i];
  }
  for (int64_t i = 0; i < work.input_count; ++i) {
    float* const row = V + work.inputs[i] * sizes.width;
    std::memset(row, 0, row_bytes);
    row[0] = work.first[i], row[1] = work.second[i];
    all_norms[work.inputs[i]] = 0.0f;
  }
}

// Samples `sample` ... `sample` + count - 1, each in a workspace of its own. C (N, stride), unused where none
// has the Gram form.
inline void forward_samples(Workspace* const* works, int count, const Problem& problem, int64_t sample,
                            const Start& start, const Stop& stop, const State& out, const float* C,
                            int64_t stride) {
  const Sizes& sizes = problem.sizes;
  Scratch<uint8_t> negative(count * sizes.variables);
  for (int s = 0; s < count; ++s) {
    Workspace& work = *works[s];
    list_variables(work, problem, sample + s);
    clear_rows(work, work.x);  // the last block's padding too
    start_free(work, problem, start, sample + s);
    start_inputs(work, problem, start, sample + s, &negative[s * sizes.variables]);
    clear_rows(work, work.bias);
    if (form_of(sizes, work.free_count) == Form::gram) {
      bias_of_inputs(work, C, stride, sizes.variables);
      pack_gram(work, C, stride);
    } else {
      pack_low_rank(work, problem.S, sizes.clauses);
      start_low_rank(work, problem);
    }
  }
  const auto solving = [&](int s) {
    Workspace& work = *works[s < count ? s : 0];
    return Solving<Descend>{work, form_of(sizes, work.free_count), {work.factors, {}}};
  };
  Solving<Descend> samples[kTogether] = {solving(0), solving(1), solving(2), solving(3)};
  int32_t niter[kTogether];
  descend(samples, count, stop, sizes.clauses, niter);
  for (int s = 0; s < count; ++s) {
    write_outputs(*works[s], problem, sample + s, out, &negative[s * sizes.variables], works[s]->factors,
                  niter[s]);
  }
}

// ---- backward ----

// Whether the sample has a gradient: always, but for the public code's rule.
inline bool has_gradient(const Workspace& work, const Backward& from, const Sizes& sizes, int64_t sample) {
  if (!from.official) return true;
  const float* const norms = from.norms + sample * sizes.variables;
  for (int64_t i = 0; i < work.free_count; ++i) {
    const float sine = sine_of(work.v + i * work.width, sizes.width);
    if (norms[work.free[i]] == 0.0f || sine < kLeastSine) return false;
  }
  return true;
}

// v, factors, and bias = (I - v v^T) e0 times the gradient of v's angle.
inline void start_adjoint(Workspace& work, const Backward& from, const Sizes& sizes, int64_t sample) {
  constexpr float kInversePi = 0.318309886183790672f;
  clear_rows(work, work.bias);
  for (int64_t i = 0; i < work.free_count; ++i) {
    const int64_t variable = work.free[i], at = sample * sizes.variables + variable;
    float* const v = work.v + i * work.width;
    std::memset(v + sizes.width, 0, sizeof(float) * static_cast<size_t>(work.width - sizes.width));
    std::memcpy(v, from.V + at * sizes.width, sizeof(float) * static_cast<size_t>(sizes.width));
    work.factors[i] = from.norms[at] == 0.0f ? 0.0f : -1.0f / (from.norms[at] + from.prox_lam);
    if (variable > sizes.user) continue;
    float* const bias = work.bias + i * work.width;
    const float sine = sine_of(v, sizes.width), floor = sine < kLeastSine ? kLeastSine : sine;
    const float slope = from.z_grad[sample * sizes.user + variable - 1] * kInversePi / floor;
    const float factor = -slope * v[0];
    for (int64_t c = 0; c < work.width; c += kFloatLanes) store(bias + c, factor * load(v + c));
    bias[0] = slope * sine * sine;  // 1 - v_0^2 without cancellation
  }
}

// first, second = components 0 and 1 of C u, or S (S^T u), of all variables.
inline void phi_of_inputs(Workspace& work, const Problem& problem, Form form, const float* C,
                          int64_t stride) {
  const Sizes& sizes = problem.sizes;
  const int64_t width = work.width;
  const auto bytes = sizeof(float) * static_cast<size_t>(rounded(sizes.variables, kFloatLanes));
  std::memset(work.first, 0, bytes);
  std::memset(work.second, 0, bytes);
  if (form == Form::gram) {
    for (int64_t i = 0; i < work.free_count; ++i)
      add_two(work.first, work.second, C + work.free[i] * stride, work.x[i * width], work.x[i * width + 1],
              sizes.variables);
    return;
  }
  for (int64_t i = 0; i < work.input_count; ++i) {
    const float* const row = problem.S + work.inputs[i] * sizes.clauses;
    float one = 0.0f, two = 0.0f;
    for (int64_t d = 0; d < sizes.clauses; ++d) {
      one += row[d] * work.w[d * width];
      two += row[d] * work.w[d * width + 1];
    }
    work.first[work.inputs[i]] = one;
    work.second[work.inputs[i]] = two;
  }
}

struct InputGradient {
  float to_z, first, second;  // of the output, and of the input's vector

  float at(float z, bool negative, bool official) const {
    constexpr float kPi = 3.14159265358979324f;
    const Turned half = turn(Floats{} + 0.5f * z);
    const float cos = kPi * half.cos[0], sin = kPi * half.sin[0], sign = negative ? -1.0f : 1.0f;
    if (official) return (to_z + first) * sin + second * sign * __builtin_fabsf(cos) * kPi;
    return to_z + first * sin + second * sign * cos;
  }
};

inline void input_gradients(const Workspace& work, const Problem& problem, const Backward& from,
                            int64_t sample, float* z_grad) {
  const Sizes& sizes = problem.sizes;
  for (int64_t i = 0; i < work.input_count; ++i) {
    const int64_t variable = work.inputs[i], at = sample * sizes.user + variable - 1;
    if (variable == 0) continue;
    const InputGradient gradient{from.z_grad[at], work.first[variable], work.second[variable]};
    z_grad[variable - 1] =
        gradient.at(problem.z[at], from.negative[sample * sizes.variables + variable] != 0, from.official);
  }
}

// Rows of U and V of all samples side by side, (N, B k): what the gradient of S is made of. null where that
// is not wanted.
struct Columns {
  float *U, *V;
  int64_t stride;
};

inline void write_columns(const Workspace& work, const Backward& from, const Sizes& sizes, int64_t sample,
                          const Columns& to, bool has) {
  const size_t bytes = sizeof(float) * static_cast<size_t>(sizes.width);
  const float* const V = from.V + sample * sizes.variables * sizes.width;
  for (int64_t i = 0; i < sizes.variables; ++i) {
    std::memcpy(to.V + i * to.stride + sample * sizes.width, V + i * sizes.width, bytes);
    std::memset(to.U + i * to.stride + sample * sizes.width, 0, bytes);
  }
  for (int64_t i = 0; has && i < work.free_count; ++i)
    std::memcpy(to.U + work.free[i] * to.stride + sample * sizes.width, work.x + i * work.width, bytes);
}

inline void start_backward(Workspace& work, const Problem& problem, int64_t sample, const Backward& from,
                           const float* C, int64_t stride) {
  const Sizes& sizes = problem.sizes;
  list_variables(work, problem, sample);
  start_adjoint(work, from, sizes, sample);
  clear_rows(work, work.x);
  if (form_of(sizes, work.free_count) == Form::gram) return pack_gram(work, C, stride);
  pack_low_rank(work, problem.S, sizes.clauses);
  std::memset(work.w, 0, sizeof(float) * static_cast<size_t>(sizes.clauses * work.width));
}

// z_grad (B, n) or null.
inline void finish_backward(Workspace& work, const Problem& problem, int64_t sample, const Backward& from,
                            const Columns& columns, float* z_grad, const float* C, int64_t stride, bool has) {
  const Sizes& sizes = problem.sizes;
  if (columns.U != nullptr) write_columns(work, from, sizes, sample, columns, has);
  if (z_grad == nullptr) return;
  float* const mine = z_grad + sample * sizes.user;
  std::memset(mine, 0, sizeof(float) * static_cast<size_t>(sizes.user));
  if (!has) return;
  phi_of_inputs(work, problem, form_of(sizes, work.free_count), C, stride);
  input_gradients(work, problem, from, sample, mine);
}

// As forward_samples.
inline void backward_samples(Workspace* const* works, int count, const Problem& problem, int64_t sample,
                             const Backward& from, const Columns& columns, float* z_grad, const float* C,
                             int64_t stride) {
  const Sizes& sizes = problem.sizes;
  int32_t sweeps[kTogether], most = 0;
  bool has[kTogether];
  for (int s = 0; s < count; ++s) {
    start_backward(*works[s], problem, sample + s, from, C, stride);
    has[s] = has_gradient(*works[s], from, sizes, sample + s);
    sweeps[s] = !has[s] ? 0 : from.sweeps < 0 ? from.counts[sample + s] : from.sweeps;
    if (sweeps[s] > most) most = sweeps[s];
  }
  const auto solving = [&](int s) {
    Workspace& work = *works[s < count ? s : 0];
    return Solving<Adjust>{work, form_of(sizes, work.free_count), {work.factors}};
  };
  Solving<Adjust> samples[kTogether] = {solving(0), solving(1), solving(2), solving(3)};
  for (int32_t t = 0; t < most; ++t) {
    Solving<Adjust>* active[kTogether];
    int left = 0;
    for (int s = 0; s < count; ++s) {
      if (t < sweeps[s]) active[left++] = &samples[s];
    }
    sweep(active, left, sizes.clauses, t == 0);
  }
  for (int s = 0; s < count; ++s)
    finish_backward(*works[s], problem, sample + s, from, columns, z_grad, C, stride, has[s]);
}

}  // namespace
}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::mixing
