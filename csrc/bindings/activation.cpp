#include "activation/activation.h"

#include <pybind11/pybind11.h>

#include <string>

#include "bindings/calls.h"
#include "bindings/exchange.h"
#include "bindings/families.h"
#include "core/machine.h"

namespace tenfold::bindings {
namespace {

// A new result of some size is about to be written for the first time.
void advise(const TensorView& view) {
  if (view.device.type != DeviceType::cpu) return;
  advise_huge_pages(view.data, view.count() * view.dtype.bytes());
}

void activate(py::handle x, py::handle out, const std::string& activation, bool gated) {
  const Array input("x", x), to("out", out);
  want_same_kind("x", input, "out", to);
  const Activation kind = activation_of(activation);
  advise(to.view());
  run_released(input.view(), [&] { activation::activate(input.view(), to.view(), kind, gated); }, &to);
}

void activate_backward(py::handle grad, py::handle x, py::handle x_grad, py::handle activated,
                       const std::string& activation, bool gated) {
  const Array from("grad", grad), input("x", x), to("x_grad", x_grad);
  const Optional values("activated", activated, "x", input);
  want_same_kind("x", input, "grad", from);
  want_same_kind("x", input, "x_grad", to);
  const Activation kind = activation_of(activation);
  advise(to.view());
  run_released(
      input.view(),
      [&] {
        activation::activate_backward(from.view(), input.view(), to.view(), values.view(), kind, gated);
      },
      &to);
  if (values.array) mark_written(*values.array);
}

}  // namespace

void bind_activation(py::module_& module) {
  using py::arg;
  module.def("activate", &activate, arg("x"), arg("out"), arg("activation"), arg("gated"),
             "out = f(x), or, where gated, f of the first half of each row times the second.");
  module.def("activate_backward", &activate_backward, arg("grad"), arg("x"), arg("x_grad"), arg("activated"),
             arg("activation"), arg("gated"),
             "x_grad, which may be x or grad; activated, which may be grad or None, receives the values.");
}

}  // namespace tenfold::bindings
