// Checks in front of the kernels: shapes, types, devices; values are checked in the kernels' own pass.
#include "moe/moe.h"

#include <string>
#include <utility>

#include "core/checks.h"
#include "core/error.h"
#include "core/machine.h"

namespace tenfold::moe {
namespace {

const Kernels& kernels() {
  return table_in_use<Kernels>(&baseline::kernels, TENFOLD_AVX2(kernels), TENFOLD_AVX512(kernels));
}

template <class T>
T* data_of(const TensorView& view) {
  return reinterpret_cast<T*>(view.data);
}

Table table_of(const TensorView& view) { return {view.data, view.strides[0]}; }

Element element_of(DType type) {
  return type == kFloat32 ? Element::f32 : type == kBFloat16 ? Element::bf16 : Element::f64;
}

DType gate_type(DType element) { return element == kFloat64 ? kFloat64 : kFloat32; }

void want_numbers(const char* name, const TensorView& view) {
  want_memory(name, view);
  want_type(name, view, {kFloat32, kBFloat16, kFloat64});
  if (view.rank != 2) {
    throw ValueError(std::string(name) + " has shape " + shape_of(view) + ", want two dimensions");
  }
  want_contiguous_rows(name, view);
}

void want_few(const char* name, int64_t count) {
  if (count <= INT32_MAX) return;
  throw ValueError(std::to_string(count) + " " + name + ", want less than 2^31");
}

// logits (tokens, experts), or (batch, tokens, experts).
Sizes sizes_of(const TensorView& logits) {
  want_memory("logits", logits);
  want_type("logits", logits, {kFloat32, kBFloat16});
  if (logits.rank != 2 && logits.rank != 3) {
    throw ValueError("logits has shape " + shape_of(logits) +
                     ", want (tokens, experts) or (batch, tokens, experts)");
  }
  const int last = logits.rank - 1;
  const Sizes sizes{logits.rank == 3 ? logits.shape[0] : 1, logits.shape[last - 1], logits.shape[last], 0};
  if (sizes.experts < 1) {
    throw ValueError("logits has shape " + shape_of(logits) + ", want at least one expert");
  }
  want_few("tokens", sizes.batch * sizes.tokens);
  return sizes;
}

Logits logits_of(const TensorView& view) {
  const int last = view.rank - 1;
  return {view.data, view.rank == 3 ? view.strides[0] : 0, view.strides[last - 1], view.strides[last],
          view.dtype == kBFloat16};
}

RoutingOut want_routing(const Routing& routing, const TensorView& logits, int64_t tokens, int64_t experts,
                        int64_t rows, DType gates = kFloat32) {
  want_few("rows", rows);
  want_dense("token_ids", routing.token_ids, kInt32, {rows}, "one per row");
  want_dense("gates", routing.gates, gates, {rows}, "one per row");
  want_dense("offsets", routing.offsets, kInt32, {experts}, "one per expert");
  want_dense("starts", routing.starts, kInt32, {tokens + 1}, "one per token and one more");
  want_dense("rows", routing.rows, kInt32, {rows}, "one per row");
  want_together("token_ids", routing.token_ids, "logits", logits);
  return {data_of<int32_t>(routing.token_ids),
          gates == kFloat32 ? data_of<float>(routing.gates) : nullptr,
          gates == kInt32 ? data_of<int32_t>(routing.gates) : nullptr,
          data_of<int32_t>(routing.offsets),
          data_of<int32_t>(routing.starts),
          data_of<int32_t>(routing.rows)};
}

void raise_logit(const TensorView& logits, const Sizes& sizes, int64_t place) {
  if (place == kFine) return;
  const int64_t expert = place % sizes.experts, token = place / sizes.experts;
  const std::string where =
      logits.rank == 3 ? std::to_string(token / sizes.tokens) + ", " + std::to_string(token % sizes.tokens)
                       : std::to_string(token);
  throw ValueError("logits[" + where + ", " + std::to_string(expert) + "] is NaN or infinite, want a number");
}

void raise_token(int64_t place, const TensorView& token_ids, int64_t tokens) {
  if (place == kFine) return;
  throw ValueError("token_ids[" + std::to_string(place) + "] is " +
                   std::to_string(data_of<int32_t>(token_ids)[place]) + ", want 0 <= id < " +
                   std::to_string(tokens));
}

void raise_rows(int64_t place, int64_t rows) {
  if (place == kFine) return;
  throw ValueError("starts and rows of token " + std::to_string(place) +
                   " lead outside of the routing, want ascending starts and rows below " +
                   std::to_string(rows));
}

int64_t row_count_of(const TensorView& token_ids) { return token_ids.rank == 1 ? token_ids.shape[0] : 0; }

Sizes topk_sizes(const TensorView& logits, int64_t k) {
  Sizes sizes = sizes_of(logits);
  if (logits.rank != 2) {
    throw ValueError("logits has shape " + shape_of(logits) + ", want (tokens, experts)");
  }
  if (k < 1 || k > sizes.experts) {
    throw ValueError("k is " + std::to_string(k) + ", want 1 <= k <= " + std::to_string(sizes.experts) +
                     ", the number of experts");
  }
  want_few("rows", sizes.tokens * k);
  sizes.taken = k;
  return sizes;
}

Sizes choice_sizes(const TensorView& logits, int64_t capacity) {
  Sizes sizes = sizes_of(logits);
  if (logits.rank != 3) {
    throw ValueError("logits has shape " + shape_of(logits) + ", want (batch, tokens, experts)");
  }
  if (capacity < 0 || capacity > sizes.tokens) {
    throw ValueError("capacity is " + std::to_string(capacity) +
                     ", want 0 <= capacity <= " + std::to_string(sizes.tokens) + ", the number of tokens");
  }
  want_few("rows", sizes.batch * sizes.experts * capacity);
  sizes.taken = capacity;
  return sizes;
}

}  // namespace

int64_t route_topk_scratch(const TensorView& logits, int64_t k) {
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(logits)) return 4 * cuda::topk_scratch(topk_sizes(logits, k));
  }
  return 0;
}

