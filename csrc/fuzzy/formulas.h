// The formula of each element of a tile, row by row, and its gradient.
#pragma once

#include <cstdint>
#include <type_traits>

#include "fuzzy/connectives.h"
#include "fuzzy/fuzzy.h"
#include "fuzzy/lanes.h"
#include "fuzzy/multilinear.h"
#include "fuzzy/sinks.h"
#include "fuzzy/tiles.h"

namespace tenfold::fuzzy {
namespace TENFOLD_LEVEL {

// What all formulas have: the operands' cells of the tile in work.
template <class T>
class Operands {
 public:
  using N = NumberOf<T>;

  explicit Operands(const Task& task) : task_(task) {}

  // `padded`: rows are to be of whole vectors.
  void load(const Tile& tile, bool padded = true) {
    for (int i = 0; i < task_.operands; ++i) fresh_[i] = packed_[i].load(task_.operand[i], tile, padded);
  }
  const Cells<N>& cells(int i) const { return packed_[i].cells(); }
  bool fresh(int i) const { return fresh_[i]; }

 private:
  const Task& task_;
  Packed<T> packed_[kMostOperands];
  bool fresh_[kMostOperands];
};

// ---- and in log space: the sum ----

template <class T>
class LogAnd {
 public:
  using N = NumberOf<T>;

  LogAnd(const Task& task, bool) : task_(task), operands_(task), rests_(kMostOperands * kLanes<N>) {}

  void load(const Tile& tile) { operands_.load(tile, false); }

  void values(const Tile& tile, int64_t h, N* to) {
    const Rows rows = rows_of(tile, h);
    with_sum(rows, rows.row, [=](auto sum) {
      for (int64_t j = 0; j < rows.whole; j += kLanes<N>) write(to + j, sum(j));
    });
    if (rows.whole < tile.lanes) with_sum(rows, rows.rest, [=](auto sum) { write(to + rows.whole, sum(0)); });
  }

  // Backward from the slopes factor * 2^((value - reference) * sharpness).
  void backward(const Tile& tile, int64_t h, N sharpness, const Slope<N>& slope, Contributions<T>& to) {
    Inlet<N> inlets[kMostOperands];
    int count = 0;
    for (int i = 0; i < task_.operands; ++i) {
      if (to.wanted(i) && to.lanes(i)) inlets[count++] = to.inlet(i, h);
    }
    const Rows rows = rows_of(tile, h);
    const auto own = [=](Lanes<N> v) {
      return slope.factor * power_of_two((v - slope.reference) * sharpness);
    };
    Lanes<N> total{};
    with_sum(rows, rows.row, [&, inlets](auto sum) {
      Lanes<N> all{};
      for (int64_t j = 0; j < rows.whole; j += kLanes<N>) {
        const Lanes<N> each = own(sum(j));
        all += each;
        for (int k = 0; k < count; ++k) inlets[k].put(j, each);
      }
      total = all;
    });
    if (const int64_t left = tile.lanes - rows.whole; left > 0) {
      with_sum(rows, rows.rest, [&](auto sum) {
        const Lanes<N> each = own(sum(0));
        total += first_of(each, left);
        for (int k = 0; k < count; ++k) inlets[k].put_first(rows.whole, each, left);
      });
    }
    for (int i = 0; i < task_.operands; ++i) {
      if (to.wanted(i) && !to.lanes(i)) to.add_cell(i, h, static_cast<double>(tenfold::total(total)));
    }
  }

  // `slopes` are those of the result by the value of row h.
  void backward(const Tile& tile, int64_t h, const N* slopes, Contributions<T>& to) {
    double sum = 0;
    bool summed = false;
    for (int i = 0; i < task_.operands; ++i) {
      if (!to.wanted(i)) continue;
      if (to.lanes(i)) {
        to.add_lanes(i, h, [=](int64_t j) { return read(slopes + j); });
        continue;
      }
      if (!summed) sum = row_total<N>(tile.width, [&](int64_t j) { return read(slopes + j); });
      summed = true;
      to.add_cell(i, h, sum);
    }
  }

