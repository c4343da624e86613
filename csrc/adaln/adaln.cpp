// Checks in front of the kernels: shapes, types, devices.
#include "adaln/adaln.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <initializer_list>
#include <string>
#include <utility>

#include "core/checks.h"
#include "core/error.h"

namespace tenfold::adaln {
namespace {

const Kernels& kernels() {
  return table_in_use<Kernels>(&baseline::kernels, TENFOLD_AVX2(kernels), TENFOLD_AVX512(kernels));
}

Element element_of(DType type) {
  return type == kFloat32 ? Element::f32 : type == kBFloat16 ? Element::bf16 : Element::f64;
}

DType statistics_type(const TensorView& x) { return x.dtype == kFloat64 ? kFloat64 : kFloat32; }

// float64 goes with float64 only, float32 and bfloat16 with each other.
void want_number(const char* name, const TensorView& view, const TensorView& x) {
  if (x.dtype == kFloat64) {
    want_type(name, view, {kFloat64});
  } else {
    want_type(name, view, {kFloat32, kBFloat16});
  }
}

void want_rows(const char* name, const TensorView& x) {
  want_memory(name, x);
  want_type(name, x, {kFloat32, kBFloat16, kFloat64});
  if (x.rank < 1 || x.shape[x.rank - 1] < 1) {
    throw ValueError(std::string(name) + " has shape " + shape_of(x) + ", want rows of at least one element");
  }
  want_contiguous_rows(name, x);
}

// Rows of the shape of x's.
void want_as(const char* name, const TensorView& view, const char* x_name, const TensorView& x) {
  want_memory(name, view);
  want_number(name, view, x);
  want_together(name, view, x_name, x);
  if (view.rank != x.rank || !std::equal(x.shape, x.shape + x.rank, view.shape)) {
    throw ValueError(std::string(name) + " has shape " + shape_of(view) + ", want " + shape_of(x) + " as " +
                     x_name);
  }
  want_contiguous_rows(name, view);
}

void want_exactly(const char* name, const TensorView& view, const char* x_name, const TensorView& x) {
  want_as(name, view, x_name, x);
  want_type(name, view, {x.dtype});
}

void want_rstd(const TensorView& view, const char* x_name, const TensorView& x) {
  want_dense("rstd", view, statistics_type(x), {x.count() / x.shape[x.rank - 1]}, "one per row");
  want_together("rstd", view, x_name, x);
}

void want_statistics(const TensorView& view, const TensorView& x) {
  want_dense("statistics", view, statistics_type(x), {2, x.count() / x.shape[x.rank - 1]}, "two per row");
  want_together("statistics", view, "x", x);
}

char* statistics_of(const TensorView* view, int row) {
  return view != nullptr ? view->data + row * view->shape[1] * view->dtype.bytes() : nullptr;
}

void want_eps(double eps) {
  if (std::isfinite(eps) && eps > 0) return;
  char shown[32];
  std::snprintf(shown, sizeof shown, "%g", eps);
  throw ValueError(std::string("eps is ") + shown + ", want a finite number above 0");
}

// ---- rows of samples ----

struct Named {
  const char* name;
  const TensorView* view;  // null: absent
};

// Whether row r of all rows is at r times one stride.
bool merges(const TensorView& view) {
  int64_t reach = -1;  // of the dimensions further in; -1: none yet
  for (int i = view.rank - 2; i >= 0; --i) {
    if (view.shape[i] == 1) continue;
    if (reach >= 0 && view.strides[i] != reach) return false;
    reach = view.strides[i] * view.shape[i];
  }
  return true;
}

int64_t merged_stride(const TensorView& view) {
  for (int i = view.rank - 2; i >= 0; --i) {
    if (view.shape[i] != 1) return view.strides[i];
  }
  return 0;
}

// How x's leading dimensions become samples and rows, for all arrays of its shape.
class Layout {
 public:
  Layout(const TensorView& x, std::initializer_list<Named> rows, std::initializer_list<Named> per_sample) {
    for (const Named& vector : per_sample) {
      if (vector.view == nullptr) continue;
      merged_ = false;
      if (x.rank == 3) continue;
      throw ValueError(std::string(vector.name) + " is given for x of shape " + shape_of(x) +
                       ", want x (samples, rows, width)");
    }
    const int64_t width = x.shape[x.rank - 1], count = x.count() / width;
    if (merged_ && x.count() > 0) {
      for (const Named& row : rows) merged_ = merged_ && (row.view == nullptr || merges(*row.view));
    }
    if (!merged_ && x.rank != 3) {
      throw ValueError("x has shape " + shape_of(x) +
                       " and rows at no common stride; want contiguous arrays, or (samples, rows, width)");
    }
    sizes_ = merged_ ? Sizes{1, count, width} : Sizes{x.shape[0], x.shape[1], width};
  }

