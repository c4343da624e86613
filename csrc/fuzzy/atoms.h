// log P and log(1 - P) of atoms from their logits, without cancellation, and the gradient.
#pragma once

#include <cstdint>

#include "core/parallel.h"
#include "fuzzy/fuzzy.h"
#include "fuzzy/lanes.h"
#include "fuzzy/tiles.h"

namespace tenfold::fuzzy {
namespace TENFOLD_LEVEL {

inline Floats exponential(Floats x) { return exp(x); }
inline double exponential(double x) { return __builtin_exp(x); }

// log(1 + x) for x from -1/2 to 1, to rounding of the result: 1 + x is rounded, and what that lost is added.
inline Floats log_one_plus(Floats x) {
  const Floats sum = 1.0f + x, lost = x - (sum - 1.0f);
  return natural_log(sum) + lost * reciprocal(sum);
}
inline double log_one_plus(double x) { return __builtin_log1p(x); }

inline Floats magnitude_negative(Floats x) { return minus_magnitude(x); }
inline double magnitude_negative(double x) { return x < 0 ? x : -x; }

inline constexpr int64_t kAtomGrain = 1 << 13;

// ---- sigmoid: elements ----

template <class T>
class Row {  // numbers of a vector's worth of elements, in and out
 public:
  using N = NumberOf<T>;
  static Lanes<N> get(const char* from, int64_t at, int64_t count) {
    N values[kLanes<N>] = {};
    for (int64_t i = 0; i < count; ++i) values[i] = to_float(reinterpret_cast<const T*>(from)[at + i]);
    return read(values);
  }
  static void set(char* to, int64_t at, int64_t count, Lanes<N> value) {
    N values[kLanes<N>];
    write(values, value);
    for (int64_t i = 0; i < count; ++i) round_to(reinterpret_cast<T*>(to)[at + i], values[i]);
  }
};

template <class T, class F>
void for_vectors(int64_t size, F&& f) {
  using N = NumberOf<T>;
  parallel_for((size + kLanes<N> - 1) / kLanes<N>, kAtomGrain / kLanes<N>, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t at = i * kLanes<N>, left = size - at;
      if (left >= kLanes<N>) {
        f(at, int64_t{kLanes<N>});  // a constant where this is inlined
      } else {
        f(at, left);
      }
    }
  });
}

template <class T>
void sigmoid_atoms(const AtomTask& task) {
  using N = NumberOf<T>;
  for_vectors<T>(task.rows * task.classes, [&](int64_t at, int64_t count) {
    const Lanes<N> z = Row<T>::get(task.z, at, count), zero{};
    const Lanes<N> rest = log_one_plus(exponential(magnitude_negative(z)));
    Row<T>::set(task.log, at, count, smaller(zero, z) - rest);
    Row<T>::set(task.nlog, at, count, smaller(zero, zero - z) - rest);
  });
}

template <class T>
void sigmoid_atoms_backward(const AtomTask& task) {
  using N = NumberOf<T>;
  for_vectors<T>(task.rows * task.classes, [&](int64_t at, int64_t count) {
    const Lanes<N> z = Row<T>::get(task.z, at, count);
    const Lanes<N> small = exponential(magnitude_negative(z)), most = inverse(N(1) + small);
    const Lanes<N> least = small * most, p = z < N(0) ? least : most, other = z < N(0) ? most : least;
    const Lanes<N> log_grad = Row<T>::get(task.log, at, count), nlog_grad = Row<T>::get(task.nlog, at, count);
    Row<T>::set(task.z_grad, at, count, log_grad * other - nlog_grad * p);
  });
}

// ---- softmax: rows ----

// One thread's row of logits: exponentials relative to the largest, and of the others to the second largest.
template <class T>
class SoftmaxRow {
 public:
  using N = NumberOf<T>;

  explicit SoftmaxRow(int64_t classes)
      : classes_(classes), width_(padded<N>(classes)), z_(width_), e_(width_), others_(width_) {}

  void load(const T* z) {
    top = 0;
    for (int64_t c = 0; c < classes_; ++c) {
      z_[c] = to_float(z[c]);
      if (z_[c] > z_[top]) top = c;
    }
    for (int64_t c = classes_; c < width_; ++c) z_[c] = static_cast<N>(-kInfinity);
    most = z_[top];
    z_[top] = static_cast<N>(-kInfinity);
    second = row_max(z_.data(), width_);
    const N base = second > static_cast<N>(-kInfinity) ? second : N(0);
    const N between = scalar_exp(second - most);  // 0 where there is no second
    others_sum = 0;
    for (int64_t j = 0; j < width_; j += kLanes<N>) {
      const Lanes<N> other = exponential(read(z_.data() + j) - base);
      write(others_.data() + j, other);
      write(e_.data() + j, exponential(read(z_.data() + j) - most));
      others_sum += total(other);
    }
    z_[top] = most;
    e_[top] = 1;
    rest = others_sum * between;  // the sum of all exponentials, but for the largest: 1
    N lanes[kLanes<N>];
    write(lanes, log_one_plus(splat(rest < N(1) ? rest : N(0))));
    log_sum = rest < N(1) ? lanes[0] : static_cast<N>(__builtin_log1p(static_cast<double>(rest)));
  }

