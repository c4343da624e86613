// Activation functions of vectors of floats, to 3e-7 (of their value where that is above 1), as are their
// slopes (tests/core/test_vecmath.py). NaN gives NaN, and so does what is one in torch's double precision:
// all but relu at -infinity, and their slopes at both infinities.
#pragma once

#include "core/activation_kind.h"
#include "core/level.h"
#include "core/simd.h"
#include "core/vecmath.h"

namespace tenfold {
TENFOLD_LEVEL_BEGIN

struct ActivatedFloats {  // as Activated
  Floats value, grad;
};

// x times the logistic function of what has `slope` as its derivative, and is `to_base_2` ln 2. (x product
// first: it is 0 where the slope is near infinity.)
inline ActivatedFloats times_logistic(Floats x, Floats to_base_2, Floats slope, Floats from) {
  const Logistic part = logistic2(to_base_2);
  return {x * part.value, from * (part.value + x * part.product * slope)};
}

template <Activation activation>
inline ActivatedFloats apply_activation(Floats x, Floats from) {
  if constexpr (activation == Activation::gelu) {
    constexpr float kDensity = static_cast<float>(kNormalDensity);
    const Floats cdf = normal_cdf(x);
    return {x * cdf, from * (cdf + x * (kDensity * bell(x)))};
  } else if constexpr (activation == Activation::gelu_tanh) {
    constexpr float kScale = static_cast<float>(kTanhScale), kCube = static_cast<float>(kTanhCube);
    constexpr float kToBase2 = static_cast<float>(kLog2e);
    const Floats square = x * x;
    return times_logistic(x, x * (kScale * kToBase2 + kCube * kToBase2 * square),
                          kScale + 3.0f * kCube * square, from);
  } else if constexpr (activation == Activation::silu) {
    return times_logistic(x, static_cast<float>(kLog2e) * x, Floats{} + 1.0f, from);
  } else {
    return {x < 0.0f ? Floats{} : x, x <= 0.0f ? Floats{} : from};
  }
}

// Without the gradient, which the compiler then leaves out.
template <Activation activation>
inline Floats apply_activation(Floats x) {
  return apply_activation<activation>(x, x).value;
}

TENFOLD_LEVEL_END
}  // namespace tenfold