  Sizes sizes() const { return sizes_; }
  Rows rows(const TensorView* view) const {
    if (view == nullptr) return {nullptr, 0, 0, Element::none};
    if (merged_) return {view->data, 0, merged_stride(*view), element_of(view->dtype)};
    return {view->data, view->strides[0], view->strides[1], element_of(view->dtype)};
  }

 private:
  bool merged_ = true;
  Sizes sizes_;
};

// One vector for each sample: (N, D) or (N, 1, D).
Vectors sample_vectors(const char* name, const TensorView* view, const TensorView& x) {
  if (view == nullptr) return {nullptr, 0, Element::none};
  want_memory(name, *view);
  want_number(name, *view, x);
  want_together(name, *view, "x", x);
  const int64_t samples = x.shape[0], width = x.shape[x.rank - 1];
  const bool flat = view->rank == 2, raised = view->rank == 3 && view->shape[1] == 1;
  if (!(flat || raised) || view->shape[0] != samples || view->shape[view->rank - 1] != width) {
    throw ValueError(std::string(name) + " has shape " + shape_of(*view) + ", want (" +
                     std::to_string(samples) + ", " + std::to_string(width) + ") or (" +
                     std::to_string(samples) + ", 1, " + std::to_string(width) + "), a row for each sample");
  }
  want_contiguous_rows(name, *view);
  return {view->data, view->strides[0], element_of(view->dtype)};
}

// One vector for all: (D,).
Vectors shared_vector(const char* name, const TensorView* view, const TensorView& x) {
  if (view == nullptr) return {nullptr, 0, Element::none};
  want_memory(name, *view);
  want_number(name, *view, x);
  want_together(name, *view, "x", x);
  want_shape(name, *view, {x.shape[x.rank - 1]}, "as wide as x");
  want_contiguous_rows(name, *view);
  return {view->data, 0, element_of(view->dtype)};
}

// ---- forward ----

void want_out(const char* name, const TensorView& out, const ForwardArrays& arrays) {
  want_writable(name, out);
  if (arrays.branch != nullptr) want_same_or_apart(name, out, "branch", *arrays.branch);
  for (const auto& [other, view] :
       {Named{"gate", arrays.gate}, Named{"shift", arrays.shift}, Named{"scale", arrays.scale},
        Named{"weight", arrays.weight}, Named{"bias", arrays.bias}}) {
    if (view == nullptr || !overlap(out, *view)) continue;
    throw ValueError(std::string(name) + " shares memory with " + other + ", want its own memory");
  }
}

Forward forward_task(const ForwardArrays& arrays) {
  const TensorView& x = arrays.x;
  want_rows("x", x);
  want_eps(arrays.eps);
  const bool adds = arrays.branch != nullptr, normalises = arrays.h != nullptr;
  const char* const residual_name = normalises ? "residual" : "out";
  if (adds) {
    want_as("branch", *arrays.branch, "x", x);
    if (arrays.residual == nullptr) throw ValueError("residual is missing, want an array as x");
    want_exactly(residual_name, *arrays.residual, "x", x);
    want_out(residual_name, *arrays.residual, arrays);
    want_same_or_apart(residual_name, *arrays.residual, "x", x);
  }
  if (normalises) {
    want_as("out", *arrays.h, "x", x);
    want_out("out", *arrays.h, arrays);
    want_same_or_apart("out", *arrays.h, "x", x);
    if (adds && overlap(*arrays.h, *arrays.residual)) {
      throw ValueError("out shares memory with residual, want its own memory");
    }
    if (arrays.statistics != nullptr) want_statistics(*arrays.statistics, x);
  }
  if (!adds && !normalises) throw ValueError("branch and out are missing, want one of them");
  const Layout layout(
      x, {{"x", &x}, {"branch", arrays.branch}, {"residual", arrays.residual}, {"out", arrays.h}},
      {{"gate", arrays.gate}, {"shift", arrays.shift}, {"scale", arrays.scale}});
  return {layout.rows(&x),
          layout.rows(arrays.branch),
          layout.rows(adds ? arrays.residual : nullptr),
          layout.rows(arrays.h),
          sample_vectors("gate", arrays.gate, x),
          sample_vectors("shift", arrays.shift, x),
          sample_vectors("scale", arrays.scale, x),
          shared_vector("weight", arrays.weight, x),
          shared_vector("bias", arrays.bias, x),
          normalises ? statistics_of(arrays.statistics, 0) : nullptr,
          normalises ? statistics_of(arrays.statistics, 1) : nullptr,
          arrays.eps,
          layout.sizes()};
}

}  // namespace

int64_t forward_scratch(const ForwardArrays& arrays) {
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(arrays.x)) return cuda::forward_scratch(forward_task(arrays));
  }
  return 0;
}

