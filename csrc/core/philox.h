// Philox4x32-10, a counter-based random generator: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw,
// "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The numbers depend on key and counter only, so
// every thread count and device draws the same ones. Tested against the known answers of the authors'
// Random123.
#pragma once

#include <cstdint>

#include "core/level.h"

namespace tenfold {
TENFOLD_LEVEL_BEGIN

inline constexpr uint32_t kPhiloxM0 = 0xD2511F53u, kPhiloxM1 = 0xCD9E8D57u;  // round multipliers of the paper
inline constexpr uint32_t kPhiloxW0 = 0x9E3779B9u, kPhiloxW1 = 0xBB67AE85u;  // key increments of the paper
inline constexpr int kPhiloxRounds = 10;

// `Lanes` independent blocks at once: c0..c3 hold counters on entry and random words on return. The plain
// loops over lanes are what the compiler turns into vector instructions.
template <int Lanes>
TENFOLD_HOST_DEVICE inline void philox4x32(uint32_t* __restrict c0, uint32_t* __restrict c1,
                                           uint32_t* __restrict c2, uint32_t* __restrict c3, uint32_t key0,
                                           uint32_t key1) {
  for (int round = 0; round < kPhiloxRounds; ++round) {
    for (int lane = 0; lane < Lanes; ++lane) {
      const uint64_t a = static_cast<uint64_t>(kPhiloxM0) * c0[lane];
      const uint64_t b = static_cast<uint64_t>(kPhiloxM1) * c2[lane];
      c0[lane] = static_cast<uint32_t>(b >> 32) ^ c1[lane] ^ key0;
      c1[lane] = static_cast<uint32_t>(b);
      c2[lane] = static_cast<uint32_t>(a >> 32) ^ c3[lane] ^ key1;
      c3[lane] = static_cast<uint32_t>(a);
    }
    key0 += kPhiloxW0;
    key1 += kPhiloxW1;
  }
}

// A whole number in [0, range) from 32 random bits; the bias is below range / 2^32.
TENFOLD_HOST_DEVICE inline uint32_t below(uint32_t random, uint32_t range) {
  return static_cast<uint32_t>((static_cast<uint64_t>(random) * range) >> 32);
}

TENFOLD_LEVEL_END
}  // namespace tenfold
