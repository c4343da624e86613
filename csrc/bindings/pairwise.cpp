#include "pairwise/pairwise.h"

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

// The arrays of a call, all of one library.
struct Inputs {
  Inputs(py::handle u_object, py::handle v_object, py::handle w_object, py::handle b_object,
         py::handle hidden_object, py::handle hidden_bias_object)
      : u("u", u_object),
        v("v", v_object),
        w("w", w_object),
        b("b", b_object, "u", u),
        hidden("hidden", hidden_object, "u", u),
        hidden_bias("hidden_bias", hidden_bias_object, "u", u) {
    want_same_kind("u", u, "v", v);
    want_same_kind("u", u, "w", w);
  }
  pairwise::PairArrays views() const {
    return {u.view(), v.view(), w.view(), b.view(), hidden.view(), hidden_bias.view()};
  }

  Array u, v, w;
  Optional b, hidden, hidden_bias;
};

void pair_mlp(py::handle u, py::handle v, py::handle w, py::handle b, py::handle hidden,
              py::handle hidden_bias, const std::string& activation, py::handle out) {
  const Inputs inputs(u, v, w, b, hidden, hidden_bias);
  const Array to("out", out);
  want_same_kind("u", inputs.u, "out", to);
  const pairwise::PairArrays arrays = inputs.views();
  const Fresh scratch = scratch_like(inputs.u, pairwise::forward_scratch(arrays));
  advise(to.view());
  run_released(
      inputs.u.view(), [&] { pairwise::pair_mlp(arrays, activation, to.view(), scratch.view.data); }, &to);
}

void pair_mlp_backward(py::handle grad, py::handle u, py::handle v, py::handle w, py::handle hidden,
                       py::handle hidden_bias, const std::string& activation, py::handle u_grad,
                       py::handle v_grad, py::handle w_grad, py::handle b_grad, py::handle hidden_grad,
                       py::handle hidden_bias_grad) {
  const Inputs inputs(u, v, w, py::none(), hidden, hidden_bias);
  const Array from("grad", grad);
  want_same_kind("u", inputs.u, "grad", from);
  const Optional to_u("u_grad", u_grad, "u", inputs.u), to_v("v_grad", v_grad, "u", inputs.u),
      to_w("w_grad", w_grad, "u", inputs.u), to_b("b_grad", b_grad, "u", inputs.u),
      to_hidden("hidden_grad", hidden_grad, "u", inputs.u),
      to_hidden_bias("hidden_bias_grad", hidden_bias_grad, "u", inputs.u);
  const pairwise::PairArrays arrays = inputs.views();
  const pairwise::PairGrads grads{to_u.view(), to_v.view(),      to_w.view(),
                                  to_b.view(), to_hidden.view(), to_hidden_bias.view()};
  const Fresh scratch = scratch_like(inputs.u, pairwise::backward_scratch(arrays));
  run_released(inputs.u.view(), [&] {
    pairwise::pair_mlp_backward(from.view(), arrays, activation, grads, scratch.view.data);
  });
  for (const Optional* to : {&to_u, &to_v, &to_w, &to_b, &to_hidden, &to_hidden_bias}) {
    if (to->array) mark_written(*to->array);
  }
}

}  // namespace

void bind_pairwise(py::module_& module) {
  using py::arg;
  module.def("pair_mlp", &pair_mlp, arg("u"), arg("v"), arg("w"), arg("b"), arg("hidden"), arg("hidden_bias"),
             arg("activation"), arg("out"),
             "The scores of all pairs; b, hidden and hidden_bias may be None.");
  module.def("pair_mlp_backward", &pair_mlp_backward, arg("grad"), arg("u"), arg("v"), arg("w"),
             arg("hidden"), arg("hidden_bias"), arg("activation"), arg("u_grad"), arg("v_grad"),
             arg("w_grad"), arg("b_grad"), arg("hidden_grad"), arg("hidden_bias_grad"),
             "The gradients, None where not wanted.");
}

}  // namespace tenfold::bindings
