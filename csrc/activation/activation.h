// The elementwise half of a feed-forward layer: an activation function, alone or multiplied with a factor.
//
//   activate:  out = f(x)              x (..., D) -> out (..., D)
//   gated:     out = f(value) factor   x (..., 2 H), rows of H values and their H factors -> out (..., H)
//
// for gelu, gelu_tanh, silu or relu (Shazeer, 2020, arXiv 2002.05202, for the gated forms). Elements of a row
// lie side by side; at most three leading dimensions that cannot be merged. float32, bfloat16 (computed in
// float32, rounded once) or float64, one type for all arrays of a call. No scratch memory. NaN and infinities
// give what torch's functions give in float64.
//
// The upper half is what other code calls: views in, checks, errors. The lower half is what each
// instruction-set level provides.
#pragma once

#include <cstdint>

#include "core/activation_kind.h"
#include "core/isa.h"
#include "core/tensor.h"

namespace tenfold::activation {

// `out` may be the memory of x; where gated, that of the values in x.
void activate(const TensorView& x, const TensorView& out, Activation activation, bool gated);

// x_grad (as x) from grad (as out). `activated` (as out, or null) receives the values of the forward pass
// again. What is written may be the memory of what is read where shape and strides agree: x_grad that of x,
// or, where not gated, of grad; `activated` that of grad. x_grad and `activated` want memory of their own.
void activate_backward(const TensorView& grad, const TensorView& x, const TensorView& x_grad,
                       const TensorView* activated, Activation activation, bool gated);

// ---- what one level provides ----

enum class Element : int { f32, bf16, f64 };

struct Rows {  // of a Grid
  char* data;
  int64_t strides[3];  // bytes
};

// The width of the grid is that of `out`. Where gated, rows of x and x_grad are twice as wide.
struct Forward {
  Rows x, out;
  Grid grid;
  Element element;
  Activation activation;
  bool gated;
};

struct Backward {
  Rows grad, x, x_grad;
  Rows activated;  // null: not wanted
  Grid grid;
  Element element;
  Activation activation;
  bool gated;
};

struct Kernels {
  void (*activate)(const Forward& task);
  void (*activate_backward)(const Backward& task);
};

// ---- the same on a GPU, on a stream of a device ----

namespace cuda {

void activate(const Forward& task, Queue queue);
void activate_backward(const Backward& task, Queue queue);

}  // namespace cuda

namespace baseline {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}

}  // namespace tenfold::activation
