// A plain view of somebody else's array: the only form in which data enters a kernel's front.
#pragma once

#include <cstdint>
#include <string>

#include "core/level.h"

namespace tenfold {

inline constexpr int kMaxRank = 8;

// Numbers of the DLPack ABI (DLDataTypeCode, DLDeviceType).
enum class TypeCode : uint8_t {
  integer = 0,
  uinteger = 1,
  floating = 2,
  bfloat = 4,
  complex = 5,
  boolean = 6
};
enum class DeviceType : int32_t { cpu = 1, cuda = 2, cuda_host = 3, cuda_managed = 13 };

struct DType {
  TypeCode code;
  uint8_t bits;

  int64_t bytes() const { return bits / 8; }
  bool operator==(const DType&) const = default;
};

inline constexpr DType kInt32{TypeCode::integer, 32};
inline constexpr DType kInt64{TypeCode::integer, 64};
inline constexpr DType kFloat32{TypeCode::floating, 32};
inline constexpr DType kFloat64{TypeCode::floating, 64};
inline constexpr DType kBFloat16{TypeCode::bfloat, 16};

struct Device {
  DeviceType type;
  int32_t id;

  bool operator==(const Device&) const = default;
};

struct TensorView {
  char* data;
  DType dtype;
  Device device;
  int rank;
  bool read_only;
  int64_t shape[kMaxRank];
  int64_t strides[kMaxRank];  // in bytes
  void* stream;               // the caller's current stream on a device, null on the CPU

  int64_t count() const {
    int64_t n = 1;
    for (int i = 0; i < rank; ++i) n *= shape[i];
    return n;
  }
};

// Row i of counts[0] counts[1] counts[2], the last index running fastest.
struct Grid {
  int64_t counts[3];
  int64_t width;

  TENFOLD_HOST_DEVICE int64_t rows() const { return counts[0] * counts[1] * counts[2]; }
};

// Where the kernels of a GPU run.
struct Queue {
  int device;
  void* stream;
};

std::string to_string(DType dtype);
std::string to_string(Device device);
std::string shape_string(const int64_t* shape, int rank);  // "(2, 3)"

// Lowest and one-past-highest byte that the view touches; an empty view touches none.
struct Extent {
  const char* begin;
  const char* end;
};
Extent extent(const TensorView& view);
bool overlap(const TensorView& a, const TensorView& b);

}  // namespace tenfold
