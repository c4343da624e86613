// Single-precision matrix products C = A B, a block of rows of C at a time.
//
// A tile of C stays in registers over kDepth steps of k, so that what it reads of B stays in the first-level
// cache. A's rows are packed into panels of kTileRows rows, B's columns into panels of kTileColumns columns:
//   - B's rows contiguous: A's block is packed once, B a chunk at a time, just before the chunk is used.
//   Nothing
//     packed goes back to memory, and threads share nothing.
//   - B's columns contiguous, as those of a transposed weight: A and B change places. A's rows become the
//   columns
//     of tiles, B's columns are read where they lie, one element broadcast, and tiles are stored turned.
// What memory will be read next is asked for while tiles are multiplied: the processor does not foresee it.
//
// Every element is added up in the order of k, in parts whose bounds depend on k alone: the same bits always,
// for blocks of any size and any number of threads.
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
inline constexpr int64_t kTileLines = (kTileColumns * 4 + kLineBytes - 1) / kLineBytes;  // of one of its rows
inline constexpr int64_t kDepth = 192;
inline constexpr int64_t kBlockRows = 192;          // rows that one call of product() takes at most
inline constexpr int64_t kBlockDepth = 4 * kDepth;  // with this many steps they fit the second-level cache
inline constexpr int64_t kTurnedColumns = 96;       // columns of B between two turns of tiles
inline constexpr int64_t kScratch = (kBlockRows + kTileColumns) * kBlockDepth;  // floats product() works in

// An operand seen from the packing: element (i, k) is data[i' * across + k' * along], where i runs over the
// rows of A or the columns of B. Either index may go through ids: i' = ids[i], or k' = ids[k].
struct Source {
  const float* data;
  int64_t across, along;  // in elements
  const int32_t* across_ids = nullptr;
  const int32_t* along_ids = nullptr;

  int64_t at_across(int64_t i) const { return (across_ids != nullptr ? across_ids[i] : i) * across; }
  int64_t at_along(int64_t k) const { return (along_ids != nullptr ? along_ids[k] : k) * along; }
  bool contiguous_across() const { return across == 1 && across_ids == nullptr; }
  bool contiguous_along() const { return along == 1 && along_ids == nullptr; }

  // The same from another i or k on.
  Source past_across(int64_t i) const {
    Source past = *this;
    if (across_ids != nullptr)
      past.across_ids += i;
    else
      past.data += i * across;
    return past;
  }
  Source past_along(int64_t k) const {
    Source past = *this;
    if (along_ids != nullptr)
      past.along_ids += k;
    else
      past.data += k * along;
    return past;
  }
};

// ---- packing ----

inline constexpr int64_t kAhead = 16;  // rows asked for while one is packed

template <int width>
void prefetch_row(const float* row) {
  for (int i = 0; i < width; i += kLineBytes / 4) __builtin_prefetch(row + i, 0, 3);
}

typedef float Four __attribute__((vector_size(16), may_alias, aligned(4)));

// Writes the four floats of each quarter of 16 bytes, 4 * stride floats from one to the next.
template <int quarter = 0>
void scatter_quarters(float* to, int64_t stride, Floats values) {
  constexpr int at = 4 * quarter;
  *reinterpret_cast<Four*>(to + at * stride) =
      __builtin_shufflevector(values, values, at, at + 1, at + 2, at + 3);
  if constexpr (at + 4 < kFloatLanes) scatter_quarters<quarter + 1>(to, stride, values);
}

// to[j * width + i] = lines[i][k + j] for i below 4 and j below kFloatLanes.
inline void transpose_four(float* to, const float* const* lines, int64_t k, int64_t width) {
  Ints low{}, low_pairs{};
  for (int i = 0; i < kFloatLanes; ++i) {
    const int quarter = i / 4 * 4, pair = i % 4 / 2, other = i % 2;
    low[i] = quarter + pair + other * kFloatLanes;
    low_pairs[i] = quarter + other + pair * kFloatLanes;
  }
  const Ints high = low + 2, high_pairs = low_pairs + 2;
  // Pairs of lines interleaved, then pairs of pairs: every quarter is a step of all four.
  const Floats a = load(lines[0] + k), b = load(lines[1] + k), c = load(lines[2] + k), d = load(lines[3] + k);
  const Floats ab_low = __builtin_shuffle(a, b, low), ab_high = __builtin_shuffle(a, b, high);
  const Floats cd_low = __builtin_shuffle(c, d, low), cd_high = __builtin_shuffle(c, d, high);
  scatter_quarters(to, width, __builtin_shuffle(ab_low, cd_low, low_pairs));
  scatter_quarters(to + width, width, __builtin_shuffle(ab_low, cd_low, high_pairs));
  scatter_quarters(to + 2 * width, width, __builtin_shuffle(ab_high, cd_high, low_pairs));
  scatter_quarters(to + 3 * width, width, __builtin_shuffle(ab_high, cd_high, high_pairs));
}

