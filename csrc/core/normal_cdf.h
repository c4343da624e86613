// The normal distribution, for one number and for vectors of them.
#pragma once

#include "core/level.h"

namespace tenfold {
TENFOLD_LEVEL_BEGIN

inline constexpr float kNormalFar = -8.02f;  // from where on the polynomial is below 0

// The eighth root of the distribution function of the standard normal distribution, erfc(-x / sqrt 2) / 2,
// for kNormalFar <= x <= 0: a minimax fit of ours. Three squarings cost less than a power and a division, and
// what is small stays small: the function is right to 3e-7, and from -6 to 0 to 6e-4 of its own value
// (tests/core/test_vecmath.py). Elsewhere it is 0 and, above 0, one minus that of -x.
template <class Number>
TENFOLD_HOST_DEVICE inline Number normal_cdf_root(Number x) {
  Number root = x * -2.88163136e-7f + -7.2971402e-6f;
  root = root * x + -5.87834511e-5f;
  root = root * x + -2.88025039e-5f;
  root = root * x + 1.51467638e-3f;
  root = root * x + 6.81724225e-4f;
  root = root * x + -3.19237411e-2f;
  root = root * x + 9.14581716e-2f;
  return root * x + 9.17004049e-1f;
}

TENFOLD_LEVEL_END
}  // namespace tenfold
