#include "moe/moe.h"

#include <pybind11/pybind11.h>

#include <cstdint>
#include <optional>
#include <string>

#include "bindings/calls.h"
#include "bindings/exchange.h"
#include "bindings/families.h"
#include "core/error.h"

namespace tenfold::bindings {
namespace {

// The five arrays of a routing, as views that live as long as this.
struct RoutingArrays {
  RoutingArrays(py::tuple arrays, const Array& like)
      : token_ids("token_ids", arrays[0]),
        gates("gates", arrays[1]),
        offsets("offsets", arrays[2]),
        starts("starts", arrays[3]),
        rows("rows", arrays[4]) {
    want_same_kind("token_ids", token_ids, "logits", like);
  }
  moe::Routing views() const {
    return {token_ids.view(), gates.view(), offsets.view(), starts.view(), rows.view()};
  }

  Array token_ids, gates, offsets, starts, rows;
};

void route_topk(py::handle logits, int64_t k, bool renormalize, py::handle routing) {
  const Array input("logits", logits);
  const RoutingArrays arrays(routing.cast<py::tuple>(), input);
  const Fresh scratch = scratch_like(arrays.rows, moe::route_topk_scratch(input.view(), k));
  run_released(input.view(),
               [&] { moe::route_topk(input.view(), k, renormalize, arrays.views(), scratch.view.data); });
}

void route_ids(py::handle expert_ids, int64_t experts, py::handle routing) {
  const Array input("expert_ids", expert_ids);
  const RoutingArrays arrays(routing.cast<py::tuple>(), input);
  const Fresh scratch = scratch_like(arrays.rows, moe::route_ids_scratch(input.view(), experts));
  run_released(input.view(),
               [&] { moe::route_ids(input.view(), experts, arrays.views(), scratch.view.data); });
}

void route_expert_choice(py::handle logits, int64_t capacity, py::handle routing) {
  const Array input("logits", logits);
  const RoutingArrays arrays(routing.cast<py::tuple>(), input);
  const Fresh scratch = scratch_like(arrays.rows, moe::route_expert_choice_scratch(input.view(), capacity));
  run_released(input.view(),
               [&] { moe::route_expert_choice(input.view(), capacity, arrays.views(), scratch.view.data); });
}

void route_backward(py::handle logits, py::handle gates_grad, bool renormalize, py::handle routing,
                    py::handle grad) {
  const Array input("logits", logits), from("gates_grad", gates_grad), to("grad", grad);
  const RoutingArrays arrays(routing.cast<py::tuple>(), input);
  run_released(input.view(), [&] {
    moe::route_backward(input.view(), from.view(), renormalize, arrays.views(), to.view());
  });
}

void dispatch(py::handle x, py::handle token_ids, py::handle out) {
  const Array input("x", x), ids("token_ids", token_ids), to("out", out);
  want_same_kind("x", input, "token_ids", ids);
  want_same_kind("x", input, "out", to);
  run_released(input.view(), [&] { moe::dispatch(input.view(), ids.view(), to.view()); }, &to);
}

void combine(py::handle y, py::handle gates, py::handle starts, py::handle rows, py::handle out) {
  const Array input("y", y), first("starts", starts), ids("rows", rows), to("out", out);
  want_same_kind("y", input, "starts", first);
  want_same_kind("y", input, "rows", ids);
  want_same_kind("y", input, "out", to);
  std::optional<Array> weights;
  if (!gates.is_none()) {
    weights.emplace("gates", gates);
    want_same_kind("y", input, "gates", *weights);
  }
  const TensorView* const gate = weights ? &weights->view() : nullptr;
  run_released(
      input.view(), [&] { moe::combine(input.view(), gate, first.view(), ids.view(), to.view()); }, &to);
}

void combine_backward(py::handle out_grad, py::handle y, py::handle gates, py::handle token_ids,
                      py::handle y_grad, py::handle gates_grad) {
  const Array from("out_grad", out_grad), input("y", y), weights("gates", gates), ids("token_ids", token_ids);
  const Array to("gates_grad", gates_grad);
  std::optional<Array> rows;
  if (!y_grad.is_none()) rows.emplace("y_grad", y_grad);
  run_released(input.view(), [&] {
    moe::combine_backward(from.view(), input.view(), weights.view(), ids.view(),
                          rows ? &rows->view() : nullptr, to.view());
  });
}

struct ExpertInputs {
  ExpertInputs(py::handle x, py::handle token_ids, py::handle offsets, py::handle w_in, py::handle w_out,
               py::handle b_in, py::handle b_out)
      : x("x", x),
        token_ids("token_ids", token_ids),
        offsets("offsets", offsets),
        w_in("w_in", w_in),
        w_out("w_out", w_out),
        b_in("b_in", b_in, "x", this->x),
        b_out("b_out", b_out, "x", this->x) {
    want_same_kind("x", this->x, "token_ids", this->token_ids);
    want_same_kind("x", this->x, "w_in", this->w_in);
    want_same_kind("x", this->x, "w_out", this->w_out);
  }
  moe::ExpertArrays views(const std::string& activation, bool gated) const {
    return {x.view(),     token_ids.view(),          offsets.view(), w_in.view(), w_out.view(), b_in.view(),
            b_out.view(), activation_of(activation), gated};
  }