// Packs the panel whose first index is `first` of `count`: to[k * width + i], i below `width`.
template <int width>
void pack_panel(float* to, const Source& source, int64_t first, int64_t count, int64_t depth) {
  const int64_t filled = count - first < width ? count - first : width;
  if (source.contiguous_across()) {
    for (int64_t k = 0; k < depth; ++k) {
      const float* const from = source.data + first + source.at_along(k);
      float* const line = to + k * width;
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
  if (source.contiguous_along()) {
    for (; k + kFloatLanes <= depth; k += kFloatLanes) {
      int i = 0;
#pragma GCC unroll 16
      for (; i + 4 <= width; i += 4) transpose_four(to + k * width + i, lines + i, k, width);
      for (; i < width; ++i) {
        for (int j = 0; j < kFloatLanes; ++j) to[(k + j) * width + i] = lines[i][k + j];
      }
    }
  }
  for (; k < depth; ++k) {
    const int64_t at = source.at_along(k);
#pragma GCC unroll 32
    for (int i = 0; i < width; ++i) to[k * width + i] = lines[i][at];
  }
  for (k = 0; filled < width && k < depth; ++k) {
    for (int64_t i = filled; i < width; ++i) to[k * width + i] = 0.0f;
  }
}

// Packs all panels; the one that begins with index i lies at to + i * depth.
template <int width>
void pack_panels(float* to, const Source& source, int64_t count, int64_t depth) {
  int64_t i = 0;
  if (source.contiguous_across()) {  // all whole panels of a row at once: its lines are read once, in order
    const int64_t whole = count / width * width;
    for (int64_t k = 0; k < depth; ++k) {
      const float* const from = source.data + source.at_along(k);
      for (i = 0; i < whole; i += width)
        std::memcpy(to + i * depth + k * width, from + i, sizeof(float) * width);
    }
    i = whole;
  }
  for (; i < count; i += width) pack_panel<width>(to + i * depth, source, i, count, depth);
}

// ---- tiles ----

struct alignas(kLineBytes) Tile {
  Floats row[kTileRows][kTileVectors];
};

// What a tile takes from A: a packed panel, or kTileRows rows where they lie.
struct Panel {
  const float* at;

  float operator()(int64_t k, int r) const { return at[k * kTileRows + r]; }
};

struct RowsInPlace {
  const float* at[kTileRows / 3];  // every third row: few enough pointers for registers
  int64_t stride;

  RowsInPlace(const float* from, int64_t row_stride) : stride(row_stride) {
    for (int i = 0; i < kTileRows / 3; ++i) at[i] = from + 3 * i * row_stride;
  }
  float operator()(int64_t k, int r) const { return at[r / 3][r % 3 * stride + k]; }
};

// Cache lines to be read soon: `lines` of them, from row to row, `of_row` in each.
struct Ahead {
  const float* row = nullptr;
  int64_t stride = 0;
  int64_t of_row = 1;
  int64_t lines = 0;
  int64_t place = 0;

  template <bool to_write>
  void ask() {
    if (lines == 0) return;
    --lines;
    // What is written goes to the first level, what is read to the second: the first one is full.
    __builtin_prefetch(row + place * (kLineBytes / 4), to_write, to_write ? 3 : 2);
    if (++place < of_row) return;
    place = 0;
    row += stride;
  }
};

// tile (+)= a b over `depth` steps, asking for a line of `ahead` and of `result` every other step.
template <class Left>
void multiply_tile(Tile& tile, const Left& a, const float* b, int64_t depth, bool first, Ahead ahead,
                   Ahead result = {}) {
  Floats sum[kTileRows][kTileVectors];
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) sum[r][v] = first ? Floats{} : tile.row[r][v];
  }
  const auto step = [&](int64_t k) __attribute__((always_inline)) {
    const Floats* const columns = reinterpret_cast<const Floats*>(b + k * kTileColumns);
    const Floats left = columns[0], right = columns[1];
#pragma GCC unroll 16
    for (int r = 0; r < kTileRows; ++r) {
      sum[r][0] += a(k, r) * left;
      sum[r][1] += a(k, r) * right;
    }
  };
  int64_t k = 0;
  for (; k + 2 <= depth; k += 2) {
    ahead.ask<false>();
    result.ask<true>();
    step(k);
    step(k + 1);
  }
  if (k < depth) step(k);
#pragma GCC unroll 16
  for (int r = 0; r < kTileRows; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kTileVectors; ++v) tile.row[r][v] = sum[r][v];
  }
}

