// Formulas of the stable product over at most three operands, a row at a time and in registers. Their
// connectives are affine in each operand, so they are polynomials with a coefficient for each set of
// operands; of those that a row shares one number of, the numbers go into the coefficients.
#pragma once

#include <cstdint>
#include <type_traits>

#include "fuzzy/fuzzy.h"
#include "fuzzy/lanes.h"
#include "fuzzy/sinks.h"
#include "fuzzy/tiles.h"

namespace tenfold::fuzzy {
namespace TENFOLD_LEVEL {

inline constexpr int kTerms = 3, kSets = 1 << kTerms;

// The sum over sets s of of[s] times the product of the terms in s, which has bit k for term k.
struct Multilinear {
  double of[kSets] = {};

  Multilinear affine(double scale, double shift) const {
    Multilinear result;
    for (int s = 0; s < kSets; ++s) result.of[s] = scale * of[s];
    result.of[0] += shift;
    return result;
  }
  // With a factor of no common term.
  Multilinear times(const Multilinear& other) const {
    Multilinear result;
    for (int s = 0; s < kSets; ++s) {
      for (int t = 0; t < kSets; ++t) {
        if ((s & t) == 0) result.of[s | t] += of[s] * other.of[t];
      }
    }
    return result;
  }
  // In 1 - x instead of a term x.
  Multilinear flipped(int term) const {
    Multilinear result = *this;
    for (int s = 0; s < kSets; ++s) {
      if (!(s >> term & 1)) continue;
      result.of[s & ~(1 << term)] += of[s];
      result.of[s] = -of[s];
    }
    return result;
  }
  // Where all terms are 1/2.
  double at_half() const {
    double sum = 0;
    for (int s = 0; s < kSets; ++s) sum += of[s] / (1 << __builtin_popcount(static_cast<unsigned>(s)));
    return sum;
  }
  Multilinear slope(int term) const {
    Multilinear result;
    for (int s = 0; s < kSets; ++s) {
      if (s >> term & 1) result.of[s & ~(1 << term)] = of[s];
    }
    return result;
  }
};

// A program as a polynomial. Its terms are the operands of the program's steps, each time one is named: first
// those that vary along lanes. Connectives are monotone in each of them: where what the quantifier takes of
// the value falls with an operand x the term is 1 - x, so that small numbers are not what large ones leave.
struct Polynomial {
  Multilinear value, prepared;  // prepared: as the quantifier takes it
  int lanes = 0, terms = 0, operands[kTerms] = {};
  bool falls[kTerms] = {};
};

inline bool polynomial_of(const Task& task, Polynomial* polynomial) {
  constexpr int kMost = 16;
  if (task.steps > kMost) return false;
  const auto varies = [&](const Step& step) {
    return step.code == Code::operand && task.operand[step.operand].strides[kLaneAxis] != 0;
  };
  Polynomial made;
  for (int i = 0; i < task.steps; ++i) {
    made.terms += task.program[i].code == Code::operand;
    made.lanes += varies(task.program[i]);
  }
  if (made.terms > kTerms) return false;
  const double keep = 1.0 - task.eps, eps = task.eps;
  Multilinear values[kMost];
  int varying = 0, others = made.lanes;
  for (int i = 0; i < task.steps; ++i) {
    const Step& step = task.program[i];
    if (step.code == Code::operand) {
      const int term = varies(step) ? varying++ : others++;
      made.operands[term] = step.operand;
      values[i].of[1 << term] = 1;
      continue;
    }
    const Multilinear &x = values[step.left], &y = values[i - 1];
    switch (step.code) {
      case Code::negation:
        values[i] = x.affine(-1, 1);
        break;
      case Code::conjunction:
        values[i] = x.affine(keep, eps).times(y.affine(keep, eps));
        break;
      case Code::disjunction:  // 1 - (1 - high(x)) (1 - high(y))
        values[i] = x.affine(-keep, 1).times(y.affine(-keep, 1)).affine(-1, 1);
        break;
      case Code::implication:  // 1 - low(x) (1 - high(y))
        values[i] = x.affine(keep, eps).times(y.affine(-keep, 1)).affine(-1, 1);
        break;
      default:
        return false;
    }
  }
  const Affine& before = task.reduction.before;
  made.value = values[task.steps - 1];
  for (int term = 0; term < made.terms; ++term) {
    made.falls[term] = made.value.slope(term).at_half() * before.scale < 0;
    if (made.falls[term]) made.value = made.value.flipped(term);
  }
  made.prepared = made.value.affine(before.scale, before.shift);
  *polynomial = made;
  return true;
}

// A polynomial in the first few numbers of x; `without`: one that it does not have.
template <class N>
struct Coefficients {
  N of[kSets];

