// Where the mixing method starts: random vectors, and the vectors that inputs stand for.
#pragma once

#include <cstdint>

#include "core/level.h"
#include "core/philox.h"
#include "core/simd.h"
#include "core/vecmath.h"
#include "mixing/mixing.h"

namespace tenfold::mixing {
namespace TENFOLD_LEVEL {
namespace {

constexpr int kBlocks = 16;     // of random words, drawn at once
constexpr int kBlockWords = 4;  // of one of them
constexpr int kUnused = 9;      // bits of a word: the others and a half are a float in (0, 1), exactly
constexpr float kUnit = 0x1p-23f;

struct alignas(kLineBytes) Words {
  uint32_t word[kBlockWords][kBlocks];

  void draw(uint64_t seed) {
    philox4x32<kBlocks>(word[0], word[1], word[2], word[3], static_cast<uint32_t>(seed),
                        static_cast<uint32_t>(seed >> 32));
  }
};

inline Floats uniform(const uint32_t* words) {
  const UnsignedInts bits = *reinterpret_cast<const UnsignedInts*>(words) >> kUnused;
  return (__builtin_convertvector(reinterpret_cast<Ints>(bits), Floats) + 0.5f) * kUnit;
}

// Four standard normal numbers from each block, by Box and Muller: the words 0 and 1 give two, and so do
// 2, 3.
struct alignas(kLineBytes) Normals {
  float value[kBlockWords][kBlocks];

  explicit Normals(const Words& words) {
    for (int pair = 0; pair < kBlockWords; pair += 2) {
      for (int i = 0; i < kBlocks; i += kFloatLanes) {
        const Floats radius = square_root(-2.0f * log(uniform(words.word[pair] + i)));
        const Turned angle = turn(uniform(words.word[pair + 1] + i));
        store(value[pair] + i, radius * angle.cos);
        store(value[pair + 1] + i, radius * angle.sin);
      }
    }
  }
};

// The second component of a start is negative: the top bit of its angle.
inline bool is_negative(uint32_t second_word) { return second_word >> 31 != 0; }

// Components 0 ... width - 1 of one variable's start.
inline void draw_start(float* to, int64_t width, const Start& start, int64_t sample, int64_t variable) {
  const int64_t blocks = (width + kBlockWords - 1) / kBlockWords;
  for (int64_t first = 0; first < blocks; first += kBlocks) {
    Words words;
    for (int i = 0; i < kBlocks; ++i) {
      words.word[0][i] = static_cast<uint32_t>(variable);
      words.word[1][i] = static_cast<uint32_t>(first + i);
      words.word[2][i] = static_cast<uint32_t>(start.first_sample + sample);
      words.word[3][i] = kDrawStart;
    }
    words.draw(start.seed);
    const Normals normals(words);
    for (int64_t c = first * kBlockWords; c < width && c < (first + kBlocks) * kBlockWords; ++c) {
      to[c] = normals.value[c % kBlockWords][c / kBlockWords - first];
    }
  }
}

// Signs of kBlocks variables of a sample, from `first` on: 1 for negative.
inline void draw_signs(uint8_t* to, const Start& start, int64_t sample, int64_t first) {
  Words words;
  for (int i = 0; i < kBlocks; ++i) {
    words.word[0][i] = static_cast<uint32_t>(first + i);
    words.word[1][i] = 0;
    words.word[2][i] = static_cast<uint32_t>(start.first_sample + sample);
    words.word[3][i] = kDrawStart;
  }
  words.draw(start.seed);
  for (int i = 0; i < kBlocks; ++i) to[i] = is_negative(words.word[1][i]);
}

// v of inputs: its first two components, but for the sign of the second.
struct InputVector {
  Floats first, second;
};
inline InputVector input_vector(Floats z) {
  const Turned half = turn(0.5f * z);
  return {-half.cos, -minus_magnitude(half.sin)};
}

}  // namespace
}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::mixing
