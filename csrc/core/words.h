// Products of matrices of 32-bit words, where a word is one float or a pair of bfloat16 that follow one
// another in the index that is summed over. With that, both types have the same layouts:
//
//     c (m x n floats) = or += a (m x k words) b (k x n words)
//
// bfloat16 products are exact in float32, and added up in float32. The level decides how: tile registers
// (AMX), dot products of pairs (AVX-512 BF16), or two multiplications per word of the halves as floats.
// Rows and columns come in multiples of kWordRows, words in multiples of kWordSteps<T>: zeros fill the rest.
#pragma once

#include <cstdint>
#include <cstring>
#include <type_traits>

#include "core/level.h"
#include "core/simd.h"

namespace tenfold {
TENFOLD_LEVEL_BEGIN
namespace words {

using Word = uint32_t;

inline constexpr int64_t kWordRows = 16;
template <class T>
inline constexpr int64_t kPerWord = static_cast<int64_t>(sizeof(Word) / sizeof(T));
#if defined(__AMX_BF16__)
template <class T>
inline constexpr int64_t kWordSteps = sizeof(T) == 2 ? 16 : 1;
#else
template <class T>
inline constexpr int64_t kWordSteps = 1;
#endif

inline int64_t round_up(int64_t count, int64_t unit) { return (count + unit - 1) / unit * unit; }

// ---- bfloat16 bits ----

// The upper halves of the lanes are x rounded half to even, the lower ones zero; a NaN stays one.
inline UnsignedInts round_to_upper(Floats x) {
  const UnsignedInts bits = reinterpret_cast<UnsignedInts>(x);
  const UnsignedInts rounded = bits + 0x7fffu + ((bits >> 16) & 1u);
  const UnsignedInts result = (bits & 0x7fffffffu) > 0x7f800000u ? bits | 0x400000u : rounded;
  return result & 0xffff0000u;
}

// Words of two rows: the first one's values in the lower halves.
inline UnsignedInts pair_words(Floats first, Floats second) {
#if defined(__AVX512BF16__)
  const auto low =
      _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(first))));
  const auto high =
      _mm512_cvtepu16_epi32(reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(second))));
  return reinterpret_cast<UnsignedInts>(low) | (reinterpret_cast<UnsignedInts>(high) << 16);
#else
  return (round_to_upper(first) >> 16) | round_to_upper(second);
#endif
}

// Stores a vector of values side by side.
inline void store_values(float* to, Floats x) { store(to, x); }
inline void store_values(uint16_t* to, Floats x) {
#if defined(__AVX512BF16__)
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(to),
                      reinterpret_cast<__m256i>(_mm512_cvtneps_pbh(reinterpret_cast<__m512>(x))));
#else
  store_floats(to, x);
#endif
}

// ---- the product ----

#if defined(__AMX_BF16__)

// The shape of all tile registers, for the life of this: 16 rows of 16 words. Other code of the process may
// count on its own shapes (oneDNN keeps them between calls), so these come back at the end.
class Tiles {
 public:
  Tiles() {
    _tile_storeconfig(&before_);
    Config config{};
    config.palette = 1;
    for (int i = 0; i < kTiles; ++i) {
      config.row_bytes[i] = 64;
      config.rows[i] = 16;
    }
    _tile_loadconfig(&config);
  }
  ~Tiles() {
    if (before_.palette != 0) {
      _tile_loadconfig(&before_);
    } else {
      _tile_release();
    }
  }
  Tiles(const Tiles&) = delete;
  Tiles& operator=(const Tiles&) = delete;

 private:
  static constexpr int kTiles = 8;
  struct alignas(64) Config {
    uint8_t palette, start_row, reserved[14];
    uint16_t row_bytes[16];
    uint8_t rows[16];
  };
  Config before_;
};

// Columns of tiles are computed one or two at a time, and so are rows.
template <bool two_rows, bool two_columns>
void multiply_tiles(float* c, int64_t c_stride, const Word* a, int64_t a_stride, const Word* b,
                    int64_t b_stride, int64_t steps, bool add) {
  const int64_t c_bytes = 4 * c_stride, a_bytes = 4 * a_stride, b_bytes = 4 * b_stride;
  float* const lower = c + 16 * c_stride;
  if (add) {
    _tile_loadd(0, c, c_bytes);
    if constexpr (two_columns) _tile_loadd(1, c + 16, c_bytes);
    if constexpr (two_rows) _tile_loadd(2, lower, c_bytes);
    if constexpr (two_rows && two_columns) _tile_loadd(3, lower + 16, c_bytes);
  } else {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
  }
  for (int64_t k = 0; k < steps; k += 16) {
    _tile_loadd(4, a + k, a_bytes);
    _tile_loadd(6, b + k * b_stride, b_bytes);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (two_columns) {
      _tile_loadd(7, b + k * b_stride + 16, b_bytes);
      _tile_dpbf16ps(1, 4, 7);
    }
    if constexpr (two_rows) {
      _tile_loadd(5, a + 16 * a_stride + k, a_bytes);
      _tile_dpbf16ps(2, 5, 6);
      if constexpr (two_columns) _tile_dpbf16ps(3, 5, 7);
    }
  }
  _tile_stored(0, c, c_bytes);
  if constexpr (two_columns) _tile_stored(1, c + 16, c_bytes);
  if constexpr (two_rows) _tile_stored(2, lower, c_bytes);
  if constexpr (two_rows && two_columns) _tile_stored(3, lower + 16, c_bytes);
}

