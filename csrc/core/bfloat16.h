// bfloat16 to float32 and back, for the CPU and for CUDA kernels alike; other types pass through.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/level.h"

namespace tenfold {
TENFOLD_LEVEL_BEGIN

TENFOLD_HOST_DEVICE inline float to_float(float x) { return x; }
TENFOLD_HOST_DEVICE inline double to_float(double x) { return x; }
TENFOLD_HOST_DEVICE inline float to_float(uint16_t bfloat) {
  const uint32_t bits = static_cast<uint32_t>(bfloat) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

TENFOLD_HOST_DEVICE inline void round_to(float& to, float x) { to = x; }
TENFOLD_HOST_DEVICE inline void round_to(double& to, double x) { to = x; }
TENFOLD_HOST_DEVICE inline void round_to(uint16_t& bfloat, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  // Round half to even on the upper 16 bits; a NaN keeps its sign and becomes quiet.
  bfloat = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

TENFOLD_LEVEL_END
}  // namespace tenfold
