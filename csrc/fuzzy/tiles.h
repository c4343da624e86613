// The index space in tiles of kRows rows of kWidth lanes, and operands as rows of numbers in a tile.
#pragma once

#include <cstdint>
#include <new>
#include <type_traits>

#include "core/parallel.h"
#include "fuzzy/fuzzy.h"
#include "fuzzy/lanes.h"

namespace tenfold::fuzzy {
namespace TENFOLD_LEVEL {

// Tiles are kRows rows of half of kWidth lanes, or where there are more lanes half as many rows of all: 16
// KiB of float, half of a first-level cache, and whole pages of memory one after another. Rows in memory of
// ours are kStride apart, a line more than a page, so that they do not share the lines of a cache.
inline constexpr int64_t kRows = kTileRows, kWidth = kTileLanes, kStride = kWidth + 16;
// Below this many elements waking a thread costs more than it saves.
inline constexpr int64_t kSmall = 1 << 14;

template <class T>
using NumberOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Memory for numbers, aligned to a cache line; contents start undefined.
template <class N>
class Memory {
 public:
  Memory() = default;
  explicit Memory(int64_t count) { allocate(count); }
  ~Memory() { ::operator delete(data_, kLine); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  void allocate(int64_t count) {
    ::operator delete(data_, kLine);
    data_ = static_cast<N*>(::operator new(static_cast<unsigned long>(count + 1) * sizeof(N), kLine));
  }
  N* data() const { return data_; }
  N& operator[](int64_t i) const { return data_[i]; }

 private:
  static constexpr std::align_val_t kLine{64};
  N* data_ = nullptr;
};

struct Tile {
  int64_t at[kMostAxes];
  bool first[kMostAxes];       // nothing of this part came before, along the axis
  int64_t rows, lanes, width;  // width: lanes in whole vectors
};

// Calls body(part) for all parts; a small task stays on the calling thread.
template <class Body>
void for_parts(const Task& task, Body&& body) {
  int64_t elements = task.operands;
  for (const int64_t count : task.counts) elements *= count;
  if (elements < kSmall || task.parts == 1) {
    auto&& work = body();
    for (int part = 0; part < task.parts; ++part) work(part);
    return;
  }
  parallel_tasks(task.parts, [&](auto&& next) {
    auto&& work = body();
    for (int64_t part = next(); part < task.parts; part = next()) work(static_cast<int>(part));
  });
}

// Calls body(tile) for the tiles of one part.
template <class N, class Body>
void for_tiles(const Task& task, int part, Body&& body) {
  int64_t begin[kMostAxes], end[kMostAxes];
  for (int k = 0; k < kMostAxes; ++k) {
    begin[k] = 0;
    end[k] = task.counts[k];
  }
  const int axis = task.part_axis;
  const int64_t unit = axis == kRowAxis ? kRows : axis == kLaneAxis ? kWidth : 1;
  const int64_t units = (task.counts[axis] + unit - 1) / unit;
  begin[axis] = units * part / task.parts * unit;
  const int64_t stop = units * (part + 1) / task.parts * unit;
  if (stop < end[axis]) end[axis] = stop;
  const int64_t rows = task.counts[kLaneAxis] > kWidth / 2 ? kRows / 2 : kRows;
  Tile tile;
  for (int64_t a = begin[kOuter]; a < end[kOuter]; ++a) {
    for (int64_t h = begin[kRowAxis]; h < end[kRowAxis]; h += rows) {
      tile.rows = end[kRowAxis] - h < rows ? end[kRowAxis] - h : rows;
      for (int64_t j = begin[kLaneAxis]; j < end[kLaneAxis]; j += kWidth) {
        tile.lanes = end[kLaneAxis] - j < kWidth ? end[kLaneAxis] - j : kWidth;
        tile.width = padded<N>(tile.lanes);
        for (int64_t b = begin[kInner]; b < end[kInner]; ++b) {
          const int64_t at[kMostAxes] = {a, b, h, j};
          for (int k = 0; k < kMostAxes; ++k) {
            tile.at[k] = at[k];
            tile.first[k] = at[k] == begin[k];
          }
          body(static_cast<const Tile&>(tile));
        }
      }
    }
  }
}

inline char* address(const Strided& array, const Tile& tile) {
  char* data = array.data;
  for (int k = 0; k < kMostAxes; ++k) data += tile.at[k] * array.strides[k];
  return data;
}

// The cells of an operand that a tile covers: those of row h from data + h * row_step on, or that one alone.
template <class N>
struct Cells {
  const N* data = nullptr;
  int64_t row_step = 0;
  bool lanes = false, rows = false;