// ---- products ----

// Rows of C: to[row * stride + column] = or += the product, plus a bias per column where there is one.
struct Output {
  float* to;
  int64_t stride;
  const float* bias = nullptr;
  bool add = false;

  void write(int64_t row, int64_t column, const float* values, int64_t count) const {
    float* const at = to + row * stride + column;
    for (int64_t c = 0; c < count; c += kFloatLanes) {
      Floats value = load_some(values + c, count - c);
      if (bias != nullptr) value += load_some(bias + column + c, count - c);
      if (add) value += load_some(at + c, count - c);
      store_some(at + c, value, count - c);
    }
  }
};

inline int64_t lesser(int64_t a, int64_t b) { return a < b ? a : b; }

// Rows of a left operand: the first `in_place` of them, whole tiles, are read where they lie, the others
// packed.
struct LeftRows {
  Source source;
  int64_t in_place, depth;
  const float* packed;

  LeftRows(const Source& from, int64_t count, int64_t from_place, int64_t steps, float* scratch)
      : source(from), in_place(from_place), depth(steps), packed(scratch) {
    pack_panels<kTileRows>(scratch, from.past_across(in_place), count - in_place, steps);
  }

  void multiply(Tile& tile, int64_t row, int64_t k, const float* b, int64_t steps, const Ahead& ahead,
                const Ahead& result) const {
    if (row < in_place) {
      const RowsInPlace rows(source.data + row * source.across + k, source.across);
      multiply_tile(tile, rows, b, steps, k == 0, ahead, result);
    } else {
      const Panel panel{packed + (row - in_place) * depth + k * kTileRows};
      multiply_tile(tile, panel, b, steps, k == 0, ahead, result);
    }
  }
};

// Rows of B contiguous, or anyhow: a chunk of a panel is packed just before all rows of A use it.
inline void product_by_columns(const Output& out, const LeftRows& a, int64_t rows, const Source& b,
                               int64_t columns, int64_t depth) {
  alignas(kLineBytes) float chunk[kDepth * kTileColumns];
  Tile tiles[(kBlockRows + kTileRows - 1) / kTileRows];
  const int64_t count = (rows + kTileRows - 1) / kTileRows;
  for (int64_t column = 0; column < columns; column += kTileColumns) {
    const int64_t filled = lesser(columns - column, kTileColumns);
    int64_t k = 0;
    do {  // once where depth is 0: then C is zero
      const int64_t steps = lesser(depth - k, kDepth);
      const bool last = k + steps == depth;
      pack_panel<kTileColumns>(chunk, b.past_along(k), column, columns, steps);
      Ahead ahead;  // the next chunk, shared out between the tiles
      if (b.contiguous_across() && b.along_ids == nullptr && (!last || column + kTileColumns < columns)) {
        const int64_t next_steps = last ? lesser(depth, kDepth) : lesser(depth - k - steps, kDepth);
        const int64_t each = (next_steps * kTileLines / count + kTileLines - 1) / kTileLines * kTileLines;
        ahead = {b.data + (last ? column + kTileColumns : column + (k + steps) * b.along), b.along,
                 kTileLines, each};
      }
      for (int64_t i = 0; i < count; ++i) {
        const int64_t row = i * kTileRows;
        Ahead result;
        if (last)
          result = {out.to + row * out.stride + column, out.stride, kTileLines,
                    kTileLines * lesser(rows - row, kTileRows)};
        a.multiply(tiles[i], row, k, chunk, steps, ahead, result);
        ahead.row += ahead.lines / ahead.of_row * ahead.stride;
        for (int r = 0; last && r < kTileRows && row + r < rows; ++r) {
          out.write(row + r, column, reinterpret_cast<const float*>(tiles[i].row[r]), filled);
        }
      }
      k += kDepth;
    } while (k < depth);
  }
}

