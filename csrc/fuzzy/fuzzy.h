// Fuzzy logic over at most four axes: a formula of each element of a broadcast index space, and a quantifier
// over some of the axes, in one pass. Nothing is broadcast in memory: operands have a stride of 0 along the
// axes that they lack, and gradients are added up over them.
//
//   v[i] = formula(operands at i)        log space: sum or scaled LogMeanExp; truth values: postfix
//   out = quantifier of v over the reduced axes, where the guard holds
//
// (Badreddine et al., 2020, arXiv 2012.13635, and 2023, arXiv 2306.14546; python/tenfold/ops/fuzzy.py has the
// formulas.) float32 and bfloat16 are computed in float32, float64 in float64. Results are the same bits for
// any number of threads: work is cut into parts by its shape alone, and parts are added up in their order.
//
// Scratch memory: a thread's tiles (kRows x kWidth numbers per operand and step of the formula), the results'
// state per part, and in the backward pass one copy per part of the gradients of operands that lack the axis
// along which work is cut.
//
// The upper half is what other code calls: views in, checks, errors. The lower half is what each
// instruction-set level provides.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "core/isa.h"
#include "core/tensor.h"

namespace tenfold::fuzzy {

inline constexpr int kMostAxes = 4, kMostOperands = 8, kMostSteps = 64;
inline constexpr int kMostParts = 16;

// What a call is told besides its arrays; python/tenfold/ops/fuzzy.py, Spec.
struct Request {
  std::string axes, kept, formula, quantifier, relation;
  std::vector<double> numbers;
};

// `out` has the kept axes; `state`, wanted for a later backward pass, is (2, of out) float32 (float64 for
// float64), or null.
struct ForwardArrays {
  std::vector<TensorView> operands, guards;
  TensorView out;
  const TensorView* state;
};
int64_t forward_scratch(const ForwardArrays& arrays, const Request& request);  // bytes on the GPU
void quantify(const ForwardArrays& arrays, const Request& request, char* scratch);

// Gradients of the operands, of their shapes and types; null: not wanted. `add_to`: to what is there already.
// `state` is null where there is no quantifier.
struct BackwardArrays {
  TensorView grad;
  const TensorView* state;
  std::vector<TensorView> operands, guards;
  std::vector<const TensorView*> grads;
  std::vector<bool> add_to;
};
int64_t backward_scratch(const BackwardArrays& arrays, const Request& request);
void quantify_backward(const BackwardArrays& arrays, const Request& request, char* scratch);

// The quantifiers lme, pmean and pmean_error of segments of values (n), out (segments); row_ptr (segments +
// 1) int64 runs from 0 to n.
void segments(const TensorView& values, const TensorView& row_ptr, const std::string& quantifier,
              const std::vector<double>& numbers, const TensorView& out, const TensorView* state);
void segments_backward(const TensorView& grad, const TensorView& state, const TensorView& values,
                       const TensorView& row_ptr, const std::string& quantifier,
                       const std::vector<double>& numbers, const TensorView& values_grad);

// log P and log(1 - P); z (..., C) contiguous, index (...) int64 or null.
void atom_logits(const TensorView& z, bool softmax, const TensorView* index, const TensorView& log,
                 const TensorView& nlog);
void atom_logits_backward(const TensorView& log_grad, const TensorView& nlog_grad, const TensorView& z,
                          bool softmax, const TensorView* index, const TensorView& z_grad);

// out[b, x, z] = log(sum or mean of exp(alpha (a[b, x, y] + b[b, y, z]))) / alpha, of any strides.
void logmatmul(const TensorView& a, const TensorView& b, double alpha, bool mean, const TensorView& out);
// `a_grad`, `b_grad`: null where not wanted.
int64_t logmatmul_backward_scratch(const TensorView& a, const TensorView& b);
void logmatmul_backward(const TensorView& grad, const TensorView& a, const TensorView& b, double alpha,
                        bool mean, const TensorView* a_grad, const TensorView* b_grad, char* scratch);

// ---- what one level provides ----

enum class Element : int { f32, bf16, f64 };
enum class Formula : int { log_and, log_or, postfix };
enum class Code : int {
  operand,
  negation,
  negation_goedel,
  conjunction,
  disjunction,
  implication,
  implication_goguen,
  conjunction_goedel,
  disjunction_goedel,
  implication_goedel,
  implication_kleene,
  conjunction_lukasiewicz,
  disjunction_lukasiewicz,
  implication_lukasiewicz
};
// copy: none. add: sums and means. scaled: log sum exp. most: the greatest. power: sums of small powers.
enum class Quantifier : int { copy, add, scaled, most, power };
enum class Relation : int { mask, less, at_most, greater, at_least };

struct Step {
  Code code;
  int operand;
  int left;  // of a connective: the step that gives its first value; the last one is the step before
};

struct Strided {
  char* data;
  int64_t strides[kMostAxes];  // bytes, by position in the loops; 0 along axes that it lacks
};

struct Affine {
  double scale, shift;
};

// What a quantifier does with a value v: out = after(root(Q(before(v)))).
struct Reduction {
  Quantifier quantifier;
  Affine before, after;
  bool logged;       // scaled: of log(before(v)), and the root is exp: a power mean of any exponent
  bool average;      // divided by the count
  double sharpness;  // scaled: alpha, or the exponent where logged
  int power;
  double empty;  // out, where the guard leaves nothing
};

struct GuardTask {
  bool present;
  Relation relation;
  double bound;
  Element element;  // of values where compared; masks are bytes
  Strided values, other;
  int64_t features;  // of points whose distance is compared; 0: values themselves
  int64_t values_step, other_step;
};

// Tiles of the CPU's kernels: parts are made of whole ones.
inline constexpr int64_t kTileRows = 8, kTileLanes = 1024;

// Positions in the loops, the last running fastest.
enum Axis : int { kOuter, kInner, kRowAxis, kLaneAxis };

struct Task {
  Element element;
  int64_t counts[kMostAxes];
  bool kept[kMostAxes];
  int operands;
  Strided operand[kMostOperands];
  Formula formula;
  double alpha, log_weights[kMostOperands];
  int steps;
  Step program[kMostSteps];
  double eps;
  Reduction reduction;
  GuardTask guard;
  int part_axis, parts;
  Strided out;                   // or its gradient
  Strided raw, count;            // data null: not wanted
  Strided grads[kMostOperands];  // data null: not wanted
  bool add_to[kMostOperands];
};

struct SegmentTask {
  Element element;
  int64_t segments;
  const int64_t* row_ptr;
  char *values, *out, *values_grad;  // out: or its gradient
  char *raw, *count;
  Reduction reduction;
};

struct AtomTask {
  Element element;
  int64_t rows, classes;  // sigmoid: one row of all
  bool softmax;
  const int64_t* index;
  const char* z;
  char *log, *nlog;  // or their gradients
  char* z_grad;
};

struct Matrix {
  char* data;
  int64_t batch, row, column;  // strides in bytes
};

struct ProductTask {
  Element element;
  int64_t batch, X, Y, Z;
  double alpha;
  bool mean;
  Matrix a, b, out, grad, a_grad, b_grad;  // data null: not wanted
};

struct Kernels {
  void (*quantify)(const Task& task);
  void (*quantify_backward)(const Task& task);
  void (*segments)(const SegmentTask& task);
  void (*segments_backward)(const SegmentTask& task);
  int64_t (*wrong_segment)(const int64_t* row_ptr, int64_t segments, int64_t values);  // -1: none
  int64_t (*wrong_index)(const AtomTask& task);                                        // -1: none
  void (*atom_logits)(const AtomTask& task);
  void (*atom_logits_backward)(const AtomTask& task);
  void (*logmatmul)(const ProductTask& task);
  void (*logmatmul_backward)(const ProductTask& task);
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

}  // namespace tenfold::fuzzy
