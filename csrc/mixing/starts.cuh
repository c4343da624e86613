// Where a sample starts on a GPU: random words, vectors of free variables and of inputs.
#pragma once

#include <cstdint>

#include "core/cuda.cuh"
#include "core/philox.h"
#include "mixing/block.cuh"
#include "mixing/mixing.h"

namespace tenfold::mixing::cuda {
namespace {

constexpr float kPi = 3.14159265358979324f;

__device__ __forceinline__ uint32_t random_words(uint32_t (&word)[4], uint64_t seed) {
  philox4x32<1>(&word[0], &word[1], &word[2], &word[3], static_cast<uint32_t>(seed),
                static_cast<uint32_t>(seed >> 32));
  return word[0];
}

__device__ __forceinline__ void start_words(uint32_t (&word)[4], const Start& start, int64_t sample,
                                            int64_t variable, int64_t block) {
  word[0] = static_cast<uint32_t>(variable);
  word[1] = static_cast<uint32_t>(block);
  word[2] = static_cast<uint32_t>(start.first_sample + sample);
  word[3] = kDrawStart;
  random_words(word, start.seed);
}

struct Circle {
  float cos, sin;
};

// cos and sin of 2 pi x, as core/vecmath.h computes them: CUDA's own would need local memory.
__device__ __forceinline__ Circle turn(float x) {
  const float quarters = rintf(x * 4.0f), r = (x - quarters * 0.25f) * (2.0f * kPi), square = r * r;
  const int quarter = static_cast<int>(quarters);
  const float s =
      ((-1.9515295891e-4f * square + 8.3321608736e-3f) * square - 1.6666654611e-1f) * square * r + r;
  const float c =
      ((2.443315711809948e-5f * square - 1.388731625493765e-3f) * square + 4.166664568298827e-2f) *
          (square * square) -
      0.5f * square + 1.0f;
  const bool odd = (quarter & 1) != 0;
  const float cos = odd ? s : c, sin = odd ? c : s;
  return {((quarter + 1) & 2) != 0 ? -cos : cos, (quarter & 2) != 0 ? -sin : sin};
}

__device__ __forceinline__ float uniform(uint32_t word) {
  return (static_cast<float>(word >> 9) + 0.5f) * 0x1p-23f;
}

// Component c of a start; its pair of words gives two components.
__device__ float draw_normal(const Start& start, int64_t sample, int64_t variable, int64_t c) {
  uint32_t word[4];
  start_words(word, start, sample, variable, c / 4);
  const bool second_pair = c % 4 >= 2;
  const float radius = sqrtf(-2.0f * logf(uniform(second_pair ? word[2] : word[0])));
  const Circle angle = turn(uniform(second_pair ? word[3] : word[1]));
  return radius * (c % 2 == 0 ? angle.cos : angle.sin);
}

// The start of variable i, its length scaled to 1, by the warp that calls; 0 from k up to `padded`.
__device__ void write_start(float* to, const Problem& problem, const Start& start, int64_t sample, int64_t i,
                            int padded) {
  const int64_t width = problem.sizes.width;
  const int lane = lane_of_thread();
  const float* const from =
      start.V0 != nullptr ? start.V0 + (sample * problem.sizes.variables + i) * width : nullptr;
  float square = 0.0f;
  for (int c = lane; c < padded; c += kWarp) {
    float value = 0.0f;
    if (c < width) value = from != nullptr ? from[c] : draw_normal(start, sample, i, c);
    to[c] = value;
    square += value * value;
  }
  square = warp_sum(square);
  const bool fine = square >= kLeastSquare;
  const float factor = fine ? 1.0f / sqrtf(square) : 0.0f;
  for (int c = lane; c < padded; c += kWarp) to[c] = fine ? to[c] * factor : (c == 0 ? 1.0f : 0.0f);
}

// The vector of an input: its first two components; all others are 0.
struct InputVector {
  float first, second;
  bool negative;
};

__device__ InputVector input_vector(const Problem& problem, const Start& start, int64_t sample, int64_t i) {
  const Sizes& sizes = problem.sizes;
  bool negative = false;
  if (i > 0 && start.V0 != nullptr) {
    negative = __float_as_uint(start.V0[(sample * sizes.variables + i) * sizes.width + 1]) >> 31 != 0;
  } else if (i > 0) {
    uint32_t word[4];
    start_words(word, start, sample, i, 0);
    negative = word[1] >> 31 != 0;
  }
  const Circle half = turn(i == 0 ? 0.5f : 0.5f * problem.z[sample * sizes.user + i - 1]);
  return {-half.cos, negative ? -fabsf(half.sin) : fabsf(half.sin), negative};
}

}  // namespace
}  // namespace tenfold::mixing::cuda