 private:
  // Row h of the operands with lanes, and the sum of the others; lanes beyond the last whole vector apart.
  struct Rows {
    N base = 0;
    int count = 0;
    int64_t whole = 0;
    const N *row[kMostOperands] = {}, *rest[kMostOperands] = {};
  };

  Rows rows_of(const Tile& tile, int64_t h) const {
    Rows rows;
    rows.whole = tile.lanes / kLanes<N> * kLanes<N>;
    for (int i = 0; i < task_.operands; ++i) {
      const Cells<N>& cells = operands_.cells(i);
      if (!cells.lanes) {
        rows.base += *cells.row(h);
        continue;
      }
      N* const rest = rests_.data() + rows.count * kLanes<N>;
      rows.row[rows.count] = cells.row(h);
      rows.rest[rows.count++] = rest;
      if (rows.whole == tile.lanes) continue;
      write(rest, Lanes<N>{});
      for (int64_t j = rows.whole; j < tile.lanes; ++j) rest[j - rows.whole] = cells.row(h)[j];
    }
    return rows;
  }

  // Calls f with the sum as a function of the lane.
  template <class F>
  static void with_sum(const Rows& rows, const N* const* row, F&& f) {
    const Lanes<N> start = splat(rows.base);
    const N *const first = row[0], *const second = row[1], *const third = row[2];
    switch (rows.count) {
      case 0:
        return f([=](int64_t) { return start; });
      case 1:
        return f([=](int64_t j) { return start + read(first + j); });
      case 2:
        return f([=](int64_t j) { return (start + read(first + j)) + read(second + j); });
      case 3:
        return f([=](int64_t j) { return (start + read(first + j)) + (read(second + j) + read(third + j)); });
      default:
        f([=, count = rows.count](int64_t j) {
          Lanes<N> sum = (start + read(first + j)) + (read(second + j) + read(third + j));
          for (int i = 3; i < count; ++i) sum += read(row[i] + j);
          return sum;
        });
    }
  }

  const Task& task_;
  Operands<T> operands_;
  Memory<N> rests_;
};

// ---- or in log space: log(sum of w_k exp(alpha l_k)) / alpha ----

// Exponentials of an operand are taken once per tile of its own cells, relative to their largest, and kept
// while the tile covers the same cells. Where the sum of an element is lost next to the largest ones of the
// tile, it is computed for itself.
template <class T>
class LogOr {
 public:
  using N = NumberOf<T>;

  LogOr(const Task& task, bool) : task_(task), operands_(task) {
    constexpr double kLog2e = 1.4426950408889634074;
    to_log2_ = static_cast<N>(task.alpha * kLog2e);
    inverse_alpha_ = static_cast<N>(1.0 / task.alpha);
    for (int i = 0; i < task.operands; ++i) {
      const bool lanes = task.operand[i].strides[kLaneAxis] != 0;
      terms_[i].allocate(lanes ? kRows * kStride : kRows * kLanes<N>);
      bias_[i] = static_cast<N>(task.log_weights[i] / task.alpha);
    }
    fast_.allocate(kRows * kStride);
  }

  void load(const Tile& tile) {
    operands_.load(tile);
    top_ = static_cast<N>(-kInfinity);
    for (int i = 0; i < task_.operands; ++i) {
      if (operands_.fresh(i)) exponentiate(i, tile);
      top_ = larger(tops_[i] + bias_[i], top_);
    }
    if (!(top_ > static_cast<N>(-kInfinity))) top_ = 0;
    for (int i = 0; i < task_.operands; ++i) {
      factors_[i] = static_cast<N>(
          __builtin_exp2(static_cast<double>((tops_[i] + bias_[i] - top_)) * static_cast<double>(to_log2_)));
    }
  }

  void values(const Tile& tile, int64_t h, N* to) {
    with_sums(h, [&, top = top_, inverse_alpha = inverse_alpha_, width = tile.width](auto sum_at) {
      for (int64_t j = 0; j < width; j += kLanes<N>) {
        const Lanes<N> sum = sum_at(j);
        if (any_below(sum, kTiny(N{}))) {
          write(to + j, slowly(h, j));
        } else {
          write(to + j, top + natural_log(sum) * inverse_alpha);
        }
      }
    });
  }

