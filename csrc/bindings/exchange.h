// Python arrays as views, and new arrays in the library of the caller.
#pragma once

#include <pybind11/pybind11.h>

#include "bindings/dlpack.h"
#include "core/error.h"
#include "core/tensor.h"

namespace tenfold::bindings {

namespace py = pybind11;

enum class Library { numpy, torch, cupy, other };  // other: no array, or one that no op takes

// What is known about an array type; found once per type and kept.
struct ArrayType {
  PyTypeObject* type;
  Library library;
  const dlpack::ExchangeApi* api;  // null: numpy, or a library that only has __dlpack__
};

const ArrayType& array_type(py::handle object);

// A torch tensor that the kernel cannot take as it is, but that torch mends on the way to the operator: its
// memory holds the conjugate or the negative of its values, or autocast will cast it.
struct MendableError : TypeError {
  using TypeError::TypeError;
};

// A view that stays valid as long as this object (and the array) lives.
class Array {
 public:
  // Raises TypeError, naming the argument, where the object is no array that the ops take.
  Array(const char* name, py::handle object);
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;

  const TensorView& view() const { return view_; }
  const ArrayType& type() const { return *type_; }
  py::handle object() const { return object_; }

 private:
  void read(const char* name, const dlpack::Tensor& tensor);
  void read_numpy(const char* name);
  void read_capsule(const char* name);
  void read_cupy(const char* name);

  py::handle object_;
  const ArrayType* type_;
  TensorView view_;
  py::object capsule_;
};

// A new, uninitialised array of the type, device and library of another, and its memory.
struct Fresh {
  py::object object;
  TensorView view;
};
Fresh empty_like(const Array& like, const int64_t* shape, int rank);

// At least `bytes` of memory on the device and in the library of an array; none where `bytes` is 0.
Fresh scratch_like(const Array& like, int64_t bytes);

// Raises TypeError that names both where `other` comes from another library or device.
void want_same_kind(const char* name, const Array& array, const char* other_name, const Array& other);

// ---- torch's state, read without linking torch ----

// Called once by tenfold.ops when torch is first seen.
void register_torch(py::object tensor_type, py::object parameter_type, py::object is_grad_enabled,
                    py::object increment_version, py::object forward_ad, py::object dispatch);

// Whether the object is a plain torch.Tensor or Parameter, no subclass. (Tensors inside torch.func transforms
// look so too, but have no memory of their own: reading them raises.)
bool is_ordinary(py::handle object);

// Whether autograd would record what is done with this ordinary tensor.
bool wants_gradient(py::handle tensor);

// Whether forward-mode differentiation or a dispatch mode watches what is called.
bool in_torch_mode();

// Whether torch has nothing more to do with a tuple of tensors (None among them) than to run a kernel. Does
// not see torch.func transforms.
bool is_plain(py::handle tensors);

// Tells autograd that the tensor was written to, so that a saved older value raises instead of being wrong.
void mark_written(const Array& out);

}  // namespace tenfold::bindings
