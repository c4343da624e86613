// The extension module tenfold._core: facts about the build, and the op families.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <string>
#include <tuple>
#include <vector>

#include "bindings/exchange.h"
#include "bindings/families.h"
#include "core/deferred.h"
#include "core/device.h"
#include "core/error.h"
#include "core/isa.h"
#include "core/machine.h"
#include "core/parallel.h"
#include "core/philox.h"

namespace py = pybind11;

namespace tenfold::bindings {
namespace {

std::vector<std::string> isas_where(bool (*condition)(Isa)) {
  std::vector<std::string> names;
  for (Isa isa : kAllIsas) {
    if (condition(isa)) names.emplace_back(isa_name(isa));
  }
  return names;
}

std::array<uint32_t, 4> philox(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  philox4x32<1>(&counter[0], &counter[1], &counter[2], &counter[3], key[0], key[1]);
  return counter;
}

void bind_build(py::module_& module) {
  module.def("compiler", [] { return std::string(TENFOLD_COMPILER); }, "Compiler that made this module.");
  module.def("build_type", [] { return std::string(TENFOLD_BUILD_TYPE); }, "CMake build type.");
  module.def("sanitizers", [] { return std::string(TENFOLD_SANITIZERS); }, "Sanitizers built in, or ''.");
  module.def(
      "isas_compiled", [] { return isas_where(isa_compiled); }, "Instruction-set levels of this build.");
  module.def("isas_supported", [] { return isas_where(isa_supported); }, "Levels this processor runs.");
  module.def("isa", [] { return std::string(isa_name(isa_in_use())); }, "The level in use.");
  module.def("built_with_cuda", [] { return kBuiltWithCuda; }, "Whether this build has CUDA kernels.");
  module.def("cuda_architectures", &cuda_architectures, "What the CUDA kernels are compiled for, or ''.");
  module.def("cuda_device_count", &cuda_device_count, "CUDA devices that the driver reports.");
  module.def(
      "cuda_devices",
      [] {
        std::vector<std::tuple<std::string, int, int>> devices;
        for (const CudaDevice& device : cuda_devices()) {
          devices.emplace_back(device.name, device.major, device.minor);
        }
        return devices;
      },
      "Name and compute capability of each CUDA device.");
  module.def("cuda_reason", &cuda_reason, "Why no CUDA device can be used, or ''.");
  module.def(
      "synchronize",
      [] {
        const py::gil_scoped_release released;
        synchronize_devices();
      },
      "Waits for the devices that ops have used, and raises what their kernels found wrong.");
  module.def("threads", [] { return available_threads(); }, "Threads that an op may use now.");
  module.def("openmp_runtime", [] { return std::string(openmp_runtime()); }, "Path of the OpenMP library.");
  module.def("last_level_cache", [] { return last_level_cache(); }, "Bytes of last-level cache.");
  module.def("keep_freed_memory", &keep_freed_memory, py::arg("bytes"),
             "Makes glibc reuse blocks up to this size; whether it could be told so.");
  module.def("philox4x32", philox, py::arg("counter"), py::arg("key"),
             "One block of Philox4x32-10: four random words from a counter of four and a key of two words.");
}

}  // namespace
}  // namespace tenfold::bindings

PYBIND11_MODULE(_core, module) {
  using namespace tenfold;
  module.doc() = "Compiled kernels of tenfold. Use tenfold.ops instead: it documents and checks.";
  py::register_exception_translator([](std::exception_ptr pointer) {
    try {
      if (pointer) std::rethrow_exception(pointer);
    } catch (const ValueError& error) {
      PyErr_SetString(PyExc_ValueError, error.what());
    } catch (const TypeError& error) {
      PyErr_SetString(PyExc_TypeError, error.what());
    }
  });
  choose_isa();
  forked();  // starts watching for forks
  bindings::bind_build(module);
  module.def("register_torch", &bindings::register_torch, py::arg("tensor_type"), py::arg("parameter_type"),
             py::arg("is_grad_enabled"), py::arg("increment_version"), py::arg("forward_ad"),
             py::arg("dispatch"), "Tells the module how to ask torch for its state.");
  module.def("is_plain", &bindings::is_plain, py::arg("tensors"),
             "Whether torch has nothing more to do with these (None among them) than to run a kernel.");
  bindings::bind_activation(module);
  bindings::bind_adaln(module);
  bindings::bind_attention(module);
  bindings::bind_fuzzy(module);
  bindings::bind_mixing(module);
  bindings::bind_moe(module);
  bindings::bind_pairwise(module);
  bindings::bind_patches(module);
}
