// How a binding calls a kernel.
#pragma once

#include <pybind11/pybind11.h>

#include <optional>
#include <string>

#include "bindings/exchange.h"
#include "core/activation_kind.h"
#include "core/deferred.h"
#include "core/error.h"

namespace tenfold::bindings {

// On a GPU only starts the kernels; raises what earlier ones found wrong, and what these did where they were
// waited for (CUDA_LAUNCH_BLOCKING=1): last of all, when `written` is marked so.
template <class Kernel>
void run_released(const TensorView& view, Kernel&& kernel, const Array* written = nullptr) {
  const bool on_gpu = view.device.type == DeviceType::cuda;
  if (on_gpu) raise_deferred();
  {
    py::gil_scoped_release released;
    kernel();
  }
  if (written != nullptr) mark_written(*written);
  if (on_gpu) raise_deferred();
}

// An array of the library of another, or None.
struct Optional {
  Optional(const char* name, py::handle object, const char* like_name, const Array& like) {
    if (object.is_none()) return;
    array.emplace(name, object);
    want_same_kind(like_name, like, name, *array);
  }
  const TensorView* view() const { return array ? &array->view() : nullptr; }

  std::optional<Array> array;
};

inline Activation activation_of(const std::string& name) {
  if (name == "gelu") return Activation::gelu;
  if (name == "gelu_tanh") return Activation::gelu_tanh;
  if (name == "silu") return Activation::silu;
  if (name == "relu") return Activation::relu;
  throw ValueError("activation is '" + name + "', want gelu, gelu_tanh, silu or relu");
}

}  // namespace tenfold::bindings
