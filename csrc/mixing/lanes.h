// The mixing method on samples that are small: one sample per lane of a register, all in the first-level
// cache. Every lane computes what it would compute alone: variables that are free in other lanes only add
// zeros.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/level.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "core/vecmath.h"
#include "mixing/draws.h"
#include "mixing/mixing.h"

namespace tenfold::mixing {
namespace TENFOLD_LEVEL {
namespace {

constexpr int kChunk = 8;  // components added up at once: enough sums to hide a multiplication's latency

inline Floats blend(Ints mask, Floats where, Floats elsewhere) { return mask != 0 ? where : elsewhere; }
inline Floats keep(Ints mask, Floats x) { return reinterpret_cast<Floats>(mask & reinterpret_cast<Ints>(x)); }
inline bool any(Ints mask) {
  return fold(mask, Ints{}, [](Ints a, Ints b) { return a | b; }) != 0;
}

// The sum of term(0) ... term(count - 1), in four parts: one would wait for each of its additions.
template <class Term>
inline Floats sum_of_terms(int64_t count, Term&& term) {
  Floats part[4] = {};
  int64_t c = 0;
  for (; c + 4 <= count; c += 4) {
#pragma GCC unroll 4
    for (int i = 0; i < 4; ++i) part[i] += term(c + i);
  }
#pragma GCC unroll 3
  for (int i = 0; i < 3; ++i) {
    if (c + i < count) part[i] += term(c + i);
  }
  return (part[0] + part[1]) + (part[2] + part[3]);
}

// A group of kFloatLanes samples, the last of which may not exist: they have no free variable.
class Group {
 public:
  Group(const Problem& problem, const float* C)
      : problem_(problem),
        sizes_(problem.sizes),
        C_(C),
        memory_((2 * sizes_.variables * sizes_.width + 6 * sizes_.variables + sizes_.width) * kFloatLanes),
        visits_(sizes_.variables),
        inputs_(sizes_.variables) {
    Floats* next = reinterpret_cast<Floats*>(memory_.data());
    const auto take = [&](int64_t count) {
      Floats* const mine = next;
      next += count;
      return mine;
    };
    x_ = take(sizes_.variables * sizes_.width), v_ = take(sizes_.variables * sizes_.width);
    free_ = reinterpret_cast<Ints*>(take(sizes_.variables));
    first_ = take(sizes_.variables), second_ = take(sizes_.variables);
    one_ = take(sizes_.variables), two_ = take(sizes_.variables), norms_ = take(sizes_.variables);
    g_ = take(sizes_.width);
  }

  int64_t visits() const { return visit_count_; }
  bool sweeping() const { return any(active_); }

  void begin_forward(int64_t group, const Start& start, const Stop& stop, const State& out) {
    find(group);
    start_free(start);
    start_inputs(start, out);
    active_ = stop.max_iter > 0 ? exists_ : Ints{};
    niter_ = Ints{} + stop.max_iter;
    delta_ = Floats{};
  }

  // After sweep t.
  void end_sweep(int32_t t, const Stop& stop) {
    if (t == 0) first_delta_ = delta_;
    const Ints stopped = t == 0 ? Ints{} : active_ & (delta_ < stop.eps * first_delta_);
    niter_ = stopped != 0 ? Ints{} + t : niter_;
    active_ = t + 1 < stop.max_iter ? active_ & ~stopped : Ints{};
    delta_ = Floats{};
  }

