// Attention of short sequences: out = softmax(scale q k^T) v for each sample and head.
//
// q (N, T, H, d), k and v (N, S, H, d), any strides but the last, float32 or bfloat16; or sequences of
// different lengths behind one another, (M, H, d), with int32 offsets (N + 1) that begin with 0 and end with
// M: sample n has the rows offsets[n] to offsets[n + 1] - 1. `key_mask` (N, S) boolean leaves out keys where
// it is false. A query without keys gets zeros.
//
// Scores, softmax and sums are float32; bfloat16 inputs are multiplied as they are, and probabilities are
// rounded to bfloat16 before they meet v. All scores of a block of queries are held at once, so scratch grows
// with S: below (24 S + 2048) (d + 64) bytes per thread, S and d rounded up to multiples of 32.
//
// On a GPU probabilities and the scores' gradients stay float32 and no scores are held; results agree to
// rounding. Offsets that are wrong are reported as core/deferred.h says; every output is then zero.
//
// The upper half is what other code calls: views in, checks, errors. The lower half is what each
// instruction-set level provides.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/tensor.h"

namespace tenfold::attention {

struct Inputs {
  const TensorView& q;
  const TensorView& k;
  const TensorView& v;
  const TensorView* q_offsets;
  const TensorView* k_offsets;
  const TensorView* key_mask;
  float scale;
};

// statistics (2, H, rows of q) float32, dense: of each query the largest score, before `scale`, and the
// inverse of the sum of exp(scale (score - largest)); what backward() needs beside the inputs.
void forward(const Inputs& inputs, const TensorView& out, const TensorView& statistics);

// The gradients of q, k and v, in arrays of their shapes and types; they are written whole. Probabilities are
// computed again. `scratch` has backward_scratch() bytes on the device of q: 4 per head and query; none on
// the CPU.
struct Grads {
  const TensorView& q;
  const TensorView& k;
  const TensorView& v;
};
int64_t backward_scratch(const TensorView& q);
void backward(const Inputs& inputs, const TensorView& statistics, const TensorView& out_grad,
              const Grads& grads, char* scratch);

// ---- what one level provides ----

struct Rows {  // strides in bytes; the values of one head of a row lie side by side
  char* data;
  int64_t sample, row, head;
};

struct Problem {
  Rows q, k, v;
  int64_t samples, heads, width;
  int64_t q_length, k_length;     // of every sample, where there are no offsets
  const int32_t* q_offsets;       // or null
  const int32_t* k_offsets;       // or null
  const uint8_t* key_mask;        // or null
  int64_t mask_sample, mask_key;  // strides
  int64_t q_rows, k_rows;         // of all samples
  float scale;
  bool bf16;
};

struct Kernels {
  void (*forward)(const Problem& problem, const Rows& out, float* statistics);
  void (*backward)(const Problem& problem, const float* statistics, const Rows& out_grad, const Rows& q_grad,
                   const Rows& k_grad, const Rows& v_grad);
};

namespace baseline {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}
namespace avx512bf16 {
extern const Kernels kernels;
}
namespace amx {
extern const Kernels kernels;
}

namespace cuda {
void forward(const Problem& problem, const Rows& out, float* statistics, const Queue& queue);
void backward(const Problem& problem, const float* statistics, const Rows& out_grad, const Rows& q_grad,
              const Rows& k_grad, const Rows& v_grad, float* scratch, const Queue& queue);
}  // namespace cuda

}  // namespace tenfold::attention
