// The functions between the layers: their names, and their values and slopes for one number, on the CPU and
// on a GPU. Vectors of floats have theirs in pairwise/tiles.h.
#pragma once

#include <math.h>

#include <type_traits>

#include "core/activation_kind.h"
#include "core/level.h"

namespace tenfold::pairwise {

enum class Pointwise : int { elu, relu, silu, gelu, gelu_tanh, tanh, sigmoid };

namespace TENFOLD_LEVEL {

// Calls f with the function as a constant.
template <class F>
void with_pointwise(Pointwise function, F&& f) {
  switch (function) {
    case Pointwise::elu:
      return f(std::integral_constant<Pointwise, Pointwise::elu>{});
    case Pointwise::relu:
      return f(std::integral_constant<Pointwise, Pointwise::relu>{});
    case Pointwise::silu:
      return f(std::integral_constant<Pointwise, Pointwise::silu>{});
    case Pointwise::gelu:
      return f(std::integral_constant<Pointwise, Pointwise::gelu>{});
    case Pointwise::gelu_tanh:
      return f(std::integral_constant<Pointwise, Pointwise::gelu_tanh>{});
    case Pointwise::tanh:
      return f(std::integral_constant<Pointwise, Pointwise::tanh>{});
    case Pointwise::sigmoid:
      return f(std::integral_constant<Pointwise, Pointwise::sigmoid>{});
  }
}

// Of those that core/activation.h has too, its name there.
template <Pointwise function>
inline constexpr Activation kSharedActivation = function == Pointwise::relu   ? Activation::relu
                                                : function == Pointwise::silu ? Activation::silu
                                                : function == Pointwise::gelu ? Activation::gelu
                                                                              : Activation::gelu_tanh;

template <class Number>
struct Valued {
  Number value, slope;
};

TENFOLD_HOST_DEVICE inline float expm1_of(float x) { return ::expm1f(x); }
TENFOLD_HOST_DEVICE inline double expm1_of(double x) { return ::expm1(x); }

// NaN gives NaN, and relu's slope 1 there. Slopes of what is near its limit are right to their last digits
// too, where 1 minus the value would have none.
template <Pointwise function, class Number>
TENFOLD_HOST_DEVICE inline Valued<Number> value_and_slope(Number x) {
  if constexpr (function == Pointwise::elu) {
    return {x > 0 ? x : expm1_of(x), x > 0 ? Number{1} : exp_of(x)};
  } else if constexpr (function == Pointwise::tanh) {
    const Number twice = x > 0 ? x * -2 : x * 2, less_one = expm1_of(twice);
    const Number part = 1 / (2 + less_one), magnitude = -less_one * part;
    return {x < 0 ? -magnitude : magnitude, 4 * exp_of(twice) * part * part};
  } else if constexpr (function == Pointwise::sigmoid) {
    const Number small = exp_of(x < 0 ? x : -x), larger = 1 / (1 + small), smaller = small * larger;
    return {x < 0 ? smaller : larger, smaller * larger};
  } else {
    const Activated<Number> done = apply_activation<kSharedActivation<function>>(x, Number{1});
    return {done.value, done.grad};
  }
}

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::pairwise