void route_topk(const TensorView& logits, int64_t k, bool renormalize, const Routing& out, char* scratch) {
  const Sizes sizes = topk_sizes(logits, k);
  const RoutingOut arrays = want_routing(out, logits, sizes.tokens, sizes.experts, sizes.tokens * k);
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(logits)) {
      return cuda::route_topk(logits_of(logits), sizes, renormalize, arrays,
                              reinterpret_cast<int32_t*>(scratch), queue_of(logits));
    }
  }
  raise_logit(logits, sizes, kernels().route_topk(logits_of(logits), sizes, renormalize, arrays));
}

namespace {

Sizes ids_sizes(const TensorView& expert_ids, int64_t experts) {
  want_memory("expert_ids", expert_ids);
  want_type("expert_ids", expert_ids, {kInt32, kInt64});
  if (expert_ids.rank != 2) {
    throw ValueError("expert_ids has shape " + shape_of(expert_ids) + ", want (tokens, experts of a token)");
  }
  if (experts < 1) throw ValueError("experts is " + std::to_string(experts) + ", want at least 1");
  want_few("experts", experts);
  want_few("rows", expert_ids.count());
  return {1, expert_ids.shape[0], experts, expert_ids.shape[1]};
}

}  // namespace

int64_t route_ids_scratch(const TensorView& expert_ids, int64_t experts) {
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(expert_ids)) return 4 * cuda::ids_scratch(ids_sizes(expert_ids, experts));
  }
  return 0;
}

void route_ids(const TensorView& expert_ids, int64_t experts, const Routing& out, char* scratch) {
  const Sizes sizes = ids_sizes(expert_ids, experts);
  const RoutingOut arrays = want_routing(out, expert_ids, sizes.tokens, experts, expert_ids.count(), kInt32);
  const Ids ids{expert_ids.data, expert_ids.strides[0], expert_ids.strides[1], expert_ids.dtype == kInt64};
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(expert_ids)) {
      return cuda::route_ids(ids, sizes, arrays, reinterpret_cast<int32_t*>(scratch), queue_of(expert_ids));
    }
  }
  const int64_t place = kernels().route_ids(ids, sizes, arrays);
  if (place == kFine) return;
  throw ValueError("expert_ids[" + std::to_string(place / sizes.taken) + ", " +
                   std::to_string(place % sizes.taken) + "] is out of range, want 0 <= id < " +
                   std::to_string(experts));
}

