// Vectors of numbers for code that is written once for float and double: registers of float, and double one
// by one, under one set of names.
#pragma once

#include <cstdint>

#include "core/level.h"
#include "core/simd.h"
#include "core/vecmath.h"

namespace tenfold {
TENFOLD_LEVEL_BEGIN

template <class N>
struct LanesOf;
template <>
struct LanesOf<float> {
  using Type = Floats;
  static constexpr int count = kFloatLanes;
};
template <>
struct LanesOf<double> {
  using Type = double;
  static constexpr int count = 1;
};
template <class N>
using Lanes = typename LanesOf<N>::Type;
template <class N>
inline constexpr int kLanes = LanesOf<N>::count;

inline Floats read(const float* from) { return load(from); }
inline double read(const double* from) { return *from; }
inline void write(float* to, Floats value) { store(to, value); }
inline void write(double* to, double value) { *to = value; }

inline float total(Floats x) { return sum_of(x); }
inline double total(double x) { return x; }

// The least whole number of vectors that holds so many numbers, in numbers.
template <class N>
int64_t padded(int64_t count) {
  return (count + kLanes<N> - 1) / kLanes<N> * kLanes<N>;
}

TENFOLD_LEVEL_END
}  // namespace tenfold
