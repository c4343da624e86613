// Single-precision matrix products C = A B, a block of rows of C at a time.
//
// A tile of C stays in registers over kDepth steps of k, so that what it reads of B stays in the first-level
// cache. A's rows are packed into panels of kTileRows rows, once; B's columns into panels of kTileColumns
// columns, a chunk at a time, just before all rows of A use it: nothing packed goes back to memory, and
// threads share nothing. What packing will read next is asked for while tiles are multiplied: the processor
// does not foresee it.
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
inline constexpr int64_t kScratch = (kBlockRows + kTileRows) * kBlockDepth;  // floats product() works in

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

// Cache lines to be read soon: `lines` of them, from row to row, `of_row` in each.
struct Ahead {
  const float* row = nullptr;
  int64_t stride = 0;
  int64_t of_row = 0;
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

// tile (+)= a b over `depth` steps of packed panels, asking for a line of `ahead` and of `result` every other
// step.
inline void multiply_tile(Tile& tile, const float* a, const float* b, int64_t depth, bool first, Ahead& ahead,
                          Ahead result) {
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
      sum[r][0] += a[k * kTileRows + r] * left;
      sum[r][1] += a[k * kTileRows + r] * right;
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

// The lines that packing the panel of `source` at (first, k) will read: none where they lie singly.
inline Ahead lines_of_panel(const Source& source, int64_t first, int64_t k, int64_t steps) {
  if (source.across_ids != nullptr || source.along_ids != nullptr) return {};
  const float* const from = source.data + first * source.across + k * source.along;
  if (source.across == 1) return {from, source.along, kTileLines, kTileLines * steps};
  const int64_t lines = steps * 4 / kLineBytes;
  return source.along == 1 ? Ahead{from, source.across, lines, lines * kTileColumns} : Ahead{};
}

// `a` packed, `rows` of it.
inline void multiply(const Output& out, const float* a, int64_t rows, const Source& b, int64_t columns,
                     int64_t depth) {
  alignas(kLineBytes) float chunk[kDepth * kTileColumns];
  Tile tiles[(kBlockRows + kTileRows - 1) / kTileRows];
  for (int64_t column = 0; column < columns; column += kTileColumns) {
    const int64_t filled = lesser(columns - column, kTileColumns);
    int64_t k = 0;
    do {  // once where depth is 0: then C is zero
      const int64_t steps = lesser(depth - k, kDepth), next = k + steps;
      const bool last = next == depth;
      pack_panel<kTileColumns>(chunk, b.past_along(k), column, columns, steps);
      Ahead ahead;  // of the next chunk, where that is a whole one
      if (!last && depth - next >= kDepth) {
        ahead = lines_of_panel(b, column, next, kDepth);
      } else if (last && columns - column >= 2 * kTileColumns) {
        ahead = lines_of_panel(b, column + kTileColumns, 0, lesser(depth, kDepth));
      }
      for (int64_t row = 0; row < rows; row += kTileRows) {
        Tile& tile = tiles[row / kTileRows];
        Ahead result;
        const int64_t rows_left = lesser(rows - row, kTileRows);
        if (last)
          result = {out.to + row * out.stride + column, out.stride, kTileLines, kTileLines * rows_left};
        multiply_tile(tile, a + row * depth + k * kTileRows, chunk, steps, k == 0, ahead, result);
        for (int64_t r = 0; last && r < rows_left; ++r) {
          out.write(row + r, column, reinterpret_cast<const float*>(tile.row[r]), filled);
        }
      }
      k = next;
    } while (k < depth);
  }
}

// Up to kBlockRows rows of C, from A (rows x depth) and B (depth x columns). `scratch` holds kScratch floats,
// aligned to a cache line.
inline void product(const Output& out, const Source& a, int64_t rows, const Source& b, int64_t columns,
                    int64_t depth, float* scratch) {
  int64_t k = 0;
  do {
    const int64_t steps = lesser(depth - k, kBlockDepth);
    pack_panels<kTileRows>(scratch, a.past_along(k), rows, steps);
    multiply({out.to, out.stride, k == 0 ? out.bias : nullptr, out.add || k > 0}, scratch, rows,
             b.past_along(k), columns, steps);
    k += kBlockDepth;
  } while (k < depth);
}

}  // namespace gemm
TENFOLD_LEVEL_END
}  // namespace tenfold