  // The sum over a row of logs, for a quantifier that adds them up: of products of four sums, for a product's
  // log costs as much as that of one factor.
  double sum_of_values(const Tile& tile, int64_t h, bool* done) {
    constexpr N kSafe = std::is_same_v<N, float> ? static_cast<N>(1e-9) : static_cast<N>(1e-70);
    double result = 0;
    bool small = false;
    with_sums(h, [&](auto sum_at) {
      Lanes<N> logs{}, least = splat(static_cast<N>(1));
      const int64_t whole = tile.lanes / kLanes<N> * kLanes<N>;
      int64_t j = 0;
      for (; j + 4 * kLanes<N> <= whole; j += 4 * kLanes<N>) {
        const Lanes<N> a = sum_at(j), b = sum_at(j + kLanes<N>), c = sum_at(j + 2 * kLanes<N>),
                       d = sum_at(j + 3 * kLanes<N>);
        least = smaller(smaller(a, b), smaller(least, smaller(c, d)));
        logs += natural_log((a * b) * (c * d));
      }
      for (; j < tile.width; j += kLanes<N>) {
        Lanes<N> sum = sum_at(j);
        if (j + kLanes<N> > tile.lanes) {  // beyond the end: the log of 1
          N last[kLanes<N>];
          write(last, sum);
          for (int64_t k = tile.lanes - j; k < kLanes<N>; ++k) last[k] = 1;
          sum = read(last);
        }
        least = smaller(sum, least);
        logs += natural_log(sum);
      }
      small = any_below(least, kSafe);
      result = total(logs);
    });
    *done = !small;
    return static_cast<double>(top_) * static_cast<double>(tile.lanes) +
           result * static_cast<double>(inverse_alpha_);
  }

  void backward(const Tile& tile, int64_t h, const N* slopes, Contributions<T>& to) {
    N* const ratios = fast_.data();
    bool slow = false;
    with_sums(h, [&slow, slopes, ratios, width = tile.width](auto sum_at) {
      Lanes<N> least = splat(static_cast<N>(1));
      for (int64_t j = 0; j < width; j += kLanes<N>) {
        const Lanes<N> sum = sum_at(j);
        least = smaller(sum, least);
        write(ratios + j, read(slopes + j) * inverse(sum));
      }
      slow = any_below(least, kTiny(N{}));
    });
    if (slow) return slow_backward(tile, h, slopes, to);
    double sum = 0;
    bool summed = false;
    for (int i = 0; i < task_.operands; ++i) {
      if (!to.wanted(i)) continue;
      const N factor = factors_[i];
      const Cells<N>& cells = operands_.cells(i);
      const N* const terms = term_row(i, h);
      if (to.lanes(i)) {
        const Lanes<N> factors = splat(factor);
        if (cells.lanes) {
          to.add_lanes(i, h, [=](int64_t j) { return read(terms + j) * factors * read(ratios + j); });
        } else {
          const Lanes<N> both = splat(factor * *terms);
          to.add_lanes(i, h, [=](int64_t j) { return both * read(ratios + j); });
        }
        continue;
      }
      if (!summed) sum = row_total<N>(tile.width, [&](int64_t j) { return read(ratios + j); });
      summed = true;
      to.add_cell(i, h, sum * static_cast<double>(factor) * static_cast<double>(*terms));
    }
  }

 private:
  const N* term_row(int i, int64_t h) const {
    const Cells<N>& cells = operands_.cells(i);
    return terms_[i].data() + (cells.rows ? h * (cells.lanes ? kStride : 1) : 0);
  }