int64_t route_expert_choice_scratch(const TensorView& logits, int64_t capacity) {
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(logits)) return 4 * cuda::choice_scratch(choice_sizes(logits, capacity));
  }
  return 0;
}

void route_expert_choice(const TensorView& logits, int64_t capacity, const Routing& out, char* scratch) {
  const Sizes sizes = choice_sizes(logits, capacity);
  const RoutingOut arrays = want_routing(out, logits, sizes.batch * sizes.tokens, sizes.experts,
                                         sizes.batch * sizes.experts * capacity);
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(logits)) {
      return cuda::route_expert_choice(logits_of(logits), sizes, arrays, reinterpret_cast<int32_t*>(scratch),
                                       queue_of(logits));
    }
  }
  raise_logit(logits, sizes, kernels().route_expert_choice(logits_of(logits), sizes, arrays));
}

void route_backward(const TensorView& logits, const TensorView& gates_grad, bool renormalize,
                    const Routing& routing, const TensorView& grad) {
  const Sizes sizes = sizes_of(logits);
  const int64_t tokens = sizes.batch * sizes.tokens, rows = row_count_of(routing.token_ids);
  const RoutingOut arrays = want_routing(routing, logits, tokens, sizes.experts, rows);
  want_dense("gates_grad", gates_grad, kFloat32, {rows}, "one per row");
  want_dense("grad", grad, kFloat32, {tokens, sizes.experts}, "as logits");
  want_together("gates_grad", gates_grad, "logits", logits);
  want_together("grad", grad, "logits", logits);
  float* const to = data_of<float>(grad);
  const float* const from = data_of<float>(gates_grad);
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(logits)) {
      return cuda::route_backward(to, logits_of(logits), from, arrays.starts, arrays.rows, arrays.offsets,
                                  rows, renormalize, sizes, queue_of(logits));
    }
  }
  raise_rows(kernels().route_backward(to, logits_of(logits), from, arrays.starts, arrays.rows, arrays.offsets,
                                      rows, renormalize, sizes),
             rows);
}

void dispatch(const TensorView& x, const TensorView& token_ids, const TensorView& out) {
  want_numbers("x", x);
  const int64_t rows = row_count_of(token_ids), tokens = x.shape[0], width = x.shape[1];
  want_dense("token_ids", token_ids, kInt32, {rows}, "one per row");
  want_numbers("out", out);
  want_type("out", out, {x.dtype});
  want_shape("out", out, {rows, width}, "a row of x for each of token_ids");
  want_writable("out", out);
  want_together("token_ids", token_ids, "x", x);
  want_together("out", out, "x", x);
  want_apart(out, "x", x);
  want_apart(out, "token_ids", token_ids);
  const int32_t* const ids = data_of<int32_t>(token_ids);
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(x)) {
      return cuda::dispatch(table_of(out), table_of(x), ids, rows, tokens, width, element_of(x.dtype),
                            queue_of(x));
    }
  }
  const int64_t row_bytes = width * x.dtype.bytes();
  const bool streamed = 2 * rows * row_bytes >= last_level_cache();
  raise_token(kernels().dispatch(table_of(out), table_of(x), ids, rows, tokens, row_bytes, streamed),
              token_ids, tokens);
}

void combine(const TensorView& y, const TensorView* gates, const TensorView& starts, const TensorView& rows,
             const TensorView& out) {
  want_numbers("y", y);
  const int64_t row_count = y.shape[0], width = y.shape[1];
  const int64_t tokens = starts.rank == 1 && starts.shape[0] > 0 ? starts.shape[0] - 1 : 0;
  if (gates != nullptr) {
    want_dense("gates", *gates, gate_type(y.dtype), {row_count}, "one per row of y");
    want_together("gates", *gates, "y", y);
  }
  want_dense("rows", rows, kInt32, {row_count}, "one per row of y");
  want_dense("starts", starts, kInt32, {tokens + 1}, "one per token and one more");
  want_numbers("out", out);
  want_type("out", out, {y.dtype});
  want_shape("out", out, {tokens, width}, "a row for each token");
  want_writable("out", out);
  want_together("rows", rows, "y", y);
  want_together("starts", starts, "y", y);
  want_together("out", out, "y", y);
  want_apart(out, "y", y);
  const void* const weights = gates != nullptr ? gates->data : nullptr;
  const int32_t* const first = data_of<int32_t>(starts);
  const int32_t* const ids = data_of<int32_t>(rows);
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(y)) {
      return cuda::combine(table_of(out), table_of(y), weights, first, ids, tokens, row_count, width,
                           element_of(y.dtype), queue_of(y));
    }
  }
  raise_rows(kernels().combine(table_of(out), table_of(y), weights, first, ids, tokens, row_count, width,
                               element_of(y.dtype)),
             row_count);
}

