#include "fuzzy/fuzzy.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>
#include <pybind11/typing.h>

#include <deque>
#include <string>
#include <vector>

#include "bindings/calls.h"
#include "bindings/exchange.h"
#include "bindings/families.h"
#include "core/machine.h"

namespace tenfold::bindings {
namespace {

using Tuple = py::typing::Tuple<py::object, py::ellipsis>;

// A new result of some size is about to be written for the first time.
void advise(const TensorView& view) {
  if (view.device.type != DeviceType::cpu) return;
  advise_huge_pages(view.data, view.count() * view.dtype.bytes());
}

// Several arrays of one library, or None among them.
class Arrays {
 public:
  Arrays(const char* name, Tuple objects, const Array* like = nullptr) {
    for (size_t i = 0; i < objects.size(); ++i) {
      places_.push_back(objects[i].is_none() ? -1 : static_cast<int>(arrays_.size()));
      if (objects[i].is_none()) continue;
      names_.push_back(std::string(name) + "[" + std::to_string(i) + "]");
      arrays_.emplace_back(names_.back().c_str(), objects[i]);
      const Array& first = like != nullptr ? *like : arrays_.front();
      want_same_kind("operands[0]", first, names_.back().c_str(), arrays_.back());
    }
  }

  const Array& front() const { return arrays_.front(); }
  bool empty() const { return arrays_.empty(); }
  std::deque<Array>& all() { return arrays_; }
  std::vector<TensorView> views() const {
    std::vector<TensorView> views;
    for (const Array& array : arrays_) views.push_back(array.view());
    return views;
  }
  std::vector<const TensorView*> optional_views() const {
    std::vector<const TensorView*> views;
    for (const int place : places_) {
      views.push_back(place < 0 ? nullptr : &arrays_[static_cast<size_t>(place)].view());
    }
    return views;
  }