  void exponentiate(int i, const Tile& tile) {
    const Cells<N>& cells = operands_.cells(i);
    const int64_t rows = cells.rows ? tile.rows : 1;
    N top = static_cast<N>(-kInfinity);
    for (int64_t h = 0; h < rows; ++h) {
      const N most = cells.lanes ? row_max(cells.row(h), tile.lanes / kLanes<N> * kLanes<N>) : *cells.row(h);
      top = larger(most, top);
      for (int64_t j = tile.lanes / kLanes<N> * kLanes<N>; cells.lanes && j < tile.lanes; ++j) {
        top = larger(cells.row(h)[j], top);
      }
    }
    tops_[i] = top;
    const N safe = top > static_cast<N>(-kInfinity) ? top : 0, to_log2 = to_log2_;
    for (int64_t h = 0; h < rows; ++h) {
      if (cells.lanes) {
        const N* const from = cells.row(h);
        N* const to = terms_[i].data() + h * kStride;
        for (int64_t j = 0, width = tile.width; j < width; j += kLanes<N>) {
          write(to + j, power_of_two((read(from + j) - safe) * to_log2));
        }
        for (int64_t j = tile.lanes; j < tile.width; ++j) to[j] = 1;
      } else {
        N own[kLanes<N>];
        write(own, power_of_two(splat((*cells.row(h) - safe) * to_log2_)));
        terms_[i][h] = own[0];
      }
    }
  }

  // Calls f(sum_at), where sum_at(j) is the sum of the exponentials of a vector of row h.
  template <class F>
  void with_sums(int64_t h, F&& f) {
    const N* rows[kMostOperands] = {};
    Lanes<N> factors[kMostOperands] = {};
    int count = 0;
    N base = 0;
    for (int i = 0; i < task_.operands; ++i) {
      const N* const row = term_row(i, h);
      if (operands_.cells(i).lanes) {
        factors[count] = splat(factors_[i]);
        rows[count++] = row;
      } else {
        base += factors_[i] * *row;
      }
    }
    const Lanes<N> start = splat(base);
    if (count == 1) return f([&](int64_t j) { return start + factors[0] * read(rows[0] + j); });
    if (count == 2) {
      return f(
          [&](int64_t j) { return start + factors[0] * read(rows[0] + j) + factors[1] * read(rows[1] + j); });
    }
    f([&](int64_t j) {
      Lanes<N> sum = start;
      for (int i = 0; i < count; ++i) sum += factors[i] * read(rows[i] + j);
      return sum;
    });
  }

  Lanes<N> operand_at(int i, int64_t h, int64_t j) const {
    const Cells<N>& cells = operands_.cells(i);
    return (cells.lanes ? read(cells.row(h) + j) : splat(*cells.row(h))) + bias_[i];
  }

  // Each element's own largest operand, and the exponentials relative to it.
  Lanes<N> own_top(int64_t h, int64_t j) const {
    Lanes<N> top = operand_at(0, h, j);
    for (int i = 1; i < task_.operands; ++i) top = larger(operand_at(i, h, j), top);
    return top;
  }
  Lanes<N> own_term(int i, int64_t h, int64_t j, Lanes<N> top) const {
    const Lanes<N> term = power_of_two((operand_at(i, h, j) - top) * to_log2_);
    return top > static_cast<N>(-kInfinity) ? term : Lanes<N>{};
  }
  Lanes<N> slowly(int64_t h, int64_t j) const {
    const Lanes<N> top = own_top(h, j);
    Lanes<N> sum{};
    for (int i = 0; i < task_.operands; ++i) sum += own_term(i, h, j, top);
    return top > static_cast<N>(-kInfinity) ? top + natural_log(sum) * inverse_alpha_ : top;
  }

  void slow_backward(const Tile& tile, int64_t h, const N* slopes, Contributions<T>& to) {
    N *const tops = fast_.data(), *const ratios = fast_.data() + kWidth;
    for (int64_t j = 0; j < tile.width; j += kLanes<N>) {
      const Lanes<N> top = own_top(h, j);
      Lanes<N> sum{};
      for (int i = 0; i < task_.operands; ++i) sum += own_term(i, h, j, top);
      write(tops + j, top);
      write(ratios + j, top > static_cast<N>(-kInfinity) ? read(slopes + j) / sum : Lanes<N>{});
    }
    for (int i = 0; i < task_.operands; ++i) {
      if (!to.wanted(i)) continue;
      const auto share = [&](int64_t j) { return own_term(i, h, j, read(tops + j)) * read(ratios + j); };
      to.lanes(i) ? to.add_lanes(i, h, share) : to.add_cell(i, h, row_total<N>(tile.width, share));
    }
  }

