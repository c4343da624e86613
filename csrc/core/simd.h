// Vectors of bytes as wide as the level's registers, over the compiler's vector extensions.
#pragma once

#include <cstdint>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "core/level.h"

namespace tenfold {
TENFOLD_LEVEL_BEGIN

#if defined(__AVX512F__)
inline constexpr int kVectorBytes = 64;
#elif defined(__AVX2__)
inline constexpr int kVectorBytes = 32;
#else
inline constexpr int kVectorBytes = 16;
#endif
inline constexpr int kLineBytes = 64;  // a cache line

typedef char Bytes __attribute__((vector_size(kVectorBytes), may_alias));
typedef char UnalignedBytes __attribute__((vector_size(kVectorBytes), may_alias, aligned(1)));

inline Bytes load(const char* from) { return *reinterpret_cast<const UnalignedBytes*>(from); }
inline void store(char* to, Bytes value) { *reinterpret_cast<UnalignedBytes*>(to) = value; }

// A store past the caches; `to` is aligned to kVectorBytes. Ordered before later stores only by fence().
inline void stream(char* to, Bytes value) {
#if defined(__AVX512F__)
  _mm512_stream_si512(reinterpret_cast<__m512i*>(to), reinterpret_cast<__m512i>(value));
#elif defined(__AVX2__)
  _mm256_stream_si256(reinterpret_cast<__m256i*>(to), reinterpret_cast<__m256i>(value));
#elif defined(__x86_64__)
  _mm_stream_si128(reinterpret_cast<__m128i*>(to), reinterpret_cast<__m128i>(value));
#else
  store(to, value);
#endif
}

inline void fence() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

TENFOLD_LEVEL_END
}  // namespace tenfold
