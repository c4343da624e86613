// The connectives of truth values from 0 to 1, for vectors of the CPU and numbers of a GPU alike: their
// values and slopes. python/tenfold/ops/fuzzy.py has the formulas, python/tenfold/ops/reference/fuzzy.py the
// same in torch, whose slopes at kinks and among equals these are.
#pragma once

#include "core/level.h"
#include "fuzzy/fuzzy.h"

namespace tenfold::fuzzy {
namespace TENFOLD_LEVEL {

// The stable product: away from 0, away from 1.
template <class N>
struct Away {
  N keep, eps;  // 1 - eps, eps
  template <class V>
  TENFOLD_HOST_DEVICE V low(V x) const {
    return keep * x + eps;
  }
  template <class V>
  TENFOLD_HOST_DEVICE V high(V x) const {
    return keep * x;
  }
};

template <class V>
struct Slopes {
  V x, y;
};

struct Negation {
  template <class V, class N>
  TENFOLD_HOST_DEVICE static V value(V x, const Away<N>&) {
    return N(1) - x;
  }
  template <class V, class N>
  TENFOLD_HOST_DEVICE static V slope(V, const Away<N>&) {
    return V{} - N(1);
  }
};

struct GoedelNegation {
  template <class V, class N>
  TENFOLD_HOST_DEVICE static V value(V x, const Away<N>&) {
    return x == N(0) ? V{} + N(1) : (x == x ? V{} : x);
  }
  template <class V, class N>
  TENFOLD_HOST_DEVICE static V slope(V, const Away<N>&) {
    return V{};
  }
};

struct Conjunction {
  template <class V, class N>
  TENFOLD_HOST_DEVICE static V value(V x, V y, const Away<N>& away) {
    return away.low(x) * away.low(y);
  }
  template <class V, class N>
  TENFOLD_HOST_DEVICE static Slopes<V> slopes(V x, V y, const Away<N>& away) {
    return {away.keep * away.low(y), away.keep * away.low(x)};
  }
};

struct Disjunction {
  template <class V, class N>
  TENFOLD_HOST_DEVICE static V value(V x, V y, const Away<N>& away) {
    const V a = away.high(x), b = away.high(y);
    return a + (b - a * b);
  }
  template <class V, class N>
  TENFOLD_HOST_DEVICE static Slopes<V> slopes(V x, V y, const Away<N>& away) {
    return {away.keep * (N(1) - away.high(y)), away.keep * (N(1) - away.high(x))};
  }
};

struct Implication {
  template <class V, class N>
  TENFOLD_HOST_DEVICE static V value(V x, V y, const Away<N>& away) {
    return N(1) - away.low(x) * (N(1) - away.high(y));
  }
  template <class V, class N>
  TENFOLD_HOST_DEVICE static Slopes<V> slopes(V x, V y, const Away<N>& away) {
    return {away.keep * (away.high(y) - N(1)), away.keep * away.low(x)};
  }
};

struct GoguenImplication {
  template <class V, class N>
  TENFOLD_HOST_DEVICE static V value(V x, V y, const Away<N>& away) {
    const V one = V{} + N(1), a = away.low(x);
    return a <= y ? one : y / (a <= y ? one : a);
  }
  template <class V, class N>
  TENFOLD_HOST_DEVICE static Slopes<V> slopes(V x, V y, const Away<N>& away) {
    const V one = V{} + N(1), a = away.low(x), inverse = one / (a <= y ? one : a);
    return {a <= y ? V{} : V{} - away.keep * (y * inverse * inverse), a <= y ? V{} : inverse};
  }
};

struct GoedelConjunction {
  template <class V, class N>
  TENFOLD_HOST_DEVICE static V value(V x, V y, const Away<N>&) {
    return (x < y) | (x != x) ? x : y;
  }
  template <class V, class N>
  TENFOLD_HOST_DEVICE static Slopes<V> slopes(V x, V y, const Away<N>&) {
    const V one = V{} + N(1), half = V{} + N(0.5);
    return {x < y ? one : (x == y ? half : V{}), x < y ? V{} : (x == y ? half : one)};
  }
};

struct GoedelDisjunction {
  template <class V, class N>
  TENFOLD_HOST_DEVICE static V value(V x, V y, const Away<N>&) {
    return (x > y) | (x != x) ? x : y;
  }
  template <class V, class N>
  TENFOLD_HOST_DEVICE static Slopes<V> slopes(V x, V y, const Away<N>& away) {
    return GoedelConjunction::slopes(V{} - x, V{} - y, away);
  }
};

struct GoedelImplication {
  template <class V, class N>
  TENFOLD_HOST_DEVICE static V value(V x, V y, const Away<N>&) {
    return x <= y ? V{} + N(1) : (x != x ? x : y);
  }
  template <class V, class N>
  TENFOLD_HOST_DEVICE static Slopes<V> slopes(V x, V y, const Away<N>&) {
    return {V{}, x <= y ? V{} : V{} + N(1)};
  }
};

struct KleeneImplication {
  template <class V, class N>
  TENFOLD_HOST_DEVICE static V value(V x, V y, const Away<N>& away) {
    return GoedelDisjunction::value(N(1) - x, y, away);
  }
  template <class V, class N>
  TENFOLD_HOST_DEVICE static Slopes<V> slopes(V x, V y, const Away<N>& away) {
    const Slopes<V> of = GoedelDisjunction::slopes(N(1) - x, y, away);
    return {V{} - of.x, of.y};
  }
};

struct LukasiewiczConjunction {
  template <class V, class N>
  TENFOLD_HOST_DEVICE static V value(V x, V y, const Away<N>&) {
    const V sum = x + y - N(1);
    return sum <= N(0) ? V{} : sum;
  }
  template <class V, class N>
  TENFOLD_HOST_DEVICE static Slopes<V> slopes(V x, V y, const Away<N>&) {
    const V slope = x + y - N(1) >= N(0) ? V{} + N(1) : V{};
    return {slope, slope};
  }
};

struct LukasiewiczDisjunction {
  template <class V, class N>
  TENFOLD_HOST_DEVICE static V value(V x, V y, const Away<N>&) {
    const V sum = x + y;
    return sum >= N(1) ? V{} + N(1) : sum;
  }
  template <class V, class N>
  TENFOLD_HOST_DEVICE static Slopes<V> slopes(V x, V y, const Away<N>&) {
    const V slope = x + y <= N(1) ? V{} + N(1) : V{};
    return {slope, slope};
  }
};

struct LukasiewiczImplication {
  template <class V, class N>
  TENFOLD_HOST_DEVICE static V value(V x, V y, const Away<N>&) {
    const V sum = N(1) - x + y;
    return sum >= N(1) ? V{} + N(1) : sum;
  }
  template <class V, class N>
  TENFOLD_HOST_DEVICE static Slopes<V> slopes(V x, V y, const Away<N>&) {
    const V slope = N(1) - x + y <= N(1) ? V{} + N(1) : V{};
    return {V{} - slope, slope};
  }
};

// Calls f with the connective of a code, of one operand or of two.
template <class F>
TENFOLD_HOST_DEVICE void with_unary(Code code, F&& f) {
  code == Code::negation ? f(Negation{}) : f(GoedelNegation{});
}

template <class F>
TENFOLD_HOST_DEVICE void with_binary(Code code, F&& f) {
  switch (code) {
    case Code::conjunction:
      return f(Conjunction{});
    case Code::disjunction:
      return f(Disjunction{});
    case Code::implication:
      return f(Implication{});
    case Code::implication_goguen:
      return f(GoguenImplication{});
    case Code::conjunction_goedel:
      return f(GoedelConjunction{});
    case Code::disjunction_goedel:
      return f(GoedelDisjunction{});
    case Code::implication_goedel:
      return f(GoedelImplication{});
    case Code::implication_kleene:
      return f(KleeneImplication{});
    case Code::conjunction_lukasiewicz:
      return f(LukasiewiczConjunction{});
    case Code::disjunction_lukasiewicz:
      return f(LukasiewiczDisjunction{});
    case Code::implication_lukasiewicz:
      return f(LukasiewiczImplication{});
    default:
      return;
  }
}

TENFOLD_HOST_DEVICE inline bool is_unary(Code code) {
  return code == Code::negation || code == Code::negation_goedel;
}

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::fuzzy
