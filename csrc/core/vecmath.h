// Elementary functions of vectors of floats.
#pragma once

#include <cstdint>

#include "core/level.h"
#include "core/normal_cdf.h"
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

// 2^x for x <= 0, to 1.7e-7 of its value down to -126; from -126.5 down it is 0. NaN stays NaN. The
// polynomial of 2^r, |r| <= 1/2, is a minimax fit of ours, good to 9e-8 and exact at 0.
inline Floats exp2_of_negative(Floats x) {
  constexpr float kLeast = -127.0f;            // whose power is written as 0
  constexpr float kRound = 12582912.0f + 127;  // 1.5 * 2^23: it leaves the nearest integer, plus 127, in the
                                               // low bits: moved up, they are the exponent of the power
  const Floats inside = greater_of(Floats{} + kLeast, x);
  const Floats shifted = inside + kRound;
  const Floats r = inside - (shifted - kRound);
  Floats p = Floats{} + 1.32645969e-3f;
  p = p * r + 9.67156608e-3f;
  p = p * r + 5.5507347e-2f;
  p = p * r + 2.40222409e-1f;
  p = p * r + 6.93147004e-1f;
  p = p * r + 1.0f;
  return p * reinterpret_cast<Floats>(reinterpret_cast<Ints>(shifted) << 23);
}

// 1 / x for x from 1 to 2^100, to 1 unit in the last place: the processor's estimate, good to 2^-14 (2^-11 on
// AVX2), and a step of Newton's method (with the next term of its series). NaN stays NaN.
inline Floats reciprocal(Floats x) {
#if defined(__AVX512F__)
  const Floats estimate =
      reinterpret_cast<Floats>(_mm512_maskz_rcp14_ps(0xffff, reinterpret_cast<__m512>(x)));
  const Floats error = 1.0f - x * estimate;
  return estimate * error + estimate;
#elif defined(__AVX2__)
  const Floats estimate = reinterpret_cast<Floats>(_mm256_rcp_ps(reinterpret_cast<__m256>(x)));
  const Floats error = 1.0f - x * estimate;
  return estimate * (error * error + error) + estimate;
#else
  return 1.0f / x;  // of four floats: as fast
#endif
}

// The distribution function of the standard normal distribution; core/normal_cdf.h says how near. NaN gives
// NaN.
inline Floats normal_cdf(Floats x) {
  const Floats inside = greater_of(Floats{} + kNormalFar, minus_magnitude(x));
  const Floats root = greater_of(Floats{}, normal_cdf_root(inside));
  const Floats square = root * root, fourth = square * square, tail = fourth * fourth;
  return x < 0.0f ? tail : 1.0f - tail;
}

// ln x for normal x > 0, to 1e-7 or 1e-7 of its value; NaN and infinity give NaN. The reduction to a fraction
// from sqrt(1/2) to sqrt(2) and the polynomial are those of S. Moshier's Cephes library (logf).
inline Floats log(Floats x) {
  constexpr float kLn2High = 0.693359375f, kLn2Low = -2.12194440e-4f;
  constexpr int32_t kRootHalf = 0x3f3504f3, kSignAndExponent = static_cast<int32_t>(0xff800000u);
  const Ints bits = reinterpret_cast<Ints>(x);
  const Ints exponent = (bits - kRootHalf) & kSignAndExponent;  // of the fraction, moved up by 23 bits
  const Floats r = reinterpret_cast<Floats>(bits - exponent) - 1.0f;
  const Floats n = __builtin_convertvector(exponent >> 23, Floats);
  constexpr float kCoefficients[] = {7.0376836292e-2f,  -1.1514610310e-1f, 1.1676998740e-1f,
                                     -1.2420140846e-1f, 1.4249322787e-1f,  -1.6668057665e-1f,
                                     2.0000714765e-1f,  -2.4999993993e-1f, 3.3333331174e-1f};
  Floats p = Floats{} + kCoefficients[0];
#pragma GCC unroll 8
  for (int i = 1; i < 9; ++i) p = p * r + kCoefficients[i];
  const Floats square = r * r;
  const Floats result = (r + (p * (r * square) + (n * kLn2Low - 0.5f * square))) + n * kLn2High;
  return result + (x - x);
}

