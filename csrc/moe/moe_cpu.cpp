// The kernels of one instruction-set level; compiled once per level (core/level.h).
#include <cstdint>
#include <cstring>

#include "core/bfloat16.h"
#include "core/copy.h"
#include "core/level.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "core/vecmath.h"
#include "moe/experts.h"
#include "moe/moe.h"
#include "moe/routing.h"

namespace tenfold::moe {
namespace TENFOLD_LEVEL {
namespace {

// Below this much work per thread, waking a thread costs more than it saves.
constexpr int64_t kGrainBytes = 1 << 18;

// ---- rows there and back ----

int64_t rows_per_thread(int64_t row_bytes) { return 1 + kGrainBytes / (row_bytes + 1); }

int64_t dispatch(const Table& out, const Table& x, const int32_t* token_ids, int64_t rows, int64_t tokens,
                 int64_t row_bytes, bool streamed) {
  Fault fault;
  const int64_t lead = 1 + kPrefetchBytes / (row_bytes + 1);
  parallel_for(rows, rows_per_thread(row_bytes), [&](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const int64_t token = token_ids[r];
      if (token < 0 || token >= tokens) {
        fault.at(r);
        break;
      }
      const int64_t next = r + lead < end ? token_ids[r + lead] : -1;
      const char* const ahead = next >= 0 && next < tokens ? x.data + next * x.stride : nullptr;
      copy_row(out.data + r * out.stride, x.data + token * x.stride, row_bytes, ahead, streamed);
    }
    if (streamed) fence();
  });
  return fault.place();
}

template <class T>
T* row_of(const Table& table, int64_t row) {
  return reinterpret_cast<T*>(table.data + row * table.stride);
}

// out[first .. first + vectors * lanes) of one token.
template <int vectors, class T>
void combine_columns(T* out, const Table& y, const float* gates, const int32_t* rows, int64_t count,
                     int64_t first) {
  Floats sum[vectors] = {};
  for (int64_t i = 0; i < count; ++i) {
    const T* const row = row_of<const T>(y, rows[i]) + first;
    const float gate = gates != nullptr ? gates[rows[i]] : 1.0f;
#pragma GCC unroll 8
    for (int v = 0; v < vectors; ++v) sum[v] += gate * load_floats(row + v * kFloatLanes);
  }
#pragma GCC unroll 8
  for (int v = 0; v < vectors; ++v) store_floats(out + first + v * kFloatLanes, sum[v]);
}

template <class T, class Sum>
void combine_scalar(T* out, const Table& y, const Sum* gates, const int32_t* rows, int64_t count,
                    int64_t first, int64_t width) {
  for (int64_t d = first; d < width; ++d) {
    Sum sum = 0;
    for (int64_t i = 0; i < count; ++i) {
      const Sum gate = gates != nullptr ? gates[rows[i]] : Sum{1};
      sum += gate * to_float(row_of<const T>(y, rows[i])[d]);
    }
    round_to(out[d], sum);
  }
}

template <class T>
void combine_token(T* out, const Table& y, const float* gates, const int32_t* rows, int64_t count,
                   int64_t width) {
  constexpr int kVectors = 8;
  int64_t d = 0;
  for (; d + kVectors * kFloatLanes <= width; d += kVectors * kFloatLanes) {
    combine_columns<kVectors>(out, y, gates, rows, count, d);
  }
  for (; d + kFloatLanes <= width; d += kFloatLanes) combine_columns<1>(out, y, gates, rows, count, d);
  combine_scalar(out, y, gates, rows, count, d, width);
}

void combine_token(double* out, const Table& y, const double* gates, const int32_t* rows, int64_t count,
                   int64_t width) {
  combine_scalar(out, y, gates, rows, count, 0, width);
}

template <class T, class Sum>
int64_t combine(const Table& out, const Table& y, const Sum* gates, const int32_t* starts,
                const int32_t* rows, int64_t tokens, int64_t row_count, int64_t width) {
  Fault fault;
  parallel_for(tokens, rows_per_thread(width * static_cast<int64_t>(sizeof(T))),
               [&](int64_t begin, int64_t end) {
                 for (int64_t t = begin; t < end; ++t) {
                   const int64_t first = starts[t], last = starts[t + 1];
                   bool good = first >= 0 && last >= first && last <= row_count;
                   for (int64_t i = first; good && i < last; ++i) good = rows[i] >= 0 && rows[i] < row_count;
                   if (!good) return fault.at(t);
                   combine_token(row_of<T>(out, t), y, gates, rows + first, last - first, width);
                 }
               });
  return fault.place();
}

int64_t combine_any(const Table& out, const Table& y, const void* gates, const int32_t* starts,
                    const int32_t* rows, int64_t tokens, int64_t row_count, int64_t width, Element element) {
  switch (element) {
    case Element::bf16:
      return combine<uint16_t>(out, y, static_cast<const float*>(gates), starts, rows, tokens, row_count,
                               width);
    case Element::f64:
      return combine<double>(out, y, static_cast<const double*>(gates), starts, rows, tokens, row_count,
                             width);
    default:
      return combine<float>(out, y, static_cast<const float*>(gates), starts, rows, tokens, row_count, width);
  }
}

template <class T, class Sum>
void scale_and_dot(T* y_grad, Sum* gate_grad, const T* out_grad, const T* y, Sum gate, int64_t width) {
  Sum dot = 0;
  int64_t d = 0;
  if constexpr (sizeof(T) < sizeof(double)) {
    Floats sum{};
    for (; d + kFloatLanes <= width; d += kFloatLanes) {
      const Floats grad = load_floats(out_grad + d);
      sum += grad * load_floats(y + d);
      if (y_grad != nullptr) store_floats(y_grad + d, gate * grad);
    }
    dot = sum_of(sum);
  }
  for (; d < width; ++d) {
    const Sum grad = to_float(out_grad[d]);
    dot += grad * to_float(y[d]);
    if (y_grad != nullptr) round_to(y_grad[d], gate * grad);
  }
  *gate_grad = dot;
}

template <class T, class Sum>
int64_t combine_backward(const Table& y_grad, void* gates_grad, const Table& out_grad, const Table& y,
                         const void* gates, const int32_t* token_ids, int64_t rows, int64_t tokens,
                         int64_t width) {
  Fault fault;
  parallel_for(rows, rows_per_thread(width * static_cast<int64_t>(sizeof(T))),
               [&](int64_t begin, int64_t end) {
                 for (int64_t r = begin; r < end; ++r) {
                   const int64_t token = token_ids[r];
                   if (token < 0 || token >= tokens) return fault.at(r);
                   T* const to = y_grad.data != nullptr ? row_of<T>(y_grad, r) : nullptr;
                   scale_and_dot(to, static_cast<Sum*>(gates_grad) + r, row_of<const T>(out_grad, token),
                                 row_of<const T>(y, r), static_cast<const Sum*>(gates)[r], width);
                 }
               });
  return fault.place();
}

int64_t combine_backward_any(const Table& y_grad, void* gates_grad, const Table& out_grad, const Table& y,
                             const void* gates, const int32_t* token_ids, int64_t rows, int64_t tokens,
                             int64_t width, Element element) {
  switch (element) {
    case Element::bf16:
      return combine_backward<uint16_t, float>(y_grad, gates_grad, out_grad, y, gates, token_ids, rows,
                                               tokens, width);
    case Element::f64:
      return combine_backward<double, double>(y_grad, gates_grad, out_grad, y, gates, token_ids, rows, tokens,
                                              width);
    default:
      return combine_backward<float, float>(y_grad, gates_grad, out_grad, y, gates, token_ids, rows, tokens,
                                            width);
  }
}

}  // namespace

const Kernels kernels{route_topk,           route_ids,       route_expert_choice,
                      route_backward,       dispatch,        combine_any,
                      combine_backward_any, experts_forward, experts_backward};

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::moe
