// Adaptive layer normalisation: the parts of a diffusion transformer's block that are not matrix products
// (Peebles and Xie, 2023, arXiv 2212.09748, adaLN-Zero), and the normalisation of queries and keys.
//
// Rows x (N, T, D) of N samples; shift, scale and gate (N, D), one row per sample, weight and bias (D):
//
//   residual = x + gate * branch
//   h        = (normalise(residual) * weight + bias) * (1 + scale) + shift
//
// normalise subtracts the mean of a row and multiplies by rstd = 1 / sqrt(variance + eps). Every part may be
// absent; without shift, scale and gate the rows may have any leading dimensions. Elements of a row lie side
// by side, rows may have any strides. Rows are float32, bfloat16 or float64 each, vectors float32 or bfloat16
// each; all are float64 where x is. Everything is computed in float32 (float64), and rounded once. A row of
// x with a NaN or an infinite element gives NaN.
//
// The upper half is what other code calls: views in, checks, errors. The lower half is what each
// instruction-set level provides.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/level.h"
#include "core/tensor.h"

namespace tenfold::adaln {

// Null for what is absent. At least one of residual and h is wanted. statistics (2, N T) float32 (float64),
// the means of the rows and then their rstd, is what the backward pass wants of h. Without `branch` the
// residual is x itself. `residual` may be the memory of x or of branch, and h that of x, if they have its
// type and strides.
struct ForwardArrays {
  const TensorView& x;
  const TensorView *branch, *gate, *shift, *scale, *weight, *bias;
  double eps;
  const TensorView *residual, *h, *statistics;
};

// Scratch on the CPU: 4 D numbers per thread. On a GPU `scratch` has forward_scratch() bytes: 3 N D numbers.
int64_t forward_scratch(const ForwardArrays& arrays);
void forward(const ForwardArrays& arrays, char* scratch);

// Gradients from those of the residual and of h, of which one may be null. x is what was normalised: the
// residual where there was a branch. `branch` itself is read for gate_grad only.
struct BackwardArrays {
  const TensorView& x;
  const TensorView *statistics, *branch, *gate, *scale, *weight, *bias, *residual_grad, *h_grad;
};

// Null for what is not wanted; dense, of the shapes of what they are the gradients of, those of gate, shift
// and scale (N, D). x_grad goes with h_grad: without it the gradient of x is residual_grad. gate_grad wants
// branch.
struct Gradients {
  const TensorView *x, *branch, *gate, *shift, *scale, *weight, *bias;
};

// Scratch: 3 D numbers for each chunk of rows, of which a sample has one per kChunkRows rows and at most
// kMostChunks; on the CPU 4 D numbers per thread besides, on a GPU 2 N D in all. `scratch` has
// backward_scratch() bytes on a GPU; none on the CPU.
int64_t backward_scratch(const BackwardArrays& arrays, const Gradients& grads);
void backward(const BackwardArrays& arrays, const Gradients& grads, char* scratch);

// x (..., D) -> out = (x - mean) rstd of the same shape, and rstd, one number per row. At most three leading
// dimensions that cannot be merged. float32 and bfloat16 each, or both float64. No scratch memory.
void norm_rows(const TensorView& x, const TensorView& out, const TensorView& rstd, double eps);

// x_grad = rstd (grad - mean(grad) - out mean(grad out)), from what norm_rows gave. x_grad may be the memory
// of grad or of normalised, if it has its type and strides, and must not overlap them otherwise.
void norm_rows_backward(const TensorView& grad, const TensorView& normalised, const TensorView& rstd,
                        const TensorView& x_grad);

// ---- what one level provides
// -------------------------------------------------------------------------------

enum class Element : int { none, f32, bf16, f64 };  // none: absent

struct Sizes {
  int64_t samples, rows, width;  // rows of a sample
};

struct Rows {  // row t of sample n at data + n sample_stride + t row_stride
  char* data;
  int64_t sample_stride, row_stride;  // bytes
  Element element;
};

struct Vectors {  // that of sample n at data + n sample_stride; 0 for one that all samples share
  char* data;
  int64_t sample_stride;
  Element element;
};

// Statistics are float, and double where x is; null: not wanted.
struct Forward {
  Rows x, branch, residual, h;
  Vectors gate, shift, scale, weight, bias;
  void *mean, *rstd;
  double eps;
  Sizes sizes;
};

struct Backward {
  Rows x, branch, residual_grad, h_grad, x_grad, branch_grad;
  Vectors gate, scale, weight, bias;
  Vectors gate_grad, shift_grad, scale_grad, weight_grad, bias_grad;
  const void *mean, *rstd;
  Sizes sizes;

  TENFOLD_HOST_DEVICE bool wants_sums() const {  // over the rows, of h's gradient
    return shift_grad.data != nullptr || scale_grad.data != nullptr || weight_grad.data != nullptr ||
           bias_grad.data != nullptr;
  }
};

struct GridRows {
  char* data;
  int64_t strides[3];  // bytes
  Element element;
};

struct Norm {
  GridRows x, out;
  void* rstd;
  double eps;
  Grid grid;
};

struct NormBackward {
  GridRows grad, normalised, x_grad;
  const void* rstd;
  Grid grid;
};

struct Kernels {
  void (*forward)(const Forward& task);
  void (*backward)(const Backward& task);
  void (*norm_rows)(const Norm& task);
  void (*norm_rows_backward)(const NormBackward& task);
};

// Sums over the rows of a sample are added up in chunks that depend on the number of rows alone.
inline constexpr int64_t kChunkRows = 32, kMostChunks = 64;
inline constexpr int kSums =
    3;  // of a column, over h_grad xhat, h_grad, and branch times the residual's gradient

constexpr int64_t chunks_of(int64_t rows) {
  const int64_t chunks = (rows + kChunkRows - 1) / kChunkRows;
  return chunks < 1 ? 1 : chunks > kMostChunks ? kMostChunks : chunks;
}

// ---- the same on a GPU, on a stream of a device; scratch in bytes ----

namespace cuda {

int64_t forward_scratch(const Forward& task);
void forward(const Forward& task, char* scratch, Queue queue);
int64_t backward_scratch(const Backward& task);
void backward(const Backward& task, char* scratch, Queue queue);
void norm_rows(const Norm& task, Queue queue);
void norm_rows_backward(const NormBackward& task, Queue queue);

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

}  // namespace tenfold::adaln
