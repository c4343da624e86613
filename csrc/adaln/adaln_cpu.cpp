// The kernels of one instruction-set level; compiled once per level (core/level.h).
//
// A row is read from memory once: mean, variance and result are three passes over a row that the first one
// has brought into the cache.
#include <cstdint>

#include "adaln/adaln.h"
#include "core/bfloat16.h"
#include "core/copy.h"
#include "core/level.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "core/vecmath.h"

namespace tenfold::adaln {
namespace TENFOLD_LEVEL {
namespace {

// Below this much work per thread, waking a thread costs more than it saves.
constexpr int64_t kGrainBytes = 1 << 18;

int64_t rows_per_thread(int64_t width) { return 1 + kGrainBytes / (4 * width); }

// ---- vectors of the type that is computed in, over elements of any type ----

constexpr int kDoubleLanes = kFloatLanes / 2;
typedef double Doubles __attribute__((vector_size(kVectorBytes), may_alias));
typedef int64_t Longs __attribute__((vector_size(kVectorBytes)));
typedef double UnalignedDoubles __attribute__((vector_size(kVectorBytes), may_alias, aligned(8)));

template <class Vector>
constexpr int64_t kLanesOf = static_cast<int64_t>(sizeof(Vector) / sizeof(Vector{}[0]));

struct None {};  // the type of what is absent

template <class X>
struct Computed {
  using Number = float;
  using Vector = Floats;
};
template <>
struct Computed<double> {
  using Number = double;
  using Vector = Doubles;
};
template <class X>
using NumberOf = typename Computed<X>::Number;
template <class X>
using VectorOf = typename Computed<X>::Vector;

template <class T>
constexpr bool kThere = sizeof(T) > sizeof(None);

Floats load_wide(const float* from) { return load_floats(from); }
Floats load_wide(const uint16_t* from) { return load_floats(from); }
Doubles load_wide(const double* from) { return *reinterpret_cast<const UnalignedDoubles*>(from); }
void store_wide(float* to, Floats value) { store_floats(to, value); }
void store_wide(uint16_t* to, Floats value) { store_floats(to, value); }
void store_wide(double* to, Doubles value) { *reinterpret_cast<UnalignedDoubles*>(to) = value; }

// All lanes of a vector, or the first `count`: the end of a row, where the others are zero.
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

template <class Vector>
Vector kept(Vector value, Whole) {
  return value;
}
template <class Vector>
Vector kept(Vector value, Part part) {
  for (int64_t i = part.count; i < kLanesOf<Vector>; ++i) value[i] = 0;
  return value;
}

using tenfold::sum_of;
double sum_of(Doubles x) {
  return fold(x, Longs{}, [](Doubles a, Doubles b) { return a + b; });
}

// Sums of a row go to this many vectors in turn, for an addition takes longer than it takes to start one.
constexpr int kSumVectors = 4;

template <class Vector>
auto total(const Vector (&sums)[kSumVectors]) {
  return sum_of((sums[0] + sums[1]) + (sums[2] + sums[3]));
}

#define TENFOLD_INLINED __attribute__((always_inline))  // or sums do not stay in registers

// Calls body(d, lanes, i) for the columns from d, and one of kSumVectors.
template <class Vector, class Body>
inline TENFOLD_INLINED void for_columns(int64_t width, Body&& body) {
  constexpr int64_t kLanes = kLanesOf<Vector>;
  int64_t d = 0;
  for (; d + kSumVectors * kLanes <= width; d += kSumVectors * kLanes) {
    body(d, Whole{}, 0);
    body(d + kLanes, Whole{}, 1);
    body(d + 2 * kLanes, Whole{}, 2);
    body(d + 3 * kLanes, Whole{}, 3);
  }
  for (; d + kLanes <= width; d += kLanes) body(d, Whole{}, 0);
  if (d < width) body(d, Part{width - d}, 0);
}

// ---- rows, and vectors of a sample ----

template <class T>
T* row_of(const Rows& rows, int64_t sample, int64_t row) {
  return rows.data == nullptr
             ? nullptr
             : reinterpret_cast<T*>(rows.data + sample * rows.sample_stride + row * rows.row_stride);
}

template <class T, class Number>
void widen(Number* to, const char* from, int64_t width) {
  const T* const values = reinterpret_cast<const T*>(from);
  for (int64_t d = 0; d < width; ++d) to[d] = static_cast<Number>(to_float(values[d]));
}

template <class Number>
void read_vector(Number* to, const Vectors& from, int64_t sample, int64_t width, Number otherwise) {
  const char* const data = from.data + sample * from.sample_stride;
  switch (from.element) {
    case Element::none:
      for (int64_t d = 0; d < width; ++d) to[d] = otherwise;
      return;
    case Element::bf16:
      return widen<uint16_t>(to, data, width);
    case Element::f64:
      return widen<double>(to, data, width);
    default:
      return widen<float>(to, data, width);
  }
}

template <class T, class Number>
void narrow(char* to, const Number* from, int64_t begin, int64_t end) {
  T* const values = reinterpret_cast<T*>(to);
  for (int64_t d = begin; d < end; ++d) round_to(values[d], from[d]);
}

template <class Number>
void write_vector(const Vectors& to, int64_t sample, const Number* from, int64_t begin, int64_t end) {
  if (to.data == nullptr) return;
  char* const data = to.data + sample * to.sample_stride;
  if constexpr (sizeof(Number) == sizeof(double)) {
    narrow<double>(data, from, begin, end);
  } else if (to.element == Element::bf16) {
    narrow<uint16_t>(data, from, begin, end);
  } else {
    narrow<float>(data, from, begin, end);
  }
}

template <class Number>
class Numbers {
 public:
  explicit Numbers(int64_t count) : floats_(count * static_cast<int64_t>(sizeof(Number) / sizeof(float))) {}
  Number* data() { return reinterpret_cast<Number*>(floats_.data()); }

