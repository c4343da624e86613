// Checks in front of the kernels: shapes, types, devices.
#include "pairwise/pairwise.h"

#include <initializer_list>
#include <string>
#include <utility>

#include "core/checks.h"
#include "core/error.h"

namespace tenfold::pairwise {
namespace {

const Kernels& kernels() {
  return table_in_use<Kernels>(&baseline::kernels, TENFOLD_AVX2(kernels), TENFOLD_AVX512(kernels));
}

Element element_of(DType type) {
  return type == kFloat32 ? Element::f32 : type == kBFloat16 ? Element::bf16 : Element::f64;
}

Pointwise pointwise_of(const std::string& name) {
  static const std::pair<const char*, Pointwise> names[] = {
      {"elu", Pointwise::elu},        {"relu", Pointwise::relu},           {"silu", Pointwise::silu},
      {"gelu", Pointwise::gelu},      {"gelu_tanh", Pointwise::gelu_tanh}, {"tanh", Pointwise::tanh},
      {"sigmoid", Pointwise::sigmoid}};
  for (const auto& [known, function] : names) {
    if (name == known) return function;
  }
  throw ValueError("activation is '" + name + "', want elu, relu, silu, gelu, gelu_tanh, tanh or sigmoid");
}

// Of u's type and device and of this shape, walked through by its last two dimensions.
Matrix matrix_of(const char* name, const TensorView& view, const TensorView& u,
                 std::initializer_list<int64_t> shape, const char* said) {
  want_memory(name, view);
  want_type(name, view, {u.dtype});
  want_together(name, view, "u", u);
  want_shape(name, view, shape, said);
  const int last = view.rank - 1;
  return {view.data, last > 0 ? view.strides[last - 1] : 0, last >= 0 ? view.strides[last] : 0};
}

void want_width(const char* name, const TensorView& view, int axis, const char* said) {
  if (view.rank == 2 && view.shape[axis] >= 1 && view.shape[axis] <= kMostWidth) return;
  throw ValueError(std::string(name) + " has shape " + shape_of(view) + ", want " + said);
}

Task task_of(const PairArrays& arrays) {
  const TensorView &u = arrays.u, &v = arrays.v;
  Task task{};
  want_memory("u", u);
  want_type("u", u, {kFloat32, kBFloat16, kFloat64});
  want_width("u", u, 1, "(n, H) with H from 1 to 64");
  if (v.rank != 2) throw ValueError("v has shape " + shape_of(v) + ", want (m, H), as many columns as u");
  const int64_t width = u.shape[1];
  task.element = element_of(u.dtype);
  task.n = u.shape[0];
  task.m = v.shape[0];
  task.width = static_cast<int>(width);
  task.u = matrix_of("u", u, u, {task.n, width}, "");
  task.v = matrix_of("v", v, u, {task.m, width}, "as many columns as u");
  if (arrays.hidden != nullptr) {
    want_width("hidden", *arrays.hidden, 0, "(K, H) with K from 1 to 64");
    task.hidden_width = static_cast<int>(arrays.hidden->shape[0]);
    task.hidden = matrix_of("hidden", *arrays.hidden, u, {task.hidden_width, width}, "as many columns as u");
  }
  task.w = matrix_of("w", arrays.w, u, {task.weights()},
                     task.hidden_width > 0 ? "one for each row of hidden" : "one for each column of u");
  if (arrays.hidden_bias != nullptr) {
    if (arrays.hidden == nullptr) throw ValueError("hidden_bias is given and hidden is None, want both");
    task.hidden_bias =
        matrix_of("hidden_bias", *arrays.hidden_bias, u, {task.hidden_width}, "one for each row of hidden");
  }
  if (arrays.b != nullptr) task.b = matrix_of("b", *arrays.b, u, {}, "a single number");
  return task;
}

// Memory for a gradient, of the shape of its array.
Matrix grad_of(const char* name, const TensorView* view, const TensorView& u,
               std::initializer_list<int64_t> shape, const char* said) {
  if (view == nullptr) return {};
  want_writable(name, *view);
  return matrix_of(name, *view, u, shape, said);
}

}  // namespace

int64_t forward_scratch(const PairArrays& arrays) {
  const Task task = task_of(arrays);
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(arrays.u)) return cuda::scratch_bytes(task, false);
  }
  return 0;
}

void pair_mlp(const PairArrays& arrays, const std::string& activation, const TensorView& out, char* scratch) {
  Task task = task_of(arrays);
  task.activation = pointwise_of(activation);
  task.out = matrix_of("out", out, arrays.u, {task.n, task.m}, "a score for each pair of rows");
  want_writable("out", out);
  if (out.count() == 0) return;
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(arrays.u)) return cuda::pair_mlp(task, scratch, queue_of(arrays.u));
  }
  (void)scratch;
  kernels().pair_mlp(task);
}

int64_t backward_scratch(const PairArrays& arrays) {
  const Task task = task_of(arrays);
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(arrays.u)) return cuda::scratch_bytes(task, true);
  }
  return 0;
}

void pair_mlp_backward(const TensorView& grad, const PairArrays& arrays, const std::string& activation,
                       const PairGrads& grads, char* scratch) {
  const TensorView& u = arrays.u;
  Task task = task_of(arrays);
  task.activation = pointwise_of(activation);
  task.out = matrix_of("grad", grad, u, {task.n, task.m}, "as the scores");
  task.u_grad = grad_of("u_grad", grads.u, u, {task.n, task.width}, "as u");
  task.v_grad = grad_of("v_grad", grads.v, u, {task.m, task.width}, "as v");
  task.w_grad = grad_of("w_grad", grads.w, u, {task.weights()}, "as w");
  task.b_grad = grad_of("b_grad", grads.b, u, {}, "a single number");
  if (task.hidden_width == 0 && (grads.hidden != nullptr || grads.hidden_bias != nullptr)) {
    throw ValueError("hidden_grad or hidden_bias_grad is given and hidden is None, want None");
  }
  task.hidden_grad = grad_of("hidden_grad", grads.hidden, u, {task.hidden_width, task.width}, "as hidden");
  task.hidden_bias_grad =
      grad_of("hidden_bias_grad", grads.hidden_bias, u, {task.hidden_width}, "as hidden_bias");
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(u)) return cuda::pair_mlp_backward(task, scratch, queue_of(u));
  }
  (void)scratch;
  kernels().pair_mlp_backward(task);
}

}  // namespace tenfold::pairwise