void forward(const ForwardArrays& arrays, char* scratch) {
  const Forward task = forward_task(arrays);
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(arrays.x)) return cuda::forward(task, scratch, queue_of(arrays.x));
  }
  (void)scratch;
  kernels().forward(task);
}

// ---- backward ----

namespace {

// A gradient of one vector per sample, or of one for all: dense.
Vectors vector_grad(const char* name, const TensorView* grad, const TensorView& x, bool per_sample) {
  if (grad == nullptr) return {nullptr, 0, Element::none};
  want_memory(name, *grad);
  want_number(name, *grad, x);
  want_together(name, *grad, "x", x);
  const int64_t width = x.shape[x.rank - 1];
  if (per_sample) {
    want_dense(name, *grad, grad->dtype, {x.shape[0], width}, "a row for each sample");
    return {grad->data, grad->strides[0], element_of(grad->dtype)};
  }
  want_dense(name, *grad, grad->dtype, {width}, "as wide as x");
  return {grad->data, 0, element_of(grad->dtype)};
}

void want_backward_rows(const BackwardArrays& arrays, const Gradients& grads) {
  const TensorView& x = arrays.x;
  want_rows("x", x);
  if (arrays.residual_grad == nullptr && arrays.h_grad == nullptr) {
    throw ValueError("residual_grad and h_grad are missing, want one of them");
  }
  if (arrays.residual_grad != nullptr) want_exactly("residual_grad", *arrays.residual_grad, "x", x);
  if (arrays.h_grad != nullptr) {
    want_as("h_grad", *arrays.h_grad, "x", x);
    if (arrays.statistics == nullptr) throw ValueError("statistics is missing, want what came with h");
    want_statistics(*arrays.statistics, x);
    if (grads.x == nullptr) throw ValueError("x_grad is missing, want an array as x");
    want_exactly("x_grad", *grads.x, "x", x);
  } else if (grads.x != nullptr) {
    throw ValueError("x_grad is given without h_grad, want None: it is residual_grad");
  }
  if (grads.branch != nullptr) want_as("branch_grad", *grads.branch, "x", x);
  if (grads.gate != nullptr) {
    if (arrays.branch == nullptr) throw ValueError("branch is missing, want it for gate_grad");
    want_as("branch", *arrays.branch, "x", x);
    if (grads.branch != nullptr) want_type("branch_grad", *grads.branch, {arrays.branch->dtype});
  }
}

Backward backward_task(const BackwardArrays& arrays, const Gradients& grads) {
  const TensorView& x = arrays.x;
  want_backward_rows(arrays, grads);
  const bool normalises = arrays.h_grad != nullptr;
  const TensorView* const branch = grads.gate != nullptr ? arrays.branch : nullptr;
  const Layout layout(x,
                      {{"x", &x},
                       {"branch", branch},
                       {"residual_grad", arrays.residual_grad},
                       {"h_grad", arrays.h_grad},
                       {"x_grad", grads.x},
                       {"branch_grad", grads.branch}},
                      {{"gate", arrays.gate},
                       {"scale", arrays.scale},
                       {"gate_grad", grads.gate},
                       {"shift_grad", grads.shift}});
  return {layout.rows(&x),
          layout.rows(branch),
          layout.rows(arrays.residual_grad),
          layout.rows(arrays.h_grad),
          layout.rows(grads.x),
          layout.rows(grads.branch),
          sample_vectors("gate", arrays.gate, x),
          sample_vectors("scale", arrays.scale, x),
          shared_vector("weight", arrays.weight, x),
          shared_vector("bias", arrays.bias, x),
          vector_grad("gate_grad", grads.gate, x, true),
          vector_grad("shift_grad", normalises ? grads.shift : nullptr, x, true),
          vector_grad("scale_grad", normalises ? grads.scale : nullptr, x, true),
          vector_grad("weight_grad", normalises ? grads.weight : nullptr, x, false),
          vector_grad("bias_grad", normalises ? grads.bias : nullptr, x, false),
          normalises ? statistics_of(arrays.statistics, 0) : nullptr,
          normalises ? statistics_of(arrays.statistics, 1) : nullptr,
          layout.sizes()};
}

}  // namespace

