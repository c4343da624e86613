// Where gradients of operands go: a tile's contributions, added up over the axes that an operand lacks.
#pragma once

#include <cstdint>
#include <type_traits>

#include "core/parallel.h"
#include "fuzzy/fuzzy.h"
#include "fuzzy/lanes.h"
#include "fuzzy/tiles.h"

namespace tenfold::fuzzy {
namespace TENFOLD_LEVEL {

// to[j] = f(j), or + f(j), for the lanes of a tile.
// What f reads is captured by value: it stays in registers.
template <class N, class F>
[[gnu::always_inline]] inline void put_row(N* to, int64_t lanes, bool first, F f) {
  int64_t j = 0;
  if (first) {
    for (; j + kLanes<N> <= lanes; j += kLanes<N>) write(to + j, f(j));
  } else {
    for (; j + kLanes<N> <= lanes; j += kLanes<N>) write(to + j, read(to + j) + f(j));
  }
  if (j == lanes) return;
  N last[kLanes<N>];
  write(last, f(j));
  for (int64_t i = 0; j < lanes; ++i, ++j) to[j] = first ? last[i] : to[j] + last[i];
}

// Where contributions go: to a row, which they are added to or written in.
template <class N>
struct Inlet {
  N* row = nullptr;
  bool add = false;

  [[gnu::always_inline]] void put(int64_t j, Lanes<N> x) const {
    N* const at = row + j;
    write(at, add ? read(at) + x : x);
  }
  // The first so many lanes.
  void put_first(int64_t j, Lanes<N> x, int64_t count) const {
    N each[kLanes<N>];
    write(each, x);
    for (int64_t k = 0; k < count; ++k) row[j + k] = add ? row[j + k] + each[k] : each[k];
  }
};

// How one operand's gradient is kept, for all parts.
//   direct: added up where it belongs. single: every element is visited once; it is rounded or scattered.
//   copies: added up in memory of our own, a copy per part where parts share elements.
enum class Keep { nothing, direct, single, copies };

template <class T>
class Store {
 public:
  using N = NumberOf<T>;

  void plan(const Task& task, int operand) {
    grad_ = &task.grads[operand];
    add_to_ = task.add_to[operand];
    if (grad_->data == nullptr) return;
    lanes = grad_->strides[kLaneAxis] != 0;
    rows = grad_->strides[kRowAxis] != 0;
    bool all = true;
    int64_t size = 1;
    for (int k = kMostAxes - 1; k >= 0; --k) {
      lacks_[k] = grad_->strides[k] == 0 && task.counts[k] > 1;
      all = all && !lacks_[k];
      extents_[k] = grad_->strides[k] != 0 ? task.counts[k] : 1;
      places_[k] = grad_->strides[k] != 0 ? size : 0;
      size *= extents_[k];
    }
    const bool own = !lacks_[task.part_axis] || task.parts == 1;
    const bool dense = grad_->strides[kLaneAxis] == static_cast<int64_t>(sizeof(N)) &&
                       grad_->strides[kRowAxis] % static_cast<int64_t>(sizeof(N)) == 0;
    if (lanes && own && dense && std::is_same_v<T, N>) {
      keep = Keep::direct;
    } else if (lanes && all) {
      keep = Keep::single;
    } else {
      keep = Keep::copies;
      size_ = size;
      copies_ = own ? 1 : task.parts;
      lanes ? numbers_.allocate(size_ * copies_) : sums_.allocate(size_ * copies_);
    }
  }

  bool first(const Tile& tile) const {
    if (keep == Keep::single || (keep == Keep::direct && add_to_)) return keep == Keep::single;
    for (int k = 0; k < kMostAxes; ++k) {
      if (lacks_[k] && !tile.first[k]) return false;
    }
    return true;
  }

  // Row h of a tile; for `single` the memory given, whose contents go to commit().
  N* row(const Tile& tile, int part, int64_t h, N* scratch) const {
    if (keep == Keep::single) return scratch;
    if (keep == Keep::direct) {
      return reinterpret_cast<N*>(address(*grad_, tile) + h * grad_->strides[kRowAxis]);
    }
    return numbers_.data() + copy(part) + place(tile) + h * places_[kRowAxis];
  }
  double* cell(const Tile& tile, int part, int64_t h) const {
    return sums_.data() + copy(part) + place(tile) + h * places_[kRowAxis];
  }

  void commit(const Tile& tile, int64_t h, const N* row) const {
    char* const to = address(*grad_, tile) + h * grad_->strides[kRowAxis];
    for (int64_t j = 0; j < tile.lanes; ++j) {
      put(reinterpret_cast<T*>(to + j * grad_->strides[kLaneAxis]), row[j]);
    }
  }

  // Adds up the copies in the order of parts.
  void finish() const {
    if (keep != Keep::copies) return;
    lanes ? finish_from(numbers_.data()) : finish_from(sums_.data());
  }

  // Where there is no element of the index space: zeros.
  void nothing() const {
    if (keep == Keep::nothing || add_to_) return;
    int64_t size = 1;
    for (const int64_t extent : extents_) size *= extent;
    for (int64_t i = 0; i < size; ++i) {
      char* to = grad_->data;
      int64_t rest = i;
      for (int k = 0; k < kMostAxes; ++k) {
        to += rest % extents_[k] * grad_->strides[k];
        rest /= extents_[k];
      }
      round_to(*reinterpret_cast<T*>(to), N(0));
    }
  }

  Keep keep = Keep::nothing;
  bool lanes = false, rows = false;

