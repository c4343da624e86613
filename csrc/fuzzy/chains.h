// Formulas of one or two connectives of the stable product, a row at a time and without rows in between: what
// Postfix does connective by connective is done here in registers.
#pragma once

#include <cstdint>

#include "fuzzy/connectives.h"
#include "fuzzy/fuzzy.h"
#include "fuzzy/lanes.h"
#include "fuzzy/sinks.h"

namespace tenfold::fuzzy {
namespace TENFOLD_LEVEL {

inline constexpr int kTerms = 3;

// The operands of a chain, in the order of the program; `mask` is 0 where all lanes share one number, of
// which `row` then is a vector, and -1 else. What is beyond the last whole vector is in `last`, with zeros
// behind it: rows may end with their last lane.
template <class N>
struct Terms {
  const N* row[kTerms] = {};
  int64_t mask[kTerms] = {};
  const N* last[kTerms] = {};

  Lanes<N> at(int term, int64_t j) const { return read(row[term] + (j & mask[term])); }
  Terms rest() const {
    Terms rest;
    for (int k = 0; k < kTerms; ++k) rest.row[k] = last[k];
    return rest;
  }
};

// What becomes of a value v: factor * ((scale * v + shift) * reference).
template <class N>
struct Outlet {
  N scale = 1, shift = 0, reference = 1, factor = 1;
};

template <class N>
struct Chain {
  int terms;
  void (*values)(const Terms<N>& terms, Away<N> away, int64_t lanes, N* to);  // in whole vectors
  // The sum over lanes of scale * v + shift, or of its square.
  double (*add_up)(const Terms<N>& terms, Away<N> away, N scale, N shift, bool squared, int64_t lanes);
  // Slopes of the values, handed on to the terms: those of a row of whole vectors, or where that is null
  // those that the outlet makes of the values. They go to the row of a term, or where there is none to its
  // sum.
  void (*hand_on)(const Terms<N>& terms, Away<N> away, const N* slopes, Outlet<N> outlet, int64_t lanes,
                  const Inlet<N>* to, double* sums);
};

// f(a, b); second(f(a, b), c); second(a, f(b, c)).
enum class Nesting { one, left, right };

template <class N, Nesting nesting, class First, class Second>
struct ChainOf {
  static constexpr int kCount = nesting == Nesting::one ? 2 : 3;
  using V = Lanes<N>;

  static V value(const Terms<N>& terms, int64_t j, const Away<N>& away) {
    const V a = terms.at(0, j), b = terms.at(1, j);
    if constexpr (nesting == Nesting::one) {
      return First::value(a, b, away);
    } else if constexpr (nesting == Nesting::left) {
      return Second::value(First::value(a, b, away), terms.at(2, j), away);
    } else {
      return Second::value(a, First::value(b, terms.at(2, j), away), away);
    }
  }

  static void values(const Terms<N>& terms, Away<N> away, int64_t lanes, N* to) {
    int64_t j = 0;
    for (; j + kLanes<N> <= lanes; j += kLanes<N>) write(to + j, value(terms, j, away));
    if (j < lanes) write(to + j, value(terms.rest(), 0, away));
  }

  static double add_up(const Terms<N>& terms, Away<N> away, N scale, N shift, bool squared, int64_t lanes) {
    V even{}, odd{};
    const auto term = [&](const Terms<N>& from, int64_t j) {
      const V v = scale * value(from, j, away) + shift;
      return squared ? v * v : v;
    };
    int64_t j = 0;
    for (; j + 2 * kLanes<N> <= lanes; j += 2 * kLanes<N>) {
      even += term(terms, j);
      odd += term(terms, j + kLanes<N>);
    }
    for (; j + kLanes<N> <= lanes; j += kLanes<N>) even += term(terms, j);
    if (j < lanes) odd += first_of(term(terms.rest(), 0), lanes - j);
    return static_cast<double>(total(even + odd));
  }

  static void hand_on(const Terms<N>& terms, Away<N> away, const N* slopes, Outlet<N> outlet, int64_t lanes,
                      const Inlet<N>* to, double* sums) {
    if (slopes != nullptr) {
      return hand_on(terms, away, lanes, to, sums, [=](V, int64_t j) { return read(slopes + j); });
    }
    hand_on(terms, away, lanes, to, sums, [=](V v, int64_t) {
      return outlet.factor * ((outlet.scale * v + outlet.shift) * outlet.reference);
    });
  }