 private:
  FloatScratch floats_;
};

// h = xhat * factor + offset with factor = weight * (1 + scale), offset = bias * (1 + scale) + shift.
template <class Number>
void fold_factor(Number* factor, Number* scratch, const Vectors& weight, const Vectors& scale, int64_t sample,
                 int64_t width) {
  read_vector(factor, weight, sample, width, Number{1});
  read_vector(scratch, scale, sample, width, Number{0});
  for (int64_t d = 0; d < width; ++d) factor[d] *= Number{1} + scratch[d];
}

template <class Number>
void fold_offset(Number* offset, Number* scratch, const Forward& task, int64_t sample) {
  const int64_t width = task.sizes.width;
  read_vector(offset, task.bias, sample, width, Number{0});
  read_vector(scratch, task.scale, sample, width, Number{0});
  for (int64_t d = 0; d < width; ++d) offset[d] *= Number{1} + scratch[d];
  read_vector(scratch, task.shift, sample, width, Number{0});
  for (int64_t d = 0; d < width; ++d) offset[d] += scratch[d];
}

// ---- forward ----

// residual = x + gate branch, and, where it is `summed`, the sum of the residual as it was rounded.
template <bool summed, class X, class B, class Number = NumberOf<X>>
Number add_branch(X* residual, const X* x, const B* branch, const Number* gate, int64_t width) {
  using Vector = VectorOf<X>;
  Vector sums[kSumVectors] = {};
  for_columns<Vector>(width, [&](int64_t d, auto lanes, int i) TENFOLD_INLINED {
    const Vector value =
        load_lanes(x + d, lanes) + load_lanes(gate + d, lanes) * load_lanes(branch + d, lanes);
    store_lanes(residual + d, value, lanes);
    if constexpr (summed) {
      sums[i] += sizeof(X) < sizeof(Number) ? load_lanes(residual + d, lanes) : kept(value, lanes);
    }
  });
  return total(sums);
}

template <class X>
NumberOf<X> sum_of_row(const X* x, int64_t width) {
  using Vector = VectorOf<X>;
  Vector sums[kSumVectors] = {};
  for_columns<Vector>(
      width, [&](int64_t d, auto lanes, int i) TENFOLD_INLINED { sums[i] += load_lanes(x + d, lanes); });
  return total(sums);
}

template <class X, class Number = NumberOf<X>>
Number rstd_of_row(const X* x, Number mean, Number eps, int64_t width) {
  using Vector = VectorOf<X>;
  Vector sums[kSumVectors] = {};
  for_columns<Vector>(width, [&](int64_t d, auto lanes, int i) TENFOLD_INLINED {
    const Vector centred = kept(load_lanes(x + d, lanes) - mean, lanes);
    sums[i] += centred * centred;
  });
  const Number variance = total(sums) / static_cast<Number>(width);
  if constexpr (sizeof(Number) == sizeof(double)) {
    return 1.0 / __builtin_sqrt(variance + eps);
  } else {
    return 1.0f / __builtin_sqrtf(variance + eps);
  }
}

template <class X, class H, class Number = NumberOf<X>>
void modulate_row(H* h, const X* x, Number mean, Number rstd, const Number* factor, const Number* offset,
                  int64_t width) {
  using Vector = VectorOf<X>;
  for_columns<Vector>(width, [&](int64_t d, auto lanes, int) TENFOLD_INLINED {
    const Vector normalised = (load_lanes(x + d, lanes) - mean) * rstd;
    store_lanes(h + d, normalised * load_lanes(factor + d, lanes) + load_lanes(offset + d, lanes), lanes);
  });
}

// The vectors of the sample that a thread works on.
template <class Number>
class Modulation {
 public:
  explicit Modulation(const Forward& task) : task_(task), numbers_(4 * task.sizes.width) {}
  void enter(int64_t sample) {
    if (sample == sample_) return;
    sample_ = sample;
    const int64_t width = task_.sizes.width;
    if (task_.branch.data != nullptr) read_vector(gate(), task_.gate, sample, width, Number{1});
    if (task_.h.data == nullptr) return;
    fold_factor(factor(), numbers_.data() + 3 * width, task_.weight, task_.scale, sample, width);
    fold_offset(offset(), numbers_.data() + 3 * width, task_, sample);
  }
  Number* gate() { return numbers_.data(); }
  Number* factor() { return numbers_.data() + task_.sizes.width; }
  Number* offset() { return numbers_.data() + 2 * task_.sizes.width; }