  const Task& task_;
  Operands<T> operands_;
  Memory<N> terms_[kMostOperands], fast_;
  N to_log2_, inverse_alpha_, bias_[kMostOperands], tops_[kMostOperands], factors_[kMostOperands], top_;
};

// ---- truth values: a formula in postfix ----

template <class T>
class Postfix {
 public:
  using N = NumberOf<T>;

  Postfix(const Task& task, bool with_gradient) : task_(task), operands_(task), rows_(task.steps * kStride) {
    away_ = {static_cast<N>(1.0 - task.eps), static_cast<N>(task.eps)};
    if (with_gradient) slopes_.allocate(task.steps * kStride);
    is_polynomial_ = std::is_same_v<N, float> && polynomial_of(task, &polynomial_);
    for (int term = 0; term < polynomial_.terms; ++term) {
      const double sign = polynomial_.falls[term] ? -1.0 : 1.0;  // the slope is that by the operand
      slope_[term] = polynomial_.value.slope(term).affine(sign, 0);
      prepared_slope_[term] = polynomial_.prepared.slope(term).affine(sign, 0);
    }
  }

  // Whether a row is computed at once, in registers.
  bool is_polynomial() const { return is_polynomial_; }

  // Of a polynomial: the sum over row h of what the quantifier takes of the values, or of its square.
  double total(const Tile& tile, int64_t h, bool squared) {
    return polynomial_total(row_of(tile, h, polynomial_.prepared, nullptr), tile.lanes, squared);
  }

  // Of a polynomial: what the quantifier takes of the values.
  void prepared(const Tile& tile, int64_t h, N* to) {
    polynomial_values(row_of(tile, h, polynomial_.prepared, nullptr), tile.lanes, to);
  }

  // Of a polynomial: backward from the slopes factor * (v * reference), where v is what the quantifier takes.
  void backward(const Tile& tile, int64_t h, const Slope<N>& slope, Contributions<T>& to) {
    const N factor = static_cast<N>(slope.factor / task_.reduction.before.scale), reference = slope.reference;
    const auto own = [=](Lanes<N> v, int64_t) { return factor * (v * reference); };
    polynomial_backward(tile, h, row_of(tile, h, polynomial_.prepared, prepared_slope_), own, to);
  }

  void load(const Tile& tile) {
    operands_.load(tile, !is_polynomial_);
    evaluated_ = -1;
  }

  void values(const Tile& tile, int64_t h, N* to) {
    if (is_polynomial_) {
      return polynomial_values(row_of(tile, h, polynomial_.value, nullptr), tile.lanes, to);
    }
    evaluate(tile, h, to);
    const Value& last = values_[task_.steps - 1];
    if (last.row == to && last.lanes) return;
    for (int64_t j = 0; j < tile.width; j += kLanes<N>) write(to + j, at(last, j));
  }

