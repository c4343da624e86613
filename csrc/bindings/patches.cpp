#include "patches/patches.h"

#include <pybind11/pybind11.h>

#include <algorithm>
#include <cstdint>
#include <initializer_list>
#include <optional>
#include <string>

#include "bindings/exchange.h"
#include "bindings/families.h"
#include "core/deferred.h"
#include "core/machine.h"

namespace tenfold::bindings {
namespace {

// Outputs up to this size are written faster than the interpreter's lock is released and taken again.
constexpr int64_t kHoldLockBytes = 256 << 10;

// On a GPU only starts the kernel; raises what earlier ones found wrong, and what this one did where it was
// waited for (CUDA_LAUNCH_BLOCKING=1).
template <class Kernel>
void run(const TensorView& out, Kernel&& kernel) {
  if (out.device.type == DeviceType::cuda) {
    raise_deferred();
    return kernel();
  }
  if (out.count() * out.dtype.bytes() <= kHoldLockBytes) return kernel();
  py::gil_scoped_release released;
  kernel();
}

// Last of all: outputs are then marked as written.
void raise_what_is_found(const TensorView& out) {
  if (out.device.type == DeviceType::cuda) raise_deferred();
}

// Writes into `out`, or into a new array like `like`; returns what was written.
template <class Kernel>
py::object write(const Array& like, const patches::Shape& shape, py::handle out, Kernel&& kernel) {
  if (out.is_none()) {
    const Fresh fresh = empty_like(like, shape.size, shape.rank);
    if (fresh.view.device.type == DeviceType::cpu) {
      advise_huge_pages(fresh.view.data, fresh.view.count() * fresh.view.dtype.bytes());
    }
    run(fresh.view, [&] { kernel(fresh.view); });
    raise_what_is_found(fresh.view);
    return fresh.object;
  }
  const Array array("out", out);
  want_same_kind("out", array, "the input", like);
  run(array.view(), [&] { kernel(array.view()); });
  mark_written(array);
  raise_what_is_found(array.view());
  return py::reinterpret_borrow<py::object>(out);
}

py::object not_implemented() { return py::reinterpret_borrow<py::object>(Py_NotImplemented); }

// Runs `op`, unless torch has more to do than to run the kernel: a gradient to record, a torch.func transform
// (whose tensors cannot be read), a mode. Then the caller gets NotImplemented, and tenfold.ops takes the way
// through torch.autograd.Function. `ids` are whole numbers, which have no gradient.
template <class Op>
py::object if_plain(py::handle ids, std::initializer_list<py::handle> values, Op&& op) {
  // Mixed libraries are for the op to refuse; only torch has anything to watch.
  if (array_type(*values.begin()).library != Library::torch) return op();
  if (array_type(ids).library == Library::torch && !is_ordinary(ids)) return not_implemented();
  for (const py::handle value : values) {
    if (value.is_none() || array_type(value).library != Library::torch) continue;
    if (!is_ordinary(value) || wants_gradient(value)) return not_implemented();
  }
  if (in_torch_mode()) return not_implemented();
  try {
    return op();
  } catch (const MendableError&) {
    return not_implemented();
  } catch (const py::error_already_set&) {
    return not_implemented();
  }
}

py::object raw_gather(py::handle x, py::handle keep_ids, py::handle out) {
  const Array input("x", x), ids("keep_ids", keep_ids);
  want_same_kind("x", input, "keep_ids", ids);
  return write(input, patches::gather_shape(input.view(), ids.view()), out,
               [&](const TensorView& to) { patches::gather(input.view(), ids.view(), to); });
}

// One row of the shape of y's rows. MAE keeps its mask token as (1, 1, ...).
struct MaskRow {
  MaskRow(py::handle mask_token, const Array& y) {
    if (mask_token.is_none()) return;
    array.emplace("mask_token", mask_token);
    want_same_kind("y", y, "mask_token", *array);
    view = array->view();
    if (view.dtype != y.view().dtype) {
      throw MendableError("mask_token has type " + to_string(view.dtype) + ", want " +
                          to_string(y.view().dtype) + " as y");
    }
    if (view.rank >= 2 && view.rank == y.view().rank && view.shape[0] == 1 && view.shape[1] == 1) {
      view.rank -= 2;
      std::copy_n(view.shape + 2, view.rank, view.shape);
      std::copy_n(view.strides + 2, view.rank, view.strides);
    }
  }
  const TensorView* get() const { return array ? &view : nullptr; }

