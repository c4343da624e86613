// A quantifier over the index space: forward and backward.
#pragma once

#include <cstdint>

#include "core/parallel.h"
#include "fuzzy/formulas.h"
#include "fuzzy/fuzzy.h"
#include "fuzzy/lanes.h"
#include "fuzzy/reductions.h"
#include "fuzzy/sinks.h"
#include "fuzzy/tiles.h"

namespace tenfold::fuzzy {
namespace TENFOLD_LEVEL {

// Where the state of each result is: dense over the kept axes, a copy per part where parts share results.
struct Places {
  explicit Places(const Task& task) {
    for (int k = kMostAxes - 1; k >= 0; --k) {
      steps[k] = task.kept[k] ? count : 0;
      if (task.kept[k]) count *= task.counts[k];
    }
    copies = task.kept[task.part_axis] ? 1 : task.parts;
  }
  int64_t of(const Tile& tile, int part) const {
    int64_t place = copies == 1 ? 0 : part * count;
    for (int k = 0; k < kMostAxes; ++k) place += tile.at[k] * steps[k];
    return place;
  }
  int64_t count = 1, copies = 1, steps[kMostAxes];
};

template <class N>
struct States {
  explicit States(const Places& places)
      : most(places.count * places.copies),
        sum(places.count * places.copies),
        count(places.count * places.copies) {
    for (int64_t i = 0; i < places.count * places.copies; ++i) {
      most[i] = static_cast<N>(-kInfinity);
      sum[i] = 0;
      count[i] = 0;
    }
  }
  Seen<N> at(int64_t i) const { return {most[i], sum[i], count[i]}; }
  void set(int64_t i, const Seen<N>& seen) const {
    most[i] = seen.most;
    sum[i] = seen.sum;
    count[i] = seen.count;
  }

  Memory<N> most;
  Memory<double> sum;
  Memory<int64_t> count;
};

template <class T>
char* element_of(const Strided& array, const Tile& tile, int64_t h, int64_t j) {
  return address(array, tile) + h * array.strides[kRowAxis] + j * array.strides[kLaneAxis];
}

inline bool is_squared(const Reduction& reduction) {
  return reduction.quantifier == Quantifier::power && reduction.power == 2;
}

inline bool is_exponential(const Reduction& reduction) {
  const Affine& before = reduction.before;
  return reduction.quantifier == Quantifier::scaled && !reduction.logged && before.scale == 1 &&
         before.shift == 0;
}

template <class T, class F>
class Forward {
 public:
  using N = NumberOf<T>;

  Forward(const Task& task, const Places& places, const States<N>& states)
      : task_(task),
        places_(places),
        states_(states),
        formula_(task, false),
        guard_(task.guard),
        values_(kRows * kStride),
        most_(kWidth),
        sum_(kWidth) {}

  void operator()(int part) {
    for_tiles<N>(task_, part, [&](const Tile& tile) {
      formula_.load(tile);
      guard_.load(tile);
      task_.kept[kLaneAxis] ? columns(tile, part) : rows(tile, part);
    });
  }

 private:
  N* row(int64_t h) const { return values_.data() + h * kStride; }

  Seen<N> seen(const Tile& tile, int64_t h) {
    const Reduction& reduction = task_.reduction;
    Seen<N> seen;
    if constexpr (std::is_same_v<F, LogOr<T>>) {
      if (reduction.quantifier == Quantifier::add && !guard_.present()) {
        bool done = false;
        seen.sum = formula_.sum_of_values(tile, h, &done);
        if (done) return seen;
      }
    }
    if constexpr (std::is_same_v<F, Postfix<T>>) {
      const bool squared = is_squared(reduction);
      const bool summed = squared || reduction.quantifier == Quantifier::add;
      if (formula_.is_polynomial() && !guard_.present() && summed) {
        seen.sum = formula_.total(tile, h, squared);
        return seen;
      }
    }
    prepared_row(formula_, reduction, guard_, tile, h, row(0));
    return seen_in_row(reduction, row(0), tile.width);
  }

  void rows(const Tile& tile, int part) {
    const int64_t place = places_.of(tile, part);
    for (int64_t h = 0; h < tile.rows; ++h) {
      const int64_t i = place + h * places_.steps[kRowAxis];
      Seen<N> own = seen(tile, h);
      own.count = guard_.count(h, tile);
      Seen<N> all = states_.at(i);
      merge(task_.reduction, all, own);
      states_.set(i, all);
    }
  }