  void write_outputs(const State& out) {
    constexpr float kInversePi = 0.318309886183790672f;
    Ints zero_norms{}, saturated{};
    std::memcpy(out.z + begin_ * sizes_.user, problem_.z + begin_ * sizes_.user,
                sizeof(float) * static_cast<size_t>(count_ * sizes_.user));
    for (int64_t v = 0; v < visit_count_; ++v) {
      const int64_t i = visits_[v];
      zero_norms -= free_[i] & (norms_[i] == 0.0f);
      if (i > sizes_.user) continue;
      const Floats sine = sine_of(row(x_, i)), cosine = row(x_, i)[0];
      saturated -= free_[i] & (sine < kLeastSine);
      for (int lane = 0; lane < count_; ++lane) {
        if (free_[i][lane] != 0)
          out.z[(begin_ + lane) * sizes_.user + i - 1] =
              __builtin_atan2f(sine[lane], -cosine[lane]) * kInversePi;
      }
    }
    for (int lane = 0; lane < count_; ++lane) {
      out.counts[begin_ + lane] = niter_[lane];
      out.counts[sizes_.samples + begin_ + lane] = zero_norms[lane];
      out.counts[2 * sizes_.samples + begin_ + lane] = saturated[lane];
    }
    if (out.V == nullptr) return;
    for (int64_t j = 0; j < input_count_; ++j) {
      row(x_, inputs_[j])[0] += first_[inputs_[j]];
      row(x_, inputs_[j])[1] += second_[inputs_[j]];
    }
    for (int lane = 0; lane < count_; ++lane) {
      const int64_t first = (begin_ + lane) * sizes_.variables;
      float* const V = out.V + first * sizes_.width;
      const float* const x = reinterpret_cast<const float*>(x_) + lane;
      for (int64_t at = 0; at < sizes_.variables * sizes_.width; ++at) V[at] = x[at * kFloatLanes];
      for (int64_t i = 0; i < sizes_.variables; ++i) out.norms[first + i] = norms_[i][lane];
    }
  }

  void begin_backward(int64_t group, const Backward& from) {
    find(group);
    read_solution(from);
    std::memset(x_, 0, sizeof(Floats) * static_cast<size_t>(sizes_.variables * sizes_.width));
    Ints sweeps{};
    for (int lane = 0; lane < count_; ++lane)
      sweeps[lane] = from.sweeps < 0 ? from.counts[begin_ + lane] : from.sweeps;
    niter_ = from.official ? sweeps & ~lost_ : sweeps;
    active_ = niter_ > 0;
  }

  void end_backward_sweep(int32_t t) { active_ = niter_ > t + 1; }

  // Adds to M (N, N) the sum of U V^T of these samples where M is not null.
  void finish_backward(const Backward& from, float* M, float* z_grad) {
    if (M != nullptr) add_products(M);
    if (z_grad != nullptr) write_input_gradients(from, z_grad);
  }

  // The visit number v of a sweep.
  void move_forward(int64_t v) {
    const int64_t i = visits_[v];
    for (int64_t c = 2; c < sizes_.width; ++c) g_[c] = Floats{};
    g_[0] = one_[i], g_[1] = two_[i];
    add_free(i);
    const Floats square = sum_of_terms(sizes_.width, [&](int64_t c) { return g_[c] * g_[c]; });
    const Ints mine = free_[i] & active_, moves = mine & (square >= kLeastSquare);
    const Floats norm = square_root(square);
    const Floats factor = -1.0f / blend(moves, norm, Floats{} + 1.0f);
    norms_[i] = blend(mine, keep(moves, norm), norms_[i]);
    Floats* const x = row(x_, i);
    const Floats moved = sum_of_terms(sizes_.width, [&](int64_t c) {
      const Floats next = blend(moves, g_[c] * factor, x[c]), change = next - x[c];
      x[c] = next;
      return change * change;
    });
    delta_ += norms_[i] * moved;  // zero where it did not move
  }

  void move_backward(int64_t n) {
    const int64_t i = visits_[n];
    const Floats* const v = row(v_, i);
    Floats* const x = row(x_, i);
    for (int64_t c = 0; c < sizes_.width; ++c) g_[c] = one_[i] * v[c];
    g_[0] = two_[i];
    add_free(i);
    const Floats along = sum_of_terms(sizes_.width, [&](int64_t c) { return g_[c] * v[c]; });
    const Ints mine = free_[i] & active_;
    for (int64_t c = 0; c < sizes_.width; ++c) x[c] = blend(mine, (g_[c] - along * v[c]) * norms_[i], x[c]);
  }

 private:
  void find(int64_t group) {
    begin_ = group * kFloatLanes;
    count_ = static_cast<int>(lesser(sizes_.samples - begin_, kFloatLanes));
    exists_ = Ints{};
    for (int lane = 0; lane < count_; ++lane) exists_[lane] = -1;
    visit_count_ = input_count_ = 0;
    for (int64_t i = 0; i < sizes_.variables; ++i) {
      Ints free{};
      for (int lane = 0; lane < count_; ++lane) free[lane] = problem_.given(begin_ + lane, i) ? 0 : -1;
      free_[i] = free;
      if (any(exists_ & ~free)) inputs_[input_count_++] = static_cast<int32_t>(i);
    }
    for (int64_t i = 0; i + 1 < sizes_.variables; ++i) {
      if (any(free_[problem_.order[i]])) visits_[visit_count_++] = problem_.order[i];
    }
  }