  const N* row(int64_t h) const { return data + h * row_step; }
};

inline void convert(float* to, const float* from, int64_t count) {
  __builtin_memcpy(to, from, static_cast<unsigned long>(count) * sizeof(float));
}
inline void convert(double* to, const double* from, int64_t count) {
  __builtin_memcpy(to, from, static_cast<unsigned long>(count) * sizeof(double));
}
inline void convert(float* to, const uint16_t* from, int64_t count) {
  int64_t j = 0;
  for (; j + kFloatLanes <= count; j += kFloatLanes) store(to + j, load_floats(from + j));
  for (; j < count; ++j) to[j] = to_float(from[j]);
}

// An operand's cells of a tile: where they lie, or a copy, which is kept while the tile covers the same. Rows
// of a copy are of whole vectors; where they lie they are if `padded`, else they may end with the last lane.
template <class T>
class Packed {
 public:
  using N = NumberOf<T>;

  // False where the cells are those of the last call.
  bool load(const Strided& array, const Tile& tile, bool padded) {
    const char* const from = address(array, tile);
    if (from == last_ && tile.rows == rows_ && tile.lanes == lanes_) return false;
    last_ = from;
    rows_ = tile.rows;
    lanes_ = tile.lanes;
    cells_.lanes = array.strides[kLaneAxis] != 0;
    cells_.rows = array.strides[kRowAxis] != 0;
    const int64_t row_stride = array.strides[kRowAxis], lane_stride = array.strides[kLaneAxis];
    if constexpr (std::is_same_v<T, N>) {
      const bool whole = !padded || tile.lanes == tile.width || !cells_.lanes;
      const bool dense = lane_stride == static_cast<int64_t>(sizeof(N)) || !cells_.lanes;
      if (whole && dense && row_stride % static_cast<int64_t>(sizeof(N)) == 0) {
        cells_.data = reinterpret_cast<const N*>(from);
        cells_.row_step = row_stride / static_cast<int64_t>(sizeof(N));
        return true;
      }
    }
    copy(from, row_stride, lane_stride, tile);
    return true;
  }

  const Cells<N>& cells() const { return cells_; }

 private:
  void copy(const char* from, int64_t row_stride, int64_t lane_stride, const Tile& tile) {
    if (memory_.data() == nullptr) memory_.allocate(kRows * kStride);
    cells_.data = memory_.data();
    const int64_t rows = cells_.rows ? tile.rows : 1;
    const auto at = [&](int64_t h, int64_t j) {
      return reinterpret_cast<const T*>(from + h * row_stride + j * lane_stride);
    };
    if (!cells_.lanes) {
      cells_.row_step = cells_.rows ? 1 : 0;
      for (int64_t h = 0; h < rows; ++h) memory_[h] = to_float(*at(h, 0));
      return;
    }
    cells_.row_step = cells_.rows ? kStride : 0;
    if (lane_stride == static_cast<int64_t>(sizeof(T))) {
      for (int64_t h = 0; h < rows; ++h) convert(memory_.data() + h * kStride, at(h, 0), tile.lanes);
    } else {
      for (int64_t j = 0; j < tile.lanes; ++j) {
        for (int64_t h = 0; h < rows; ++h) memory_[h * kStride + j] = to_float(*at(h, j));
      }
    }
    for (int64_t h = 0; h < rows; ++h) {
      for (int64_t j = tile.lanes; j < tile.width; ++j) memory_[h * kStride + j] = 0;
    }
  }

  Cells<N> cells_;
  Memory<N> memory_;
  const char* last_ = nullptr;
  int64_t rows_ = 0, lanes_ = 0;
};

// ---- guards ----

template <class F>
void with_relation(Relation relation, F&& f) {
  switch (relation) {
    case Relation::mask:
      return f([](auto x, auto) { return x != 0; });
    case Relation::less:
      return f([](auto x, auto bound) { return x < bound; });
    case Relation::at_most:
      return f([](auto x, auto bound) { return x <= bound; });
    case Relation::greater:
      return f([](auto x, auto bound) { return x > bound; });
    case Relation::at_least:
      return f([](auto x, auto bound) { return x >= bound; });
  }
}

// Where the guard holds in a tile: 1 or 0.
template <class T>
class GuardTile {
 public:
  using N = NumberOf<T>;

  explicit GuardTile(const GuardTask& guard) : guard_(guard) {
    if (guard.present) flags_.allocate(kRows * kStride);
    if (guard.features > 0) points_.allocate(kRows * kStride + kWidth);
  }

  void load(const Tile& tile) {
    if (!guard_.present) return;
    if (guard_.features > 0) return load_distances(tile);
    const char* const from = address(guard_.values, tile);
    if (from == last_ && tile.rows == rows_ && tile.lanes == lanes_) return;
    last_ = from;
    rows_ = tile.rows;
    lanes_ = tile.lanes;
    if (guard_.relation == Relation::mask) return compare(from, tile, uint8_t{});
    compare(from, tile, T{});
  }

  const Cells<N>& cells() const { return cells_; }
  bool present() const { return guard_.present; }

