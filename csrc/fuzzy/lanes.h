// Functions of vectors of numbers (core/lanes.h) as the fuzzy kernels use them. Rows are as long as a whole
// number of vectors.
#pragma once

#include <cstdint>

#include "core/bfloat16.h"
#include "core/lanes.h"
#include "core/level.h"
#include "core/simd.h"
#include "core/vecmath.h"
#include "fuzzy/state.h"

namespace tenfold::fuzzy {
namespace TENFOLD_LEVEL {

inline Floats splat(float x) { return Floats{} + x; }
inline double splat(double x) { return x; }

inline Floats larger(Floats bound, Floats x) { return greater_of(bound, x); }
inline double larger(double bound, double x) { return bound > x ? bound : x; }
inline Floats smaller(Floats bound, Floats x) { return bound < x ? bound : x; }
inline double smaller(double bound, double x) { return bound < x ? bound : x; }

// 2^x for x <= 0 or barely above.
inline Floats power_of_two(Floats x) { return exp2_of_negative(x); }
inline double power_of_two(double x) { return __builtin_exp2(x); }

// 1 / x for x from 2^-100 to 2^100.
inline Floats inverse(Floats x) { return reciprocal(x); }
inline double inverse(double x) { return 1.0 / x; }

// ln x for normal x > 0; NaN and infinity give NaN.
inline Floats natural_log(Floats x) { return log(x); }
inline double natural_log(double x) { return __builtin_log(x); }

// The same from 0 on: -inf there and below, and numbers that are not normal count as the least that is.
inline Floats log_from_zero(Floats x) {
  constexpr float kLeast = 1.17549435e-38f;
  const Floats value = natural_log(larger(splat(kLeast), x));
  return x > 0.0f ? value : (x <= 0.0f ? splat(-kInfinity) : x);
}
inline double log_from_zero(double x) {
  return x > 0.0 ? __builtin_log(x) : x <= 0.0 ? -static_cast<double>(kInfinity) : x;
}

// Whether any lane is below a bound, or no number.
inline bool any_below(Floats x, float bound) {
#if defined(__AVX512F__)
  return _mm512_cmp_ps_mask(reinterpret_cast<__m512>(x), _mm512_set1_ps(bound), _CMP_NGE_UQ) != 0;
#elif defined(__AVX2__)
  const __m256 below = _mm256_cmp_ps(reinterpret_cast<__m256>(x), _mm256_set1_ps(bound), _CMP_NGE_UQ);
  return _mm256_movemask_ps(below) != 0;
#elif defined(__x86_64__)
  return _mm_movemask_ps(_mm_cmpnge_ps(reinterpret_cast<__m128>(x), _mm_set1_ps(bound))) != 0;
#else
  for (int i = 0; i < kFloatLanes; ++i) {
    if (!(x[i] >= bound)) return true;
  }
  return false;
#endif
}
inline bool any_below(double x, double bound) { return !(x >= bound); }

inline float greatest(Floats x) { return max_of(x); }
inline double greatest(double x) { return x; }

// Below this a sum of exponentials, the largest of a tile being 1, is computed again with its own largest.
inline constexpr float kTiny(float) { return 1e-30f; }
inline constexpr double kTiny(double) { return 1e-280; }

// The first so many lanes, and zeros behind them.
inline Floats first_of(Floats x, int64_t count) {
  float each[kFloatLanes];
  store(each, x);
  for (int64_t k = count; k < kFloatLanes; ++k) each[k] = 0;
  return load(each);
}
inline double first_of(double x, int64_t count) { return count > 0 ? x : 0.0; }

// ---- rows ----

template <class N>
void fill(N* row, int64_t width, N value) {
  for (int64_t j = 0; j < width; j += kLanes<N>) write(row + j, splat(value));
}

template <class N>
N row_max(const N* row, int64_t width) {
  Lanes<N> most = splat(static_cast<N>(-kInfinity));
  for (int64_t j = 0; j < width; j += kLanes<N>) most = larger(most, read(row + j));
  return greatest(most);
}

// The sum of f of each vector of a row, in two chains of additions.
template <class N, class F>
double row_total(int64_t width, F&& f) {
  Lanes<N> even{}, odd{};
  int64_t j = 0;
  for (; j + 2 * kLanes<N> <= width; j += 2 * kLanes<N>) {
    even += f(j);
    odd += f(j + kLanes<N>);
  }
  if (j < width) even += f(j);
  return total(even + odd);
}

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::fuzzy
