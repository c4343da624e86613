#include "mixing/mixing.h"

#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>

#include "bindings/calls.h"
#include "bindings/exchange.h"
#include "bindings/families.h"
#include "core/error.h"

namespace tenfold::bindings {
namespace {

struct MixingInputs {
  MixingInputs(py::handle S, py::handle z, py::handle is_input)
      : S("S", S), z("z", z), is_input("is_input", is_input) {
    want_same_kind("S", this->S, "z", this->z);
    want_same_kind("S", this->S, "is_input", this->is_input);
  }
  mixing::Inputs views() const { return {S.view(), z.view(), is_input.view()}; }

  Array S, z, is_input;
};

// z, V, norms, negative, order, counts.
struct MixingSolution {
  MixingSolution(const py::tuple& arrays, const Array& like)
      : z("out", arrays[0]),
        V("V", arrays[1]),
        norms("norms", arrays[2]),
        negative("negative", arrays[3]),
        order("order", arrays[4]),
        counts("counts", arrays[5]) {
    want_same_kind("S", like, "V", V);
    want_same_kind("S", like, "order", order);
  }
  mixing::Solution views() const {
    return {z.view(), V.view(), norms.view(), negative.view(), order.view(), counts.view()};
  }

  Array z, V, norms, negative, order, counts;
};

// A whole number, or an array in CPU memory that holds one int64.
uint64_t seed_of(py::handle seed) {
  if (PyLong_Check(seed.ptr())) {
    const uint64_t value = PyLong_AsUnsignedLongLongMask(seed.ptr());
    if (PyErr_Occurred()) throw py::error_already_set();
    return value;
  }
  const Array array("seed", seed);
  const TensorView& view = array.view();
  if (view.device.type != DeviceType::cpu || view.dtype != kInt64 || view.count() != 1) {
    throw ValueError("seed is " + to_string(view.dtype) + " " + shape_string(view.shape, view.rank) + " on " +
                     to_string(view.device) + ", want a whole number or one int64 in CPU memory");
  }
  return static_cast<uint64_t>(*reinterpret_cast<const int64_t*>(view.data));
}

void mixing_forward(py::handle S, py::handle z, py::handle is_input, py::handle V0, py::handle seed,
                    int64_t first_sample, int64_t k, int64_t max_iter, float eps, bool draw_order,
                    py::handle solution) {
  const MixingInputs inputs(S, z, is_input);
  const Optional start("V0", V0, "S", inputs.S);
  const MixingSolution out(solution.cast<py::tuple>(), inputs.S);
  const mixing::Options options{k, max_iter, eps, seed_of(seed), first_sample, draw_order};
  const Fresh scratch = scratch_like(inputs.S, mixing::forward_scratch(inputs.views(), k));
  run_released(inputs.S.view(), [&] {
    mixing::forward(inputs.views(), start.view(), options, out.views(), scratch.view.data);
  });
}

void mixing_backward(py::handle S, py::handle z, py::handle is_input, py::handle solution, py::handle z_grad,
                     float prox_lam, int64_t sweeps, bool official, py::handle S_grad,
                     py::handle input_grad) {
  const MixingInputs inputs(S, z, is_input);
  const MixingSolution from(solution.cast<py::tuple>(), inputs.S);
  const Array grad("z_grad", z_grad);
  want_same_kind("S", inputs.S, "z_grad", grad);
  const Optional to_S("S_grad", S_grad, "S", inputs.S), to_z("input_grad", input_grad, "S", inputs.S);
  const Fresh scratch = scratch_like(inputs.S, mixing::backward_scratch(inputs.views(), from.views()));
  run_released(inputs.S.view(), [&] {
    mixing::backward(inputs.views(), from.views(), {grad.view(), prox_lam, sweeps, official}, to_S.view(),
                     to_z.view(), scratch.view.data);
  });
}

}  // namespace

void bind_mixing(py::module_& module) {
  using py::arg;
  module.def("mixing_forward", &mixing_forward, arg("S"), arg("z"), arg("is_input"), arg("V0"), arg("seed"),
             arg("first_sample"), arg("k"), arg("max_iter"), arg("eps"), arg("draw_order"), arg("solution"),
             "Fills the solution (z, V, norms, negative, order, counts); V0 may be None.");
  module.def("mixing_backward", &mixing_backward, arg("S"), arg("z"), arg("is_input"), arg("solution"),
             arg("z_grad"), arg("prox_lam"), arg("sweeps"), arg("official"), arg("S_grad"), arg("input_grad"),
             "Fills the gradients of S and z, each of which may be None.");
}

}  // namespace tenfold::bindings