  static int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }
  Floats* row(Floats* rows, int64_t i) const { return rows + i * sizes_.width; }

  void start_free(const Start& start) {
    std::memset(x_, 0, sizeof(Floats) * static_cast<size_t>(sizes_.variables * sizes_.width));
    for (int64_t j = 0; j < visit_count_; ++j) {
      const int64_t i = visits_[j];
      Floats* const x = row(x_, i);
      if (start.V0 != nullptr)
        read(x, start.V0, i);
      else
        draw(x, start, i);
      Floats square{};
      for (int64_t c = 0; c < sizes_.width; ++c) square += x[c] * x[c];
      const Ints fine = square >= kLeastSquare;
      const Floats factor = 1.0f / square_root(blend(fine, square, Floats{} + 1.0f));
      for (int64_t c = 0; c < sizes_.width; ++c) x[c] = keep(free_[i] & fine, x[c] * factor);
      x[0] = blend(free_[i] & ~fine, Floats{} + 1.0f, x[0]);
    }
  }

  // Components of variable i, from (B, N, k).
  void read(Floats* to, const float* from, int64_t i) {
    for (int64_t c = 0; c < sizes_.width; ++c) {
      Floats value{};
      for (int lane = 0; lane < count_; ++lane)
        value[lane] = from[((begin_ + lane) * sizes_.variables + i) * sizes_.width + c];
      to[c] = value;
    }
  }

  Words words(const Start& start, int64_t variable, int64_t block) const {
    Words words;
    for (int lane = 0; lane < kBlocks; ++lane) {
      words.word[0][lane] = static_cast<uint32_t>(variable);
      words.word[1][lane] = static_cast<uint32_t>(block);
      words.word[2][lane] = static_cast<uint32_t>(start.first_sample + begin_ + lane);
      words.word[3][lane] = kDrawStart;
    }
    words.draw(start.seed);
    return words;
  }

  void draw(Floats* to, const Start& start, int64_t i) const {
    static_assert(kBlocks >= kFloatLanes);
    for (int64_t c = 0; c < sizes_.width; c += kBlockWords) {
      const Normals normals(words(start, i, c / kBlockWords));
      for (int64_t w = 0; w < kBlockWords && c + w < sizes_.width; ++w) to[c + w] = load(normals.value[w]);
    }
  }

  void start_inputs(const Start& start, const State& out) {
    for (int64_t i = 0; i < sizes_.variables; ++i) {
      first_[i] = second_[i] = Floats{};
      norms_[i] = Floats{};
    }
    for (int64_t j = 0; j < input_count_; ++j) {
      const int64_t i = inputs_[j];
      Floats z = Floats{} + 1.0f;
      Ints negative{};
      if (i > 0) {
        z = read_z(problem_.z, i);
        negative = signs(start, i);
      }
      const InputVector v = input_vector(z);
      const Ints mine = exists_ & ~free_[i];
      first_[i] = keep(mine, v.first);
      second_[i] = keep(mine, blend(negative, -v.second, v.second));
      one_[i] = reinterpret_cast<Floats>(mine & negative);  // until the outputs are written
    }
    if (out.V != nullptr) write_signs(out);
    add_inputs();
  }

  Floats read_z(const float* z, int64_t i) const {
    Floats value{};
    for (int lane = 0; lane < count_; ++lane) value[lane] = z[(begin_ + lane) * sizes_.user + i - 1];
    return value;
  }

  Ints signs(const Start& start, int64_t i) const {
    Ints negative{};
    if (start.V0 != nullptr) {
      for (int lane = 0; lane < count_; ++lane) {
        const int64_t at = ((begin_ + lane) * sizes_.variables + i) * sizes_.width + 1;
        negative[lane] = __builtin_signbit(start.V0[at]) != 0 ? -1 : 0;
      }
      return negative;
    }
    const Words drawn = words(start, i, 0);
    for (int lane = 0; lane < count_; ++lane) negative[lane] = is_negative(drawn.word[1][lane]) ? -1 : 0;
    return negative;
  }

