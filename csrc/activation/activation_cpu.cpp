// The kernels of one instruction-set level; compiled once per level (core/level.h).
#include <cstdint>
#include <type_traits>

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

struct OneDouble {
  static constexpr int count = 1;
  double of[count];
};
OneDouble load_group(const double* from) { return {{*from}}; }
void store_group(double* to, const OneDouble& group) { *to = group.of[0]; }

struct OneVector {
  static constexpr int count = 1;
  Floats of[count];
};
OneVector load_group(const float* from) { return {{load(from)}}; }
void store_group(float* to, const OneVector& group) { store(to, group.of[0]); }

// bfloat16 in pairs of vectors, even and odd elements: so nothing is shuffled.
struct TwoVectors {
  static constexpr int count = 2;
  Floats of[count];
};
typedef UnsignedInts UnalignedWords __attribute__((may_alias, aligned(2)));
constexpr uint32_t kUpper = 0xffff0000u;

TwoVectors load_group(const uint16_t* from) {
  const UnsignedInts words = *reinterpret_cast<const UnalignedWords*>(from);
  return {{reinterpret_cast<Floats>(words << 16), reinterpret_cast<Floats>(words & kUpper)}};
}

// The nearest bfloat16, half to even, in the upper halves. A NaN with set lower halves could become an
// infinity: one that comes from bfloat16, or is made here, has none.
UnsignedInts rounded(Floats value) {
  const UnsignedInts bits = reinterpret_cast<UnsignedInts>(value);
  return bits + 0x7fffu + ((bits >> 16) & 1u);
}
void store_group(uint16_t* to, const TwoVectors& group) {
  *reinterpret_cast<UnalignedWords*>(to) = (rounded(group.of[0]) >> 16) | (rounded(group.of[1]) & kUpper);
}

template <class T>
using GroupOf = decltype(load_group(static_cast<const T*>(nullptr)));
template <class T>
constexpr int64_t kLanes = GroupOf<T>::count * (sizeof(T) == sizeof(double) ? 1 : kFloatLanes);

// All elements of a group, or the first `count`: the end of a row.
struct Whole {};
struct Part {
  int64_t count;
};

template <class T>
GroupOf<T> load_lanes(const T* from, Whole) {
  return load_group(from);
}
template <class T>
GroupOf<T> load_lanes(const T* from, Part part) {
  T copy[kLanes<T>] = {};
  for (int64_t i = 0; i < part.count; ++i) copy[i] = from[i];
  return load_group(copy);
}

template <class T>
void store_lanes(T* to, const GroupOf<T>& group, Whole) {
  store_group(to, group);
}
template <class T>
void store_lanes(T* to, const GroupOf<T>& group, Part part) {
  T copy[kLanes<T>];
  store_group(copy, group);
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
    for_columns<T>(count, [&](int64_t d, auto lanes) {
      GroupOf<T> value = load_lanes(x + d, lanes), factor{};
      if constexpr (gated) factor = load_lanes(x + task.grid.width + d, lanes);
#pragma GCC unroll 2
      for (int v = 0; v < value.count; ++v) {
        value.of[v] = apply_activation<activation>(value.of[v], value.of[v]).value;
        if constexpr (gated) value.of[v] *= factor.of[v];
      }
      store_lanes(out + d, value, lanes);
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
      GroupOf<T> from = load_lanes(grad + d, lanes), value = load_lanes(x + d, lanes), factor{};
      if constexpr (gated) factor = load_lanes(x + width + d, lanes);
#pragma GCC unroll 2
      for (int v = 0; v < value.count; ++v) {
        const auto given = from.of[v];
        if constexpr (gated) {
          const auto done = apply_activation<activation>(value.of[v], given * factor.of[v]);
          value.of[v] = done.value * factor.of[v];
          factor.of[v] = given * done.value;
          from.of[v] = done.grad;
        } else {
          const auto done = apply_activation<activation>(value.of[v], given);
          value.of[v] = done.value;
          from.of[v] = done.grad;
        }
      }
      store_lanes(x_grad + d, from, lanes);
      if constexpr (gated) store_lanes(x_grad + width + d, factor, lanes);
      if constexpr (wanted) store_lanes(activated + d, value, lanes);
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