inline void multiply_pairs(float* c, int64_t c_stride, const Word* a, int64_t a_stride, const Word* b,
                           int64_t b_stride, int64_t m, int64_t n, int64_t steps, bool add) {
  // GCC 12 does not know that a tile load reads memory.
  asm volatile("" ::: "memory");
  for (int64_t j = 0; j < n; j += 32) {
    for (int64_t i = 0; i < m; i += 32) {
      float* const to = c + i * c_stride + j;
      const Word* const rows = a + i * a_stride;
      const auto run = [&](auto kernel) {
        kernel(to, c_stride, rows, a_stride, b + j, b_stride, steps, add);
      };
      const bool two_rows = i + 16 < m, two_columns = j + 16 < n;
      if (two_rows && two_columns) {
        run(multiply_tiles<true, true>);
      } else if (two_rows) {
        run(multiply_tiles<true, false>);
      } else if (two_columns) {
        run(multiply_tiles<false, true>);
      } else {
        run(multiply_tiles<false, false>);
      }
    }
  }
}

#else

class Tiles {};

#endif

#if defined(__AVX512F__)
inline constexpr int kRowsAtOnce = 8;
#else
inline constexpr int kRowsAtOnce = 4;
#endif

template <class T>
struct Column {  // a vector of words of b, as it is multiplied
#if defined(__AVX512BF16__)
  __m512bh pairs;
  Floats value;
#else
  Floats value, upper;
#endif
};

template <class T>
Column<T> column_of(const Word* b) {
  typedef UnsignedInts Unaligned __attribute__((aligned(4), may_alias));
  const UnsignedInts bits = *reinterpret_cast<const Unaligned*>(b);
  Column<T> column;
  if constexpr (sizeof(T) == 4) {
    column.value = reinterpret_cast<Floats>(bits);
  } else {
#if defined(__AVX512BF16__)
    column.pairs = reinterpret_cast<__m512bh>(bits);
#else
    column.value = reinterpret_cast<Floats>(bits << 16);
    column.upper = reinterpret_cast<Floats>(bits & 0xffff0000u);
#endif
  }
  return column;
}

template <class T, int columns>
void add_products(Floats* sum, Word a, const Column<T>* b) {
  if constexpr (sizeof(T) == 4) {
    const Floats value = reinterpret_cast<Floats>(UnsignedInts{} + a);
#pragma GCC unroll 4
    for (int v = 0; v < columns; ++v) sum[v] += value * b[v].value;
  } else {
#if defined(__AVX512BF16__)
    const auto value = reinterpret_cast<__m512bh>(UnsignedInts{} + a);
#pragma GCC unroll 4
    for (int v = 0; v < columns; ++v) {
      sum[v] =
          reinterpret_cast<Floats>(_mm512_dpbf16_ps(reinterpret_cast<__m512>(sum[v]), value, b[v].pairs));
    }
#else
    const UnsignedInts bits = UnsignedInts{} + a;
    const Floats value = reinterpret_cast<Floats>(bits << 16);
    const Floats upper = reinterpret_cast<Floats>(bits & 0xffff0000u);
#pragma GCC unroll 4
    for (int v = 0; v < columns; ++v) {
      sum[v] += value * b[v].value;
      sum[v] += upper * b[v].upper;
    }
#endif
  }
}

template <class T, int columns>
void multiply_strip(float* c, int64_t c_stride, const Word* a, int64_t a_stride, const Word* b,
                    int64_t b_stride, int64_t steps, bool add) {
  Floats sum[kRowsAtOnce][columns];
#pragma GCC unroll 8
  for (int r = 0; r < kRowsAtOnce; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < columns; ++v) {
      sum[r][v] = add ? load(c + r * c_stride + v * kFloatLanes) : Floats{};
    }
  }
  for (int64_t k = 0; k < steps; ++k) {
    Column<T> column[columns];
#pragma GCC unroll 4
    for (int v = 0; v < columns; ++v) column[v] = column_of<T>(b + k * b_stride + v * kFloatLanes);
#pragma GCC unroll 8
    for (int r = 0; r < kRowsAtOnce; ++r) add_products<T, columns>(sum[r], a[r * a_stride + k], column);
  }