// to[j * width + i] = tile[i][j].
inline void turn(float* to, int64_t width, const Tile& tile) {
  const float* lines[kTileRows];
  for (int i = 0; i < kTileRows; ++i) lines[i] = reinterpret_cast<const float*>(tile.row[i]);
  for (int j = 0; j < kTileColumns; j += kFloatLanes) {
    int i = 0;
#pragma GCC unroll 4
    for (; i + 4 <= kTileRows; i += 4) transpose_four(to + j * width + i, lines + i, j, width);
    for (; i < kTileRows; ++i) {
      for (int c = 0; c < kFloatLanes; ++c) to[(j + c) * width + i] = lines[i][j + c];
    }
  }
}

// The product with A and B exchanged, and turned: columns of B are rows of tiles, `a` is packed in panels of
// kTileColumns rows.
inline void product_turned(const Output& out, const float* a, int64_t rows, const LeftRows& b,
                           int64_t columns, int64_t depth) {
  constexpr int64_t kPanels = kTurnedColumns / kTileRows;
  Tile tiles[kPanels];
  alignas(kLineBytes) float turned[kTileColumns * kTurnedColumns];
  for (int64_t column = 0; column < columns; column += kTurnedColumns) {
    const int64_t filled = lesser(columns - column, kTurnedColumns);
    const int64_t count = (filled + kTileRows - 1) / kTileRows;
    for (int64_t row = 0; row < rows; row += kTileColumns) {
      int64_t k = 0;
      do {
        const int64_t steps = lesser(depth - k, kDepth);
        for (int64_t i = 0; i < count; ++i) {
          const int64_t first = column + i * kTileRows;
          const float* const panel = a + row * depth + k * kTileColumns;
          Ahead ahead;
          if (row == 0 && first + kTileRows < b.in_place) {  // the columns of the next tile
            const int64_t of_row = steps * 4 / kLineBytes;
            ahead = {b.source.data + (first + kTileRows) * b.source.across + k, b.source.across,
                     of_row > 0 ? of_row : 1, of_row * kTileRows};
          }
          b.multiply(tiles[i], first, k, panel, steps, ahead, {});
        }
        k += kDepth;
      } while (k < depth);
      for (int64_t i = 0; i < count; ++i) turn(turned + i * kTileRows, kTurnedColumns, tiles[i]);
      for (int64_t r = 0; r < kTileColumns && row + r < rows; ++r) {
        out.write(row + r, column, turned + r * kTurnedColumns, filled);
      }
    }
  }
}

// Up to kBlockRows rows of C, from A (rows x depth) and B (depth x columns). `scratch` holds kScratch floats,
// aligned to a cache line.
inline void product(const Output& out, const Source& a, int64_t rows, const Source& b, int64_t columns,
                    int64_t depth, float* scratch) {
  const bool turned = b.contiguous_along() && !b.contiguous_across() && b.across_ids == nullptr;
  int64_t k = 0;
  do {
    const int64_t steps = lesser(depth - k, kBlockDepth);
    const Output part{out.to, out.stride, k == 0 ? out.bias : nullptr, out.add || k > 0};
    const Source left = a.past_along(k), right = b.past_along(k);
    if (turned) {
      pack_panels<kTileColumns>(scratch, left, rows, steps);
      const int64_t whole = columns / kTileRows * kTileRows;
      const LeftRows columns_of_b(right, columns, whole, steps, scratch + kBlockRows * kBlockDepth);
      product_turned(part, scratch, rows, columns_of_b, columns, steps);
    } else {
      product_by_columns(part, LeftRows(left, rows, 0, steps, scratch), rows, right, columns, steps);
    }
    k += kBlockDepth;
  } while (k < depth);
}

}  // namespace gemm
TENFOLD_LEVEL_END
}  // namespace tenfold
