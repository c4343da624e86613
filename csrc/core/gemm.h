// Single-precision matrix products of packed operands: C = A B, tile by tile.
//
// A (m x k) is packed into panels of kTileRows rows, B (k x n) into panels of kTileColumns columns, both with
// the k index outermost within a panel and padded with zeros to whole panels. A tile of C is held in
// registers over kDepth steps of k at a time, so that the part of B's panel in use stays in the first-level
// cache; then it is handed to a sink, which stores it, with whatever else is to be done to it. Every element
// is added up in the order of k in chunks of kDepth, whatever the sizes of blocks and the number of threads:
// same bits always.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/level.h"
#include "core/simd.h"

namespace tenfold {
TENFOLD_LEVEL_BEGIN
namespace gemm {

// Accumulators, the vectors of B and one broadcast element of A fill the registers: 32, else 16.
#if defined(__AVX512F__)
inline constexpr int kTileRows = 12;
#else
inline constexpr int kTileRows = 6;
#endif
inline constexpr int kTileVectors = 2;
inline constexpr int kTileColumns = kTileVectors * kFloatLanes;
inline constexpr int64_t kDepth = 192;
inline constexpr int64_t kBlockPanels = 96 / kTileRows;  // panels of A that one call of multiply() takes

inline int64_t panels(int64_t count, int64_t width) { return (count + width - 1) / width; }
inline int64_t packed_rows_size(int64_t rows, int64_t depth) {
  return panels(rows, kTileRows) * kTileRows * depth;
}
inline int64_t packed_columns_size(int64_t columns, int64_t depth) {
  return panels(columns, kTileColumns) * kTileColumns * depth;
}

// An operand seen from the packing: element (i, k) is data[i' * across + k' * along], where i runs over the
// rows of A or the columns of B. Either index may go through ids: i' = ids[i], or k' = ids[k].
struct Source {
  const float* data;
  int64_t across, along;  // in elements
  const int32_t* across_ids = nullptr;
  const int32_t* along_ids = nullptr;

  int64_t at_across(int64_t i) const { return (across_ids != nullptr ? across_ids[i] : i) * across; }
  int64_t at_along(int64_t k) const { return (along_ids != nullptr ? along_ids[k] : k) * along; }
};

inline constexpr int64_t kAhead = 16;  // rows prefetched while one is packed

template <int width>
void prefetch_row(const float* row) {
  for (int i = 0; i < width; i += kLineBytes / 4) __builtin_prefetch(row + i, 0, 3);
}

// to[j * width + i] = lines[i][k + j] for i and j below 4.
inline void transpose_four(float* to, const float* const* lines, int64_t k, int64_t width) {
  typedef float Four __attribute__((vector_size(16), may_alias, aligned(4)));
  typedef int32_t Places __attribute__((vector_size(16)));
  const auto row = [&](int i) { return *reinterpret_cast<const Four*>(lines[i] + k); };
  const Four a = row(0), b = row(1), c = row(2), d = row(3);
  const Four low = __builtin_shuffle(a, b, Places{0, 4, 1, 5}),
             high = __builtin_shuffle(a, b, Places{2, 6, 3, 7});
  const Four more_low = __builtin_shuffle(c, d, Places{0, 4, 1, 5});
  const Four more_high = __builtin_shuffle(c, d, Places{2, 6, 3, 7});
  const auto write = [&](int j, Four value) { *reinterpret_cast<Four*>(to + j * width) = value; };
  write(0, __builtin_shuffle(low, more_low, Places{0, 1, 4, 5}));
  write(1, __builtin_shuffle(low, more_low, Places{2, 3, 6, 7}));
  write(2, __builtin_shuffle(high, more_high, Places{0, 1, 4, 5}));
  write(3, __builtin_shuffle(high, more_high, Places{2, 3, 6, 7}));
}

// Packs the panel whose first index is `first` of `count`: to[k * row + i], i below `width`.
template <int width, int row = width>
void pack_panel(float* to, const Source& source, int64_t first, int64_t count, int64_t depth) {
  const int64_t filled = count - first < width ? count - first : width;
  if (source.across == 1 && source.across_ids == nullptr) {
    for (int64_t k = 0; k < depth; ++k) {
      const float* const from = source.data + first + source.at_along(k);
      float* const line = to + k * row;
      // Rows far apart are not foreseen by the hardware.
      if (k + kAhead < depth) prefetch_row<width>(source.data + first + source.at_along(k + kAhead));
      if (filled == width) {
        std::memcpy(line, from, sizeof(float) * width);
      } else {
        for (int i = 0; i < width; ++i) line[i] = i < filled ? from[i] : 0.0f;
      }
    }
    return;
  }
  const float* lines[width];
  for (int i = 0; i < width; ++i) {
    // A padded line reads the first one, and is overwritten with zeros below.
    lines[i] = source.data + source.at_across(first + (i < filled ? i : 0));
  }
  int64_t k = 0;
  if (source.along == 1 && source.along_ids == nullptr) {
    for (; k + 4 <= depth; k += 4) {
      int i = 0;
#pragma GCC unroll 16
      for (; i + 4 <= width; i += 4) transpose_four(to + k * row + i, lines + i, k, row);
      for (; i < width; ++i) {
        for (int j = 0; j < 4; ++j) to[(k + j) * row + i] = lines[i][k + j];
      }
    }
  }
  for (; k < depth; ++k) {
    const int64_t at = source.at_along(k);
#pragma GCC unroll 32
    for (int i = 0; i < width; ++i) to[k * row + i] = lines[i][at];
  }
  for (k = 0; filled < width && k < depth; ++k) {
    for (int64_t i = filled; i < width; ++i) to[k * row + i] = 0.0f;
  }
}

// Packs part of a panel of A from rows that lie in memory: to[c * kTileRows + r] = lines[r][c], c below
// `count`.
inline void pack_lines(float* to, const float* const* lines, int64_t count) {
  int64_t c = 0;
  for (; c + 4 <= count; c += 4) {
    int r = 0;
#pragma GCC unroll 4
    for (; r + 4 <= kTileRows; r += 4) transpose_four(to + c * kTileRows + r, lines + r, c, kTileRows);
    for (; r < kTileRows; ++r) {
      for (int j = 0; j < 4; ++j) to[(c + j) * kTileRows + r] = lines[r][c + j];
    }
  }
  for (; c < count; ++c) {
    for (int r = 0; r < kTileRows; ++r) to[c * kTileRows + r] = lines[r][c];
  }
}

inline void pack_rows(float* to, const Source& source, int64_t first, int64_t rows, int64_t depth) {
  for (int64_t i = first; i < first + rows; i += kTileRows) {
    pack_panel<kTileRows>(to + (i - first) * depth, source, i, first + rows, depth);
  }
}

inline void pack_columns(float* to, const Source& source, int64_t first, int64_t columns, int64_t depth) {
  for (int64_t j = first; j < first + columns; j += kTileColumns) {
    pack_panel<kTileColumns>(to + (j - first) * depth, source, j, first + columns, depth);
  }
}

// A tile of C in memory.
struct alignas(kLineBytes) Tile {
  Floats row[kTileRows][kTileVectors];

