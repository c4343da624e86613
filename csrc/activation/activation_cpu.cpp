// The kernels of one instruction-set level; compiled once per level (core/level.h).
#include <cstdint>
#include <cstring>

#include "activation/activation.h"
#include "core/activation.h"
#include "core/level.h"
#include "core/parallel.h"
#include "core/simd.h"

namespace tenfold::activation {
namespace TENFOLD_LEVEL {
namespace {

// Below this many elements per thread, waking a thread costs more than it saves.
constexpr int64_t kGrain = 1 << 15;
// Columns of a row that one task takes: as many as make the tasks of a single long row even.
constexpr int64_t kPiece = 1 << 12;

// ---- vectors of the type that is computed in; float64 goes number by number ----

Floats load_wide(const float* from) { return load_floats(from); }
Floats load_wide(const uint16_t* from) { return load_floats(from); }
double load_wide(const double* from) { return *from; }
void store_wide(float* to, Floats value) { store_floats(to, value); }
// As store_floats, but for NaN with set lower halves: one that comes from bfloat16, or is made here, has
// none, so that rounding leaves it alone.
void store_wide(uint16_t* to, Floats value) {
  typedef uint16_t Halves __attribute__((vector_size(kVectorBytes / 2)));
  typedef uint16_t Unaligned __attribute__((vector_size(kVectorBytes / 2), may_alias, aligned(2)));
  const UnsignedInts bits = reinterpret_cast<UnsignedInts>(value);
  const UnsignedInts rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  *reinterpret_cast<Unaligned*>(to) = __builtin_convertvector(rounded, Halves);
}
void store_wide(double* to, double value) { *to = value; }

template <class T>
constexpr int64_t kLanes = sizeof(T) == sizeof(double) ? 1 : kFloatLanes;

// All lanes of a vector, or the first `count`: the end of a row.
struct Whole {};
struct Part {
  int64_t count;
};

template <class T>
auto load_lanes(const T* from, Whole) {
  return load_wide(from);
}
template <class T>
auto load_lanes(const T* from, Part part) {
  T copy[kFloatLanes] = {};
  for (int64_t i = 0; i < part.count; ++i) copy[i] = from[i];
  return load_wide(copy);
}

template <class T, class Vector>
void store_lanes(T* to, Vector value, Whole) {
  store_wide(to, value);
}
template <class T, class Vector>
void store_lanes(T* to, Vector value, Part part) {
  T copy[kFloatLanes];
  store_wide(copy, value);
  for (int64_t i = 0; i < part.count; ++i) to[i] = copy[i];
}

// Calls body(d, lanes) for the columns from d.
template <class T, class Body>
void for_columns(int64_t width, Body&& body) {
  int64_t d = 0;
  for (; d + kLanes<T> <= width; d += kLanes<T>) body(d, Whole{});
  if (d < width) body(d, Part{width - d});
}

// ---- pieces of rows ----

char* row_of(const Rows& rows, const Grid& grid, int64_t i) {
  const int64_t outer = i / grid.counts[2], last = i - outer * grid.counts[2];
  const int64_t first = outer / grid.counts[1], middle = outer - first * grid.counts[1];
  return rows.data + first * rows.strides[0] + middle * rows.strides[1] + last * rows.strides[2];
}

// Calls body(row, first column, count) for pieces of all rows.
template <class Body>
void for_pieces(const Grid& grid, Body&& body) {
  const int64_t width = grid.width, pieces = (width + kPiece - 1) / kPiece;
  const int64_t grain = 1 + kGrain / (width < kPiece ? width + 1 : kPiece);
  parallel_for(grid.rows() * pieces, grain, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t row = i / pieces, first = (i - row * pieces) * kPiece;
      body(row, first, width - first < kPiece ? width - first : kPiece);
    }
  });
}

template <class T, Activation activation, bool gated>
void forward(const Forward& task) {
  for_pieces(task.grid, [&](int64_t row, int64_t first, int64_t count) {
    const T* const x = reinterpret_cast<const T*>(row_of(task.x, task.grid, row)) + first;
    T* const out = reinterpret_cast<T*>(row_of(task.out, task.grid, row)) + first;
    const T* const factor = x + task.grid.width;
    for_columns<T>(count, [&](int64_t d, auto lanes) {
      const auto value = load_lanes(x + d, lanes);
      auto result = apply_activation<activation>(value, value).value;
      if constexpr (gated) result *= load_lanes(factor + d, lanes);
      store_lanes(out + d, result, lanes);
    });
  });
}

template <class T, Activation activation, bool gated, bool wanted>
void backward(const Backward& task) {
  for_pieces(task.grid, [&](int64_t row, int64_t first, int64_t count) {
    const auto at = [&](const Rows& rows) {
      return reinterpret_cast<T*>(row_of(rows, task.grid, row)) + first;
    };
    const int64_t width = task.grid.width;
    const T *const grad = at(task.grad), *const x = at(task.x);
    T *const x_grad = at(task.x_grad), *const activated = wanted ? at(task.activated) : nullptr;
    // Everything is read before anything is written: it may be the same memory.
    for_columns<T>(count, [&](int64_t d, auto lanes) {
      const auto from = load_lanes(grad + d, lanes);
      const auto value = load_lanes(x + d, lanes);
      if constexpr (gated) {
        const auto factor = load_lanes(x + width + d, lanes);
        const auto done = apply_activation<activation>(value, from * factor);
        store_lanes(x_grad + d, done.grad, lanes);
        store_lanes(x_grad + width + d, from * done.value, lanes);
        if constexpr (wanted) store_lanes(activated + d, done.value * factor, lanes);
      } else {
        const auto done = apply_activation<activation>(value, from);
        store_lanes(x_grad + d, done.grad, lanes);
        if constexpr (wanted) store_lanes(activated + d, done.value, lanes);
      }
    });
  });
}

// ---- choices ----

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

template <class F>
void with_flag(bool flag, F&& f) {
  flag ? f(std::true_type{}) : f(std::false_type{});
}

void activate_rows(const Forward& task) {
  with_element(task.element, [&](auto zero) {
    with_activation(task.activation, [&](auto kind) {
      with_flag(task.gated, [&](auto gated) { forward<decltype(zero), kind(), gated()>(task); });
    });
  });
}

void activate_rows_backward(const Backward& task) {
  with_element(task.element, [&](auto zero) {
    with_activation(task.activation, [&](auto kind) {
      with_flag(task.gated, [&](auto gated) {
        with_flag(task.activated.data != nullptr,
                  [&](auto wanted) { backward<decltype(zero), kind(), gated(), wanted()>(task); });
      });
    });
  });
}

}  // namespace

extern const Kernels kernels;
const Kernels kernels{&activate_rows, &activate_rows_backward};

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::activation