int64_t backward_scratch(const BackwardArrays& arrays, const Gradients& grads) {
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(arrays.x)) return cuda::backward_scratch(backward_task(arrays, grads));
  }
  return 0;
}

void backward(const BackwardArrays& arrays, const Gradients& grads, char* scratch) {
  const Backward task = backward_task(arrays, grads);
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(arrays.x)) return cuda::backward(task, scratch, queue_of(arrays.x));
  }
  (void)scratch;
  kernels().backward(task);
}

// ---- rows without parameters ----

namespace {

GridRows rows_of(const GridLayout& layout, const TensorView& view) {
  GridRows rows{view.data, {}, element_of(view.dtype)};
  layout.strides(view, rows.strides);
  return rows;
}

}  // namespace

void norm_rows(const TensorView& x, const TensorView& out, const TensorView& rstd, double eps) {
  want_rows("x", x);
  want_eps(eps);
  want_as("out", out, "x", x);
  want_writable("out", out);
  want_rstd(rstd, "x", x);
  const GridLayout layout("x", {&x, &out});
  const Norm task{rows_of(layout, x), rows_of(layout, out), rstd.data, eps, layout.grid()};
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(x)) return cuda::norm_rows(task, queue_of(x));
  }
  kernels().norm_rows(task);
}

void norm_rows_backward(const TensorView& grad, const TensorView& normalised, const TensorView& rstd,
                        const TensorView& x_grad) {
  want_rows("grad", grad);
  want_as("normalised", normalised, "grad", grad);
  want_as("x_grad", x_grad, "grad", grad);
  want_writable("x_grad", x_grad);
  want_rstd(rstd, "grad", grad);
  const GridLayout layout("grad", {&grad, &normalised, &x_grad});
  const NormBackward task{rows_of(layout, grad), rows_of(layout, normalised), rows_of(layout, x_grad),
                          rstd.data, layout.grid()};
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(grad)) return cuda::norm_rows_backward(task, queue_of(grad));
  }
  kernels().norm_rows_backward(task);
}

}  // namespace tenfold::adaln
