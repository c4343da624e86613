// Vectors of bytes as wide as the level's registers, over the compiler's vector extensions.
#pragma once

#include <cstdint>
#include <cstring>

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

typedef float Floats __attribute__((vector_size(kVectorBytes), may_alias));
typedef float UnalignedFloats __attribute__((vector_size(kVectorBytes), may_alias, aligned(4)));
typedef int32_t Ints __attribute__((vector_size(kVectorBytes), may_alias));
typedef uint32_t UnsignedInts __attribute__((vector_size(kVectorBytes), may_alias));
inline constexpr int kFloatLanes = kVectorBytes / static_cast<int>(sizeof(float));

inline Floats load(const float* from) { return *reinterpret_cast<const UnalignedFloats*>(from); }
inline void store(float* to, Floats value) { *reinterpret_cast<UnalignedFloats*>(to) = value; }

// The first `count` lanes, or all where count is larger; the others are zero.
inline Floats load_some(const float* from, int64_t count) {
  if (count >= kFloatLanes) return load(from);
  Floats value{};
  std::memcpy(&value, from, static_cast<size_t>(count) * sizeof(float));
  return value;
}
inline void store_some(float* to, Floats value, int64_t count) {
  if (count >= kFloatLanes) return store(to, value);
  std::memcpy(to, &value, static_cast<size_t>(count) * sizeof(float));
}

// -|x|.
inline Floats minus_magnitude(Floats x) {
  return reinterpret_cast<Floats>(reinterpret_cast<UnsignedInts>(x) | 0x80000000u);
}

// The greater of each pair; x where it is a NaN. (The form without a mask makes GCC 12 warn.)
inline Floats greater_of(Floats bound, Floats x) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(
      _mm512_maskz_max_ps(0xffff, reinterpret_cast<__m512>(bound), reinterpret_cast<__m512>(x)));
#elif defined(__AVX2__)
  return reinterpret_cast<Floats>(
      _mm256_max_ps(reinterpret_cast<__m256>(bound), reinterpret_cast<__m256>(x)));
#else
  return bound > x ? bound : x;
#endif
}

inline Floats square_root(Floats x) {
#if defined(__AVX512F__)
  return reinterpret_cast<Floats>(_mm512_maskz_sqrt_ps(0xffff, reinterpret_cast<__m512>(x)));
#elif defined(__AVX2__)
  return reinterpret_cast<Floats>(_mm256_sqrt_ps(reinterpret_cast<__m256>(x)));
#elif defined(__x86_64__)
  return reinterpret_cast<Floats>(_mm_sqrt_ps(reinterpret_cast<__m128>(x)));
#else
  for (int i = 0; i < kFloatLanes; ++i) x[i] = __builtin_sqrtf(x[i]);
  return x;
#endif
}

inline Bytes load(const char* from) { return *reinterpret_cast<const UnalignedBytes*>(from); }
inline void store(char* to, Bytes value) { *reinterpret_cast<UnalignedBytes*>(to) = value; }

// float32 and bfloat16 as vectors of float32; a store rounds half to even, and a NaN stays one.
inline Floats load_floats(const float* from) { return load(from); }
inline Floats load_floats(const uint16_t* from) {
#if defined(__AVX512F__)  // one instruction; gcc 12 makes five of the conversion below
  const auto half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
  const auto wide = reinterpret_cast<UnsignedInts>(_mm512_cvtepu16_epi32(half));
#elif defined(__AVX2__)
  const auto half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
  const auto wide = reinterpret_cast<UnsignedInts>(_mm256_cvtepu16_epi32(half));
#else
  typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2), may_alias, aligned(2)));
  const auto wide = __builtin_convertvector(*reinterpret_cast<const Halves*>(from), UnsignedInts);
#endif
  return reinterpret_cast<Floats>(wide << 16);
}
inline void store_floats(float* to, Floats value) { store(to, value); }
inline void store_floats(uint16_t* to, Floats value) {
  typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint16_t Unaligned __attribute__((vector_size(kVectorBytes / 2), may_alias, aligned(2)));
  const UnsignedInts bits = reinterpret_cast<UnsignedInts>(value);
  const UnsignedInts rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  const UnsignedInts quiet = (bits >> 16) | 0x40u;
  const UnsignedInts result = value != value ? quiet : rounded;
  *reinterpret_cast<Unaligned*>(to) = __builtin_convertvector(result, Halves);
}

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