  // Lanes are results, rows are reduced.
  void columns(const Tile& tile, int part) {
    for (int64_t h = 0; h < tile.rows; ++h) {
      prepared_row(formula_, task_.reduction, guard_, tile, h, row(h));
    }
    for (int64_t j = 0; j < tile.width; j += kLanes<N>) {
      seen_in_columns(task_.reduction, row(0) + j, tile.rows, most_.data() + j, sum_.data() + j);
    }
    const int64_t place = places_.of(tile, part);
    const bool plain =
        task_.reduction.quantifier == Quantifier::add || task_.reduction.quantifier == Quantifier::power;
    double* const sums = states_.sum.data() + place;
    if (plain) {
      for (int64_t j = 0; j < tile.lanes; ++j) sums[j] += static_cast<double>(sum_[j]);
    } else {
      for (int64_t j = 0; j < tile.lanes; ++j) {
        Seen<N> all = states_.at(place + j);
        merge(task_.reduction, all, {most_[j], static_cast<double>(sum_[j]), 0});
        states_.set(place + j, all);
      }
    }
    int64_t* const counts = states_.count.data() + place;
    const Cells<N>& cells = guard_.cells();
    for (int64_t h = 0; h < tile.rows; ++h) {
      if (!guard_.present() || !cells.lanes) {
        const int64_t more = !guard_.present() || *cells.row(h) != 0;
        for (int64_t j = 0; j < tile.lanes; ++j) counts[j] += more;
      } else {
        const N* const flags = cells.row(h);
        for (int64_t j = 0; j < tile.lanes; ++j) counts[j] += flags[j] != 0;
      }
    }
  }

  const Task& task_;
  const Places& places_;
  const States<N>& states_;
  F formula_;
  GuardTile<T> guard_;
  Memory<N> values_, most_, sum_;
};

// Results, from the copies of their states in the order of parts.
template <class T>
void write_results(const Task& task, const Places& places, const States<NumberOf<T>>& states) {
  using N = NumberOf<T>;
  constexpr int64_t kGrain = 1 << 10;
  parallel_for(places.count, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      Seen<N> seen = states.at(i);
      for (int64_t copy = 1; copy < places.copies; ++copy) {
        merge(task.reduction, seen, states.at(copy * places.count + i));
      }
      int64_t rest = i, out = 0, raw = 0;
      for (int k = kMostAxes - 1; k >= 0; --k) {
        if (!task.kept[k]) continue;
        const int64_t at = rest % task.counts[k];
        rest /= task.counts[k];
        out += at * task.out.strides[k];
        raw += at * task.raw.strides[k];
      }
      const double value = root(task.reduction, seen);
      round_to(*reinterpret_cast<T*>(task.out.data + out),
               static_cast<N>(out_of(task.reduction, value, seen.count)));
      if (task.raw.data == nullptr) continue;
      const bool ties = task.reduction.quantifier == Quantifier::most && seen.count > 0;
      *reinterpret_cast<N*>(task.raw.data + raw) = static_cast<N>(value);
      *reinterpret_cast<N*>(task.count.data + raw) =
          ties ? static_cast<N>(seen.sum) : static_cast<N>(seen.count);
    }
  });
}

// No quantifier: the formula of each element.
template <class T, class F>
class Elementwise {
 public:
  using N = NumberOf<T>;

  explicit Elementwise(const Task& task)
      : task_(task), formula_(task, false), guard_(task.guard), row_(kWidth) {}

  void operator()(int part) {
    for_tiles<N>(task_, part, [&](const Tile& tile) {
      formula_.load(tile);
      guard_.load(tile);
      for (int64_t h = 0; h < tile.rows; ++h) write_row(tile, h);
    });
  }

 private:
  void write_row(const Tile& tile, int64_t h) {
    char* const out = element_of<T>(task_.out, tile, h, 0);
    const int64_t stride = task_.out.strides[kLaneAxis];
    const bool dense = std::is_same_v<T, N> && stride == static_cast<int64_t>(sizeof(N));
    N* const row = dense && tile.lanes == tile.width ? reinterpret_cast<N*>(out) : row_.data();
    formula_.values(tile, h, row);
    if (guard_.present()) {
      const Cells<N>& cells = guard_.cells();
      const Lanes<N> none = splat(static_cast<N>(task_.reduction.empty));
      for (int64_t j = 0; j < tile.width; j += kLanes<N>) {
        const Lanes<N> flags = cells.lanes ? read(cells.row(h) + j) : splat(*cells.row(h));
        const Lanes<N> value = read(row + j);
        write(row + j, flags != N(0) ? value : none);
      }
    }
    if (row != row_.data()) return;
    for (int64_t j = 0; j < tile.lanes; ++j) round_to(*reinterpret_cast<T*>(out + j * stride), row[j]);
  }

  const Task& task_;
  F formula_;
  GuardTile<T> guard_;
  Memory<N> row_;
};

template <class T, class F>
class Backward {
 public:
  using N = NumberOf<T>;

  Backward(const Task& task, const Store<T>* stores)
      : task_(task),
        formula_(task, true),
        guard_(task.guard),
        contributions_(task, stores),
        values_(kWidth),
        slopes_(kWidth),
        factors_(kWidth),
        references_(kWidth) {}

  void operator()(int part) {
    for_tiles<N>(task_, part, [&](const Tile& tile) {
      formula_.load(tile);
      guard_.load(tile);
      contributions_.begin(tile, part);
      // Rows that are reduced share the slopes of each lane.
      if (task_.kept[kLaneAxis] && !task_.kept[kRowAxis]) load_slopes(tile, 0);
      for (int64_t h = 0; h < tile.rows; ++h) {
        row_backward(tile, h);
        contributions_.end_row(h);
      }
      contributions_.end_tile();
    });
  }