  const float* values(int r) const { return reinterpret_cast<const float*>(&row[r][0]); }
  float* values(int r) { return reinterpret_cast<float*>(&row[r][0]); }
};

// tile (+)= a b over `depth` steps.
inline void multiply_tile(Tile& tile, const float* a, const float* b, int64_t depth, bool first) {
  Floats sum[kTileRows][kTileVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) sum[r][v] = first ? Floats{} : tile.row[r][v];
  }
  for (int64_t k = 0; k < depth; ++k) {
    const Floats* const columns = reinterpret_cast<const Floats*>(b + k * kTileColumns);
    const Floats left = columns[0], right = columns[1];
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      sum[r][0] += a[k * kTileRows + r] * left;
      sum[r][1] += a[k * kTileRows + r] * right;
    }
  }
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) tile.row[r][v] = sum[r][v];
  }
}

// C of `rows` packed rows (at most kBlockPanels panels) times `columns` packed columns. Calls
// sink(row, rows_in_tile, column, columns_in_tile, tile) once per tile. `b` is aligned to kLineBytes.
template <class Sink>
void multiply(const float* a, int64_t rows, const float* b, int64_t columns, int64_t depth, Sink&& sink) {
  Tile tiles[kBlockPanels];
  for (int64_t column = 0; column < columns; column += kTileColumns) {
    const float* const panel = b + column * depth;
    int64_t k = 0;
    do {  // once where depth is 0: then C is zero
      const int64_t steps = depth - k < kDepth ? depth - k : kDepth;
      for (int64_t row = 0; row < rows; row += kTileRows) {
        multiply_tile(tiles[row / kTileRows], a + row * depth + k * kTileRows, panel + k * kTileColumns,
                      steps, k == 0);
      }
      k += kDepth;
    } while (k < depth);
    const int64_t columns_left = columns - column < kTileColumns ? columns - column : kTileColumns;
    for (int64_t row = 0; row < rows; row += kTileRows) {
      const int64_t rows_left = rows - row < kTileRows ? rows - row : kTileRows;
      sink(row, static_cast<int>(rows_left), column, static_cast<int>(columns_left), tiles[row / kTileRows]);
    }
  }
}

}  // namespace gemm
TENFOLD_LEVEL_END
}  // namespace tenfold