void combine_backward(const TensorView& out_grad, const TensorView& y, const TensorView& gates,
                      const TensorView& token_ids, const TensorView* y_grad, const TensorView& gates_grad) {
  want_numbers("out_grad", out_grad);
  want_numbers("y", y);
  const int64_t rows = y.shape[0], width = y.shape[1], tokens = out_grad.shape[0];
  want_type("out_grad", out_grad, {y.dtype});
  want_shape("out_grad", out_grad, {tokens, width}, "as wide as y");
  want_dense("gates", gates, gate_type(y.dtype), {rows}, "one per row of y");
  want_dense("token_ids", token_ids, kInt32, {rows}, "one per row of y");
  want_dense("gates_grad", gates_grad, gate_type(y.dtype), {rows}, "one per row of y");
  if (y_grad != nullptr) want_dense("y_grad", *y_grad, y.dtype, {rows, width}, "as y");
  for (const auto& [name, view] :
       {std::pair{"out_grad", &out_grad}, std::pair{"gates", &gates}, std::pair{"token_ids", &token_ids},
        std::pair{"gates_grad", &gates_grad}}) {
    want_together(name, *view, "y", y);
  }
  const Table to = y_grad != nullptr ? table_of(*y_grad) : Table{nullptr, 0};
  const int32_t* const ids = data_of<int32_t>(token_ids);
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(y)) {
      return cuda::combine_backward(to, gates_grad.data, table_of(out_grad), table_of(y), gates.data, ids,
                                    rows, tokens, width, element_of(y.dtype), queue_of(y));
    }
  }
  raise_token(kernels().combine_backward(to, gates_grad.data, table_of(out_grad), table_of(y), gates.data,
                                         ids, rows, tokens, width, element_of(y.dtype)),
              token_ids, tokens);
}