 private:
  const Forward& task_;
  Numbers<Number> numbers_;
  int64_t sample_ = -1;
};

template <class X, class B, class H>
void forward_rows(const Forward& task) {
  using Number = NumberOf<X>;
  const int64_t rows = task.sizes.rows, width = task.sizes.width;
  parallel_for(task.sizes.samples * rows, rows_per_thread(width), [&](int64_t begin, int64_t end) {
    Modulation<Number> modulation(task);
    for (int64_t r = begin; r < end; ++r) {
      const int64_t n = r / rows, t = r - n * rows;
      modulation.enter(n);
      const X* x = row_of<const X>(task.x, n, t);
      Number sum;
      if constexpr (kThere<B>) {
        X* const residual = row_of<X>(task.residual, n, t);
        sum =
            add_branch<kThere<H>>(residual, x, row_of<const B>(task.branch, n, t), modulation.gate(), width);
        x = residual;
      } else {
        sum = sum_of_row(x, width);
      }
      if constexpr (kThere<H>) {
        const Number mean = sum / static_cast<Number>(width);
        const Number rstd = rstd_of_row(x, mean, static_cast<Number>(task.eps), width);
        if (task.mean != nullptr) {
          static_cast<Number*>(task.mean)[r] = mean;
          static_cast<Number*>(task.rstd)[r] = rstd;
        }
        modulate_row(row_of<H>(task.h, n, t), x, mean, rstd, modulation.factor(), modulation.offset(), width);
      }
    }
  });
}

// ---- backward ----

template <class Number>
struct Means {
  Number grad, product;  // of the gradient of xhat, and of its products with xhat
};

// Also adds the row to the column sums of h_grad xhat and of h_grad, where `sums` is not null.
template <bool summed, class X, class H, class Number = NumberOf<X>>
Means<Number> read_grad(Number* sums, const X* x, const H* h_grad, const Number* factor, Number mean,
                        Number rstd, int64_t width) {
  using Vector = VectorOf<X>;
  Vector grads[kSumVectors] = {}, products[kSumVectors] = {};
  for_columns<Vector>(width, [&](int64_t d, auto lanes, int i) TENFOLD_INLINED {
    const Vector normalised = kept((load_lanes(x + d, lanes) - mean) * rstd, lanes);
    const Vector given = load_lanes(h_grad + d, lanes);
    const Vector grad = given * load_lanes(factor + d, lanes);
    grads[i] += grad;
    products[i] += grad * normalised;
    if constexpr (summed) {
      Number* const at = sums + d;
      store_lanes(at, load_lanes(at, lanes) + given * normalised, lanes);
      store_lanes(at + width, load_lanes(at + width, lanes) + given, lanes);
    }
  });
  return {total(grads) / static_cast<Number>(width), total(products) / static_cast<Number>(width)};
}

// The rows of one pass; null for what is absent.
template <class X, class B, class H>
struct GradRows {
  const X *x, *residual_grad;
  const B* branch;
  const H* h_grad;
  X* x_grad;
  B* branch_grad;
};

// The residual's gradient, which is x's, and from it branch's; `gate_sum` adds up its products with branch.
template <class X, class B, class H, class Number = NumberOf<X>>
void write_grad(Number* gate_sum, const GradRows<X, B, H>& row, const Number* factor, const Number* gate,
                Number mean, Number rstd, Means<Number> means, int64_t width) {
  using Vector = VectorOf<X>;
  for_columns<Vector>(width, [&](int64_t d, auto lanes, int) TENFOLD_INLINED {
    Vector grad = load_lanes(row.residual_grad + d, lanes);
    if constexpr (kThere<H>) {
      const Vector normalised = (load_lanes(row.x + d, lanes) - mean) * rstd;
      const Vector inner = load_lanes(row.h_grad + d, lanes) * load_lanes(factor + d, lanes);
      grad += rstd * (inner - means.grad - normalised * means.product);
      store_lanes(row.x_grad + d, grad, lanes);
    }
    if constexpr (kThere<B>) {
      if (row.branch_grad != nullptr) {
        store_lanes(row.branch_grad + d, load_lanes(gate + d, lanes) * grad, lanes);
      }
      if (gate_sum != nullptr) {
        Number* const at = gate_sum + d;
        store_lanes(at, load_lanes(at, lanes) + load_lanes(row.branch + d, lanes) * grad, lanes);
      }
    }
  });
}

template <class X, class B, class H>
void backward_row(NumberOf<X>* sums, const Backward& task, int64_t n, int64_t t, const NumberOf<X>* factor,
                  const NumberOf<X>* gate, const X* zeros) {
  using Number = NumberOf<X>;
  const int64_t width = task.sizes.width, r = n * task.sizes.rows + t;
  GradRows<X, B, H> row{row_of<const X>(task.x, n, t),      row_of<const X>(task.residual_grad, n, t),
                        row_of<const B>(task.branch, n, t), row_of<const H>(task.h_grad, n, t),
                        row_of<X>(task.x_grad, n, t),       row_of<B>(task.branch_grad, n, t)};
  if (row.residual_grad == nullptr) row.residual_grad = zeros;
  Number mean = 0, rstd = 0;
  Means<Number> means{};
  if constexpr (kThere<H>) {
    mean = static_cast<const Number*>(task.mean)[r];
    rstd = static_cast<const Number*>(task.rstd)[r];
    means = task.wants_sums() ? read_grad<true>(sums, row.x, row.h_grad, factor, mean, rstd, width)
                              : read_grad<false>(sums, row.x, row.h_grad, factor, mean, rstd, width);
  }
  Number* const gate_sum = task.gate_grad.data != nullptr ? sums + 2 * width : nullptr;
  write_grad(gate_sum, row, factor, gate, mean, rstd, means, width);
}

// A chunk of rows of one sample after the other; sums (chunk, kSums, width).
template <class X, class B, class H>
void backward_rows(NumberOf<X>* sums, const Backward& task) {
  using Number = NumberOf<X>;
  const int64_t rows = task.sizes.rows, width = task.sizes.width, chunks = chunks_of(rows);
  const int64_t grain = 1 + rows_per_thread(width) * chunks / (rows + 1);
  parallel_for(task.sizes.samples * chunks, grain, [&](int64_t begin, int64_t end) {
    Numbers<Number> scratch(4 * width);
    Number *const factor = scratch.data(), *const gate = factor + width, *const spare = gate + width;
    X* const zeros = reinterpret_cast<X*>(spare + width);
    for (int64_t d = 0; d < width; ++d) zeros[d] = 0;
    int64_t sample = -1;
    for (int64_t task_id = begin; task_id < end; ++task_id) {
      const int64_t n = task_id / chunks, chunk = task_id - n * chunks;
      if (n != sample) {
        if constexpr (kThere<H>) fold_factor(factor, spare, task.weight, task.scale, n, width);
        if constexpr (kThere<B>) read_vector(gate, task.gate, n, width, Number{1});
        sample = n;
      }
      Number* const mine = sums + task_id * kSums * width;
      for (int64_t i = 0; i < kSums * width; ++i) mine[i] = 0;
      for (int64_t t = rows * chunk / chunks; t < rows * (chunk + 1) / chunks; ++t) {
        backward_row<X, B, H>(mine, task, n, t, factor, gate, zeros);
      }
    }
  });
}

// The gradients of the vectors of each sample; its sums over all chunks take the place of the first one's.
template <class Number>
void finish_samples(Number* sums, const Backward& task) {
  const int64_t width = task.sizes.width, chunks = chunks_of(task.sizes.rows), step = kSums * width;
  parallel_for(task.sizes.samples, rows_per_thread(width) / chunks, [&](int64_t begin, int64_t end) {
    Numbers<Number> scratch(2 * width);
    Number *const product = scratch.data(), *const bias = product + width;
    for (int64_t n = begin; n < end; ++n) {
      Number* const mine = sums + n * chunks * step;
      for (int64_t chunk = 1; chunk < chunks; ++chunk) {
        const Number* const other = mine + chunk * step;
        for (int64_t i = 0; i < step; ++i) mine[i] += other[i];
      }
      write_vector(task.shift_grad, n, mine + width, 0, width);
      write_vector(task.gate_grad, n, mine + 2 * width, 0, width);
      if (task.scale_grad.data == nullptr) continue;
      read_vector(product, task.weight, n, width, Number{1});
      read_vector(bias, task.bias, n, width, Number{0});
      for (int64_t d = 0; d < width; ++d) product[d] = product[d] * mine[d] + bias[d] * mine[width + d];
      write_vector(task.scale_grad, n, product, 0, width);
    }
  });
}

// weight_grad and bias_grad: the samples' sums times 1 + scale, in the order of the samples.
template <class Number>
void finish_shared(const Number* sums, const Backward& task) {
  if (task.weight_grad.data == nullptr && task.bias_grad.data == nullptr) return;
  const int64_t width = task.sizes.width, step = kSums * width * chunks_of(task.sizes.rows);
  Numbers<Number> scratch(3 * width);
  Number *const weight = scratch.data(), *const bias = weight + width, *const scale = bias + width;
  for (int64_t d = 0; d < width; ++d) weight[d] = bias[d] = 0;
  for (int64_t n = 0; n < task.sizes.samples; ++n) {
    const Number* const mine = sums + n * step;
    read_vector(scale, task.scale, n, width, Number{0});
    for (int64_t d = 0; d < width; ++d) {
      weight[d] += (Number{1} + scale[d]) * mine[d];
      bias[d] += (Number{1} + scale[d]) * mine[width + d];
    }
  }
  write_vector(task.weight_grad, 0, weight, 0, width);
  write_vector(task.bias_grad, 0, bias, 0, width);
}

template <class X, class B, class H>
void backward_all(const Backward& task) {
  using Number = NumberOf<X>;
  const int64_t chunks = task.sizes.samples * chunks_of(task.sizes.rows);
  Numbers<Number> sums(chunks * kSums * task.sizes.width);
  backward_rows<X, B, H>(sums.data(), task);
  finish_samples(sums.data(), task);
  finish_shared(sums.data(), task);
}

// ---- rows without parameters ----

template <class T>
T* row_of(const GridRows& rows, const int64_t (&at)[3]) {
  return reinterpret_cast<T*>(rows.data + at[0] * rows.strides[0] + at[1] * rows.strides[1] +
                              at[2] * rows.strides[2]);
}

// Calls body(row, at) for every row, `at` being its three indices.
template <class Body>
void for_rows(const Grid& grid, Body&& body) {
  const int64_t second = grid.counts[1], third = grid.counts[2];
  parallel_for(grid.rows(), rows_per_thread(grid.width), [&](int64_t begin, int64_t end) {
    int64_t at[3] = {begin / (second * third), begin / third % second, begin % third};
    for (int64_t row = begin; row < end; ++row) {
      body(row, at);
      if (++at[2] < third) continue;
      at[2] = 0;
      if (++at[1] < second) continue;
      at[1] = 0;
      ++at[0];
    }
  });
}

template <class X, class Out>
void norm_rows_of(const Norm& task) {
  using Number = NumberOf<X>;
  using Vector = VectorOf<X>;
  const int64_t width = task.grid.width, row_bytes = width * static_cast<int64_t>(sizeof(X));
  const int64_t lead = 1 + kPrefetchBytes / row_bytes;
  for_rows(task.grid, [&](int64_t r, const int64_t (&at)[3]) {
    const X* const x = row_of<const X>(task.x, at);
    Out* const out = row_of<Out>(task.out, at);
    if (at[2] + lead < task.grid.counts[2]) {
      const char* const ahead = reinterpret_cast<const char*>(x) + lead * task.x.strides[2];
      for (int64_t byte = 0; byte < row_bytes; byte += kLineBytes) prefetch(ahead + byte);
    }
    const Number mean = sum_of_row(x, width) / static_cast<Number>(width);
    const Number rstd = rstd_of_row(x, mean, static_cast<Number>(task.eps), width);
    static_cast<Number*>(task.rstd)[r] = rstd;
    for_columns<Vector>(width, [&](int64_t d, auto lanes, int) TENFOLD_INLINED {
      store_lanes(out + d, (load_lanes(x + d, lanes) - mean) * rstd, lanes);
    });
  });
}

template <class Grad, class X, class Out>
void norm_rows_backward_of(const NormBackward& task) {
  using Number = NumberOf<X>;
  using Vector = VectorOf<X>;
  const int64_t width = task.grid.width;
  for_rows(task.grid, [&](int64_t r, const int64_t (&at)[3]) {
    const Grad* const grad = row_of<const Grad>(task.grad, at);
    const X* const normalised = row_of<const X>(task.normalised, at);
    Out* const x_grad = row_of<Out>(task.x_grad, at);
    Vector grads[kSumVectors] = {}, products[kSumVectors] = {};
    for_columns<Vector>(width, [&](int64_t d, auto lanes, int i) TENFOLD_INLINED {
      const Vector given = load_lanes(grad + d, lanes);
      grads[i] += given;
      products[i] += given * load_lanes(normalised + d, lanes);
    });
    const Number rstd = static_cast<const Number*>(task.rstd)[r];
    const Number mean = total(grads) / static_cast<Number>(width);
    const Number product = total(products) / static_cast<Number>(width);
    for_columns<Vector>(width, [&](int64_t d, auto lanes, int) TENFOLD_INLINED {
      const Vector inner = load_lanes(grad + d, lanes) - mean - load_lanes(normalised + d, lanes) * product;
      store_lanes(x_grad + d, rstd * inner, lanes);
    });
  });
}

// ---- the types ----

// Calls f with a value of the type of `element`: float or uint16_t, or None where that may be.
template <bool optional, class F>
void with_type(Element element, F&& f) {
  if (element == Element::bf16) return f(uint16_t{});
  if constexpr (optional) {
    if (element == Element::none) return f(None{});
  }
  f(float{});
}

void forward(const Forward& task) {
  const Element branch = task.branch.element, h = task.h.element;
  const auto run = [&](auto x, auto b, auto out) {
    if constexpr (kThere<decltype(b)> || kThere<decltype(out)>) {
      forward_rows<decltype(x), decltype(b), decltype(out)>(task);
    }
  };
  if (task.x.element == Element::f64) {
    if (branch == Element::none) return run(double{}, None{}, double{});
    if (h == Element::none) return run(double{}, double{}, None{});
    return run(double{}, double{}, double{});
  }
  with_type<false>(task.x.element, [&](auto x) {
    with_type<true>(branch, [&](auto b) { with_type<true>(h, [&](auto out) { run(x, b, out); }); });
  });
}

void backward(const Backward& task) {
  const bool wants_branch = task.branch_grad.data != nullptr || task.gate_grad.data != nullptr;
  const Element branch = !wants_branch                      ? Element::none
                         : task.branch_grad.data != nullptr ? task.branch_grad.element
                                                            : task.branch.element;
  const Element h = task.h_grad.element;
  const auto run = [&](auto x, auto b, auto out) {
    if constexpr (kThere<decltype(b)> || kThere<decltype(out)>) {
      backward_all<decltype(x), decltype(b), decltype(out)>(task);
    }
  };
  if (task.x.element == Element::f64) {
    if (branch == Element::none) return run(double{}, None{}, double{});
    if (h == Element::none) return run(double{}, double{}, None{});
    return run(double{}, double{}, double{});
  }
  with_type<false>(task.x.element, [&](auto x) {
    with_type<true>(branch, [&](auto b) { with_type<true>(h, [&](auto out) { run(x, b, out); }); });
  });
}

void norm_rows(const Norm& task) {
  if (task.x.element == Element::f64) return norm_rows_of<double, double>(task);
  with_type<false>(task.x.element, [&](auto x) {
    with_type<false>(task.out.element, [&](auto out) { norm_rows_of<decltype(x), decltype(out)>(task); });
  });
}

void norm_rows_backward(const NormBackward& task) {
  if (task.grad.element == Element::f64) return norm_rows_backward_of<double, double, double>(task);
  with_type<false>(task.grad.element, [&](auto grad) {
    with_type<false>(task.normalised.element, [&](auto x) {
      with_type<false>(task.x_grad.element, [&](auto out) {
        norm_rows_backward_of<decltype(grad), decltype(x), decltype(out)>(task);
      });
    });
  });
}

}  // namespace

const Kernels kernels{forward, backward, norm_rows, norm_rows_backward};

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::adaln