 private:
  Slope<N> slope_at(const Tile& tile, int64_t h, int64_t j) const {
    const N grad = to_float(*reinterpret_cast<const T*>(element_of<T>(task_.out, tile, h, j)));
    if (task_.reduction.quantifier == Quantifier::copy) return {grad, 0};
    const N raw = *reinterpret_cast<const N*>(element_of<N>(task_.raw, tile, h, j));
    const N count = *reinterpret_cast<const N*>(element_of<N>(task_.count, tile, h, j));
    const Slope<double> slope = slope_of(task_.reduction, static_cast<double>(grad), static_cast<double>(raw),
                                         static_cast<double>(count));
    return {static_cast<N>(slope.factor), static_cast<N>(slope.reference)};
  }

  void load_slopes(const Tile& tile, int64_t h) {
    for (int64_t j = 0; j < tile.lanes; ++j) {
      const Slope<N> slope = slope_at(tile, h, j);
      factors_[j] = slope.factor;
      references_[j] = slope.reference;
    }
    for (int64_t j = tile.lanes; j < tile.width; ++j) factors_[j] = references_[j] = 0;
  }

  void row_backward(const Tile& tile, int64_t h) {
    if constexpr (std::is_same_v<F, LogAnd<T>>) {
      if (is_exponential(task_.reduction) && !guard_.present() && !task_.kept[kLaneAxis]) {
        const N sharpness = static_cast<N>(task_.reduction.sharpness * kLog2e);
        return formula_.backward(tile, h, sharpness, slope_at(tile, h, 0), contributions_);
      }
    }
    if constexpr (std::is_same_v<F, Postfix<T>>) {
      const bool squared = is_squared(task_.reduction);
      if (formula_.is_polynomial() && squared && !guard_.present() && !task_.kept[kLaneAxis]) {
        return formula_.backward(tile, h, slope_at(tile, h, 0), contributions_);
      }
    }
    slopes_of_row(tile, h);
    formula_.backward(tile, h, slopes_.data(), contributions_);
  }

  void slopes_of_row(const Tile& tile, int64_t h) {
    const Reduction& reduction = task_.reduction;
    N* const slopes = slopes_.data();
    const bool by_value = reduction.quantifier != Quantifier::copy && reduction.quantifier != Quantifier::add;
    if (by_value) {
      prepared_row(formula_, reduction, guard_, tile, h, values_.data());
    }
    struct Both {
      Lanes<N> factor, reference;
    };
    if (task_.kept[kLaneAxis]) {
      if (task_.kept[kRowAxis]) load_slopes(tile, h);
      const N *const factors = factors_.data(), *const references = references_.data();
      slope_row(reduction, values_.data(), tile.width, slopes,
                [=](int64_t j) { return Both{read(factors + j), read(references + j)}; });
    } else {
      const Slope<N> slope = slope_at(tile, h, 0);
      const Both both{splat(slope.factor), splat(slope.reference)};
      slope_row(reduction, values_.data(), tile.width, slopes, [=](int64_t) { return both; });
    }
    clear_rest(tile, h);
  }

  // Nothing where the guard does not hold, and beyond the end.
  void clear_rest(const Tile& tile, int64_t h) {
    N* const slopes = slopes_.data();
    if (guard_.present()) {
      const Cells<N>& cells = guard_.cells();
      const N* const flags = cells.row(h);
      for (int64_t j = 0; j < tile.width; j += kLanes<N>) {
        const Lanes<N> value = read(slopes + j);
        write(slopes + j, (cells.lanes ? read(flags + j) : splat(*flags)) != N(0) ? value : Lanes<N>{});
      }
    }
    for (int64_t j = tile.lanes; j < tile.width; ++j) slopes[j] = 0;
  }

  const Task& task_;
  F formula_;
  GuardTile<T> guard_;
  Contributions<T> contributions_;
  Memory<N> values_, slopes_, factors_, references_;
};

template <class T, class F>
void forward_all(const Task& task) {
  using N = NumberOf<T>;
  if (task.reduction.quantifier == Quantifier::copy) {
    return for_parts(task, [&] { return Elementwise<T, F>(task); });
  }
  const Places places(task);
  const States<N> states(places);
  for_parts(task, [&] { return Forward<T, F>(task, places, states); });
  write_results<T>(task, places, states);
}

template <class T, class F>
void backward_all(const Task& task) {
  Store<T> stores[kMostOperands];
  bool empty = false;
  for (const int64_t count : task.counts) empty = empty || count == 0;
  for (int i = 0; i < task.operands; ++i) {
    stores[i].plan(task, i);
    if (empty) stores[i].nothing();
  }
  if (empty) return;
  for_parts(task, [&] { return Backward<T, F>(task, stores); });
  for (int i = 0; i < task.operands; ++i) stores[i].finish();
}

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::fuzzy
