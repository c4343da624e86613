// Copies of rows of bytes, through the caches or past them.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/level.h"
#include "core/simd.h"

namespace tenfold {
TENFOLD_LEVEL_BEGIN

// While one row is copied, the row that lies this many bytes of copying ahead is prefetched, line by line:
// the hardware does not know where the next row is. Measured best from 4 to 8 KiB.
inline constexpr int64_t kPrefetchBytes = 5 << 10;

template <class T>
T read(const char* from) {  // numpy's arrays may be unaligned
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

// Into every cache. Each row is read once, but with the hint that says so ("non-temporal") a gather took
// three times as long on an Intel Xeon (family 6, model 167).
inline void prefetch(const char* line) { __builtin_prefetch(line, 0, 3); }

// Four vectors at a time, then one, then the last one again where it does not end the row. `ahead` is a row
// of the same length to prefetch, or null.
template <class Value>
void write_cached(char* to, int64_t bytes, const char* ahead, Value&& value) {
  constexpr int64_t kStep = 4 * kVectorBytes;
  int64_t i = 0;
  for (; i + kStep <= bytes; i += kStep) {
    if (ahead != nullptr) {
      for (int64_t j = 0; j < kStep; j += kLineBytes) prefetch(ahead + i + j);
    }
    const Bytes a = value(i), b = value(i + kVectorBytes);
    const Bytes c = value(i + 2 * kVectorBytes), d = value(i + 3 * kVectorBytes);
    store(to + i, a);
    store(to + i + kVectorBytes, b);
    store(to + i + 2 * kVectorBytes, c);
    store(to + i + 3 * kVectorBytes, d);
  }
  for (; i + kVectorBytes <= bytes; i += kVectorBytes) {
    if (ahead != nullptr) prefetch(ahead + i);
    store(to + i, value(i));
  }
  if (i < bytes) store(to + bytes - kVectorBytes, value(bytes - kVectorBytes));
}

// Whole aligned cache lines past the caches; rest(i, n) writes the ragged ends.
template <class Value, class Rest>
void write_streamed(char* to, int64_t bytes, const char* ahead, Value&& value, Rest&& rest) {
  int64_t i = -reinterpret_cast<intptr_t>(to) & (kLineBytes - 1);
  if (i > bytes) i = bytes;
  if (i > 0) rest(0, i);
  for (; i + kLineBytes <= bytes; i += kLineBytes) {
    if (ahead != nullptr) prefetch(ahead + i);
    for (int j = 0; j < kLineBytes; j += kVectorBytes) stream(to + i + j, value(i + j));
  }
  if (i < bytes) rest(i, bytes - i);
}

inline void copy_row(char* to, const char* from, int64_t bytes, const char* ahead, bool streamed) {
  const auto value = [from](int64_t i) { return load(from + i); };
  const auto rest = [=](int64_t i, int64_t n) { std::memcpy(to + i, from + i, static_cast<size_t>(n)); };
  if (streamed) return write_streamed(to, bytes, ahead, value, rest);
  if (bytes < kVectorBytes) return rest(0, bytes);
  write_cached(to, bytes, ahead, value);
}

inline void zero_row(char* to, int64_t bytes, const char* ahead, bool streamed) {
  const auto value = [](int64_t) { return Bytes{}; };
  const auto rest = [=](int64_t i, int64_t n) { std::memset(to + i, 0, static_cast<size_t>(n)); };
  if (streamed) return write_streamed(to, bytes, ahead, value, rest);
  if (bytes < kVectorBytes) return rest(0, bytes);
  write_cached(to, bytes, ahead, value);
}

TENFOLD_LEVEL_END
}  // namespace tenfold