  N log(int64_t c) const { return z_[c] - most - log_sum; }
  N nlog(int64_t c) const {
    if (c != top) return static_cast<N>(__builtin_log1p(-static_cast<double>(p(c))));
    if (classes_ == 1) return static_cast<N>(-kInfinity);
    return second - most + static_cast<N>(__builtin_log(static_cast<double>(others_sum))) - log_sum;
  }
  N p(int64_t c) const { return e_[c] / (N(1) + rest); }

  void all_logs(T* log, T* nlog_to) const {
    const N scale = N(1) / (N(1) + rest);
    for (int64_t j = 0; j < width_; j += kLanes<N>) {
      const int64_t count = classes_ - j < kLanes<N> ? classes_ - j : kLanes<N>;
      // The largest class has a P above 1/2 at times: it is written below.
      const Lanes<N> p = smaller(splat(N(0.5)), read(e_.data() + j) * scale);
      Row<T>::set(reinterpret_cast<char*>(log), j, count, read(z_.data() + j) - most - log_sum);
      Row<T>::set(reinterpret_cast<char*>(nlog_to), j, count, log_one_plus(Lanes<N>{} - p));
    }
    round_to(nlog_to[top], nlog(top));
  }

  // d z from d log and d nlog of all classes.
  template <class Log, class Nlog>
  void backward(Log&& log_grad, Nlog&& nlog_grad, T* z_grad) {
    double logs = 0, nlogs = 0, shares = 0;
    const N scale = N(1) / (N(1) + rest);
    if (classes_ == 1) return round_to(z_grad[0], N(0));
    for (int64_t c = 0; c < classes_; ++c) {
      const N own = e_[c] * scale;
      logs += static_cast<double>(log_grad(c));
      nlogs += static_cast<double>(nlog_grad(c));
      if (c != top) shares += static_cast<double>(nlog_grad(c) / (N(1) - own));
    }
    const N top_grad = nlog_grad(top) / others_sum, all = static_cast<N>(shares - nlogs - logs);
    for (int64_t c = 0; c < classes_; ++c) {
      const N own = e_[c] * scale;
      const N share = c != top ? nlog_grad(c) / (N(1) - own) : N(0);
      const N other = c != top ? others_[c] * top_grad : N(0);
      round_to(z_grad[c], log_grad(c) + own * (all - share) + other);
    }
  }

  int64_t top = 0;
  N most, second, others_sum, rest, log_sum;

 private:
  static N scalar_exp(N x) { return static_cast<N>(__builtin_exp(static_cast<double>(x))); }

  int64_t classes_, width_;
  Memory<N> z_, e_, others_;
};

template <class T, class F>
void for_softmax_rows(const AtomTask& task, F&& f) {
  parallel_for(task.rows, 1 + kAtomGrain / (task.classes + 1), [&](int64_t begin, int64_t end) {
    SoftmaxRow<T> row(task.classes);
    for (int64_t i = begin; i < end; ++i) {
      row.load(reinterpret_cast<const T*>(task.z) + i * task.classes);
      f(i, row);
    }
  });
}

template <class T>
void softmax_atoms(const AtomTask& task) {
  T *const log = reinterpret_cast<T*>(task.log), *const nlog = reinterpret_cast<T*>(task.nlog);
  for_softmax_rows<T>(task, [&](int64_t i, const SoftmaxRow<T>& row) {
    if (task.index == nullptr) return row.all_logs(log + i * task.classes, nlog + i * task.classes);
    round_to(log[i], row.log(task.index[i]));
    round_to(nlog[i], row.nlog(task.index[i]));
  });
}

template <class T>
void softmax_atoms_backward(const AtomTask& task) {
  using N = NumberOf<T>;
  const T *const log = reinterpret_cast<const T*>(task.log), *const nlog =
                                                                 reinterpret_cast<const T*>(task.nlog);
  T* const z_grad = reinterpret_cast<T*>(task.z_grad);
  for_softmax_rows<T>(task, [&](int64_t i, SoftmaxRow<T>& row) {
    const auto grad_of = [&](const T* grads) {
      return [&task, grads, i](int64_t c) {
        if (task.index == nullptr) return static_cast<N>(to_float(grads[i * task.classes + c]));
        return task.index[i] == c ? static_cast<N>(to_float(grads[i])) : N(0);
      };
    };
    row.backward(grad_of(log), grad_of(nlog), z_grad + i * task.classes);
  });
}

inline int64_t wrong_index(const AtomTask& task) {
  for (int64_t i = 0; i < task.rows; ++i) {
    if (task.index[i] < 0 || task.index[i] >= task.classes) return i;
  }
  return -1;
}

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::fuzzy
