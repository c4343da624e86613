#include "bindings/exchange.h"

#include <pybind11/numpy.h>

#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/device.h"
#include "core/error.h"

namespace tenfold::bindings {
namespace {

// What torch.py told us; all null until torch is used. Never freed: the interpreter may end first.
struct TorchState {
  PyGetSetDescrObject* requires_grad = nullptr;  // read through its C function: half the time of getattr
  PyObject* tensor_type = nullptr;
  PyObject* parameter_type = nullptr;
  PyObject* is_grad_enabled = nullptr;
  PyObject* increment_version = nullptr;
  PyObject* forward_ad = nullptr;  // dictionary of torch.autograd.forward_ad
  PyObject* dispatch = nullptr;    // dictionary of torch.utils._python_dispatch
};
TorchState torch;

struct Names {
  PyObject* current_level = PyUnicode_InternFromString("_current_level");
  PyObject* in_dispatch_mode = PyUnicode_InternFromString("_is_in_torch_dispatch_mode");
};

const Names& names() {
  static const Names all;
  return all;
}

std::string type_name(py::handle type) {
  return py::str(type.attr("__module__")).cast<std::string>() + "." +
         py::str(type.attr("__qualname__")).cast<std::string>();
}

const dlpack::ExchangeApi* find_api(py::handle type) {
  for (const char* name : {"__dlpack_c_exchange_api__", "__c_dlpack_exchange_api__"}) {
    py::object capsule = py::getattr(type, name, py::none());
    if (!PyCapsule_IsValid(capsule.ptr(), "dlpack_exchange_api")) continue;
    auto* api =
        static_cast<const dlpack::ExchangeApi*>(PyCapsule_GetPointer(capsule.ptr(), "dlpack_exchange_api"));
    while (api != nullptr && api->version.major != dlpack::kMajor) api = api->older;
    if (api != nullptr && api->borrow != nullptr) return api;
  }
  return nullptr;
}

ArrayType describe(PyTypeObject* type) {
  const py::handle handle(reinterpret_cast<PyObject*>(type));
  const py::object ndarray = py::module_::import("numpy").attr("ndarray");
  const int is_numpy = PyObject_IsSubclass(handle.ptr(), ndarray.ptr());
  if (is_numpy < 0) throw py::error_already_set();
  if (is_numpy == 1) {
    const py::object masked = py::module_::import("numpy.ma").attr("MaskedArray");
    if (PyObject_IsSubclass(handle.ptr(), masked.ptr()) == 1) return {type, Library::other, nullptr};
    return {type, Library::numpy, nullptr};
  }
  if (!py::hasattr(handle, "__dlpack__")) return {type, Library::other, nullptr};
  if (py::hasattr(handle, "__torch_function__")) return {type, Library::torch, find_api(handle)};
  if (kBuiltWithCuda && type_name(handle) == "cupy.ndarray") return {type, Library::cupy, nullptr};
  return {type, Library::other, nullptr};
}

[[noreturn]] void throw_foreign(const char* name, py::handle object) {
  const std::string type = type_name(py::type::handle_of(object));
  if (py::hasattr(object, "filled")) {
    throw TypeError(std::string(name) + " is a " + type + ", want its .data or .filled()");
  }
  if (!py::hasattr(object, "__dlpack_device__")) {
    throw TypeError(std::string(name) + " is a " + type + ", want a numpy array or a torch tensor");
  }
  const auto device = object.attr("__dlpack_device__")().cast<std::pair<int, int>>();
  throw TypeError(std::string(name) + " is a " + type + " on " +
                  to_string(Device{static_cast<DeviceType>(device.first), device.second}) +
                  "; this build takes " +
                  (kBuiltWithCuda ? "numpy arrays, torch tensors and cupy arrays"
                                  : "numpy arrays and torch tensors in CPU memory"));
}

[[noreturn]] void throw_rank(const char* name, int64_t rank) {
  throw ValueError(std::string(name) + " has " + std::to_string(rank) + " dimensions, want at most " +
                   std::to_string(kMaxRank));
}

TypeCode numpy_code(const char* name, char kind) {
  switch (kind) {
    case 'f':
      return TypeCode::floating;
    case 'i':
      return TypeCode::integer;
    case 'u':
      return TypeCode::uinteger;
    case 'b':
      return TypeCode::boolean;
    case 'c':
      return TypeCode::complex;
    default:
      throw TypeError(std::string(name) + " has numpy type of kind '" + kind + "', want numbers");
  }
}

// Only a complex tensor can be conjugated lazily, and only the imaginary part of one negated lazily: then
// all strides are even. Asking torch each time would cost 0.1 us.
bool may_be_lazy(const TensorView& view) {
  if (view.dtype.code == TypeCode::complex) return true;
  if (view.dtype.code != TypeCode::floating) return false;
  for (int i = 0; i < view.rank; ++i) {
    if (view.shape[i] > 1 && view.strides[i] / view.dtype.bytes() % 2 != 0) return false;
  }
  return true;
}

void want_resolved(const char* name, py::handle tensor) {
  if (!tensor.attr("is_conj")().cast<bool>() && !tensor.attr("is_neg")().cast<bool>()) return;
  throw MendableError(std::string(name) +
                      " is lazily conjugated or negated, want resolve_conj().resolve_neg()");
}

// An empty tensor may have no memory. It gets an address, so that kernels may compute with it.
char* address_of(const dlpack::Tensor& tensor) {
  static char nothing;
  return tensor.data != nullptr ? static_cast<char*>(tensor.data) + tensor.byte_offset : &nothing;
}

void raise_from_allocator(void*, const char* kind, const char* message) {
  PyErr_Format(PyExc_RuntimeError, "%s: %s", kind, message);
}

py::object empty_by_method(const Array& like, TensorView& view) {
  py::tuple size(view.rank);
  for (int i = 0; i < view.rank; ++i) size[i] = py::int_(view.shape[i]);
  const py::object tensor = like.object().attr("new_empty")(size);
  view.data = Array("out", tensor).view().data;
  return tensor;
}

// A new tensor through the exchange API, which is no slower than a call of torch.empty and tells the address.
py::object empty_exchanged(const Array& like, TensorView& view) {
  dlpack::Tensor prototype{nullptr,
                           static_cast<int32_t>(view.device.type),
                           view.device.id,
                           view.rank,
                           static_cast<uint8_t>(view.dtype.code),
                           view.dtype.bits,
                           1,
                           view.shape,
                           nullptr,
                           0};
  dlpack::ManagedVersioned* managed = nullptr;
  void* object = nullptr;
  const dlpack::ExchangeApi* const api = like.type().api;
  if (api->allocate(&prototype, &managed, nullptr, raise_from_allocator) != 0) {
    PyErr_Clear();  // torch's own call raises its own error, such as OutOfMemoryError
    return empty_by_method(like, view);
  }
  view.data = address_of(managed->tensor);
  if (api->object_from_managed(managed, &object) != 0) throw py::error_already_set();
  return py::reinterpret_steal<py::object>(static_cast<PyObject*>(object));
}

py::object empty_numpy(const Array& like, TensorView& view) {
  const auto* const source = py::detail::array_proxy(like.object().ptr());
  const auto dtype = py::reinterpret_borrow<py::dtype>(source->descr);
  py::array array(dtype, std::vector<py::ssize_t>(view.shape, view.shape + view.rank));
  view.data = static_cast<char*>(array.mutable_data());
  return array;
}

// cupy's functions, through the module that is loaded when there is an array of its.
py::object cupy() { return py::module_::import("cupy"); }

py::object empty_cupy(const Array& like, TensorView& view) {
  py::tuple shape(view.rank);
  for (int i = 0; i < view.rank; ++i) shape[i] = py::int_(view.shape[i]);
  const py::object device = cupy().attr("cuda").attr("Device")(view.device.id);
  device.attr("__enter__")();
  try {
    const py::object array = cupy().attr("empty")(shape, py::arg("dtype") = like.object().attr("dtype"));
    device.attr("__exit__")(py::none(), py::none(), py::none());
    view.data = Array("out", array).view().data;
    return array;
  } catch (py::error_already_set&) {
    device.attr("__exit__")(py::none(), py::none(), py::none());
    throw;
  }
}

}  // namespace

const ArrayType& array_type(py::handle object) {
  static std::vector<std::unique_ptr<ArrayType>> known;  // a handful of types per process
  PyTypeObject* const type = Py_TYPE(object.ptr());
  for (const auto& entry : known) {
    if (entry->type == type) return *entry;
  }
  auto entry = std::make_unique<ArrayType>(describe(type));
  Py_INCREF(type);  // the address must not be reused by another type
  known.push_back(std::move(entry));
  return *known.back();
}

Array::Array(const char* name, py::handle object) : object_(object), type_(&array_type(object)) {
  view_.stream = nullptr;
  view_.read_only = false;
  if (type_->library == Library::numpy) {
    read_numpy(name);
  } else if (type_->library == Library::other) {
    throw_foreign(name, object);
  } else if (type_->library == Library::cupy) {
    read_cupy(name);
  } else if (type_->api != nullptr) {
    dlpack::Tensor tensor;
    if (type_->api->borrow(object.ptr(), &tensor) != 0) throw py::error_already_set();
    read(name, tensor);
    if (may_be_lazy(view_)) want_resolved(name, object);
    if (view_.device.type == DeviceType::cuda &&
        type_->api->current_stream(tensor.device_type, tensor.device_id, &view_.stream) != 0) {
      throw py::error_already_set();
    }
  } else {
    read_capsule(name);
  }
}

void Array::read(const char* name, const dlpack::Tensor& tensor) {
  if (tensor.type_lanes != 1) throw TypeError(std::string(name) + " has vector elements, want plain numbers");
  if (tensor.rank > kMaxRank) throw_rank(name, tensor.rank);
  view_.data = address_of(tensor);
  view_.dtype = {static_cast<TypeCode>(tensor.type_code), tensor.type_bits};
  view_.device = {static_cast<DeviceType>(tensor.device_type), tensor.device_id};
  view_.rank = tensor.rank;
  const int64_t item = view_.dtype.bytes();
  int64_t dense = item;
  for (int i = tensor.rank - 1; i >= 0; --i) {
    view_.shape[i] = tensor.shape[i];
    view_.strides[i] = tensor.strides != nullptr ? tensor.strides[i] * item : dense;
    dense *= tensor.shape[i];
  }
}

// Straight from numpy's own structure, through pybind11: the buffer protocol would take 0.1 us per array.
void Array::read_numpy(const char* name) {
  const py::detail::PyArray_Proxy* array = py::detail::array_proxy(object_.ptr());
  const auto dtype = py::reinterpret_borrow<py::dtype>(array->descr);
  if (array->nd > kMaxRank) throw_rank(name, array->nd);
  if (dtype.byteorder() == '>') throw TypeError(std::string(name) + " is big-endian, want native byte order");
  const TypeCode code = numpy_code(name, dtype.kind());
  // No number is wider than 16 bytes but the extended complex, whose bits do not fit DLPack's field.
  if (dtype.itemsize() > 16) throw TypeError(std::string(name) + " has elements of more than 16 bytes");
  view_.data = array->data;
  view_.dtype = {code, static_cast<uint8_t>(dtype.itemsize() * 8)};
  view_.device = {DeviceType::cpu, 0};
  view_.rank = array->nd;
  view_.read_only = !py::detail::check_flags(object_.ptr(), py::detail::npy_api::NPY_ARRAY_WRITEABLE_);
  for (int i = 0; i < view_.rank; ++i) {
    view_.shape[i] = array->dimensions[i];
    view_.strides[i] = array->strides[i];
  }
}

// A torch without the exchange API. The capsule's destructor frees the export, for it is never renamed.
void Array::read_capsule(const char* name) {
  capsule_ = object_.attr("detach")().attr("__dlpack__")();
  auto* managed = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
  if (managed == nullptr) throw py::error_already_set();
  read(name, managed->tensor);
  if (view_.device.type == DeviceType::cuda) {
    throw TypeError(std::string(name) + " is on a GPU; this torch does not tell its stream, want torch 2.13");
  }
}

// The array's memory is ready for the stream that the caller works on, which is also the one that the kernels
// run on. DLPack writes the legacy default stream as 1, for 0 says nothing there; CUDA takes 0, 1 (legacy)
// and 2 (per thread) as handles.
void Array::read_cupy(const char* name) {
  const auto device = object_.attr("__dlpack_device__")().cast<std::pair<int, int>>();
  const py::object current = cupy().attr("cuda").attr("get_current_stream")(device.second);
  const auto stream = current.attr("ptr").cast<intptr_t>();
  capsule_ = object_.attr("__dlpack__")(py::arg("stream") = stream == 0 ? intptr_t{1} : stream);
  auto* managed = static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule_.ptr(), "dltensor"));
  if (managed == nullptr) throw py::error_already_set();
  read(name, managed->tensor);
  view_.stream = reinterpret_cast<void*>(stream);
}

