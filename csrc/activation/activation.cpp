// Checks in front of the kernels: shapes, types, devices.
#include "activation/activation.h"

#include <algorithm>
#include <initializer_list>
#include <string>

#include "core/checks.h"
#include "core/error.h"

namespace tenfold::activation {
namespace {

const Kernels& kernels() {
  return table_in_use<Kernels>(&baseline::kernels, TENFOLD_AVX2(kernels), TENFOLD_AVX512(kernels));
}

Element element_of(DType type) {
  return type == kFloat32 ? Element::f32 : type == kBFloat16 ? Element::bf16 : Element::f64;
}

// A single number is a row of one.
TensorView as_rows(const TensorView& view) {
  TensorView rows = view;
  if (view.rank > 0) return rows;
  rows.rank = 1;
  rows.shape[0] = 1;
  rows.strides[0] = view.dtype.bytes();
  return rows;
}

void want_input(const TensorView& x, bool gated) {
  want_memory("x", x);
  want_type("x", x, {kFloat32, kBFloat16, kFloat64});
  if (gated && (x.rank < 1 || x.shape[x.rank - 1] % 2 != 0)) {
    throw ValueError("x has shape " + shape_of(x) + ", want an even last dimension: values, then factors");
  }
  want_contiguous_rows("x", as_rows(x));
}

// An array of x's type and device, of its shape or, if `halved`, half as wide.
void want_as(const char* name, const TensorView& view, const TensorView& x, bool halved) {
  want_memory(name, view);
  want_type(name, view, {x.dtype});
  want_together(name, view, "x", x);
  TensorView wanted = x;
  if (halved) wanted.shape[x.rank - 1] /= 2;
  if (view.rank != x.rank || !std::equal(wanted.shape, wanted.shape + x.rank, view.shape)) {
    throw ValueError(std::string(name) + " has shape " + shape_of(view) + ", want " + shape_of(wanted) +
                     (halved ? ", half as wide as x" : " as x"));
  }
  want_contiguous_rows(name, as_rows(view));
}

Rows rows_of(const GridLayout& layout, const TensorView& view) {
  Rows rows{view.data, {}};
  layout.strides(view, rows.strides);
  return rows;
}

// One long row where all rows follow one another, for short rows cost time.
template <class Task>
void join_rows(Task& task, std::initializer_list<const Rows*> arrays, int64_t bytes) {
  const int64_t width = task.grid.width, rows = task.grid.rows();
  if (task.gated || rows < 2 || task.grid.counts[2] != rows) return;
  for (const Rows* array : arrays) {
    if (array->data != nullptr && array->strides[2] != width * bytes) return;
  }
  task.grid = {{1, 1, 1}, width * rows};
}

}  // namespace

void activate(const TensorView& x_view, const TensorView& out_view, Activation activation, bool gated) {
  const TensorView x = as_rows(x_view), out = as_rows(out_view);
  want_input(x_view, gated);
  want_as("out", out_view, x_view, gated);
  want_writable("out", out);
  want_same_or_apart("out", out, "x", x);
  const GridLayout layout("x", {&out, &x});
  Forward task{rows_of(layout, x),  rows_of(layout, out), layout.grid(),
               element_of(x.dtype), activation,           gated};
  join_rows(task, {&task.x, &task.out}, x.dtype.bytes());
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(x)) return cuda::activate(task, queue_of(x));
  }
  kernels().activate(task);
}

void activate_backward(const TensorView& grad_view, const TensorView& x_view, const TensorView& x_grad_view,
                       const TensorView* activated_view, Activation activation, bool gated) {
  const TensorView grad = as_rows(grad_view), x = as_rows(x_view), x_grad = as_rows(x_grad_view);
  want_input(x_view, gated);
  want_as("grad", grad_view, x_view, gated);
  want_as("x_grad", x_grad_view, x_view, false);
  want_writable("x_grad", x_grad);
  want_same_or_apart("x_grad", x_grad, "x", x);
  if (gated && overlap(x_grad, grad)) {
    throw ValueError("x_grad shares memory with grad, want its own memory or exactly that of x");
  }
  want_same_or_apart("x_grad", x_grad, "grad", grad);
  TensorView activated = grad;
  if (activated_view != nullptr) {
    activated = as_rows(*activated_view);
    want_as("activated", *activated_view, x_view, gated);
    want_writable("activated", activated);
    want_same_or_apart("activated", activated, "grad", grad);
    if (overlap(activated, x) || overlap(activated, x_grad)) {
      throw ValueError(
          "activated shares memory with x or x_grad, want its own memory or exactly that of grad");
    }
  }
  const GridLayout layout("x", {&grad, &x, &x_grad, &activated});
  Backward task{rows_of(layout, grad),
                rows_of(layout, x),
                rows_of(layout, x_grad),
                rows_of(layout, activated),
                layout.grid(),
                element_of(x.dtype),
                activation,
                gated};
  if (activated_view == nullptr) task.activated.data = nullptr;
  join_rows(task, {&task.grad, &task.x, &task.x_grad, &task.activated}, x.dtype.bytes());
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(x)) return cuda::activate_backward(task, queue_of(x));
  }
  kernels().activate_backward(task);
}

}  // namespace tenfold::activation