  std::optional<Array> array;
  TensorView view;
};

int64_t whole_number(const char* name, py::handle value) {
  const int64_t number = PyNumber_AsSsize_t(value.ptr(), PyExc_OverflowError);
  if (number != -1 || PyErr_Occurred() == nullptr) return number;
  PyErr_Clear();
  throw TypeError(std::string(name) + " is " + py::repr(value).cast<std::string>() +
                  ", want a whole number below 2^63");
}

py::object raw_restore(py::handle y, py::handle ids, int64_t tokens, py::handle mask_token, py::handle out) {
  const Array input("y", y), keep_ids("keep_ids", ids);
  want_same_kind("y", input, "keep_ids", keep_ids);
  const MaskRow row(mask_token, input);
  return write(input, patches::restore_shape(input.view(), tokens), out,
               [&](const TensorView& to) { patches::restore(input.view(), keep_ids.view(), row.get(), to); });
}

py::object raw_restore_from_ranks(py::handle y, py::handle ids, py::handle mask_token, py::handle out) {
  const Array input("y", y), ranks("restore_ids", ids);
  want_same_kind("y", input, "restore_ids", ranks);
  const MaskRow row(mask_token, input);
  const int64_t tokens = ranks.view().rank == 2 ? ranks.view().shape[1] : 0;
  return write(input, patches::restore_shape(input.view(), tokens), out, [&](const TensorView& to) {
    patches::restore_from_ranks(input.view(), ranks.view(), row.get(), to);
  });
}

py::object raw_dropped_sum(py::handle x, py::handle keep_ids) {
  const Array input("x", x), ids("keep_ids", keep_ids);
  patches::Shape row = patches::gather_shape(input.view(), ids.view());
  row.rank -= 2;
  for (int i = 0; i < row.rank; ++i) row.size[i] = row.size[i + 2];
  const Fresh scratch = scratch_like(input, patches::dropped_sum_scratch(input.view()));
  return write(input, row, py::none(), [&](const TensorView& to) {
    patches::dropped_sum(input.view(), ids.view(), to, scratch.view.data);
  });
}

void keep_ids_from_ranks(py::handle restore_ids, py::handle keep_ids) {
  const Array from("restore_ids", restore_ids), to("keep_ids", keep_ids);
  run(to.view(), [&] { patches::keep_ids_from_ranks(from.view(), to.view()); });
  raise_what_is_found(to.view());
}

void random_keep_ids(py::handle keep_ids, py::handle restore_ids, uint64_t seed, uint64_t offset,
                     bool ordered) {
  const Array keep("keep_ids", keep_ids), restore("restore_ids", restore_ids);
  want_same_kind("keep_ids", keep, "restore_ids", restore);
  const Fresh scratch = scratch_like(restore, patches::random_scratch(keep.view(), restore.view()));
  run(restore.view(), [&] {
    patches::random_keep_ids(keep.view(), restore.view(), seed, offset, ordered, scratch.view.data);
  });
  mark_written(keep);
  mark_written(restore);
  raise_what_is_found(restore.view());
}

}  // namespace

void bind_patches(py::module_& module) {
  using py::arg;
  module.def("raw_gather_patches", &raw_gather, arg("x"), arg("keep_ids"), arg("out"),
             "Runs the kernel, whatever autograd says.");
  module.def("raw_restore_patches", &raw_restore, arg("y"), arg("keep_ids"), arg("tokens"), arg("mask_token"),
             arg("out"), "Runs the kernel, whatever autograd says.");
  module.def("raw_dropped_sum", &raw_dropped_sum, arg("x"), arg("keep_ids"),
             "Sum of the rows that keep_ids does not name.");
  module.def(
      "gather_patches",
      [](py::handle x, py::handle keep_ids, py::handle out) {
        return if_plain(keep_ids, {x, out}, [&] { return raw_gather(x, keep_ids, out); });
      },
      arg("x"), arg("keep_ids"), arg("out"),
      "NotImplemented where torch has more to do than to run the kernel.");
  module.def(
      "restore_patches",
      [](py::handle y, py::handle keep_ids, py::handle tokens, py::handle mask_token, py::handle out) {
        return if_plain(keep_ids, {y, mask_token, out}, [&] {
          return raw_restore(y, keep_ids, whole_number("tokens", tokens), mask_token, out);
        });
      },
      arg("y"), arg("keep_ids"), arg("tokens"), arg("mask_token"), arg("out"),
      "NotImplemented where torch has more to do than to run the kernel.");
  module.def(
      "restore_patches_from_ranks",
      [](py::handle y, py::handle restore_ids, py::handle mask_token, py::handle out) {
        return if_plain(restore_ids, {y, mask_token, out},
                        [&] { return raw_restore_from_ranks(y, restore_ids, mask_token, out); });
      },
      arg("y"), arg("restore_ids"), arg("mask_token"), arg("out"),
      "NotImplemented where torch has more to do than to run the kernel.");
  module.def("keep_ids_from_ranks", &keep_ids_from_ranks, arg("restore_ids"), arg("keep_ids"),
             "Writes keep_ids[b, restore_ids[b, n]] = n for the ranks that fit.");
  module.def("random_keep_ids", &random_keep_ids, arg("keep_ids"), arg("restore_ids"), arg("seed"),
             arg("offset"), arg("ordered"), "Fills both with uniform draws without replacement.");
}

}  // namespace tenfold::bindings
