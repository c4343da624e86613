#include "core/checks.h"

#include <algorithm>

#include "core/error.h"

namespace tenfold {

void want_memory(const char* name, const TensorView& view) {
  if (view.device.type == DeviceType::cpu || view.device.type == DeviceType::cuda_host) return;
  if (kBuiltWithCuda && on_gpu(view)) return;
  throw TypeError(std::string(name) + " is on " + to_string(view.device) + "; " +
                  (kBuiltWithCuda ? "want an array in CPU or CUDA memory"
                                  : "this build has no CUDA code, want an array in CPU memory"));
}

void want_together(const char* name, const TensorView& view, const char* other_name,
                   const TensorView& other) {
  if (on_gpu(view) == on_gpu(other) && (!on_gpu(view) || view.device.id == other.device.id)) return;
  throw TypeError(std::string(name) + " is on " + to_string(view.device) + " and " + other_name + " is on " +
                  to_string(other.device) + ", want one device");
}

void want_writable(const char* name, const TensorView& out) {
  if (out.read_only) throw ValueError(std::string(name) + " is read-only, want a writable array");
}

void want_type(const char* name, const TensorView& view, std::initializer_list<DType> types) {
  if (std::find(types.begin(), types.end(), view.dtype) != types.end()) return;
  std::string wanted;
  size_t left = types.size();
  for (const DType type : types) {
    wanted += to_string(type);
    --left;
    if (left > 0) wanted += left == 1 ? " or " : ", ";
  }
  throw TypeError(std::string(name) + " has type " + to_string(view.dtype) + ", want " + wanted);
}

void want_apart(const TensorView& out, const char* name, const TensorView& input) {
  if (overlap(out, input))
    throw ValueError(std::string("out shares memory with ") + name + ", want its own memory");
}

void want_same_or_apart(const char* name, const TensorView& out, const char* input_name,
                        const TensorView& input) {
  const bool same = out.data == input.data && out.dtype == input.dtype &&
                    std::equal(out.strides, out.strides + out.rank, input.strides);
  if (same || !overlap(out, input)) return;
  throw ValueError(std::string(name) + " shares memory with " + input_name +
                   ", want its own memory or exactly that of " + input_name);
}

void want_shape(const char* name, const TensorView& view, std::initializer_list<int64_t> shape,
                const char* said) {
  if (view.rank == static_cast<int>(shape.size()) && std::equal(shape.begin(), shape.end(), view.shape)) {
    return;
  }
  throw ValueError(std::string(name) + " has shape " + shape_of(view) + ", want " +
                   shape_string(shape.begin(), static_cast<int>(shape.size())) + ", " + said);
}

void want_contiguous_rows(const char* name, const TensorView& view) {
  const int last = view.rank - 1;
  if (view.count() == 0 || view.shape[last] <= 1 || view.strides[last] == view.dtype.bytes()) return;
  throw ValueError(std::string(name) + " has rows that are not contiguous, want contiguous rows");
}

void want_dense(const char* name, const TensorView& view, DType type, std::initializer_list<int64_t> shape,
                const char* said) {
  want_memory(name, view);
  want_type(name, view, {type});
  want_shape(name, view, shape, said);
  int64_t stride = type.bytes();
  for (int i = view.rank - 1; i >= 0; --i) {
    if (view.shape[i] > 1 && view.strides[i] != stride && view.count() > 0) {
      throw ValueError(std::string(name) + " is not contiguous, want a contiguous array");
    }
    stride *= view.shape[i];
  }
}

GridLayout::GridLayout(const char* name, std::initializer_list<const TensorView*> views) {
  const TensorView& x = **views.begin();
  int64_t counts[kMaxRank];
  for (int i = 0; i < x.rank - 1; ++i) {
    if (x.shape[i] == 1) continue;
    const bool merge = kept_ > 0 && std::all_of(views.begin(), views.end(), [&](const TensorView* view) {
                         return view->strides[dimensions_[kept_ - 1]] == view->shape[i] * view->strides[i];
                       });
    if (merge) {
      counts[kept_ - 1] *= x.shape[i];
      dimensions_[kept_ - 1] = i;
    } else {
      counts[kept_] = x.shape[i];
      dimensions_[kept_++] = i;
    }
  }
  if (kept_ > 3 && x.count() > 0) {
    throw ValueError(
        std::string(name) + " has shape " + shape_of(x) +
        " and more than three dimensions of rows that cannot be merged; want a contiguous array");
  }
  kept_ = std::min(kept_, 3);
  for (int i = 0; i < 3; ++i) grid_.counts[i] = i < 3 - kept_ ? 1 : counts[i - 3 + kept_];
  if (x.count() == 0) grid_.counts[0] = 0;
  grid_.width = x.shape[x.rank - 1];
}

void GridLayout::strides(const TensorView& view, int64_t (&strides)[3]) const {
  for (int i = 0; i < 3; ++i) strides[i] = i < 3 - kept_ ? 0 : view.strides[dimensions_[i - 3 + kept_]];
}

}  // namespace tenfold
