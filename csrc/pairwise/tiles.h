// Tiles of pairs: for one row and kTile columns at most, a number per pair and unit of a layer, a unit's
// pairs side by side. Widths are a whole number of vectors; what is beyond the pairs is kept at 0.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/activation.h"
#include "core/bfloat16.h"
#include "core/lanes.h"
#include "core/level.h"
#include "core/simd.h"
#include "core/vecmath.h"
#include "pairwise/pairwise.h"
#include "pairwise/pointwise.h"

namespace tenfold::pairwise {
namespace TENFOLD_LEVEL {

inline constexpr int64_t kTile = 64;

// ---- functions of vectors, to 3e-7, as are their slopes ----

struct ValuedFloats {
  Floats value, slope;
};

// e^x - 1, to 2e-7 of its value, and e^x, for x <= 0; above unspecified. NaN stays NaN. x = (n + r) ln 2 with
// |r| <= 1/2, and a polynomial of ours for 2^r - 1, good to 2e-8 of its value.
struct Exponential {
  Floats less_one, power;
};

inline Exponential exponential(Floats x) {
  constexpr float kLog2e = 1.44269504f, kLeast = -88.0f;  // whose power is written as 0
  constexpr float kRound = 12582912.0f + 127;             // as in exp2_of_negative
  const Floats inside = greater_of(Floats{} + kLeast, x);
  const Floats shifted = inside * kLog2e + kRound;
  const Floats r = inside * kLog2e - (shifted - kRound);
  Floats p = Floats{} + 1.540351866e-4f;
  p = p * r + 1.339085372e-3f;
  p = p * r + 9.618237928e-3f;
  p = p * r + 5.550357213e-2f;
  p = p * r + 2.402264979e-1f;
  p = p * r + 6.931471880e-1f;
  p = p * r;
  const Floats scale = reinterpret_cast<Floats>(reinterpret_cast<Ints>(shifted) << 23);
  return {p * scale + (scale - 1.0f), p * scale + scale};
}

template <Pointwise function>
inline ValuedFloats value_and_slope(Floats x) {
  if constexpr (function == Pointwise::elu) {
    const Exponential e = exponential(x);
    return {x > 0.0f ? x : e.less_one, x > 0.0f ? Floats{} + 1.0f : e.power};
  } else if constexpr (function == Pointwise::tanh) {
    const Exponential e = exponential(2.0f * minus_magnitude(x));
    const Floats part = reciprocal(2.0f + e.less_one);
    const UnsignedInts sign = reinterpret_cast<UnsignedInts>(x) & 0x80000000u;
    return {reinterpret_cast<Floats>(reinterpret_cast<UnsignedInts>(-e.less_one * part) | sign),
            4.0f * e.power * part * part};
  } else if constexpr (function == Pointwise::sigmoid) {
    const Logistic part = logistic2(x * static_cast<float>(kLog2e));
    return {part.value, part.product};
  } else {
    const ActivatedFloats done = apply_activation<kSharedActivation<function>>(x, Floats{} + 1.0f);
    return {done.value, done.grad};
  }
}

// ---- the layers of a tile ----

// values[r] = f(shift[r] + from[r]) of `rows` rows, and the slopes there if wanted. `values` may be `from`.
template <class N>
using Activate = void (*)(const N* shift, const N* from, int64_t stride, int rows, int64_t width, N* values,
                          N* slopes);

template <class N, Pointwise function>
void activate_tile(const N* shift, const N* from, int64_t stride, int rows, int64_t width, N* values,
                   N* slopes) {
  if (slopes == nullptr) {
    for (int r = 0; r < rows; ++r) {
      for (int64_t t = 0; t < width; t += kLanes<N>) {
        write(values + r * kTile + t,
              value_and_slope<function>(shift[r] + read(from + r * stride + t)).value);
      }
    }
    return;
  }
  for (int r = 0; r < rows; ++r) {
    for (int64_t t = 0; t < width; t += kLanes<N>) {
      const auto done = value_and_slope<function>(shift[r] + read(from + r * stride + t));
      write(values + r * kTile + t, done.value);
      write(slopes + r * kTile + t, done.slope);
    }
  }
}

template <class N>
Activate<N> activate_of(Pointwise function) {
  Activate<N> found = nullptr;
  with_pointwise(function, [&](auto constant) { found = &activate_tile<N, constant()>; });
  return found;
}

// Accumulators and what they are made of fill the registers: 32, else 16.
#if defined(__AVX512F__)
inline constexpr int kBlockVectors = 4, kBlockRows = 4;
#else
inline constexpr int kBlockVectors = 2, kBlockRows = 2;
#endif

template <class N, int rows, int vectors>
inline void multiply_block(const N* weights, int depth, const N* from, N* to) {
  Lanes<N> sums[rows][vectors] = {};
  for (int d = 0; d < depth; ++d) {
    Lanes<N> column[vectors];
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) column[v] = read(from + d * kTile + v * kLanes<N>);
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const N weight = weights[r * depth + d];
#pragma GCC unroll 4
      for (int v = 0; v < vectors; ++v) sums[r][v] += weight * column[v];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < vectors; ++v) write(to + r * kTile + v * kLanes<N>, sums[r][v]);
  }
}

