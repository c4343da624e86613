#include "adaln/adaln.h"

#include <pybind11/pybind11.h>

#include <cstdint>

#include "bindings/calls.h"
#include "bindings/exchange.h"
#include "bindings/families.h"
#include "core/machine.h"

namespace tenfold::bindings {
namespace {

// Arrays up to this size are worked on faster than the interpreter's lock is released and taken again.
constexpr int64_t kHoldLockBytes = 256 << 10;

template <class Kernel>
void run(const TensorView& x, Kernel&& kernel) {
  if (x.count() * x.dtype.bytes() <= kHoldLockBytes) return kernel();
  py::gil_scoped_release released;
  kernel();
}

// An array beside x, or None.
struct Maybe : Optional {
  Maybe(const char* name, py::handle object, const Array& x) : Optional(name, object, "x", x) {}
};

// New results of some size are about to be written for the first time.
void advise(const TensorView* view) {
  if (view == nullptr || view->device.type != DeviceType::cpu) return;
  advise_huge_pages(view->data, view->count() * view->dtype.bytes());
}

void forward(py::handle x, py::handle branch, py::handle gate, py::handle shift, py::handle scale,
             py::handle weight, py::handle bias, double eps, py::handle residual, py::handle h,
             py::handle statistics) {
  const Array input("x", x);
  const Maybe added("branch", branch, input), gates("gate", gate, input), shifts("shift", shift, input);
  const Maybe scales("scale", scale, input), weights("weight", weight, input), biases("bias", bias, input);
  const Maybe sum(h.is_none() ? "out" : "residual", residual, input), out("out", h, input);
  const Maybe kept("statistics", statistics, input);
  const adaln::ForwardArrays arrays{input.view(),  added.view(),   gates.view(),  shifts.view(),
                                    scales.view(), weights.view(), biases.view(), eps,
                                    sum.view(),    out.view(),     kept.view()};
  const Fresh scratch = scratch_like(input, adaln::forward_scratch(arrays));
  advise(arrays.residual);
  advise(arrays.h);
  run(input.view(), [&] { adaln::forward(arrays, scratch.view.data); });
}

void backward(py::handle x, py::handle statistics, py::handle branch, py::handle gate, py::handle scale,
              py::handle weight, py::handle bias, py::handle residual_grad, py::handle h_grad,
              py::handle gradients) {
  const auto to = gradients.cast<py::tuple>();
  if (to.size() != 7) throw ValueError("grads has another length than 7, want (x, branch, gate, ...)");
  const Array input("x", x);
  const Maybe kept("statistics", statistics, input), added("branch", branch, input);
  const Maybe gates("gate", gate, input), scales("scale", scale, input), weights("weight", weight, input);
  const Maybe biases("bias", bias, input), from_residual("residual_grad", residual_grad, input);
  const Maybe from_h("h_grad", h_grad, input), x_grad("x_grad", to[0], input);
  const Maybe branch_grad("branch_grad", to[1], input), gate_grad("gate_grad", to[2], input);
  const Maybe shift_grad("shift_grad", to[3], input), scale_grad("scale_grad", to[4], input);
  const Maybe weight_grad("weight_grad", to[5], input), bias_grad("bias_grad", to[6], input);
  const adaln::BackwardArrays arrays{input.view(),  kept.view(),          added.view(),
                                     gates.view(),  scales.view(),        weights.view(),
                                     biases.view(), from_residual.view(), from_h.view()};
  const adaln::Gradients grads{x_grad.view(),     branch_grad.view(), gate_grad.view(), shift_grad.view(),
                               scale_grad.view(), weight_grad.view(), bias_grad.view()};
  const Fresh scratch = scratch_like(input, adaln::backward_scratch(arrays, grads));
  advise(grads.x);
  advise(grads.branch);
  run(input.view(), [&] { adaln::backward(arrays, grads, scratch.view.data); });
}

void norm_rows(py::handle x, py::handle out, py::handle rstd, double eps) {
  const Array input("x", x), to("out", out), scales("rstd", rstd);
  want_same_kind("x", input, "out", to);
  want_same_kind("x", input, "rstd", scales);
  advise(&to.view());
  run(input.view(), [&] { adaln::norm_rows(input.view(), to.view(), scales.view(), eps); });
}

void norm_rows_backward(py::handle grad, py::handle normalised, py::handle rstd, py::handle x_grad) {
  const Array from("grad", grad), rows("normalised", normalised), scales("rstd", rstd), to("x_grad", x_grad);
  want_same_kind("grad", from, "normalised", rows);
  want_same_kind("grad", from, "rstd", scales);
  want_same_kind("grad", from, "x_grad", to);
  advise(&to.view());
  run(from.view(), [&] { adaln::norm_rows_backward(from.view(), rows.view(), scales.view(), to.view()); });
}

}  // namespace

void bind_adaln(py::module_& module) {
  using py::arg;
  module.def("adaln_forward", &forward, arg("x"), arg("branch"), arg("gate"), arg("shift"), arg("scale"),
             arg("weight"), arg("bias"), arg("eps"), arg("residual"), arg("h"), arg("statistics"),
             "residual = x + gate branch, h = its modulated normalisation; None for what is absent.");
  module.def(
      "adaln_backward", &backward, arg("x"), arg("statistics"), arg("branch"), arg("gate"), arg("scale"),
      arg("weight"), arg("bias"), arg("residual_grad"), arg("h_grad"), arg("grads"),
      "Fills the gradients (x, branch, gate, shift, scale, weight, bias); None for what is not wanted.");
  module.def("norm_rows", &norm_rows, arg("x"), arg("out"), arg("rstd"), arg("eps"),
             "out = (x - mean) rstd over the last dimension; rstd has one number per row.");
  module.def("norm_rows_backward", &norm_rows_backward, arg("grad"), arg("normalised"), arg("rstd"),
             arg("x_grad"), "The gradient of norm_rows's x from its out; x_grad may be grad or normalised.");
}

}  // namespace tenfold::bindings
