// Formulas of one or two connectives of the stable product, a row at a time and without rows in between: what
// Postfix does connective by connective is done here in registers.
#pragma once

#include <cstdint>

#include "fuzzy/connectives.h"
#include "fuzzy/fuzzy.h"
#include "fuzzy/lanes.h"

namespace tenfold::fuzzy {
namespace TENFOLD_LEVEL {

inline constexpr int kTerms = 3;

// The operands of a chain, in the order of the program; `mask` is 0 where all lanes share one number, of
// which `row` then is a vector, and -1 else.
template <class N>
struct Terms {
  const N* row[kTerms] = {};
  int64_t mask[kTerms] = {};

  Lanes<N> at(int term, int64_t j) const { return read(row[term] + (j & mask[term])); }
};

// What becomes of a value v: factor * ((scale * v + shift) * reference).
template <class N>
struct Outlet {
  N scale = 1, shift = 0, reference = 1, factor = 1;
};

template <class N>
struct Chain {
  int terms;
  void (*values)(const Terms<N>& terms, Away<N> away, Outlet<N> outlet, int64_t width, N* to);
  // The sum over lanes of scale * v + shift, or of its square.
  double (*add_up)(const Terms<N>& terms, Away<N> away, N scale, N shift, bool squared, int64_t lanes);
  // Slopes of the values, handed on to the terms: to each its row, or where that is null their sum.
  void (*hand_on)(const Terms<N>& terms, Away<N> away, const N* slopes, int64_t width, N* const* to,
                  double* sums);
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

  static void values(const Terms<N>& terms, Away<N> away, Outlet<N> outlet, int64_t width, N* to) {
    for (int64_t j = 0; j < width; j += kLanes<N>) {
      const V prepared = outlet.scale * value(terms, j, away) + outlet.shift;
      write(to + j, outlet.factor * (prepared * outlet.reference));
    }
  }

  static double add_up(const Terms<N>& terms, Away<N> away, N scale, N shift, bool squared, int64_t lanes) {
    V even{}, odd{};
    const auto term = [&](int64_t j) {
      const V v = scale * value(terms, j, away) + shift;
      return squared ? v * v : v;
    };
    int64_t j = 0;
    for (; j + 2 * kLanes<N> <= lanes; j += 2 * kLanes<N>) {
      even += term(j);
      odd += term(j + kLanes<N>);
    }
    for (; j + kLanes<N> <= lanes; j += kLanes<N>) even += term(j);
    if (j < lanes) {
      N last[kLanes<N>];
      write(last, term(j));
      for (int64_t k = lanes - j; k < kLanes<N>; ++k) last[k] = 0;
      odd += read(last);
    }
    return static_cast<double>(total(even + odd));
  }

  static void hand_on(const Terms<N>& terms, Away<N> away, const N* slopes, int64_t width, N* const* to,
                      double* sums) {
    V sum[kTerms] = {};
    for (int64_t j = 0; j < width; j += kLanes<N>) {
      const V own = read(slopes + j), a = terms.at(0, j), b = terms.at(1, j);
      V each[kTerms];
      if constexpr (nesting == Nesting::one) {
        const auto by = First::slopes(a, b, away);
        each[0] = own * by.x;
        each[1] = own * by.y;
      } else {
        const V c = terms.at(2, j);
        if constexpr (nesting == Nesting::left) {
          const auto outer = Second::slopes(First::value(a, b, away), c, away);
          const auto inner = First::slopes(a, b, away);
          each[0] = own * outer.x * inner.x;
          each[1] = own * outer.x * inner.y;
          each[2] = own * outer.y;
        } else {
          const auto outer = Second::slopes(a, First::value(b, c, away), away);
          const auto inner = First::slopes(b, c, away);
          each[0] = own * outer.x;
          each[1] = own * outer.y * inner.x;
          each[2] = own * outer.y * inner.y;
        }
      }
#pragma GCC unroll 3
      for (int k = 0; k < kCount; ++k) {
        if (to[k] != nullptr) {
          write(to[k] + j, each[k]);
        } else {
          sum[k] += each[k];
        }
      }
    }
    for (int k = 0; k < kCount; ++k) sums[k] = static_cast<double>(total(sum[k]));
  }

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