  void write_signs(const State& out) const {
    for (int lane = 0; lane < count_; ++lane)
      std::memset(out.negative + (begin_ + lane) * sizes_.variables, 0,
                  static_cast<size_t>(sizes_.variables));
    for (int64_t j = 0; j < input_count_; ++j) {
      const Ints negative = reinterpret_cast<Ints>(one_[inputs_[j]]);
      for (int lane = 0; lane < count_; ++lane)
        out.negative[(begin_ + lane) * sizes_.variables + inputs_[j]] = negative[lane] != 0;
    }
  }

  // one, two = what inputs add to the g of free variables.
  void add_inputs() {
    for (int64_t v = 0; v < visit_count_; ++v) {
      const int64_t i = visits_[v];
      Floats one{}, two{};
      for (int64_t j = 0; j < input_count_; ++j) {
        const float c = C_[i * sizes_.variables + inputs_[j]];
        one += c * first_[inputs_[j]];
        two += c * second_[inputs_[j]];
      }
      one_[i] = one;
      two_[i] = two;
    }
  }

  // g[0 ... count) of variable i: components c0 on, from the free variables.
  template <int count>
  void add_free(int64_t i, int64_t c0) {
    Floats sum[count];
#pragma GCC unroll 8
    for (int c = 0; c < count; ++c) sum[c] = g_[c0 + c];
    for (int64_t v = 0; v < visit_count_; ++v) {
      const int64_t j = visits_[v];
      if (j == i) continue;
      const float weight = C_[i * sizes_.variables + j];
      const Floats* const x = x_ + j * sizes_.width + c0;
#pragma GCC unroll 8
      for (int c = 0; c < count; ++c) sum[c] += weight * x[c];
    }
#pragma GCC unroll 8
    for (int c = 0; c < count; ++c) g_[c0 + c] = sum[c];
  }

  void add_free(int64_t i) {
    int64_t c = 0;
    for (; c + kChunk <= sizes_.width; c += kChunk) add_free<kChunk>(i, c);
    for (; c + 4 <= sizes_.width; c += 4) add_free<4>(i, c);
    for (; c < sizes_.width; ++c) add_free<1>(i, c);
  }

  Floats sine_of(const Floats* v) const {
    Floats square{};
    for (int64_t c = 1; c < sizes_.width; ++c) square += v[c] * v[c];
    return square_root(square);
  }

  // ---- backward: x is U, v is V of free variables, norms is -1 / (|g| + prox_lam), one is the output's
  // slope times -v_0, two the slope times the squared sine ----

  void read_solution(const Backward& from) {
    constexpr float kInversePi = 0.318309886183790672f;
    lost_ = Ints{};
    for (int64_t i = 0; i < sizes_.variables; ++i) {
      first_[i] = second_[i] = Floats{};
      Floats* const v = row(v_, i);
      read(v, from.V, i);
      first_[i] = keep(~free_[i], v[0]), second_[i] = keep(~free_[i], v[1]);
      for (int64_t c = 0; c < sizes_.width; ++c) v[c] = keep(free_[i], v[c]);
      Floats norm{}, grad{};
      for (int lane = 0; lane < count_; ++lane)
        norm[lane] = from.norms[(begin_ + lane) * sizes_.variables + i];
      if (i > 0 && i <= sizes_.user) grad = read_z(from.z_grad, i);
      const Floats sine = sine_of(v), floor = sine < kLeastSine ? Floats{} + kLeastSine : sine;
      lost_ |= free_[i] & ((norm == 0.0f) | (sine < kLeastSine));
      norms_[i] = keep(free_[i] & (norm != 0.0f), -1.0f / (norm + from.prox_lam));
      const Floats slope = keep(free_[i], grad * kInversePi / floor);
      one_[i] = -slope * v[0];
      two_[i] = slope * sine * sine;
    }
  }

  void add_products(float* M) {
    for (int64_t n = 0; n < visit_count_; ++n) {
      const int64_t i = visits_[n];
      const Floats* const u = row(x_, i);
      for (int64_t j = 0; j < sizes_.variables; ++j) {
        const Floats* const v = row(v_, j);
        const Floats of_inputs = u[0] * first_[j] + u[1] * second_[j];
        const Floats of_free = sum_of_terms(sizes_.width, [&](int64_t c) { return u[c] * v[c]; });
        M[i * sizes_.variables + j] += sum_of(of_inputs + of_free);
      }
    }
  }

