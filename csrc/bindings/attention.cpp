#include "attention/attention.h"

#include <pybind11/pybind11.h>

#include "bindings/calls.h"
#include "bindings/exchange.h"
#include "bindings/families.h"

namespace tenfold::bindings {
namespace {

// q, k, v; then q_offsets, k_offsets and key_mask, each of which may be None.
struct AttentionInputs {
  AttentionInputs(py::handle q, py::handle k, py::handle v, py::handle q_offsets, py::handle k_offsets,
                  py::handle key_mask, float scale)
      : q("q", q),
        k("k", k),
        v("v", v),
        q_offsets("q_offsets", q_offsets, "q", this->q),
        k_offsets("k_offsets", k_offsets, "q", this->q),
        key_mask("key_mask", key_mask, "q", this->q),
        scale(scale) {
    want_same_kind("q", this->q, "k", this->k);
    want_same_kind("q", this->q, "v", this->v);
  }
  attention::Inputs views() const {
    return {q.view(), k.view(), v.view(), q_offsets.view(), k_offsets.view(), key_mask.view(), scale};
  }

  Array q, k, v;
  Optional q_offsets, k_offsets, key_mask;
  float scale;
};

void attention_forward(py::handle q, py::handle k, py::handle v, py::handle q_offsets, py::handle k_offsets,
                       py::handle key_mask, float scale, py::handle out, py::handle statistics) {
  const AttentionInputs inputs(q, k, v, q_offsets, k_offsets, key_mask, scale);
  const Array to("out", out), kept("statistics", statistics);
  want_same_kind("q", inputs.q, "out", to);
  run_released(inputs.q.view(), [&] { attention::forward(inputs.views(), to.view(), kept.view()); }, &to);
}

void attention_backward(py::handle q, py::handle k, py::handle v, py::handle q_offsets, py::handle k_offsets,
                        py::handle key_mask, float scale, py::handle statistics, py::handle out_grad,
                        py::handle grads) {
  const auto three = grads.cast<py::tuple>();
  const AttentionInputs inputs(q, k, v, q_offsets, k_offsets, key_mask, scale);
  const Array kept("statistics", statistics), from("out_grad", out_grad);
  const Array q_grad("q_grad", three[0]), k_grad("k_grad", three[1]), v_grad("v_grad", three[2]);
  const Fresh scratch = scratch_like(kept, attention::backward_scratch(inputs.q.view()));
  run_released(inputs.q.view(), [&] {
    attention::backward(inputs.views(), kept.view(), from.view(),
                        {q_grad.view(), k_grad.view(), v_grad.view()}, scratch.view.data);
  });
}

}  // namespace

void bind_attention(py::module_& module) {
  using py::arg;
  module.def("attention_forward", &attention_forward, arg("q"), arg("k"), arg("v"), arg("q_offsets"),
             arg("k_offsets"), arg("key_mask"), arg("scale"), arg("out"), arg("statistics"),
             "softmax(scale q k^T) v; offsets and mask may be None.");
  module.def("attention_backward", &attention_backward, arg("q"), arg("k"), arg("v"), arg("q_offsets"),
             arg("k_offsets"), arg("key_mask"), arg("scale"), arg("statistics"), arg("out_grad"),
             arg("grads"), "Fills the gradients (q, k, v) of attention_forward.");
}

}  // namespace tenfold::bindings