Fresh empty_like(const Array& like, const int64_t* shape, int rank) {
  Fresh fresh{py::object(), like.view()};
  TensorView& view = fresh.view;
  view.rank = rank;
  view.read_only = false;
  int64_t stride = view.dtype.bytes();
  for (int i = rank - 1; i >= 0; --i) {
    view.shape[i] = shape[i];
    view.strides[i] = stride;
    stride *= shape[i];
  }
  if (like.type().library == Library::numpy) {
    fresh.object = empty_numpy(like, view);
  } else if (like.type().api != nullptr) {
    fresh.object = empty_exchanged(like, view);
  } else if (like.type().library == Library::cupy) {
    fresh.object = empty_cupy(like, view);
  } else {
    fresh.object = empty_by_method(like, view);
  }
  return fresh;
}

Fresh scratch_like(const Array& like, int64_t bytes) {
  if (bytes == 0) return {py::none(), {}};
  const int64_t item = like.view().dtype.bytes(), count = (bytes + item - 1) / item;
  return empty_like(like, &count, 1);
}

void want_same_kind(const char* name, const Array& array, const char* other_name, const Array& other) {
  if (array.type().library == other.type().library) return;
  throw TypeError(std::string(name) + " is a " + type_name(py::type::handle_of(array.object())) + " and " +
                  other_name + " is a " + type_name(py::type::handle_of(other.object())) +
                  ", want arrays of one library");
}