// cos and sin of 2 pi x for |x| up to 2^20, each to 1e-7; exact where 4 x is whole. S. Moshier's Cephes
// library (sinf, cosf) on an eighth of the circle.
struct Turned {
  Floats cos, sin;
};

inline Turned turn(Floats x) {
  constexpr float kRound = 12582912.0f, kTwoPi = 6.283185307179586f;
  const Floats shifted = x * 4.0f + kRound;
  const UnsignedInts quarter = reinterpret_cast<UnsignedInts>(shifted);
  const Floats r = (x - (shifted - kRound) * 0.25f) * kTwoPi, square = r * r;
  const Floats s =
      ((-1.9515295891e-4f * square + 8.3321608736e-3f) * square - 1.6666654611e-1f) * square * r + r;
  const Floats c =
      ((2.443315711809948e-5f * square - 1.388731625493765e-3f) * square + 4.166664568298827e-2f) *
          (square * square) -
      0.5f * square + 1.0f;
  const auto odd = (quarter & 1) != 0;
  const auto cos = reinterpret_cast<UnsignedInts>(odd ? s : c);
  const auto sin = reinterpret_cast<UnsignedInts>(odd ? c : s);
  return {reinterpret_cast<Floats>(cos ^ (((quarter + 1) & 2) << 30)),
          reinterpret_cast<Floats>(sin ^ ((quarter & 2) << 30))};
}

// e^(-x^2 / 2), to 2e-7, and to 2e-6 of its value where that is above 1e-6. NaN gives NaN.
inline Floats bell(Floats x) {
  constexpr float kHalfLog2e = 0.72134752044448170f;
  return exp2_of_negative(x * (x * -kHalfLog2e));
}

// 1 / (1 + 2^-x), which is the logistic function of x ln 2, to 2e-7, and its product with 1 minus it. NaN
// gives NaN.
struct Logistic {
  Floats value, product;
};

inline Logistic logistic2(Floats x) {
  const Floats small = exp2_of_negative(minus_magnitude(x));
  const Floats larger = reciprocal(1.0f + small), smaller = small * larger;
  return {x < 0.0f ? smaller : larger, smaller * larger};
}

inline Floats sigmoid(Floats x) {
  constexpr float kLog2e = 1.44269504088896341f;
  return logistic2(x * kLog2e).value;
}

// All lanes as one, halves with halves: lane by lane steps would wait for each other. `lanes` has the type of
// places in x.
template <class Vector, class Places, class Join>
auto fold(Vector x, Places lanes, Join&& join) {
  constexpr int kLanes = static_cast<int>(sizeof(Vector) / sizeof(x[0]));
  for (int i = 0; i < kLanes; ++i) lanes[i] = i;
#pragma GCC unroll 4
  for (int step = kLanes / 2; step > 0; step /= 2) x = join(x, __builtin_shuffle(x, lanes ^ step));
  return x[0];
}

// The same additions in narrower and narrower registers, whose halves are sooner at hand.
inline float sum_of(Floats x) {
  typedef float Four __attribute__((vector_size(16)));
#if defined(__AVX512F__)
  const auto half = __builtin_shufflevector(x, x, 0, 1, 2, 3, 4, 5, 6, 7) +
                    __builtin_shufflevector(x, x, 8, 9, 10, 11, 12, 13, 14, 15);
#else
  const auto half = x;
#endif
#if defined(__AVX2__)
  const Four four =
      __builtin_shufflevector(half, half, 0, 1, 2, 3) + __builtin_shufflevector(half, half, 4, 5, 6, 7);
#else
  const Four four = half;
#endif
  const Four two = four + __builtin_shufflevector(four, four, 2, 3, 2, 3);
  return two[0] + two[1];
}
inline float max_of(Floats x) { return fold(x, Ints{}, greater_of); }

TENFOLD_LEVEL_END
}  // namespace tenfold