 private:
  std::deque<std::string> names_;
  std::deque<Array> arrays_;  // which are not to be moved
  std::vector<int> places_;
};

void want_operands(const Tuple& operands) {
  if (operands.empty()) throw ValueError("operands are 0, want 1 to 8");
  for (size_t i = 0; i < operands.size(); ++i) {
    if (operands[i].is_none()) throw TypeError("operands[" + std::to_string(i) + "] is None, want an array");
  }
}

void quantify(Tuple operands, Tuple guards, std::string axes, std::string kept, std::string formula,
              std::string quantifier, std::string relation, std::vector<double> numbers, py::handle out,
              py::handle state) {
  want_operands(operands);
  const Arrays inputs("operands", operands), where("guard", guards, &inputs.front());
  const Array to("out", out);
  want_same_kind("operands[0]", inputs.front(), "out", to);
  const Optional kept_state("state", state, "operands[0]", inputs.front());
  const fuzzy::Request request{std::move(axes),       std::move(kept),     std::move(formula),
                               std::move(quantifier), std::move(relation), std::move(numbers)};
  const fuzzy::ForwardArrays arrays{inputs.views(), where.views(), to.view(), kept_state.view()};
  const Fresh scratch = scratch_like(inputs.front(), fuzzy::forward_scratch(arrays, request));
  run_released(to.view(), [&] { fuzzy::quantify(arrays, request, scratch.view.data); }, &to);
}

void quantify_backward(py::handle grad, py::handle state, Tuple operands, Tuple guards, std::string axes,
                       std::string kept, std::string formula, std::string quantifier, std::string relation,
                       std::vector<double> numbers, Tuple grads, std::vector<bool> add_to) {
  want_operands(operands);
  const Arrays inputs("operands", operands), where("guard", guards, &inputs.front());
  Arrays to("grads", grads, &inputs.front());
  const Array from("grad", grad);
  want_same_kind("operands[0]", inputs.front(), "grad", from);
  const Optional kept_state("state", state, "operands[0]", inputs.front());
  const fuzzy::Request request{std::move(axes),       std::move(kept),     std::move(formula),
                               std::move(quantifier), std::move(relation), std::move(numbers)};
  const fuzzy::BackwardArrays arrays{from.view(),   kept_state.view(),   inputs.views(),
                                     where.views(), to.optional_views(), std::move(add_to)};
  const Fresh scratch = scratch_like(inputs.front(), fuzzy::backward_scratch(arrays, request));
  for (const Array& array : to.all()) advise(array.view());
  run_released(from.view(), [&] { fuzzy::quantify_backward(arrays, request, scratch.view.data); });
  for (const Array& array : to.all()) mark_written(array);
}

void segments(py::handle values, py::handle row_ptr, const std::string& quantifier,
              const std::vector<double>& numbers, py::handle out, py::handle state) {
  const Array input("values", values), ends("row_ptr", row_ptr), to("out", out);
  want_same_kind("values", input, "row_ptr", ends);
  want_same_kind("values", input, "out", to);
  const Optional kept_state("state", state, "values", input);
  run_released(
      input.view(),
      [&] { fuzzy::segments(input.view(), ends.view(), quantifier, numbers, to.view(), kept_state.view()); },
      &to);
}

void segments_backward(py::handle grad, py::handle state, py::handle values, py::handle row_ptr,
                       const std::string& quantifier, const std::vector<double>& numbers,
                       py::handle values_grad) {
  const Array from("grad", grad), kept_state("state", state), input("values", values),
      ends("row_ptr", row_ptr), to("values_grad", values_grad);
  want_same_kind("values", input, "grad", from);
  want_same_kind("values", input, "state", kept_state);
  want_same_kind("values", input, "row_ptr", ends);
  want_same_kind("values", input, "values_grad", to);
  run_released(
      input.view(),
      [&] {
        fuzzy::segments_backward(from.view(), kept_state.view(), input.view(), ends.view(), quantifier,
                                 numbers, to.view());
      },
      &to);
}

void atom_logits(py::handle z, bool softmax, py::handle index, py::handle log, py::handle nlog) {
  const Array input("z", z), first("log", log), second("nlog", nlog);
  want_same_kind("z", input, "log", first);
  want_same_kind("z", input, "nlog", second);
  const Optional classes("index", index, "z", input);
  run_released(
      input.view(),
      [&] { fuzzy::atom_logits(input.view(), softmax, classes.view(), first.view(), second.view()); },
      &first);
  mark_written(second);
}

void atom_logits_backward(py::handle log_grad, py::handle nlog_grad, py::handle z, bool softmax,
                          py::handle index, py::handle z_grad) {
  const Array first("log_grad", log_grad), second("nlog_grad", nlog_grad), input("z", z),
      to("z_grad", z_grad);
  want_same_kind("z", input, "log_grad", first);
  want_same_kind("z", input, "nlog_grad", second);
  want_same_kind("z", input, "z_grad", to);
  const Optional classes("index", index, "z", input);
  run_released(
      input.view(),
      [&] {
        fuzzy::atom_logits_backward(first.view(), second.view(), input.view(), softmax, classes.view(),
                                    to.view());
      },
      &to);
}

void logmatmul(py::handle a, py::handle b, double alpha, bool mean, py::handle out) {
  const Array left("a", a), right("b", b), to("out", out);
  want_same_kind("a", left, "b", right);
  want_same_kind("a", left, "out", to);
  run_released(
      left.view(), [&] { fuzzy::logmatmul(left.view(), right.view(), alpha, mean, to.view()); }, &to);
}

void logmatmul_backward(py::handle grad, py::handle a, py::handle b, double alpha, bool mean,
                        py::handle a_grad, py::handle b_grad) {
  const Array from("grad", grad), left("a", a), right("b", b);
  want_same_kind("a", left, "b", right);
  want_same_kind("a", left, "grad", from);
  const Optional to_a("a_grad", a_grad, "a", left), to_b("b_grad", b_grad, "a", left);
  const Fresh scratch = scratch_like(left, fuzzy::logmatmul_backward_scratch(left.view(), right.view()));
  run_released(left.view(), [&] {
    fuzzy::logmatmul_backward(from.view(), left.view(), right.view(), alpha, mean, to_a.view(), to_b.view(),
                              scratch.view.data);
  });
  if (to_a.array) mark_written(*to_a.array);
  if (to_b.array) mark_written(*to_b.array);
}

}  // namespace

void bind_fuzzy(py::module_& module) {
  using py::arg;
  module.def("fuzzy_quantify", &quantify, arg("operands"), arg("guards"), arg("axes"), arg("kept"),
             arg("formula"), arg("quantifier"), arg("relation"), arg("numbers"), arg("out"), arg("state"),
             "The quantifier of a formula over axes; state, where given, is kept for the backward pass.");
  module.def(
      "fuzzy_quantify_backward", &quantify_backward, arg("grad"), arg("state"), arg("operands"),
      arg("guards"), arg("axes"), arg("kept"), arg("formula"), arg("quantifier"), arg("relation"),
      arg("numbers"), arg("grads"), arg("add_to"),
      "Gradients of the operands, None where not wanted; added to what is there where add_to says so.");
  module.def("fuzzy_segments", &segments, arg("values"), arg("row_ptr"), arg("quantifier"), arg("numbers"),
             arg("out"), arg("state"), "The quantifier of each segment of values.");
  module.def("fuzzy_segments_backward", &segments_backward, arg("grad"), arg("state"), arg("values"),
             arg("row_ptr"), arg("quantifier"), arg("numbers"), arg("values_grad"),
             "The gradient of the values.");
  module.def("atom_logits", &atom_logits, arg("z"), arg("softmax"), arg("index"), arg("log"), arg("nlog"),
             "log P and log(1 - P) from logits.");
  module.def("atom_logits_backward", &atom_logits_backward, arg("log_grad"), arg("nlog_grad"), arg("z"),
             arg("softmax"), arg("index"), arg("z_grad"), "The gradient of the logits.");
  module.def(
      "logmatmul", &logmatmul, arg("a"), arg("b"), arg("alpha"), arg("mean"), arg("out"),
      "log(sum or mean of exp(alpha (a + b))) / alpha over the shared axis of two batches of matrices.");
  module.def("logmatmul_backward", &logmatmul_backward, arg("grad"), arg("a"), arg("b"), arg("alpha"),
             arg("mean"), arg("a_grad"), arg("b_grad"), "Gradients of both, None: not wanted.");
}

}  // namespace tenfold::bindings