void register_torch(py::object tensor_type, py::object parameter_type, py::object is_grad_enabled,
                    py::object increment_version, py::object forward_ad, py::object dispatch) {
  const py::object requires_grad = tensor_type.attr("requires_grad");
  if (!Py_IS_TYPE(requires_grad.ptr(), &PyGetSetDescr_Type)) {
    throw std::runtime_error("this version of torch keeps requires_grad elsewhere");
  }
  torch = {reinterpret_cast<PyGetSetDescrObject*>(requires_grad.inc_ref().ptr()),
           tensor_type.release().ptr(),
           parameter_type.release().ptr(),
           is_grad_enabled.release().ptr(),
           increment_version.release().ptr(),
           forward_ad.release().ptr(),
           dispatch.release().ptr()};
}

bool is_ordinary(py::handle object) {
  PyObject* const type = reinterpret_cast<PyObject*>(Py_TYPE(object.ptr()));
  return type == torch.tensor_type || type == torch.parameter_type;
}

bool wants_gradient(py::handle tensor) {
  const PyGetSetDef* const getter = torch.requires_grad->d_getset;
  const auto wanted = py::reinterpret_steal<py::object>(getter->get(tensor.ptr(), getter->closure));
  if (!wanted) throw py::error_already_set();
  if (wanted.ptr() == Py_False) return false;
  const auto enabled = py::reinterpret_steal<py::object>(PyObject_CallNoArgs(torch.is_grad_enabled));
  if (!enabled) throw py::error_already_set();
  return enabled.ptr() == Py_True;
}

bool in_torch_mode() {
  const auto as_long = [](PyObject* dictionary, PyObject* key) {
    PyObject* const value = PyDict_GetItemWithError(dictionary, key);
    if (value == nullptr)
      throw std::runtime_error("this version of torch does not say whether a mode is active");
    return PyLong_AsLong(value);
  };
  return as_long(torch.forward_ad, names().current_level) >= 0 ||
         as_long(torch.dispatch, names().in_dispatch_mode) != 0;
}

bool is_plain(py::handle tensors) {
  for (const py::handle tensor : tensors.cast<py::tuple>()) {
    if (!tensor.is_none() && (!is_ordinary(tensor) || wants_gradient(tensor))) return false;
  }
  return !in_torch_mode();
}

void mark_written(const Array& out) {
  if (out.type().library != Library::torch) return;
  if (torch.increment_version == nullptr) throw std::runtime_error("want tenfold.ops to be imported first");
  const auto tensors = py::reinterpret_steal<py::object>(PyTuple_Pack(1, out.object().ptr()));
  const auto done =
      py::reinterpret_steal<py::object>(PyObject_CallOneArg(torch.increment_version, tensors.ptr()));
  if (!done) throw py::error_already_set();
}

}  // namespace tenfold::bindings
