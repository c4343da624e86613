// Quantifiers: what is kept of the elements seen so far, and slopes of the result by each element.
#pragma once

#include <cstdint>

#include "fuzzy/fuzzy.h"
#include "fuzzy/lanes.h"
#include "fuzzy/state.h"
#include "fuzzy/tiles.h"

namespace tenfold::fuzzy {
namespace TENFOLD_LEVEL {

template <class N, class V>
V raised(V x, int power) {
  V result = x;
  for (int i = 1; i < power; ++i) result *= x;
  return result;
}

// A row of formula values as the quantifier takes them: neutral where the guard does not hold and beyond the
// end. `scaled`: scale and shift are in them already.
template <class T>
void prepare_row(const Reduction& reduction, const GuardTile<T>& guard, const Tile& tile, int64_t h,
                 NumberOf<T>* row, bool scaled) {
  using N = NumberOf<T>;
  const N scale = static_cast<N>(reduction.before.scale), shift = static_cast<N>(reduction.before.shift);
  if (!scaled && (scale != N(1) || shift != N(0))) {
    for (int64_t j = 0; j < tile.width; j += kLanes<N>) write(row + j, scale * read(row + j) + shift);
  }
  if (reduction.logged) {
    for (int64_t j = 0; j < tile.width; j += kLanes<N>) write(row + j, log_from_zero(read(row + j)));
  }
  const N none = neutral<N>(reduction);
  if (guard.present()) {
    const Cells<N>& cells = guard.cells();
    const N* const flags = cells.row(h);
    if (!cells.lanes) {
      if (*flags == N(0)) fill(row, tile.width, none);
    } else {
      for (int64_t j = 0; j < tile.width; j += kLanes<N>) {
        const Lanes<N> value = read(row + j);
        write(row + j, read(flags + j) != N(0) ? value : splat(none));
      }
    }
  }
  for (int64_t j = tile.lanes; j < tile.width; ++j) row[j] = none;
}

// The values of row h of a formula as the quantifier takes them.
template <class T, class F>
void prepared_row(F& formula, const Reduction& reduction, const GuardTile<T>& guard, const Tile& tile,
                  int64_t h, NumberOf<T>* row) {
  bool scaled = false;
  if constexpr (requires { formula.prepared(tile, h, row); }) {
    scaled = formula.is_polynomial();
    if (scaled) formula.prepared(tile, h, row);
  }
  if (!scaled) formula.values(tile, h, row);
  prepare_row(reduction, guard, tile, h, row, scaled);
}

// `one` for values that are the greatest, NaN for NaN, which so gets into the count.
template <class V, class Most>
V equal_or_nan(V value, Most most, V one) {
  return value == most ? one : (value == value ? V{} : value);
}

// All lanes of a prepared row.
template <class N>
Seen<N> seen_in_row(const Reduction& reduction, const N* row, int64_t width) {
  constexpr N none = static_cast<N>(-kInfinity);
  Seen<N> seen;
  switch (reduction.quantifier) {
    case Quantifier::scaled: {
      seen.most = row_max(row, width);
      const N factor = static_cast<N>(reduction.sharpness * kLog2e), most = seen.most == none ? 0 : seen.most;
      seen.sum =
          row_total<N>(width, [&](int64_t j) { return power_of_two((read(row + j) - most) * factor); });
      return seen;
    }
    case Quantifier::most: {
      const N most = seen.most = row_max(row, width);
      const Lanes<N> one = splat(most == none ? N(0) : N(1));
      seen.sum = row_total<N>(width, [&](int64_t j) { return equal_or_nan(read(row + j), most, one); });
      return seen;
    }
    case Quantifier::power:
      if (reduction.power == 2) {
        seen.sum = row_total<N>(width, [&](int64_t j) { return read(row + j) * read(row + j); });
      } else {
        seen.sum = row_total<N>(width, [&](int64_t j) { return raised<N>(read(row + j), reduction.power); });
      }
      return seen;
    default:
      seen.sum = row_total<N>(width, [&](int64_t j) { return read(row + j); });
      return seen;
  }
}

// The sums of a column of vectors, rows of kStride from `from` on: what seen_in_row gives, for each lane.
template <class N>
void seen_in_columns(const Reduction& reduction, const N* from, int64_t rows, N* most, N* sum) {
  Lanes<N> total{};
  if (reduction.quantifier == Quantifier::scaled || reduction.quantifier == Quantifier::most) {
    Lanes<N> top = read(from);
    for (int64_t h = 1; h < rows; ++h) top = larger(read(from + h * kStride), top);
    const N factor = static_cast<N>(reduction.sharpness * kLog2e);
    write(most, top);
    const auto none = top == static_cast<N>(-kInfinity);
    const Lanes<N> one = none ? Lanes<N>{} : splat(N(1)), base = none ? Lanes<N>{} : top;
    for (int64_t h = 0; h < rows; ++h) {
      const Lanes<N> v = read(from + h * kStride);
      if (reduction.quantifier == Quantifier::most) {
        total += equal_or_nan(v, top, one);
      } else {
        total += power_of_two((v - base) * factor);
      }
    }
  } else if (reduction.quantifier == Quantifier::power) {
    for (int64_t h = 0; h < rows; ++h) total += raised<N>(read(from + h * kStride), reduction.power);
  } else {
    for (int64_t h = 0; h < rows; ++h) total += read(from + h * kStride);
  }
  write(sum, total);
}

// ---- slopes ----

// slopes[j] from the prepared values of a row (for sums: from nothing); slope_at(j) gives vectors of both.
template <class N, class F>
void slope_row(const Reduction& reduction, const N* values, int64_t width, N* slopes, F slope_at) {
  const N sharpness =
      static_cast<N>((reduction.logged ? reduction.sharpness - 1.0 : reduction.sharpness) * kLog2e);
  const int power = reduction.power - 1;
  const auto each = [=](auto f) {
    for (int64_t j = 0; j < width; j += kLanes<N>) write(slopes + j, f(j, slope_at(j)));
  };
  switch (reduction.quantifier) {
    case Quantifier::scaled:
      return each([=](int64_t j, auto slope) {
        return slope.factor * power_of_two((read(values + j) - slope.reference) * sharpness);
      });
    case Quantifier::most:
      return each([=](int64_t j, auto slope) {
        const auto taken = (read(values + j) == slope.reference) | (slope.factor != slope.factor);
        return taken ? slope.factor : Lanes<N>{};  // all of a row whose maximum is no number
      });
    case Quantifier::power:
      if (power == 1) {
        return each(
            [&](int64_t j, auto slope) { return slope.factor * (read(values + j) * slope.reference); });
      }
      return each([=](int64_t j, auto slope) {
        return slope.factor * raised<N>(read(values + j) * slope.reference, power);
      });
    default:
      return each([=](int64_t, auto slope) { return slope.factor; });
  }
}

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::fuzzy