  void backward(const Tile& tile, int64_t h, const N* slopes, Contributions<T>& to) {
    if (is_polynomial_) {
      const auto own = [=](Lanes<N>, int64_t j) { return read(slopes + j); };
      return polynomial_backward(tile, h, row_of(tile, h, polynomial_.value, slope_), own, to);
    }
    if (evaluated_ != h) evaluate(tile, h, rows_.data() + (task_.steps - 1) * kStride);
    const int last = task_.steps - 1;
    slope_rows_[last] = slopes;
    if (!values_[last].lanes) {
      slope_sums_[last] = row_total<N>(tile.width, [&](int64_t j) { return read(slopes + j); });
    }
    for (int i = last; i >= 0; --i) {
      const Step step = task_.program[i];
      if (step.code == Code::operand) {
        give(i, step.operand, h, tile, to);
      } else if (is_unary(step.code)) {
        with_unary(step.code, [&](auto f) {
          const Value& x = values_[step.left];
          with_values(x, x, [&](auto x_at, auto) {
            pass(i, step.left, tile, [=, away = away_](int64_t j) { return f.slope(x_at(j), away); });
          });
        });
      } else {
        with_binary(step.code, [&](auto f) {
          with_values(values_[step.left], values_[i - 1], [&](auto x_at, auto y_at) {
            const auto slopes_at = [=, away = away_](int64_t j) { return f.slopes(x_at(j), y_at(j), away); };
            if (values_[step.left].lanes && values_[i - 1].lanes) return pass_both(i, tile, slopes_at);
            pass(i, step.left, tile, [=](int64_t j) { return slopes_at(j).x; });
            pass(i, i - 1, tile, [=](int64_t j) { return slopes_at(j).y; });
          });
        });
      }
    }
  }

 private:
  // A row of values, or one that all lanes share.
  struct Value {
    const N* row;
    bool lanes;
  };

  static Lanes<N> at(const Value& value, int64_t j) {
    return value.lanes ? read(value.row + j) : splat(*value.row);
  }

  // Calls f with the two values as functions of the lane: what does not vary is read once.
  template <class F>
  static void with_values(const Value& x, const Value& y, F&& f) {
    const auto row = [](const Value& value) {
      return [from = value.row](int64_t j) { return read(from + j); };
    };
    const auto one = [](const Value& value) { return [all = splat(*value.row)](int64_t) { return all; }; };
    if (x.lanes) return y.lanes ? f(row(x), row(y)) : f(row(x), one(y));
    y.lanes ? f(one(x), row(y)) : f(one(x), one(y));
  }

  // Values of all steps, the last one at `end`, where it may be overwritten: slopes do not need it.
  void evaluate(const Tile& tile, int64_t h, N* end) {
    const Away<N> away = away_;
    evaluated_ = h;
    for (int i = 0; i < task_.steps; ++i) {
      const Step step = task_.program[i];
      N* const row = i == task_.steps - 1 ? end : rows_.data() + i * kStride;
      if (step.code == Code::operand) {
        const Cells<N>& cells = operands_.cells(step.operand);
        values_[i] = {cells.row(h), cells.lanes};
        // A gradient with lanes for an operand whose cells share one.
        const Strided& grad = task_.grads[step.operand];
        if (!cells.lanes && grad.data != nullptr && grad.strides[kLaneAxis] != 0) {
          fill(row, tile.width, *cells.row(h));
          values_[i] = {row, true};
        }
        continue;
      }
      if (is_unary(step.code)) {
        const Value& x = values_[step.left];
        const int64_t width = x.lanes ? tile.width : kLanes<N>;
        with_unary(step.code, [&](auto f) {
          for (int64_t j = 0; j < width; j += kLanes<N>) write(row + j, f.value(at(x, j), away));
        });
        values_[i] = {row, x.lanes};
        continue;
      }
      const Value &x = values_[step.left], &y = values_[i - 1];
      const bool lanes = x.lanes || y.lanes;
      const int64_t width = lanes ? tile.width : kLanes<N>;
      with_binary(step.code, [&](auto f) {
        with_values(x, y, [&](auto x_at, auto y_at) {
          for (int64_t j = 0; j < width; j += kLanes<N>) write(row + j, f.value(x_at(j), y_at(j), away));
        });
      });
      values_[i] = {row, lanes};
    }
  }

  // Slopes of step i, handed on to one of its operands.
  template <class F>
  void pass_both(int i, const Tile& tile, F slopes_at) {
    const int left = task_.program[i].left;
    N *const to_left = slopes_.data() + left * kStride, *const to_right = slopes_.data() + (i - 1) * kStride;
    const N* const from = slope_rows_[i];
    for (int64_t j = 0, width = tile.width; j < width; j += kLanes<N>) {
      const Lanes<N> own = read(from + j);
      const auto slopes = slopes_at(j);
      write(to_left + j, own * slopes.x);
      write(to_right + j, own * slopes.y);
    }
    slope_rows_[left] = to_left;
    slope_rows_[i - 1] = to_right;
  }

