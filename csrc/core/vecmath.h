// Elementary functions of vectors of floats.
#pragma once

#include <cstdint>

#include "core/level.h"
#include "core/simd.h"

namespace tenfold {
TENFOLD_LEVEL_BEGIN

// e^x to 1.1 units in the last place where the result is a normal number (tests/core/test_vecmath.py); 0
// below -87.3, infinity above 88.7. Cody and Waite's reduction x = n ln 2 + r with ln 2 in two parts, then
// the polynomial of S. Moshier's Cephes library (expf) on |r| <= ln(2) / 2. NaN gives an unspecified number:
// callers check before.
inline Floats exp(Floats x) {
  constexpr float kLog2e = 1.44269504088896341f;
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr float kRound = 12582912.0f;  // 1.5 * 2^23: adding it leaves the nearest integer in the low bits
  constexpr float kLeast = -87.33654f, kMost = 88.72283f;
  const Floats inside = x < kLeast ? Floats{} + kLeast : (x > kMost ? Floats{} + kMost : x);
  const Floats shifted = inside * kLog2e + kRound;
  const Floats n = shifted - kRound;
  const Floats r = (inside - n * kLn2High) - n * kLn2Low;
  Floats p = Floats{} + 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * (r * r) + r + 1.0f;
  // 2^n in two factors, for n is from -126 to 128 and the exponent of one float ends at 127.
  const Ints power = reinterpret_cast<Ints>(shifted) - static_cast<int32_t>(0x4B400000);
  const Ints half = power >> 1;
  const Floats first = reinterpret_cast<Floats>((half + 127) << 23);
  const Floats second = reinterpret_cast<Floats>((power - half + 127) << 23);
  const Floats result = p * first * second;
  return x < kLeast ? Floats{} : (x > kMost ? Floats{} + __builtin_inff() : result);
}

// 2^x for x up to 126, to 1e-7 of its value (tests/core/test_vecmath.py); below -126 it stays at 2^-126. NaN
// stays NaN. The polynomial is that of 2^r in the Cephes library (exp2f), |r| <= 1/2.
inline Floats exp2(Floats x) {
  constexpr float kRound = 12582912.0f, kLeast = -126.0f;
  const Floats inside = x < kLeast ? Floats{} + kLeast : x;
  const Floats shifted = inside + kRound;
  const Floats r = inside - (shifted - kRound);
  Floats p = Floats{} + 1.535336188319500e-4f;
  p = p * r + 1.339887440266574e-3f;
  p = p * r + 9.618437357674640e-3f;
  p = p * r + 5.550332471162809e-2f;
  p = p * r + 2.402264791363012e-1f;
  p = p * r + 6.931472028550421e-1f;
  p = p * r + 1.0f;
  const Ints power = reinterpret_cast<Ints>(shifted) - static_cast<int32_t>(0x4B400000);
  return p * reinterpret_cast<Floats>((power + 127) << 23);
}

// The distribution function of the standard normal distribution, erfc(-x / sqrt 2) / 2, to 3e-7, and from -6
// to 0 to 5e-6 of its own value (tests/core/test_vecmath.py): the Chebyshev fit of W. Press et al., Numerical
// Recipes, section 6.2 (erfcc), good to 1.2e-7 of erfc.
inline Floats normal_cdf(Floats x) {
  constexpr float kCoefficients[] = {0.17087277f,  -0.82215223f, 1.48851587f, -1.13520398f, 0.27886807f,
                                     -0.18628806f, 0.09678418f,  0.37409196f, 1.00002368f,  -1.26551223f};
  constexpr float kRootHalf = 0.70710678118654752f;
  const Floats z = (x < 0.0f ? -x : x) * kRootHalf;
  const Floats t = 1.0f / (1.0f + 0.5f * z);
  Floats p{};
#pragma GCC unroll 10
  for (const float coefficient : kCoefficients) p = p * t + coefficient;
  const Floats tail = 0.5f * t * exp(p - z * z);
  return x < 0.0f ? tail : 1.0f - tail;
}

inline Floats sigmoid(Floats x) { return 1.0f / (1.0f + exp(-x)); }
inline Floats tanh(Floats x) { return 1.0f - 2.0f / (1.0f + exp(2.0f * x)); }

inline float sum_of(Floats x) {  // in the order of the lanes
  float sum = 0.0f;
  for (int i = 0; i < kFloatLanes; ++i) sum += x[i];
  return sum;
}

inline float max_of(Floats x) {
  float most = x[0];
  for (int i = 1; i < kFloatLanes; ++i) most = x[i] > most ? x[i] : most;
  return most;
}

TENFOLD_LEVEL_END
}  // namespace tenfold
