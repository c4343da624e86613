#include "core/tensor.h"

namespace tenfold {

std::string to_string(DType dtype) {
  const std::string bits = std::to_string(dtype.bits);
  switch (dtype.code) {
    case TypeCode::integer:
      return "int" + bits;
    case TypeCode::uinteger:
      return "uint" + bits;
    case TypeCode::floating:
      return "float" + bits;
    case TypeCode::bfloat:
      return "bfloat" + bits;
    case TypeCode::complex:
      return "complex" + bits;
    case TypeCode::boolean:
      return "bool";
  }
  return "DLPack type " + std::to_string(static_cast<int>(dtype.code)) + " of " + bits + " bits";
}

std::string to_string(Device device) {
  switch (device.type) {
    case DeviceType::cpu:
      return "cpu";
    case DeviceType::cuda:
      return "cuda:" + std::to_string(device.id);
    case DeviceType::cuda_host:
      return "cuda pinned memory";
    case DeviceType::cuda_managed:
      return "cuda managed memory";
  }
  return "DLPack device " + std::to_string(static_cast<int>(device.type)) + ":" + std::to_string(device.id);
}

std::string shape_string(const int64_t* shape, int rank) {
  std::string text = "(";
  for (int i = 0; i < rank; ++i) text += (i == 0 ? "" : ", ") + std::to_string(shape[i]);
  return text + (rank == 1 ? ",)" : ")");
}

Extent extent(const TensorView& view) {
  if (view.count() == 0) return {view.data, view.data};
  const char* low = view.data;
  const char* high = view.data + view.dtype.bytes();
  for (int i = 0; i < view.rank; ++i) {
    const int64_t reach = (view.shape[i] - 1) * view.strides[i];
    (reach < 0 ? low : high) += reach;
  }
  return {low, high};
}

bool overlap(const TensorView& a, const TensorView& b) {
  const Extent first = extent(a);
  const Extent second = extent(b);
  return first.begin < second.end && second.begin < first.end;
}

}  // namespace tenfold