  Array x, token_ids, offsets, w_in, w_out;
  Optional b_in, b_out;
};

void experts_forward(py::handle x, py::handle token_ids, py::handle offsets, py::handle w_in,
                     py::handle w_out, py::handle b_in, py::handle b_out, const std::string& activation,
                     bool gated, py::handle y, py::handle hidden) {
  const ExpertInputs inputs(x, token_ids, offsets, w_in, w_out, b_in, b_out);
  const Array to("y", y);
  const Optional before("hidden", hidden, "y", to);
  const moe::ExpertArrays arrays = inputs.views(activation, gated);
  py::gil_scoped_release released;
  moe::experts_forward(arrays, to.view(), before.view());
}

void experts_backward(py::handle x, py::handle token_ids, py::handle offsets, py::handle w_in,
                      py::handle w_out, py::handle b_in, py::handle b_out, const std::string& activation,
                      bool gated, py::handle hidden, py::handle y_grad, py::handle gradients) {
  const auto grads = gradients.cast<py::tuple>();
  const ExpertInputs inputs(x, token_ids, offsets, w_in, w_out, b_in, b_out);
  const Array before("hidden", hidden), from("y_grad", y_grad);
  const Optional x_grad("x_grad", grads[0], "x", inputs.x), b_in_grad("b_in_grad", grads[3], "x", inputs.x);
  const Optional b_out_grad("b_out_grad", grads[4], "x", inputs.x);
  const Array w_in_grad("w_in_grad", grads[1]), w_out_grad("w_out_grad", grads[2]);
  const moe::ExpertArrays arrays = inputs.views(activation, gated);
  py::gil_scoped_release released;
  moe::experts_backward(
      arrays, before.view(), from.view(),
      {x_grad.view(), w_in_grad.view(), w_out_grad.view(), b_in_grad.view(), b_out_grad.view()});
}

}  // namespace

void bind_moe(py::module_& module) {
  using py::arg;
  module.def("route_topk", &route_topk, arg("logits"), arg("k"), arg("renormalize"), arg("routing"),
             "Fills the five arrays of a routing.");
  module.def("route_ids", &route_ids, arg("expert_ids"), arg("experts"), arg("routing"),
             "Fills the five arrays of a routing, with the place of each row's choice instead of its gate.");
  module.def("route_expert_choice", &route_expert_choice, arg("logits"), arg("capacity"), arg("routing"),
             "Fills the five arrays of a routing.");
  module.def("route_backward", &route_backward, arg("logits"), arg("gates_grad"), arg("renormalize"),
             arg("routing"), arg("grad"), "The gradient of the logits from that of the gates.");
  module.def("moe_dispatch", &dispatch, arg("x"), arg("token_ids"), arg("out"), "out[r] = x[token_ids[r]].");
  module.def("moe_combine", &combine, arg("y"), arg("gates"), arg("starts"), arg("rows"), arg("out"),
             "The weighted sum of each token's rows; gates may be None.");
  module.def("moe_combine_backward", &combine_backward, arg("out_grad"), arg("y"), arg("gates"),
             arg("token_ids"), arg("y_grad"), arg("gates_grad"),
             "The gradients of combine; y_grad may be None.");
  module.def("experts_forward", &experts_forward, arg("x"), arg("token_ids"), arg("offsets"), arg("w_in"),
             arg("w_out"), arg("b_in"), arg("b_out"), arg("activation"), arg("gated"), arg("y"),
             arg("hidden"), "Each expert's network on its rows; biases and hidden may be None.");
  module.def("experts_backward", &experts_backward, arg("x"), arg("token_ids"), arg("offsets"), arg("w_in"),
             arg("w_out"), arg("b_in"), arg("b_out"), arg("activation"), arg("gated"), arg("hidden"),
             arg("y_grad"), arg("grads"), "Fills the gradients (rows of x, w_in, w_out, b_in, b_out).");
}

}  // namespace tenfold::bindings