 private:
  void put(T* to, N value) const { round_to(*to, add_to_ ? static_cast<N>(to_float(*to)) + value : value); }

  int64_t copy(int part) const { return copies_ == 1 ? 0 : part * size_; }
  int64_t place(const Tile& tile) const {
    int64_t place = 0;
    for (int k = 0; k < kMostAxes; ++k) place += tile.at[k] * places_[k];
    return place;
  }

  template <class S>
  void finish_from(const S* sums) const {
    constexpr int64_t kGrain = 1 << 14;
    const int64_t width = extents_[kLaneAxis], lines = size_ / (width > 0 ? width : 1);
    parallel_for(lines, 1 + kGrain / (width * copies_ + 1), [&](int64_t begin, int64_t end) {
      for (int64_t line = begin; line < end; ++line) {
        char* to = grad_->data;
        int64_t rest = line;
        for (const int k : {kRowAxis, kInner, kOuter}) {
          to += rest % extents_[k] * grad_->strides[k];
          rest /= extents_[k];
        }
        for (int64_t j = 0; j < width; ++j) {
          S sum = sums[line * width + j];
          for (int64_t i = 1; i < copies_; ++i) sum += sums[i * size_ + line * width + j];
          put(reinterpret_cast<T*>(to + j * grad_->strides[kLaneAxis]), static_cast<N>(sum));
        }
      }
    });
  }

  const Strided* grad_ = nullptr;
  bool add_to_ = false;
  bool lacks_[kMostAxes];
  int64_t extents_[kMostAxes], places_[kMostAxes], size_ = 0, copies_ = 1;
  Memory<N> numbers_;
  Memory<double> sums_;
};

// One thread's contributions of the tile in work. Rows of operands that have both axes go to their store at
// once; others are added up over the tile first.
template <class T>
class Contributions {
 public:
  using N = NumberOf<T>;

  Contributions(const Task& task, const Store<T>* stores) : task_(task), stores_(stores), row_(kWidth) {
    for (int i = 0; i < task.operands; ++i) {
      if (wanted(i) && lanes(i) && !rows(i)) columns_[i].allocate(kWidth);
    }
  }

  bool wanted(int i) const { return stores_[i].keep != Keep::nothing; }
  bool lanes(int i) const { return stores_[i].lanes; }
  bool rows(int i) const { return stores_[i].rows; }

  void begin(const Tile& tile, int part) {
    tile_ = &tile;
    part_ = part;
    for (int i = 0; i < task_.operands; ++i) {
      column_there_[i] = false;
      for (int64_t h = 0; h < kRows; ++h) {
        row_there_[i][h] = false;
        cells_[i][h] = 0;
      }
    }
  }

  // f(j): the contributions of a vector of row h to operand i, which has lanes.
  template <class F>
  void add_lanes(int i, int64_t h, F f) {
    const Store<T>& store = stores_[i];
    const bool padded = !store.rows || store.keep == Keep::single;
    const Inlet<N> to = inlet(i, h);
    put_row(to.row, padded ? tile_->width : tile_->lanes, !to.add, f);
  }

  // The row that contributions of row h to operand i, which has lanes, are put in: all of them at once.
  Inlet<N> inlet(int i, int64_t h) {
    const Store<T>& store = stores_[i];
    bool& there = store.rows ? row_there_[i][h] : column_there_[i];
    const bool before = there;
    there = true;
    if (!store.rows) return {columns_[i].data(), before};
    if (store.keep == Keep::single) return {single_row(i, h), before};
    return {store.row(*tile_, part_, h, nullptr), before || !store.first(*tile_)};
  }

  // The same for one that lacks them: their sum.
  void add_cell(int i, int64_t h, double sum) { cells_[i][stores_[i].rows ? h : 0] += sum; }

  // All contributions of row h are there.
  void end_row(int64_t h) {
    for (int i = 0; i < task_.operands; ++i) {
      const Store<T>& store = stores_[i];
      if (!wanted(i) || !store.lanes || !store.rows) continue;
      if (!row_there_[i][h]) add_lanes(i, h, [](int64_t) { return Lanes<N>{}; });
      if (store.keep == Keep::single) store.commit(*tile_, h, single_row(i, h));
    }
  }

  void end_tile() {
    for (int i = 0; i < task_.operands; ++i) {
      const Store<T>& store = stores_[i];
      if (!wanted(i) || (store.lanes && store.rows)) continue;
      const bool first = store.first(*tile_);
      if (store.lanes) {
        const N* const column = columns_[i].data();
        const bool there = column_there_[i];
        N* const to = store.row(*tile_, part_, 0, row_.data());
        put_row(to, tile_->lanes, first, [=](int64_t j) { return there ? read(column + j) : Lanes<N>{}; });
        if (store.keep == Keep::single) store.commit(*tile_, 0, to);
      } else {
        for (int64_t h = 0; h < (store.rows ? tile_->rows : 1); ++h) {
          double* const cell = store.cell(*tile_, part_, h);
          *cell = first ? cells_[i][h] : *cell + cells_[i][h];
        }
      }
    }
  }

 private:
  N* single_row(int i, int64_t) {
    if (singles_[i].data() == nullptr) singles_[i].allocate(kWidth);
    return singles_[i].data();
  }

  const Task& task_;
  const Store<T>* stores_;
  const Tile* tile_ = nullptr;
  int part_ = 0;
  Memory<N> row_, columns_[kMostOperands], singles_[kMostOperands];
  bool column_there_[kMostOperands], row_there_[kMostOperands][kRows];
  double cells_[kMostOperands][kRows];
};

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::fuzzy