  template <class F>
  void pass(int i, int operand, const Tile& tile, F slope_at) {
    if (values_[operand].lanes) {
      N* const to = slopes_.data() + operand * kStride;
      const N* const from = slope_rows_[i];
      for (int64_t j = 0, width = tile.width; j < width; j += kLanes<N>) {
        write(to + j, read(from + j) * slope_at(j));
      }
      slope_rows_[operand] = to;
    } else if (values_[i].lanes) {
      const N* const from = slope_rows_[i];
      slope_sums_[operand] =
          row_total<N>(tile.width, [&](int64_t j) { return read(from + j) * slope_at(j); });
    } else {
      N slope[kLanes<N>];
      write(slope, slope_at(0));
      slope_sums_[operand] = slope_sums_[i] * static_cast<double>(slope[0]);
    }
  }

  // Row h of the polynomial `value`, with `slopes` where they are given.
  PolynomialRow<N> row_of(const Tile& tile, int64_t h, const Multilinear& value, const Multilinear* slopes) {
    PolynomialRow<N> row;
    row.lanes = polynomial_.lanes;
    row.terms = polynomial_.terms;
    const int64_t whole = tile.lanes / kLanes<N> * kLanes<N>;
    double numbers[kTerms] = {};
    for (int term = 0; term < row.terms; ++term) {
      const N* const from = operands_.cells(polynomial_.operands[term]).row(h);
      if (term >= row.lanes) {
        const double number = static_cast<double>(*from);
        numbers[term] = polynomial_.falls[term] ? 1.0 - number : number;
        continue;
      }
      row.row[term] = from;
      row.falls[term] = polynomial_.falls[term];
      if (whole == tile.lanes) continue;
      N* const last = rows_.data() + term * kStride;
      write(last, Lanes<N>{});
      for (int64_t j = whole; j < tile.lanes; ++j) last[j - whole] = from[j];
      row.last[term] = last;
    }
    row.value = with_numbers<N>(value, row.lanes, row.terms, numbers);
    for (int term = 0; slopes != nullptr && term < row.terms; ++term) {
      row.slopes[term] = with_numbers<N>(slopes[term], row.lanes, row.terms, numbers);
    }
    return row;
  }

  template <class F>
  void polynomial_backward(const Tile& tile, int64_t h, const PolynomialRow<N>& row, F own,
                           Contributions<T>& to) {
    Inlet<N> inlets[kTerms];
    double sums[kTerms] = {};
    for (int term = 0; term < row.terms; ++term) {
      const int operand = polynomial_.operands[term];
      if (to.wanted(operand) && to.lanes(operand)) inlets[term] = to.inlet(operand, h);
    }
    hand_on(row, tile.lanes, inlets, sums, own);
    for (int term = 0; term < row.terms; ++term) {
      const int operand = polynomial_.operands[term];
      if (to.wanted(operand) && !to.lanes(operand)) to.add_cell(operand, h, sums[term]);
    }
  }

  void give(int i, int operand, int64_t h, const Tile& tile, Contributions<T>& to) {
    if (!to.wanted(operand)) return;
    if (!values_[i].lanes) return to.add_cell(operand, h, slope_sums_[i]);
    const N* const from = slope_rows_[i];
    if (to.lanes(operand)) return to.add_lanes(operand, h, [=](int64_t j) { return read(from + j); });
    to.add_cell(operand, h, row_total<N>(tile.width, [&](int64_t j) { return read(from + j); }));
  }

  const Task& task_;
  Operands<T> operands_;
  Memory<N> rows_, slopes_;
  Away<N> away_;
  Value values_[kMostSteps];
  const N* slope_rows_[kMostSteps];
  double slope_sums_[kMostSteps];
  bool is_polynomial_ = false;
  Polynomial polynomial_;
  Multilinear slope_[kTerms], prepared_slope_[kTerms];
  int64_t evaluated_ = -1;  // the row whose steps' values are there
};

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::fuzzy
