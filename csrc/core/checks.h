// What the front of every family asks of its arguments. Each raises ValueError or TypeError that names them.
// Not for *_cpu.cpp and *_cuda.cu: its inline functions have no level (level.h).
#pragma once

#include <initializer_list>
#include <string>

#include "core/device.h"
#include "core/tensor.h"

namespace tenfold {

inline bool on_gpu(const TensorView& view) { return view.device.type == DeviceType::cuda; }
inline Queue queue_of(const TensorView& view) { return {view.device.id, view.stream}; }
inline std::string shape_of(const TensorView& view) { return shape_string(view.shape, view.rank); }

// In memory that this build's kernels reach.
void want_memory(const char* name, const TensorView& view);
void want_together(const char* name, const TensorView& view, const char* other_name, const TensorView& other);
void want_writable(const char* name, const TensorView& out);
void want_type(const char* name, const TensorView& view, std::initializer_list<DType> types);
void want_apart(const TensorView& out, const char* name, const TensorView& input);

// What is written: apart from what is read, or exactly that.
void want_same_or_apart(const char* name, const TensorView& out, const char* input_name,
                        const TensorView& input);

// Exactly this shape; `said` explains it, such as "one per row".
void want_shape(const char* name, const TensorView& view, std::initializer_list<int64_t> shape,
                const char* said);

// The last dimension's elements lie side by side.
void want_contiguous_rows(const char* name, const TensorView& view);

// Dense in memory, of this type and shape: what kernels write whole.
void want_dense(const char* name, const TensorView& view, DType type, std::initializer_list<int64_t> shape,
                const char* said);

// How the rows of several arrays, of the same shape but for their last dimension, are walked through: leading
// dimensions that all arrays can merge are merged, and three may stay. `name` is the first array's.
class GridLayout {
 public:
  GridLayout(const char* name, std::initializer_list<const TensorView*> views);
  const Grid& grid() const { return grid_; }                          // of the first array's width
  void strides(const TensorView& view, int64_t (&strides)[3]) const;  // in bytes

 private:
  int kept_ = 0, dimensions_[kMaxRank];
  Grid grid_;
};

}  // namespace tenfold