// to[r] = sum over d of weights[r, d] from[d]; weights (rows, depth).
template <class N>
void multiply_tile(const N* weights, int rows, int depth, const N* from, int64_t width, N* to) {
  int r = 0;
  const auto columns = [&](auto count) {
    int64_t t = 0;
    for (; t + kBlockVectors * kLanes<N> <= width; t += kBlockVectors * kLanes<N>) {
      multiply_block<N, count(), kBlockVectors>(weights + r * depth, depth, from + t, to + r * kTile + t);
    }
    for (; t < width; t += kLanes<N>) {
      multiply_block<N, count(), 1>(weights + r * depth, depth, from + t, to + r * kTile + t);
    }
  };
  for (; r + 4 <= rows; r += 4) columns(std::integral_constant<int, 4>{});
  for (; r < rows; ++r) columns(std::integral_constant<int, 1>{});
}

template <class N, int rows, int columns>
inline void outer_block(const N* a, const N* b, int64_t width, N* sums, int64_t stride) {
  Lanes<N> own[rows][columns];
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) own[r][c] = read(sums + r * stride + c * kLanes<N>);
  }
  for (int64_t t = 0; t < width; t += kLanes<N>) {
    Lanes<N> second[columns];
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) second[c] = read(b + c * kTile + t);
#pragma GCC unroll 4
    for (int r = 0; r < rows; ++r) {
      const Lanes<N> first = read(a + r * kTile + t);
#pragma GCC unroll 4
      for (int c = 0; c < columns; ++c) own[r][c] += first * second[c];
    }
  }
#pragma GCC unroll 4
  for (int r = 0; r < rows; ++r) {
#pragma GCC unroll 4
    for (int c = 0; c < columns; ++c) write(sums + r * stride + c * kLanes<N>, own[r][c]);
  }
}

// Adds a[r] b[c] to sums[r, c], lane by lane: sums (rows, columns) vectors.
template <class N>
void outer_tile(const N* a, int rows, const N* b, int columns, int64_t width, N* sums) {
  const int64_t stride = int64_t{columns} * kLanes<N>;
  int r = 0;
  const auto across = [&](auto count) {
    int c = 0;
    for (; c + 4 <= columns; c += 4) {
      outer_block<N, count(), 4>(a + r * kTile, b + c * kTile, width, sums + r * stride + c * kLanes<N>,
                                 stride);
    }
    for (; c < columns; ++c) {
      outer_block<N, count(), 1>(a + r * kTile, b + c * kTile, width, sums + r * stride + c * kLanes<N>,
                                 stride);
    }
  };
  for (; r + kBlockRows <= rows; r += kBlockRows) across(std::integral_constant<int, kBlockRows>{});
  for (; r < rows; ++r) across(std::integral_constant<int, 1>{});
}

// to[t] = b + sum over r of weights[r] values[r].
template <class N>
void weigh_tile(const N* weights, int rows, N b, const N* values, int64_t width, N* to) {
  for (int64_t t = 0; t < width; t += kLanes<N>) {
    Lanes<N> even{}, odd{};
    int r = 0;
    for (; r + 2 <= rows; r += 2) {
      even += weights[r] * read(values + r * kTile + t);
      odd += weights[r + 1] * read(values + (r + 1) * kTile + t);
    }
    if (r < rows) even += weights[r] * read(values + r * kTile + t);
    write(to + t, (even + odd) + b);
  }
}

// What is beyond the pairs of a tile was computed from nothing, and is not to be added to anything.
template <class N>
void clear_beyond(N* tile, int rows, int64_t count, int64_t width) {
  if (count == width || tile == nullptr) return;
  for (int r = 0; r < rows; ++r) {
    for (int64_t t = count; t < width; ++t) tile[r * kTile + t] = 0;
  }
}

// ---- numbers of arrays ----

template <class T, class N>
void read_as(const char* from, int64_t stride, int64_t count, N* to) {
  for (int64_t i = 0; i < count; ++i) to[i] = to_float(*reinterpret_cast<const T*>(from + i * stride));
}

inline void read_numbers(Element element, const char* from, int64_t stride, int64_t count, float* to) {
  if (element == Element::bf16) return read_as<uint16_t>(from, stride, count, to);
  if (stride != static_cast<int64_t>(sizeof(float))) return read_as<float>(from, stride, count, to);
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}
inline void read_numbers(Element, const char* from, int64_t stride, int64_t count, double* to) {
  read_as<double>(from, stride, count, to);
}

template <class T, class N>
void write_as(const N* from, int64_t count, char* to, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) round_to(*reinterpret_cast<T*>(to + i * stride), from[i]);
}

inline void write_numbers(Element element, const float* from, int64_t count, char* to, int64_t stride) {
  if (element == Element::bf16) return write_as<uint16_t>(from, count, to, stride);
  if (stride != static_cast<int64_t>(sizeof(float))) return write_as<float>(from, count, to, stride);
  std::memcpy(to, from, static_cast<size_t>(count) * sizeof(float));
}
inline void write_numbers(Element, const double* from, int64_t count, char* to, int64_t stride) {
  write_as<double>(from, count, to, stride);
}

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::pairwise
