// Checks in front of the kernels: shapes, types, devices, offsets.
#include "attention/attention.h"

#include <cmath>
#include <string>

#include "core/checks.h"
#include "core/error.h"

namespace tenfold::attention {
namespace {

const Kernels& kernels() {
  return table_in_use<Kernels>(&baseline::kernels, TENFOLD_AVX2(kernels), TENFOLD_AVX512(kernels),
                               TENFOLD_AVX512BF16(kernels), TENFOLD_AMX(kernels));
}

constexpr const char* kRows = "(samples, tokens, heads, width)";
constexpr const char* kPackedRows = "(tokens, heads, width) with offsets";

void want_rows(const char* name, const TensorView& view, bool packed) {
  want_memory(name, view);
  want_type(name, view, {kFloat32, kBFloat16});
  if (view.rank != (packed ? 3 : 4)) {
    throw ValueError(std::string(name) + " has shape " + shape_of(view) + ", want " +
                     (packed ? kPackedRows : kRows));
  }
  want_contiguous_rows(name, view);
}

void want_like(const char* name, const TensorView& view, const char* other_name, const TensorView& other) {
  want_memory(name, view);
  want_type(name, view, {other.dtype});
  want_together(name, view, other_name, other);
  bool same = view.rank == other.rank;
  for (int i = 0; same && i < view.rank; ++i) same = view.shape[i] == other.shape[i];
  if (!same) {
    throw ValueError(std::string(name) + " has shape " + shape_of(view) + ", want " + shape_of(other) +
                     " as " + other_name);
  }
  want_contiguous_rows(name, view);
}

Rows rows_of(const TensorView& view) {
  if (view.rank == 3) return {view.data, 0, view.strides[0], view.strides[1]};
  return {view.data, view.strides[0], view.strides[1], view.strides[2]};
}

int64_t count_rows(const TensorView& view) {
  return view.rank == 3 ? view.shape[0] : view.shape[0] * view.shape[1];
}

// (N + 1) int32, ascending from 0 to the number of rows.
const int32_t* want_offsets(const char* name, const TensorView* view, const TensorView& rows) {
  if (view == nullptr) return nullptr;
  want_memory(name, *view);
  if (view->rank != 1 || view->shape[0] < 1) {
    throw ValueError(std::string(name) + " has shape " + shape_of(*view) +
                     ", want one dimension of samples + 1");
  }
  want_dense(name, *view, kInt32, {view->shape[0]}, "one per sample and one more");
  want_together(name, *view, "q", rows);
  const auto* const offsets = reinterpret_cast<const int32_t*>(view->data);
  if (on_gpu(*view)) return offsets;
  const int64_t last = view->shape[0] - 1, count = rows.shape[0];
  bool good = offsets[0] == 0 && offsets[last] == count;
  for (int64_t n = 0; good && n < last; ++n) good = offsets[n] <= offsets[n + 1];
  if (!good) {
    throw ValueError(std::string(name) + " goes from " + std::to_string(offsets[0]) + " to " +
                     std::to_string(offsets[last]) + ", want ascending numbers from 0 to " +
                     std::to_string(count) + ", the number of rows");
  }
  return offsets;
}

void want_same_size(const char* name, int64_t got, int64_t wanted, const char* what) {
  if (got == wanted) return;
  throw ValueError(std::string(name) + " has " + std::to_string(got) + " " + what + ", want " +
                   std::to_string(wanted) + " as q");
}

Problem problem_of(const Inputs& inputs) {
  const TensorView &q = inputs.q, &k = inputs.k, &v = inputs.v;
  want_rows("q", q, inputs.q_offsets != nullptr);
  want_rows("k", k, inputs.k_offsets != nullptr);
  want_type("k", k, {q.dtype});
  want_together("k", k, "q", q);
  want_like("v", v, "k", k);
  Problem p{};
  p.q = rows_of(q), p.k = rows_of(k), p.v = rows_of(v);
  p.heads = q.shape[q.rank - 2], p.width = q.shape[q.rank - 1];
  want_same_size("k", k.shape[k.rank - 2], p.heads, "heads");
  want_same_size("k", k.shape[k.rank - 1], p.width, "values in a head");
  if (p.width < 1) throw ValueError("q has shape " + shape_of(q) + ", want a last dimension of 1 or more");
  p.q_offsets = want_offsets("q_offsets", inputs.q_offsets, q);
  p.k_offsets = want_offsets("k_offsets", inputs.k_offsets, k);
  p.samples = inputs.q_offsets != nullptr ? inputs.q_offsets->shape[0] - 1 : q.shape[0];
  const int64_t k_samples = inputs.k_offsets != nullptr ? inputs.k_offsets->shape[0] - 1 : k.shape[0];
  want_same_size("k", k_samples, p.samples, "samples");
  p.q_length = inputs.q_offsets != nullptr ? 0 : q.shape[1];
  p.k_length = inputs.k_offsets != nullptr ? 0 : k.shape[1];
  p.q_rows = count_rows(q), p.k_rows = count_rows(k);
  if (inputs.key_mask != nullptr) {
    const TensorView& mask = *inputs.key_mask;
    if (inputs.k_offsets != nullptr) throw ValueError("key_mask is given beside k_offsets, want one of them");
    want_memory("key_mask", mask);
    want_type("key_mask", mask, {{TypeCode::boolean, 8}});
    want_shape("key_mask", mask, {p.samples, p.k_length}, "one per key");
    want_together("key_mask", mask, "q", q);
    p.key_mask = reinterpret_cast<const uint8_t*>(mask.data);
    p.mask_sample = mask.strides[0], p.mask_key = mask.strides[1];
  }
  if (!(inputs.scale > 0.0f) || !std::isfinite(inputs.scale)) {
    throw ValueError("scale is " + std::to_string(inputs.scale) + ", want a positive number");
  }
  p.scale = inputs.scale;
  p.bf16 = q.dtype == kBFloat16;
  return p;
}

float* want_statistics(const TensorView& view, const Problem& p, const TensorView& q) {
  want_dense("statistics", view, kFloat32, {2, p.heads, p.q_rows}, "two of each head and query");
  want_together("statistics", view, "q", q);
  return reinterpret_cast<float*>(view.data);
}

}  // namespace

void forward(const Inputs& inputs, const TensorView& out, const TensorView& statistics) {
  const Problem problem = problem_of(inputs);
  want_like("out", out, "q", inputs.q);
  want_writable("out", out);
  want_apart(out, "q", inputs.q);
  want_apart(out, "k", inputs.k);
  want_apart(out, "v", inputs.v);
  float* const kept = want_statistics(statistics, problem, inputs.q);
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(out)) return cuda::forward(problem, rows_of(out), kept, queue_of(out));
  }
  kernels().forward(problem, rows_of(out), kept);
}

int64_t backward_scratch(const TensorView& q) {
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(q)) {
      int64_t queries = 1;  // of all heads; what else q must be is asked when there is scratch
      for (int i = 0; i < q.rank - 1; ++i) queries *= q.shape[i];
      return queries * static_cast<int64_t>(sizeof(float));
    }
  }
  return 0;
}

void backward(const Inputs& inputs, const TensorView& statistics, const TensorView& out_grad,
              const Grads& grads, [[maybe_unused]] char* scratch) {
  const Problem problem = problem_of(inputs);
  want_like("out_grad", out_grad, "q", inputs.q);
  want_like("q_grad", grads.q, "q", inputs.q);
  want_like("k_grad", grads.k, "k", inputs.k);
  want_like("v_grad", grads.v, "v", inputs.v);
  const float* const kept = want_statistics(statistics, problem, inputs.q);
  const Rows from = rows_of(out_grad), q = rows_of(grads.q), k = rows_of(grads.k), v = rows_of(grads.v);
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(out_grad)) {
      return cuda::backward(problem, kept, from, q, k, v, reinterpret_cast<float*>(scratch),
                            queue_of(out_grad));
    }
  }
  kernels().backward(problem, kept, from, q, k, v);
}

}  // namespace tenfold::attention