  template <int count, int without = -1>
  [[gnu::always_inline]] Lanes<N> at(const Lanes<N>* x, int set = 0) const {
    if constexpr (count == 0) {
      return splat(of[set]);
    } else if constexpr (count - 1 == without) {
      return at<count - 1, without>(x, set);
    } else {
      constexpr int kSet = 1 << (count - 1);
      return at<count - 1, without>(x, set) + at<count - 1, without>(x, set + kSet) * x[count - 1];
    }
  }
};

// The polynomial of the varying terms for these numbers of the others.
template <class N>
Coefficients<N> with_numbers(const Multilinear& form, int lanes, int terms, const double* numbers) {
  double of[kSets];
  for (int s = 0; s < kSets; ++s) of[s] = form.of[s];
  for (int term = terms - 1; term >= lanes; --term) {
    const int half = 1 << term;
    for (int s = 0; s < half; ++s) of[s] += of[s + half] * numbers[term];
  }
  Coefficients<N> coefficients{};
  for (int s = 0; s < 1 << lanes; ++s) coefficients.of[s] = static_cast<N>(of[s]);
  return coefficients;
}

// A row of a polynomial: where the varying terms are, and coefficients with the numbers of the others in
// them. What is beyond the last whole vector is in `last`: rows may end with their last lane.
template <class N>
struct PolynomialRow {
  int lanes = 0, terms = 0;
  bool falls[kTerms] = {};
  const N *row[kTerms] = {}, *last[kTerms] = {};
  Coefficients<N> value, slopes[kTerms];
};

// Calls f with the numbers of terms that vary and that do not, as constants.
template <class F>
void with_counts(int lanes, int others, F&& f) {
  const auto with_others = [&](auto varying) {
    constexpr int kLeft = kTerms - decltype(varying)::value;
    if (others == 0) return f(varying, std::integral_constant<int, 0>{});
    if constexpr (kLeft >= 1) {
      if (others == 1) return f(varying, std::integral_constant<int, 1>{});
    }
    if constexpr (kLeft >= 2) {
      if (others == 2) return f(varying, std::integral_constant<int, 2>{});
    }
    if constexpr (kLeft >= 3) f(varying, std::integral_constant<int, 3>{});
  };
  if (lanes == 0) return with_others(std::integral_constant<int, 0>{});
  if (lanes == 1) return with_others(std::integral_constant<int, 1>{});
  if (lanes == 2) return with_others(std::integral_constant<int, 2>{});
  with_others(std::integral_constant<int, 3>{});
}

// Calls f(vectors of the varying terms, first lane, true) for whole vectors, then with false for the rest.
template <int varying, class N, class F>
[[gnu::always_inline]] inline void for_vectors(const PolynomialRow<N>& row, int64_t lanes, F&& f) {
  Lanes<N> x[varying + 1];
  const N* from[varying + 1] = {};
  bool falls[varying + 1] = {};
  for (int k = 0; k < varying; ++k) {
    from[k] = row.row[k];
    falls[k] = row.falls[k];
  }
  const auto load_terms = [&](auto at) {
    for (int k = 0; k < varying; ++k) {
      x[k] = read(at(k));
      if (falls[k]) x[k] = N(1) - x[k];
    }
  };
  int64_t j = 0;
  for (; j + kLanes<N> <= lanes; j += kLanes<N>) {
    load_terms([&](int k) { return from[k] + j; });
    f(x, j, std::true_type{});
  }
  if (j == lanes) return;
  load_terms([&](int k) { return row.last[k]; });
  f(x, j, std::false_type{});
}

// The values, in whole vectors.
template <class N>
void polynomial_values(const PolynomialRow<N>& row, int64_t lanes, N* to) {
  with_counts(row.lanes, 0, [&](auto varying, auto) {
    constexpr int kVarying = decltype(varying)::value;
    for_vectors<kVarying>(row, lanes, [to, value = row.value](const Lanes<N>* x, int64_t j, auto) {
      write(to + j, value.template at<kVarying>(x));
    });
  });
}

// Their sum, or that of their squares.
template <class N>
double polynomial_total(const PolynomialRow<N>& row, int64_t lanes, bool squared) {
  Lanes<N> sum{};
  const auto add = [&](auto varying, auto power) {
    constexpr int kVarying = decltype(varying)::value;
    Lanes<N> sums[2] = {};
    for_vectors<kVarying>(row, lanes,
                          [&sums, lanes, value = row.value](const Lanes<N>* x, int64_t j, auto whole) {
                            Lanes<N> v = value.template at<kVarying>(x);
                            if constexpr (!whole) v = first_of(v, lanes - j);
                            const Lanes<N> before = sums[0];
                            sums[0] = sums[1];
                            sums[1] = decltype(power)::value ? before + v * v : before + v;
                          });
    sum = sums[0] + sums[1];
  };
  with_counts(row.lanes, 0, [&](auto varying, auto) {
    squared ? add(varying, std::true_type{}) : add(varying, std::false_type{});
  });
  return static_cast<double>(total(sum));
}

template <int count, class F>
[[gnu::always_inline]] inline void for_terms(F&& f) {
  if constexpr (count > 0) {
    for_terms<count - 1>(f);
    f(std::integral_constant<int, count - 1>{});
  }
}

// Sums by term: no array, so that they stay in registers.
template <class N>
struct TermSums {
  Lanes<N> first{}, second{}, third{};

