// What is kept of the elements that a quantifier has seen, and what comes of it: for the CPU and for a GPU.
#pragma once

#include <math.h>

#include <cstdint>

#include "core/level.h"
#include "fuzzy/fuzzy.h"

namespace tenfold::fuzzy {
namespace TENFOLD_LEVEL {

inline constexpr float kInfinity = __builtin_inff();
inline constexpr double kLog2e = 1.4426950408889634074;

// x^y for x >= 0; on a GPU pow of doubles is no part of a kernel but a function that it calls.
TENFOLD_HOST_DEVICE inline double raised_to(double x, double y) { return ::exp(::log(x) * y); }

// scaled: sum is that of exp(sharpness (v - most)). most: how many equal it.
// Others: sums. A NaN that was seen is in the sum.
template <class N>
struct Seen {
  N most = static_cast<N>(-kInfinity);
  double sum = 0;
  int64_t count = 0;
};

template <class N>
TENFOLD_HOST_DEVICE void merge(const Reduction& reduction, Seen<N>& into, const Seen<N>& other) {
  into.count += other.count;
  const auto before = [&](N a, N b) {
    if (reduction.quantifier == Quantifier::most) return a == b ? 1.0 : 0.0;
    return ::exp2((static_cast<double>(a) - static_cast<double>(b)) * reduction.sharpness * kLog2e);
  };
  if (reduction.quantifier != Quantifier::scaled && reduction.quantifier != Quantifier::most) {
    into.sum += other.sum;
  } else if (other.sum == 0) {
    return;
  } else if (other.most > into.most) {
    into.sum = (into.sum == 0 ? 0 : into.sum * before(into.most, other.most)) + other.sum;
    into.most = other.most;
  } else {
    into.sum += other.sum * (into.most == other.most ? 1.0 : before(other.most, into.most));
  }
}

// The value before `after`; where nothing was seen it is not looked at.
template <class N>
TENFOLD_HOST_DEVICE double root(const Reduction& reduction, const Seen<N>& seen) {
  const double count = reduction.average ? static_cast<double>(seen.count) : 1.0;
  switch (reduction.quantifier) {
    case Quantifier::scaled:
      if (seen.sum == 0) return -static_cast<double>(kInfinity);
      return static_cast<double>(seen.most) + ::log(seen.sum / count) / reduction.sharpness;
    case Quantifier::most:
      return seen.sum == seen.sum ? static_cast<double>(seen.most) : seen.sum;
    case Quantifier::power:
      if (reduction.power == 2) return ::sqrt(seen.sum / count);
      return raised_to(seen.sum / count, 1.0 / reduction.power);
    default:
      return seen.sum / count;
  }
}

TENFOLD_HOST_DEVICE inline double out_of(const Reduction& reduction, double root, int64_t count) {
  if (count == 0) return reduction.empty;
  const double value = reduction.logged ? ::exp(root) : root;
  return reduction.after.scale * value + reduction.after.shift;
}

// What takes part in no sum and is no maximum.
template <class N>
TENFOLD_HOST_DEVICE N neutral(const Reduction& reduction) {
  const bool least = reduction.quantifier == Quantifier::scaled || reduction.quantifier == Quantifier::most;
  return least ? static_cast<N>(-kInfinity) : N{};
}

// The slope of the result by an element v is factor * phi(v, reference).
template <class N>
struct Slope {
  N factor = 0, reference = 0;
};

TENFOLD_HOST_DEVICE inline Slope<double> slope_of(const Reduction& reduction, double grad, double raw,
                                                  double count) {
  if (count == 0) return {};
  const double factor = grad * reduction.after.scale * reduction.before.scale;
  const double share = reduction.average ? factor / count : factor;
  switch (reduction.quantifier) {
    case Quantifier::scaled: {
      if (raw == -static_cast<double>(kInfinity)) return {};
      // Relative to the log of the sum, no exponential is above 1.
      const double total = reduction.average ? raw + ::log(count) / reduction.sharpness : raw;
      if (!reduction.logged) return {factor, total};
      return {factor * raised_to(count, -1.0 / reduction.sharpness), total};
    }
    case Quantifier::most:
      return {factor / count, raw};  // count: how many equal it
    case Quantifier::power:
      return raw == 0 ? Slope<double>{} : Slope<double>{share, 1.0 / raw};
    default:
      return {share, 0};
  }
}

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::fuzzy