  // How many elements of row h it lets through.
  int64_t count(int64_t h, const Tile& tile) const {
    if (!guard_.present) return tile.lanes;
    const N* const row = cells_.row(h);
    if (!cells_.lanes) return row[0] != 0 ? tile.lanes : 0;
    int64_t count = 0;
    for (int64_t j = 0; j < tile.lanes; ++j) count += row[j] != 0;
    return count;
  }

 private:
  template <class S>
  void compare(const char* from, const Tile& tile, S) {
    shape(guard_.values.strides[kLaneAxis] != 0, guard_.values.strides[kRowAxis] != 0);
    const int64_t rows = cells_.rows ? tile.rows : 1, lanes = cells_.lanes ? tile.lanes : 1;
    const int64_t row_stride = guard_.values.strides[kRowAxis], stride = guard_.values.strides[kLaneAxis];
    const N bound = static_cast<N>(guard_.bound);
    with_relation(guard_.relation, [&](auto holds) {
      for (int64_t h = 0; h < rows; ++h) {
        N* const flags = flags_.data() + h * cells_.row_step;
        const char* const row = from + h * row_stride;
        for (int64_t j = 0; j < lanes; ++j) {
          const S x = *reinterpret_cast<const S*>(row + j * stride);
          if constexpr (std::is_same_v<S, uint8_t>) {
            flags[j] = x != 0;
          } else {
            flags[j] = holds(static_cast<N>(to_float(x)), bound);
          }
        }
        for (int64_t j = lanes; j < tile.width && cells_.lanes; ++j) flags[j] = 0;
      }
    });
  }

  void shape(bool lanes, bool rows) {
    cells_.data = flags_.data();
    cells_.lanes = lanes;
    cells_.rows = rows;
    cells_.row_step = rows ? (lanes ? kStride : 1) : 0;
  }

  // Squares of distances are compared, feature by feature over a row of points.
  void load_distances(const Tile& tile) {
    const Strided &a = guard_.values, &b = guard_.other;
    if (address(a, tile) == last_ && address(b, tile) == last_other_ && tile.rows == rows_ &&
        tile.lanes == lanes_) {
      return;
    }
    last_ = address(a, tile);
    last_other_ = address(b, tile);
    rows_ = tile.rows;
    lanes_ = tile.lanes;
    shape(a.strides[kLaneAxis] != 0 || b.strides[kLaneAxis] != 0,
          a.strides[kRowAxis] != 0 || b.strides[kRowAxis] != 0);
    const int64_t rows = cells_.rows ? tile.rows : 1, lanes = cells_.lanes ? tile.lanes : 1;
    N* const squares = points_.data();
    for (int64_t i = 0; i < rows * kStride; ++i) squares[i] = 0;
    for (int64_t f = 0; f < guard_.features; ++f) {
      const char* const from_a = address(a, tile) + f * guard_.values_step;
      const char* const from_b = address(b, tile) + f * guard_.other_step;
      N* const lane_points = points_.data() + kRows * kStride;
      const bool a_in_lanes = a.strides[kLaneAxis] != 0;  // the other one then is not: axes differ
      const Strided& in_lanes = a_in_lanes ? a : b;
      const Strided& in_rows = a_in_lanes ? b : a;
      const char* const lane_from = a_in_lanes ? from_a : from_b;
      const char* const row_from = a_in_lanes ? from_b : from_a;
      for (int64_t j = 0; j < lanes; ++j) {
        lane_points[j] = to_float(*reinterpret_cast<const T*>(lane_from + j * in_lanes.strides[kLaneAxis]));
      }
      for (int64_t h = 0; h < rows; ++h) {
        const N own = to_float(*reinterpret_cast<const T*>(row_from + h * in_rows.strides[kRowAxis]));
        // Where neither varies along lanes, `in_lanes` may vary along rows.
        const N moved = to_float(*reinterpret_cast<const T*>(lane_from + h * in_lanes.strides[kRowAxis]));
        N* const row = squares + h * kStride;
        for (int64_t j = 0; j < lanes; ++j) {
          const N difference = own - (cells_.lanes ? lane_points[j] : moved);
          row[j] += difference * difference;
        }
      }
    }
    // A negative bound is below every distance.
    const N bound = static_cast<N>(guard_.bound < 0 ? -1.0 : guard_.bound * guard_.bound);
    with_relation(guard_.relation, [&](auto holds) {
      for (int64_t h = 0; h < rows; ++h) {
        N* const flags = flags_.data() + h * cells_.row_step;
        for (int64_t j = 0; j < lanes; ++j) flags[j] = holds(squares[h * kStride + j], bound);
        for (int64_t j = lanes; j < tile.width && cells_.lanes; ++j) flags[j] = 0;
      }
    });
  }

  const GuardTask& guard_;
  Cells<N> cells_;
  Memory<N> flags_, points_;
  const char *last_ = nullptr, *last_other_ = nullptr;
  int64_t rows_ = 0, lanes_ = 0;
};

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::fuzzy
