// Mixture of experts: which rows go to which expert, there and back.
//
// A routing of T tokens to E experts has R rows, sorted by expert. Row r is token token_ids[r]'s copy for its
// expert; expert e has the rows from offsets[e - 1] (0 for e = 0) to offsets[e]. gates[r] is its weight in
// the sum over a token's rows. The inverse map is in compressed form: token t has the rows rows[starts[t]]
// ... rows[starts[t + 1] - 1], ascending.
//
// The upper half is what other code calls: views in, checks, errors. The lower half is what each
// instruction-set level provides.
#pragma once

#include <cstdint>

#include "core/activation_kind.h"
#include "core/isa.h"
#include "core/tensor.h"

namespace tenfold::moe {

// The five arrays of a routing; int32, gates float32, dense.
struct Routing {
  const TensorView& token_ids;  // (R)
  const TensorView& gates;      // (R)
  const TensorView& offsets;    // (E)
  const TensorView& starts;     // (T + 1)
  const TensorView& rows;       // (R)
};

// logits (T, E) float32 or bfloat16: each token goes to its k experts of the highest logits, the lower expert
// first where two are equal. An expert's rows are in the order of the tokens. Gates are the softmax over all
// experts, or over the k chosen ones where `renormalize`. R = T k. Scratch: 8 T k + 256 E bytes.
// `scratch` has route_topk_scratch() bytes on the device of the logits; none on the CPU.
int64_t route_topk_scratch(const TensorView& logits, int64_t k);
void route_topk(const TensorView& logits, int64_t k, bool renormalize, const Routing& out, char* scratch);

// expert_ids (T, k) int32 or int64, any strides: the routing of a choice made elsewhere. The same rows as
// route_topk's; instead of gates, source[r] = t k + i says which entry row r comes from (in out.gates' place,
// int32).
int64_t route_ids_scratch(const TensorView& expert_ids, int64_t experts);
void route_ids(const TensorView& expert_ids, int64_t experts, const Routing& out, char* scratch);

// logits (B, N, E): each expert takes its `capacity` tokens of each sample with the highest softmax over the
// experts, the lower token first where two are equal. Rows are in the order (expert, sample, token);
// R = E B capacity, T = B N. Scratch: 4 B N E bytes, and 8 N + 1 KiB per thread.
// `scratch` as above.
int64_t route_expert_choice_scratch(const TensorView& logits, int64_t capacity);
void route_expert_choice(const TensorView& logits, int64_t capacity, const Routing& out, char* scratch);

// grad (T, E) float32 = the gradient of the logits, from that of the gates (R). `renormalize` as for
// route_topk; false for expert choice.
void route_backward(const TensorView& logits, const TensorView& gates_grad, bool renormalize,
                    const Routing& routing, const TensorView& grad);

// x (T, D) -> out (R, D) with out[r] = x[token_ids[r]].
void dispatch(const TensorView& x, const TensorView& token_ids, const TensorView& out);

// y (R, D) -> out (T, D) = the sum of gates[r] y[r] over the rows of each token, in the order of the rows,
// added up in float32 (float64 for float64) and rounded once; zero for a token without rows. `gates` null:
// ones.
void combine(const TensorView& y, const TensorView* gates, const TensorView& starts, const TensorView& rows,
             const TensorView& out);

// The gradients of combine: y_grad[r] = gates[r] out_grad[token_ids[r]] where `y_grad` is not null, and
// gates_grad[r] = y[r] . out_grad[token_ids[r]].
void combine_backward(const TensorView& out_grad, const TensorView& y, const TensorView& gates,
                      const TensorView& token_ids, const TensorView* y_grad, const TensorView& gates_grad);

// Experts of one hidden layer, float32. x (T, D), token_ids (R), offsets (E), w_in (E, D, I), w_out (E, H, D)
// of any strides; b_in (E, I) and b_out (E, D) may be null. I = H, or 2 H where `gated`: then the second half
// of hidden multiplies the activated first half.
struct ExpertArrays {
  const TensorView& x;
  const TensorView& token_ids;
  const TensorView& offsets;
  const TensorView& w_in;
  const TensorView& w_out;
  const TensorView* b_in;
  const TensorView* b_out;
  Activation activation;
  bool gated;
};

// hidden[r] = x[token_ids[r]] w_in[e] + b_in[e], y[r] = activate(hidden[r]) w_out[e] + b_out[e] for the rows
// r of expert e; y (R, D), and hidden (R, I) for the backward pass or null.
void experts_forward(const ExpertArrays& arrays, const TensorView& y, const TensorView* hidden);

// Gradients from y_grad (R, D): x_grad (R, D) of the rows' copies of x, or null; of the weights, in whose
// arrays one of the last two dimensions has stride 1; of the biases, null where there are none.
struct ExpertGrads {
  const TensorView* x;
  const TensorView& w_in;
  const TensorView& w_out;
  const TensorView* b_in;
  const TensorView* b_out;
};
void experts_backward(const ExpertArrays& arrays, const TensorView& hidden, const TensorView& y_grad,
                      const ExpertGrads& grads);

// ---- what one level provides
// -------------------------------------------------------------------------------

struct Logits {
  const char* data;
  int64_t sample_stride, token_stride, expert_stride;  // bytes
  bool bf16;
};

struct Ids {
  const char* data;
  int64_t token_stride, choice_stride;  // bytes
  bool wide;                            // int64, else int32
};

struct Table {  // of rows whose elements lie side by side
  char* data;
  int64_t stride;  // bytes
};

enum class Element : int { f32, bf16, f64 };

struct Sizes {
  int64_t batch, tokens, experts, taken;  // tokens of a sample; taken: k, or capacity
};

struct RoutingOut {
  int32_t* token_ids;
  float* gates;     // null from route_ids
  int32_t* source;  // null but from route_ids
  int32_t* offsets;
  int32_t* starts;
  int32_t* rows;
};

// A kernel returns kFine, or where it found the first thing that is wrong: a logit that is no finite number
// (as token * experts + expert), or a row or token that does not exist. No memory outside the arrays is
// touched then, and outputs are unspecified.
inline constexpr int64_t kFine = -1;

// A matrix per expert, float32; strides in elements, any.
struct Weights {
  const float* data;
  int64_t expert_stride, row_stride, column_stride;
};
struct WeightGrads {
  float* data;
  int64_t expert_stride, row_stride, column_stride;  // one of the last two is 1
};

// Experts with one hidden layer, on rows of x (tokens, width): w_in (E, width, inner), w_out (E, hidden,
// width), inner = hidden, or 2 hidden where `gated`: then the second half multiplies the activated first
// half. Biases b_in (E, inner) and b_out (E, width) may be null.
struct Experts {
  Table x;
  const int32_t* token_ids;
  const int32_t* offsets;
  Weights w_in, w_out;
  const float* b_in;
  const float* b_out;
  int64_t tokens, rows, experts, width, hidden;
  Activation activation;
  bool gated;
};

struct Kernels {
  int64_t (*route_topk)(const Logits& logits, Sizes sizes, bool renormalize, const RoutingOut& out);
  int64_t (*route_ids)(const Ids& expert_ids, Sizes sizes, const RoutingOut& out);
  int64_t (*route_expert_choice)(const Logits& logits, Sizes sizes, const RoutingOut& out);
  int64_t (*route_backward)(float* grad, const Logits& logits, const float* gates_grad, const int32_t* starts,
                            const int32_t* rows, const int32_t* offsets, int64_t row_count, bool renormalize,
                            Sizes sizes);
  int64_t (*dispatch)(const Table& out, const Table& x, const int32_t* token_ids, int64_t rows,
                      int64_t tokens, int64_t row_bytes, bool streamed);
  // Gates and their gradients are float, and double where the elements are.
  int64_t (*combine)(const Table& out, const Table& y, const void* gates, const int32_t* starts,
                     const int32_t* rows, int64_t tokens, int64_t row_count, int64_t width, Element element);
  int64_t (*combine_backward)(const Table& y_grad, void* gates_grad, const Table& out_grad, const Table& y,
                              const void* gates, const int32_t* token_ids, int64_t rows, int64_t tokens,
                              int64_t width, Element element);
  // y (R, width); hidden (R, inner) before the activation, for the backward pass, or null. Scratch: one
  // expert's packed weights, and 96 (width + hidden) numbers per thread.
  int64_t (*experts_forward)(const Experts& experts, float* y, float* hidden);
  // x_grad (R, width) or null. Scratch: one expert's packed weights, 96 (max(width, inner) + hidden) numbers
  // per thread, and 1024 (inner + hidden + max(width, inner)) numbers.
  int64_t (*experts_backward)(const Experts& experts, const float* hidden, const float* y_grad, float* x_grad,
                              const WeightGrads& w_in_grad, const WeightGrads& w_out_grad, float* b_in_grad,
                              float* b_out_grad);
};

// Tokens are counted in this many fixed slices, whatever the number of threads.
inline constexpr int64_t kSlices = 64;

// ---- the same on a GPU, on a stream of a device; scratch in numbers of 32 bits ----

namespace cuda {

int64_t topk_scratch(Sizes sizes);
void route_topk(const Logits& logits, Sizes sizes, bool renormalize, const RoutingOut& out, int32_t* scratch,
                Queue queue);
int64_t ids_scratch(Sizes sizes);
void route_ids(const Ids& expert_ids, Sizes sizes, const RoutingOut& out, int32_t* scratch, Queue queue);
int64_t choice_scratch(Sizes sizes);
void route_expert_choice(const Logits& logits, Sizes sizes, const RoutingOut& out, int32_t* scratch,
                         Queue queue);
void route_backward(float* grad, const Logits& logits, const float* gates_grad, const int32_t* starts,
                    const int32_t* rows, const int32_t* offsets, int64_t row_count, bool renormalize,
                    Sizes sizes, Queue queue);
void dispatch(const Table& out, const Table& x, const int32_t* token_ids, int64_t rows, int64_t tokens,
              int64_t width, Element element, Queue queue);
void combine(const Table& out, const Table& y, const void* gates, const int32_t* starts, const int32_t* rows,
             int64_t tokens, int64_t row_count, int64_t width, Element element, Queue queue);
void combine_backward(const Table& y_grad, void* gates_grad, const Table& out_grad, const Table& y,
                      const void* gates, const int32_t* token_ids, int64_t rows, int64_t tokens,
                      int64_t width, Element element, Queue queue);

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

}  // namespace tenfold::moe
