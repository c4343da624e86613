// Activation functions: their names, and what they are for one number, on the CPU and on a GPU. Vectors of
// floats have theirs in core/activation.h.
#pragma once

#include <math.h>

#include <type_traits>

#include "core/level.h"
#include "core/normal_cdf.h"

namespace tenfold {

enum class Activation : int { gelu, gelu_tanh, silu, relu };

inline constexpr double kRootHalf = 0.70710678118654752;  // sqrt(1 / 2)
inline constexpr double kLog2e = 1.4426950408889634;
inline constexpr double kNormalDensity = 0.39894228040143268;  // 1 / sqrt(2 pi), the normal density at 0

// gelu_tanh is x times the logistic function of x (kTanhScale + kTanhCube x^2): 2 sqrt(2 / pi), and that
// times 0.044715 (Hendrycks and Gimpel, 2016, arXiv 1606.08415).
inline constexpr double kTanhScale = 1.5957691216057308, kTanhCube = 0.071354816272600245;

TENFOLD_LEVEL_BEGIN

// Calls f with the activation as a constant.
template <class F>
void with_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::gelu:
      return f(std::integral_constant<Activation, Activation::gelu>{});
    case Activation::gelu_tanh:
      return f(std::integral_constant<Activation, Activation::gelu_tanh>{});
    case Activation::silu:
      return f(std::integral_constant<Activation, Activation::silu>{});
    case Activation::relu:
      return f(std::integral_constant<Activation, Activation::relu>{});
  }
}

// An activated x, and the gradient of x from that of the activated.
template <class Number>
struct Activated {
  Number value, grad;
};

TENFOLD_HOST_DEVICE inline float exp_of(float x) { return ::expf(x); }
TENFOLD_HOST_DEVICE inline double exp_of(double x) { return ::exp(x); }

// The distribution function of the standard normal distribution. NaN gives NaN.
TENFOLD_HOST_DEVICE inline double normal_cdf_of(double x) { return 0.5 * ::erfc(x * -kRootHalf); }
TENFOLD_HOST_DEVICE inline float normal_cdf_of(float x) {
  const float below = x < 0 ? x : -x;
  const float near = normal_cdf_root(below < kNormalFar ? kNormalFar : below), root = near < 0 ? 0 : near;
  const float square = root * root, fourth = square * square, tail = fourth * fourth;
  return x < 0 ? tail : 1 - tail;
}

// x times the logistic function of `of`, whose derivative is `slope`.
template <class Number>
TENFOLD_HOST_DEVICE inline Activated<Number> times_logistic(Number x, Number of, Number slope, Number from) {
  const Number small = exp_of(of < 0 ? of : -of);
  const Number larger = 1 / (1 + small), smaller = small * larger;
  const Number part = of < 0 ? smaller : larger;
  return {x * part, from * (part + x * (smaller * larger) * slope)};
}

// relu's gradient chooses and does not multiply: 0 where x <= 0, whatever `from` is, and `from` for a NaN.
template <Activation activation, class Number>
TENFOLD_HOST_DEVICE inline Activated<Number> apply_activation(Number x, Number from) {
  if constexpr (activation == Activation::gelu) {
    const Number cdf = normal_cdf_of(x);
    const Number bell = static_cast<Number>(kNormalDensity) * exp_of(x * x * Number{-0.5});
    return {x * cdf, from * (cdf + x * bell)};
  } else if constexpr (activation == Activation::gelu_tanh) {
    constexpr Number kScale = static_cast<Number>(kTanhScale), kCube = static_cast<Number>(kTanhCube);
    const Number square = x * x;
    return times_logistic(x, x * (kScale + kCube * square), kScale + 3 * kCube * square, from);
  } else if constexpr (activation == Activation::silu) {
    return times_logistic(x, x, Number{1}, from);
  } else {
    return {x < 0 ? Number{0} : x, x <= 0 ? Number{0} : from};
  }
}

TENFOLD_LEVEL_END
}  // namespace tenfold