  void write_input_gradients(const Backward& from, float* z_grad) {
    constexpr float kPi = 3.14159265358979324f;
    std::memset(z_grad + begin_ * sizes_.user, 0, sizeof(float) * static_cast<size_t>(count_ * sizes_.user));
    for (int64_t n = 0; n < input_count_; ++n) {
      const int64_t i = inputs_[n];
      if (i == 0) continue;
      Floats one{}, two{}, sign{};
      for (int64_t v = 0; v < visit_count_; ++v) {
        const int64_t j = visits_[v];
        const float c = C_[i * sizes_.variables + j];
        one += c * row(x_, j)[0];
        two += c * row(x_, j)[1];
      }
      for (int lane = 0; lane < count_; ++lane)
        sign[lane] = from.negative[(begin_ + lane) * sizes_.variables + i] != 0 ? -1.0f : 1.0f;
      const Turned half = turn(0.5f * read_z(problem_.z, i));
      const Floats cos = kPi * half.cos, sin = kPi * half.sin, to_z = read_z(from.z_grad, i);
      Floats grad = to_z + one * sin + two * sign * cos;
      if (from.official) grad = (to_z + one) * sin - two * sign * minus_magnitude(cos) * kPi;
      for (int lane = 0; lane < count_; ++lane) {
        const bool none = free_[i][lane] != 0 || (from.official && lost_[lane] != 0);
        if (!none) z_grad[(begin_ + lane) * sizes_.user + i - 1] = grad[lane];
      }
    }
  }

  const Problem& problem_;
  const Sizes& sizes_;
  const float* C_;  // (N, N)
  FloatScratch memory_;
  Scratch<int32_t> visits_, inputs_;  // variables that are free, or input, in some lane
  int64_t begin_ = 0, visit_count_ = 0, input_count_ = 0;
  int count_ = 0;                                // samples
  Ints exists_{}, active_{}, niter_{}, lost_{};  // lost_: without a gradient in the public code
  Floats delta_{}, first_delta_{};               // change of the objective
  Ints* free_;                                   // (N)
  Floats *x_, *v_;                               // (N, k): of free variables, zero elsewhere
  Floats *first_, *second_;                      // (N): components of inputs
  Floats *one_, *two_, *norms_;                  // (N)
  Floats* g_;                                    // (k)
};

constexpr int kGroups = 2;  // in turns: while one waits for its norms, the other is computed

// Sweeps of `many` groups: move(group, visit) for all visits of those that still sweep, then end(group, t).
template <class Move, class End>
inline void sweep_groups(Group* const* groups, int many, Move&& move, End&& end) {
  for (int32_t t = 0;; ++t) {
    Group* sweeping[kGroups];
    int left = 0;
    int64_t visits = 0;
    for (int s = 0; s < many; ++s) {
      if (!groups[s]->sweeping()) continue;
      sweeping[left++] = groups[s];
      if (groups[s]->visits() > visits) visits = groups[s]->visits();
    }
    if (left == 0) return;
    for (int64_t v = 0; v < visits; ++v) {
      for (int s = 0; s < left; ++s) {
        if (v < sweeping[s]->visits()) move(*sweeping[s], v);
      }
    }
    for (int s = 0; s < left; ++s) end(*sweeping[s], t);
  }
}

inline void forward_groups(Group* const* groups, int many, int64_t first, const Start& start,
                           const Stop& stop, const State& out) {
  for (int s = 0; s < many; ++s) groups[s]->begin_forward(first + s, start, stop, out);
  sweep_groups(
      groups, many, [](Group& group, int64_t v) { group.move_forward(v); },
      [&](Group& group, int32_t t) { group.end_sweep(t, stop); });
  for (int s = 0; s < many; ++s) groups[s]->write_outputs(out);
}

// numbers[s]: of the group that groups[s] is to solve, M[s] null or what its part of the sum is added to.
inline void backward_groups(Group* const* groups, int many, const int64_t* numbers, const Backward& from,
                            float* const* M, float* z_grad) {
  for (int s = 0; s < many; ++s) groups[s]->begin_backward(numbers[s], from);
  sweep_groups(
      groups, many, [](Group& group, int64_t v) { group.move_backward(v); },
      [](Group& group, int32_t t) { group.end_backward_sweep(t); });
  for (int s = 0; s < many; ++s) groups[s]->finish_backward(from, M[s], z_grad);
}

}  // namespace
}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::mixing
