// The kernels of one instruction-set level; compiled once per level (core/level.h).
#include <cstdint>

#include "core/level.h"
#include "core/parallel.h"
#include "fuzzy/atoms.h"
#include "fuzzy/fuzzy.h"
#include "fuzzy/product.h"
#include "fuzzy/quantify.h"

namespace tenfold::fuzzy {
namespace TENFOLD_LEVEL {
namespace {

template <class F>
void with_element(Element element, F&& f) {
  switch (element) {
    case Element::f32:
      return f(float{});
    case Element::bf16:
      return f(uint16_t{});
    case Element::f64:
      return f(double{});
  }
}

// ---- over the index space ----

void quantify(const Task& task) {
  with_element(task.element, [&](auto zero) {
    using T = decltype(zero);
    switch (task.formula) {
      case Formula::log_and:
        return forward_all<T, LogAnd<T>>(task);
      case Formula::log_or:
        return forward_all<T, LogOr<T>>(task);
      case Formula::postfix:
        return forward_all<T, Postfix<T>>(task);
    }
  });
}

void quantify_backward(const Task& task) {
  with_element(task.element, [&](auto zero) {
    using T = decltype(zero);
    switch (task.formula) {
      case Formula::log_and:
        return backward_all<T, LogAnd<T>>(task);
      case Formula::log_or:
        return backward_all<T, LogOr<T>>(task);
      case Formula::postfix:
        return backward_all<T, Postfix<T>>(task);
    }
  });
}

// ---- segments ----

constexpr int64_t kSegmentGrain = 64;

// Calls body(first, count, values) for prepared pieces of a segment.
template <class T, class Body>
void for_pieces(const SegmentTask& task, int64_t segment, NumberOf<T>* row, Body&& body) {
  using N = NumberOf<T>;
  const GuardTask none{};
  const GuardTile<T> guard(none);
  const T* const values = reinterpret_cast<const T*>(task.values);
  for (int64_t at = task.row_ptr[segment]; at < task.row_ptr[segment + 1]; at += kWidth) {
    Tile tile{};
    const int64_t left = task.row_ptr[segment + 1] - at;
    tile.lanes = left < kWidth ? left : kWidth;
    tile.width = padded<N>(tile.lanes);
    convert(row, values + at, tile.lanes);
    for (int64_t j = tile.lanes; j < tile.width; ++j) row[j] = 0;
    prepare_row(task.reduction, guard, tile, 0, row, false);
    body(at, tile);
  }
}

template <class T>
void segments_of(const SegmentTask& task) {
  using N = NumberOf<T>;
  parallel_for(task.segments, kSegmentGrain, [&](int64_t begin, int64_t end) {
    Memory<N> row(kWidth);
    for (int64_t i = begin; i < end; ++i) {
      Seen<N> seen;
      for_pieces<T>(task, i, row.data(), [&](int64_t, const Tile& tile) {
        Seen<N> own = seen_in_row(task.reduction, row.data(), tile.width);
        own.count = tile.lanes;
        merge(task.reduction, seen, own);
      });
      const double value = root(task.reduction, seen);
      round_to(reinterpret_cast<T*>(task.out)[i], static_cast<N>(out_of(task.reduction, value, seen.count)));
      if (task.raw == nullptr) continue;
      reinterpret_cast<N*>(task.raw)[i] = static_cast<N>(value);
      reinterpret_cast<N*>(task.count)[i] = static_cast<N>(seen.count);
    }
  });
}

template <class T>
void segments_backward_of(const SegmentTask& task) {
  using N = NumberOf<T>;
  parallel_for(task.segments, kSegmentGrain, [&](int64_t begin, int64_t end) {
    Memory<N> row(kWidth), slopes(kWidth);
    struct Both {
      Lanes<N> factor, reference;
    };
    for (int64_t i = begin; i < end; ++i) {
      const auto state = [&](const char* from) {
        return static_cast<double>(reinterpret_cast<const N*>(from)[i]);
      };
      const double grad = static_cast<double>(to_float(reinterpret_cast<const T*>(task.out)[i]));
      const Slope<double> slope = slope_of(task.reduction, grad, state(task.raw), state(task.count));
      const Both both{splat(static_cast<N>(slope.factor)), splat(static_cast<N>(slope.reference))};
      for_pieces<T>(task, i, row.data(), [&](int64_t at, const Tile& tile) {
        slope_row(task.reduction, row.data(), tile.width, slopes.data(), [=](int64_t) { return both; });
        T* const to = reinterpret_cast<T*>(task.values_grad) + at;
        for (int64_t j = 0; j < tile.lanes; ++j) round_to(to[j], slopes[j]);
      });
    }
  });
}

void segments(const SegmentTask& task) {
  with_element(task.element, [&](auto zero) { segments_of<decltype(zero)>(task); });
}
void segments_backward(const SegmentTask& task) {
  with_element(task.element, [&](auto zero) { segments_backward_of<decltype(zero)>(task); });
}

int64_t wrong_segment(const int64_t* row_ptr, int64_t segments, int64_t values) {
  if (row_ptr[0] != 0) return 0;
  for (int64_t i = 0; i < segments; ++i) {
    if (row_ptr[i + 1] < row_ptr[i] || row_ptr[i + 1] > values) return i + 1;
  }
  return row_ptr[segments] == values ? -1 : segments;
}

// ---- atoms, products ----

void atom_logits(const AtomTask& task) {
  with_element(task.element, [&](auto zero) {
    task.softmax ? softmax_atoms<decltype(zero)>(task) : sigmoid_atoms<decltype(zero)>(task);
  });
}
void atom_logits_backward(const AtomTask& task) {
  with_element(task.element, [&](auto zero) {
    task.softmax ? softmax_atoms_backward<decltype(zero)>(task)
                 : sigmoid_atoms_backward<decltype(zero)>(task);
  });
}

void logmatmul(const ProductTask& task) {
  with_element(task.element, [&](auto zero) { Product<decltype(zero)>(task).forward(); });
}
void logmatmul_backward(const ProductTask& task) {
  with_element(task.element, [&](auto zero) { Product<decltype(zero)>(task).backward(); });
}

}  // namespace

const Kernels kernels = {quantify,      quantify_backward, segments,    segments_backward,
                         wrong_segment, wrong_index,       atom_logits, atom_logits_backward,
                         logmatmul,     logmatmul_backward};

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::fuzzy