 private:
  struct Each {
    V of[kTerms];
  };

  // Slopes of the terms at j, own(value, at) being that of the value.
  template <class F>
  static Each slopes_at(const Terms<N>& terms, int64_t j, const Away<N>& away, F&& own_of) {
    const V a = terms.at(0, j), b = terms.at(1, j);
    if constexpr (nesting == Nesting::one) {
      const V own = own_of(First::value(a, b, away));
      const auto by = First::slopes(a, b, away);
      return {{own * by.x, own * by.y, V{}}};
    } else {
      const V c = terms.at(2, j);
      constexpr bool left = nesting == Nesting::left;
      const V x = left ? First::value(a, b, away) : a, y = left ? c : First::value(b, c, away);
      const V own = own_of(Second::value(x, y, away));
      const auto outer = Second::slopes(x, y, away);
      const auto inner = left ? First::slopes(a, b, away) : First::slopes(b, c, away);
      if (left) return {{own * outer.x * inner.x, own * outer.x * inner.y, own * outer.y}};
      return {{own * outer.x, own * outer.y * inner.x, own * outer.y * inner.y}};
    }
  }

  template <class F>
  static void hand_on(const Terms<N>& terms, const Away<N>& away, int64_t lanes, const Inlet<N>* to,
                      double* sums, F own) {
    V sum[kTerms] = {};
    Inlet<N> inlet[kTerms];
    for (int k = 0; k < kCount; ++k) inlet[k] = to[k];
    int64_t j = 0;
    for (; j + kLanes<N> <= lanes; j += kLanes<N>) {
      const Each slope = slopes_at(terms, j, away, [&](V v) { return own(v, j); });
#pragma GCC unroll 3
      for (int k = 0; k < kCount; ++k) {
        if (inlet[k].row == nullptr) {
          sum[k] += slope.of[k];
        } else {
          inlet[k].put(j, slope.of[k]);
        }
      }
    }
    if (j < lanes) {
      const Each slope = slopes_at(terms.rest(), 0, away, [&](V v) { return own(v, j); });
      for (int k = 0; k < kCount; ++k) {
        sum[k] += first_of(slope.of[k], lanes - j);
        if (inlet[k].row != nullptr) inlet[k].put_first(j, slope.of[k], lanes - j);
      }
    }
    for (int k = 0; k < kCount; ++k) sums[k] = static_cast<double>(total(sum[k]));
  }

 public:
  static constexpr Chain<N> kChain{kCount, &values, &add_up, &hand_on};
};

// Calls f with a connective of the stable product; false where the code is of none.
template <class F>
bool with_product(Code code, F&& f) {
  switch (code) {
    case Code::conjunction:
      f(Conjunction{});
      return true;
    case Code::disjunction:
      f(Disjunction{});
      return true;
    case Code::implication:
      f(Implication{});
      return true;
    default:
      return false;
  }
}

// The chain that a program is, or null. Its terms are the operands of the program's steps in their order.
template <class N>
const Chain<N>* chain_of(const Task& task) {
  const Chain<N>* found = nullptr;
  const auto operand = [&](int i) { return task.program[i].code == Code::operand; };
  if (task.steps == 3 && operand(0) && operand(1)) {
    with_product(task.program[2].code, [&](auto first) {
      found = &ChainOf<N, Nesting::one, decltype(first), decltype(first)>::kChain;
    });
  } else if (task.steps == 5 && operand(0) && operand(1) && operand(2) != operand(3)) {
    const bool left = operand(3);  // a b first c second, else a b c first second
    with_product(task.program[left ? 2 : 3].code, [&](auto first) {
      with_product(task.program[4].code, [&](auto second) {
        using First = decltype(first);
        using Second = decltype(second);
        found = left ? &ChainOf<N, Nesting::left, First, Second>::kChain
                     : &ChainOf<N, Nesting::right, First, Second>::kChain;
      });
    });
  }
  return found;
}

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::fuzzy
