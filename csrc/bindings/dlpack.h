// The part of the DLPack ABI, version 1, that tenfold reads: written from the published specification
// (https://dmlc.github.io/dlpack/latest/c_api.html). Field order and sizes are the contract; names are ours.
#pragma once

#include <cstdint>

namespace tenfold::dlpack {

inline constexpr uint32_t kMajor = 1;
inline constexpr uint64_t kReadOnly = 1;  // flag of a managed tensor

struct Version {
  uint32_t major, minor;
};

struct Tensor {
  void* data;
  int32_t device_type, device_id;
  int32_t rank;
  uint8_t type_code, type_bits;
  uint16_t type_lanes;
  int64_t* shape;
  int64_t* strides;  // in elements; null means C order
  uint64_t byte_offset;
};

// Capsule "dltensor".
struct Managed {
  Tensor tensor;
  void* owner;
  void (*deleter)(Managed*);
};

// Capsule "dltensor_versioned".
struct ManagedVersioned {
  Version version;
  void* owner;
  void (*deleter)(ManagedVersioned*);
  uint64_t flags;
  Tensor tensor;
};

// Capsule "dlpack_exchange_api" on an array type. Functions return 0, or -1 with a Python error set.
struct ExchangeApi {
  Version version;
  ExchangeApi* older;
  int (*allocate)(Tensor* prototype, ManagedVersioned** out, void* context,
                  void (*set_error)(void* context, const char* kind, const char* message));
  int (*managed_from_object)(void* object, ManagedVersioned** out);
  int (*object_from_managed)(ManagedVersioned* tensor, void** out);
  int (*borrow)(void* object, Tensor* out);  // may be null
  int (*current_stream)(int32_t device_type, int32_t device_id, void** out);
};

}  // namespace tenfold::dlpack