#pragma GCC unroll 8
  for (int r = 0; r < kRowsAtOnce; ++r) {
#pragma GCC unroll 4
    for (int v = 0; v < columns; ++v) store(c + r * c_stride + v * kFloatLanes, sum[r][v]);
  }
}

template <class T>
void multiply(float* c, int64_t c_stride, const Word* a, int64_t a_stride, const Word* b, int64_t b_stride,
              int64_t m, int64_t n, int64_t steps, bool add) {
#if defined(__AMX_BF16__)
  if constexpr (sizeof(T) == 2) {
    return multiply_pairs(c, c_stride, a, a_stride, b, b_stride, m, n, steps, add);
  }
#endif
  constexpr int64_t kPair = 2 * kFloatLanes;
  for (int64_t i = 0; i < m; i += kRowsAtOnce) {
    float* const to = c + i * c_stride;
    const Word* const rows = a + i * a_stride;
    int64_t j = 0;
    for (; j + kPair <= n; j += kPair) {
      multiply_strip<T, 2>(to + j, c_stride, rows, a_stride, b + j, b_stride, steps, add);
    }
    for (; j < n; j += kFloatLanes) {
      multiply_strip<T, 1>(to + j, c_stride, rows, a_stride, b + j, b_stride, steps, add);
    }
  }
}

// ---- layouts ----

// to[k * stride + i] = from[i * from_stride + k] for i below `rows` and k below `count`, multiples of 4.
inline void transpose_strip(Word* to, int64_t stride, const Word* from, int64_t from_stride, int64_t rows,
                            int64_t count) {
  typedef Word Four __attribute__((vector_size(16), may_alias, aligned(4)));
  typedef int32_t Places __attribute__((vector_size(16)));
  for (int64_t i = 0; i < rows; i += 4) {
    const Word* const lines = from + i * from_stride;
    for (int64_t k = 0; k < count; k += 4) {
      const auto row = [&](int r) { return *reinterpret_cast<const Four*>(lines + r * from_stride + k); };
      const Four a = row(0), b = row(1), c = row(2), d = row(3);
      const Four low = __builtin_shuffle(a, b, Places{0, 4, 1, 5});
      const Four high = __builtin_shuffle(a, b, Places{2, 6, 3, 7});
      const Four more_low = __builtin_shuffle(c, d, Places{0, 4, 1, 5});
      const Four more_high = __builtin_shuffle(c, d, Places{2, 6, 3, 7});
      const auto write = [&](int64_t j, Four value) {
        *reinterpret_cast<Four*>(to + (k + j) * stride + i) = value;
      };
      write(0, __builtin_shuffle(low, more_low, Places{0, 1, 4, 5}));
      write(1, __builtin_shuffle(low, more_low, Places{2, 3, 6, 7}));
      write(2, __builtin_shuffle(high, more_high, Places{0, 1, 4, 5}));
      write(3, __builtin_shuffle(high, more_high, Places{2, 3, 6, 7}));
    }
  }
}

// to (columns x rows) = from (rows x columns)^T; multiples of 4.
inline void transpose(Word* to, int64_t to_stride, const Word* from, int64_t from_stride, int64_t rows,
                      int64_t columns) {
  constexpr int64_t kStrip = 16;  // a cache line of the result
  for (int64_t i = 0; i < rows; i += kStrip) {
    const int64_t count = rows - i < kStrip ? rows - i : kStrip;
    transpose_strip(to + i, to_stride, from + i * from_stride, from_stride, count, columns);
  }
}

// Words of a product's right operand (rows / 2 x count) from rows of words with `count` values: row j of the
// result holds the values of the rows 2 j and 2 j + 1 as pairs. float: the rows as they are.
inline void interleave(Word* to, int64_t to_stride, const Word* from, int64_t from_stride, int64_t rows,
                       int64_t count) {
  typedef uint16_t Eight __attribute__((vector_size(16), may_alias, aligned(2)));
  typedef uint16_t Places __attribute__((vector_size(16)));
  for (int64_t j = 0; 2 * j < rows; ++j) {
    const auto* const first = reinterpret_cast<const uint16_t*>(from + 2 * j * from_stride);
    const auto* const second = reinterpret_cast<const uint16_t*>(from + (2 * j + 1) * from_stride);
    auto* const words = reinterpret_cast<uint16_t*>(to + j * to_stride);
    for (int64_t i = 0; i < count; i += 8) {
      const Eight a = *reinterpret_cast<const Eight*>(first + i);
      const Eight b = *reinterpret_cast<const Eight*>(second + i);
      *reinterpret_cast<Eight*>(words + 2 * i) = __builtin_shuffle(a, b, Places{0, 8, 1, 9, 2, 10, 3, 11});
      *reinterpret_cast<Eight*>(words + 2 * i + 8) =
          __builtin_shuffle(a, b, Places{4, 12, 5, 13, 6, 14, 7, 15});
    }
  }
}

}  // namespace words
TENFOLD_LEVEL_END
}  // namespace tenfold
