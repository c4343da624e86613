// A perceptron on all pairs of two lists, whose first layer is a sum of a part for each side.
//
//   out[i, j] = b + sum_k w[k] f(sum_h hidden[k, h] f(u[i, h] + v[j, h]) + hidden_bias[k])
//   out[i, j] = b + sum_h w[h] f(u[i, h] + v[j, h])                                        without `hidden`
//
// u (n, H), v (m, H), w (K) or (H), b a single number or null, hidden (K, H) or null, hidden_bias (K) or
// null; out (n, m). H and K from 1 to kMostWidth. Arrays of any strides and of one type: float32 and bfloat16
// are computed in float32, float64 in float64. Nothing of the size of all pairs but out and its gradient is
// in memory: the backward pass computes both layers again, a tile of pairs at a time.
//
// Results are the same bits for any number of threads: rows are cut into at most kMostParts parts by the
// shape alone, and the parts' gradients of v and of the weights are added up in their order.
//
// Scratch memory: v once more, a few tiles of kMostWidth rows per thread, and in the backward pass one copy
// per part of the gradients of v and of the weights, and one of v's per thread. On a GPU: u and v once more,
// and per block one copy of the gradients of the weights.
//
// The upper half is what other code calls: views in, checks, errors. The lower half is what each
// instruction-set level provides.
#pragma once

#include <cstdint>
#include <string>

#include "core/isa.h"
#include "core/tensor.h"
#include "pairwise/pointwise.h"

namespace tenfold::pairwise {

inline constexpr int kMostWidth = 64, kMostParts = 16;

struct PairArrays {
  TensorView u, v, w;
  const TensorView *b, *hidden, *hidden_bias;
};
int64_t forward_scratch(const PairArrays& arrays);  // bytes on the GPU
void pair_mlp(const PairArrays& arrays, const std::string& activation, const TensorView& out, char* scratch);

// Gradients, of the shapes and types of the arrays; null: not wanted. `b` of the arrays is not looked at.
struct PairGrads {
  const TensorView *u, *v, *w, *b, *hidden, *hidden_bias;
};
int64_t backward_scratch(const PairArrays& arrays);
void pair_mlp_backward(const TensorView& grad, const PairArrays& arrays, const std::string& activation,
                       const PairGrads& grads, char* scratch);

// ---- what one level provides ----

enum class Element : int { f32, bf16, f64 };

struct Matrix {  // data null: not there, or not wanted
  char* data;
  int64_t row, column;  // strides in bytes
};

struct Task {
  Element element;
  Pointwise activation;
  int64_t n, m;
  int width, hidden_width;                 // H and K; 0: no hidden layer
  Matrix u, v, w, b, hidden, hidden_bias;  // w, b and hidden_bias are single rows
  Matrix out;                              // or its gradient
  Matrix u_grad, v_grad, w_grad, b_grad, hidden_grad, hidden_bias_grad;

  TENFOLD_HOST_DEVICE int weights() const { return hidden_width > 0 ? hidden_width : width; }
  bool first_layer_wanted() const { return u_grad.data != nullptr || v_grad.data != nullptr; }
  bool weights_wanted() const {
    return w_grad.data != nullptr || b_grad.data != nullptr || hidden_grad.data != nullptr ||
           hidden_bias_grad.data != nullptr;
  }
};

struct Kernels {
  void (*pair_mlp)(const Task& task);
  void (*pair_mlp_backward)(const Task& task);
};

// ---- the same on a GPU, on a stream of a device ----

namespace cuda {

// `scratch`: as many bytes on the device as this says.
int64_t scratch_bytes(const Task& task, bool backward);
void pair_mlp(const Task& task, char* scratch, Queue queue);
void pair_mlp_backward(const Task& task, char* scratch, Queue queue);

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

}  // namespace tenfold::pairwise