  template <int term>
  [[gnu::always_inline]] Lanes<N>& at() {
    if constexpr (term == 0) return first;
    if constexpr (term == 1) return second;
    if constexpr (term == 2) return third;
  }
};

// Slopes by the values, own(value, first lane), handed on to the terms: to the row of a term, or where it has
// none to its sum.
template <class N, class F>
void hand_on(const PolynomialRow<N>& row, int64_t lanes, const Inlet<N>* to, double* sums, F own) {
  with_counts(row.lanes, row.terms - row.lanes, [&](auto varying, auto others) {
    constexpr int kVarying = decltype(varying)::value, kAll = kVarying + decltype(others)::value;
    TermSums<N> sum;
    Inlet<N> inlets[kAll + 1];
    for (int k = 0; k < kAll; ++k) inlets[k] = to[k];
    const auto hand = [&, inlets, own, lanes, copy = row](const Lanes<N>* x, int64_t j, auto whole)
                          __attribute__((always_inline)) {
                            Lanes<N> slope = own(copy.value.template at<kVarying>(x), j);
                            if constexpr (!whole) slope = first_of(slope, lanes - j);
                            for_terms<kAll>([&](auto term) __attribute__((always_inline)) {
                              constexpr int k = decltype(term)::value;
                              const Lanes<N> each = slope * copy.slopes[k].template at<kVarying, k>(x);
                              if (inlets[k].row == nullptr) {
                                sum.template at<k>() += each;
                              } else if constexpr (whole) {
                                inlets[k].put(j, each);
                              } else {
                                inlets[k].put_first(j, each, lanes - j);
                              }
                            });
                          };
    for_vectors<kVarying>(row, lanes, hand);
    for_terms<kAll>([&](auto term) {
      constexpr int k = decltype(term)::value;
      sums[k] = static_cast<double>(total(sum.template at<k>()));
    });
  });
}

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::fuzzy