namespace {

struct ExpertSizes {
  int64_t tokens, rows, experts, width, hidden, inner;
};

ExpertSizes want_experts(const ExpertArrays& arrays) {
  want_numbers("x", arrays.x);
  want_type("x", arrays.x, {kFloat32});
  ExpertSizes sizes{arrays.x.shape[0], row_count_of(arrays.token_ids), 0, arrays.x.shape[1], 0, 0};
  for (const auto& [name, view] : {std::pair{"w_in", &arrays.w_in}, std::pair{"w_out", &arrays.w_out}}) {
    want_memory(name, *view);
    want_type(name, *view, {kFloat32});
    want_together(name, *view, "x", arrays.x);
    if (view->rank != 3) {
      throw ValueError(std::string(name) + " has shape " + shape_of(*view) + ", want three dimensions");
    }
  }
  sizes.experts = arrays.w_in.shape[0];
  sizes.inner = arrays.w_in.shape[2];
  sizes.hidden = arrays.gated ? sizes.inner / 2 : sizes.inner;
  if (arrays.gated && sizes.inner % 2 != 0) {
    throw ValueError("w_in has shape " + shape_of(arrays.w_in) + ", want an even last dimension for a gate");
  }
  want_shape("w_in", arrays.w_in, {sizes.experts, sizes.width, sizes.inner}, "(experts, width of x, hidden)");
  want_shape("w_out", arrays.w_out, {sizes.experts, sizes.hidden, sizes.width},
             "(experts, hidden, width of x)");
  want_dense("token_ids", arrays.token_ids, kInt32, {sizes.rows}, "one per row");
  want_dense("offsets", arrays.offsets, kInt32, {sizes.experts}, "one per expert");
  if (arrays.b_in != nullptr) {
    want_dense("b_in", *arrays.b_in, kFloat32, {sizes.experts, sizes.inner}, "(experts, hidden)");
  }
  if (arrays.b_out != nullptr) {
    want_dense("b_out", *arrays.b_out, kFloat32, {sizes.experts, sizes.width}, "(experts, width of x)");
  }
  if (on_gpu(arrays.x)) throw TypeError("x is on a GPU, want an array in CPU memory or a torch tensor");
  const int32_t* const ends = data_of<int32_t>(arrays.offsets);
  int64_t before = 0;
  for (int64_t e = 0; e < sizes.experts; ++e) {
    const bool last = e == sizes.experts - 1;
    if (ends[e] < before || (last && ends[e] != sizes.rows) || ends[e] > sizes.rows) {
      throw ValueError("offsets[" + std::to_string(e) + "] is " + std::to_string(ends[e]) + ", want " +
                       (last ? std::to_string(sizes.rows) + ", the number of rows"
                             : "ascending ends of at most " + std::to_string(sizes.rows) + " rows"));
    }
    before = ends[e];
  }
  return sizes;
}

Weights weights_of(const TensorView& view) {
  return {data_of<float>(view), view.strides[0] / 4, view.strides[1] / 4, view.strides[2] / 4};
}

WeightGrads want_grad(const char* name, const TensorView& grad, const TensorView& like) {
  want_type(name, grad, {kFloat32});
  want_shape(name, grad, {like.shape[0], like.shape[1], like.shape[2]}, "as its weight");
  if (grad.count() > 0 && grad.strides[1] != 4 && grad.strides[2] != 4) {
    throw ValueError(std::string(name) + " has no contiguous dimension, want rows or columns contiguous");
  }
  return {data_of<float>(grad), grad.strides[0] / 4, grad.strides[1] / 4, grad.strides[2] / 4};
}

const float* data_or_null(const TensorView* view) {
  return view != nullptr ? data_of<const float>(*view) : nullptr;
}

Experts experts_of(const ExpertArrays& arrays, const ExpertSizes& sizes) {
  return {table_of(arrays.x),
          data_of<int32_t>(arrays.token_ids),
          data_of<int32_t>(arrays.offsets),
          weights_of(arrays.w_in),
          weights_of(arrays.w_out),
          data_or_null(arrays.b_in),
          data_or_null(arrays.b_out),
          sizes.tokens,
          sizes.rows,
          sizes.experts,
          sizes.width,
          sizes.hidden,
          arrays.activation,
          arrays.gated};
}

}  // namespace

void experts_forward(const ExpertArrays& arrays, const TensorView& y, const TensorView* hidden) {
  const ExpertSizes sizes = want_experts(arrays);
  want_dense("y", y, kFloat32, {sizes.rows, sizes.width}, "one row per row of the routing");
  if (hidden != nullptr) {
    want_dense("hidden", *hidden, kFloat32, {sizes.rows, sizes.inner}, "(rows, hidden)");
  }
  raise_token(kernels().experts_forward(experts_of(arrays, sizes), data_of<float>(y),
                                        hidden != nullptr ? data_of<float>(*hidden) : nullptr),
              arrays.token_ids, sizes.tokens);
}

void experts_backward(const ExpertArrays& arrays, const TensorView& hidden, const TensorView& y_grad,
                      const ExpertGrads& grads) {
  const ExpertSizes sizes = want_experts(arrays);
  want_dense("hidden", hidden, kFloat32, {sizes.rows, sizes.inner}, "(rows, hidden)");
  want_dense("y_grad", y_grad, kFloat32, {sizes.rows, sizes.width}, "one row per row of the routing");
  if (grads.x != nullptr) want_dense("x_grad", *grads.x, kFloat32, {sizes.rows, sizes.width}, "as y_grad");
  const auto bias = [&](const char* name, const TensorView* grad, int64_t width) -> float* {
    if (grad == nullptr) return nullptr;
    want_dense(name, *grad, kFloat32, {sizes.experts, width}, "as its bias");
    return data_of<float>(*grad);
  };
  raise_token(
      kernels().experts_backward(
          experts_of(arrays, sizes), data_of<float>(hidden), data_of<float>(y_grad),
          grads.x != nullptr ? data_of<float>(*grads.x) : nullptr,
          want_grad("w_in_grad", grads.w_in, arrays.w_in), want_grad("w_out_grad", grads.w_out, arrays.w_out),
          bias("b_in_grad", grads.b_in, sizes.inner), bias("b_out_grad", grads.b_out, sizes.width)),
      arrays.token_ids, sizes.tokens);
}

}  // namespace tenfold::moe
