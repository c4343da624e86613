// One function per op family, each in bindings/<family>.cpp.
#pragma once

#include <pybind11/pybind11.h>

namespace tenfold::bindings {

void bind_activation(pybind11::module_& module);
void bind_adaln(pybind11::module_& module);
void bind_attention(pybind11::module_& module);
void bind_fuzzy(pybind11::module_& module);
void bind_mixing(pybind11::module_& module);
void bind_moe(pybind11::module_& module);
void bind_pairwise(pybind11::module_& module);
void bind_patches(pybind11::module_& module);

}  // namespace tenfold::bindings
