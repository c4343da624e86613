// Two-layer networks of experts on the rows of a routing, one level of it (included by moe_cpu.cpp).
//
//     hidden[r] = x[token_ids[r]] w_in[e] + b_in[e],   y[r] = activate(hidden[r]) w_out[e] + b_out[e]
//
// for each row r of expert e. Rows are found while they are packed, so no gathered copy of x is made, and the
// activated values of a block of rows stay in the second-level cache between the two products.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/gemm.h"
#include "core/level.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "core/vecmath.h"
#include "moe/moe.h"

namespace tenfold::moe {
namespace TENFOLD_LEVEL {
namespace {

constexpr int64_t kBlockRows = gemm::kBlockPanels * gemm::kTileRows;
constexpr int64_t kBackwardRows = 1024;  // of an expert at a time: bounds the scratch of the backward pass

Floats load_some(const float* from, int64_t count) {
  if (count >= kFloatLanes) return load(from);
  Floats value{};
  std::memcpy(&value, from, static_cast<size_t>(count) * sizeof(float));
  return value;
}

void store_some(float* to, Floats value, int64_t count) {
  if (count >= kFloatLanes) return store(to, value);
  std::memcpy(to, &value, static_cast<size_t>(count) * sizeof(float));
}

// ---- activations and their derivatives ----

constexpr float kGeluInner = 0.044715f, kGeluScale = 0.79788456080286536f;  // sqrt(2 / pi)
constexpr float kNormalDensity = 0.39894228040143268f;                      // 1 / sqrt(2 pi)

template <Activation activation>
Floats activate(Floats x) {
  if constexpr (activation == Activation::gelu) return x * normal_cdf(x);
  if constexpr (activation == Activation::gelu_tanh) {
    return 0.5f * x * (1.0f + tanh(kGeluScale * (x + kGeluInner * x * x * x)));
  }
  if constexpr (activation == Activation::silu) return x * sigmoid(x);
  return x > 0.0f ? x : Floats{};
}

template <Activation activation>
Floats slope(Floats x) {
  if constexpr (activation == Activation::gelu) {
    return normal_cdf(x) + x * (kNormalDensity * exp(-0.5f * x * x));
  }
  if constexpr (activation == Activation::gelu_tanh) {
    const Floats t = tanh(kGeluScale * (x + kGeluInner * x * x * x));
    const Floats inner = kGeluScale * (1.0f + 3.0f * kGeluInner * x * x);
    return 0.5f * (1.0f + t) + 0.5f * x * (1.0f - t * t) * inner;
  }
  if constexpr (activation == Activation::silu) {
    const Floats s = sigmoid(x);
    return s * (1.0f + x * (1.0f - s));
  }
  return x > 0.0f ? Floats{} + 1.0f : Floats{};
}

template <class F>
void with_activation(Activation activation, F&& f) {
  switch (activation) {
    case Activation::gelu:
      return f(std::integral_constant<Activation, Activation::gelu>{});
    case Activation::gelu_tanh:
      return f(std::integral_constant<Activation, Activation::gelu_tanh>{});
    case Activation::silu:
      return f(std::integral_constant<Activation, Activation::silu>{});
    case Activation::relu:
      return f(std::integral_constant<Activation, Activation::relu>{});
  }
}

// The gradient of `hidden` from that of the activated values; `activated` receives those values.
void activate_row_backward(float* hidden_grad, float* activated, const float* grad, const float* hidden,
                           int64_t width, Activation activation, bool gated) {
  with_activation(activation, [&](auto kind) {
    for (int64_t h = 0; h < width; h += kFloatLanes) {
      const int64_t count = width - h;
      const Floats x = load_some(hidden + h, count), from = load_some(grad + h, count);
      const Floats value = activate<kind()>(x);
      if (gated) {
        const Floats factor = load_some(hidden + width + h, count);
        store_some(hidden_grad + h, from * factor * slope<kind()>(x), count);
        store_some(hidden_grad + width + h, from * value, count);
        store_some(activated + h, value * factor, count);
      } else {
        store_some(hidden_grad + h, from * slope<kind()>(x), count);
        store_some(activated + h, value, count);
      }
    }
  });
}

// ---- products ----

using gemm::Source;

void pack_columns_parallel(float* to, const Source& source, int64_t columns, int64_t depth) {
  const int64_t panels = gemm::panels(columns, gemm::kTileColumns);
  parallel_for(panels, 1 + (1 << 14) / (gemm::kTileColumns * depth + 1), [&](int64_t begin, int64_t end) {
    const int64_t first = begin * gemm::kTileColumns;
    const int64_t last = end * gemm::kTileColumns < columns ? end * gemm::kTileColumns : columns;
    for (int64_t j = first; j < last; j += gemm::kTileColumns) {
      gemm::pack_panel<gemm::kTileColumns>(to + j * depth, source, j, columns, depth);
    }
  });
}

// Takes tiles of the hidden values: adds the bias, keeps them for the backward pass where `hidden` is not
// null, and packs the activated ones as the left operand of the second product. A gated expert's panels hold
// values in the first vector and their factors in the second.
struct ActivateInto {
  float* packed;
  float* hidden;  // rows of `width`, twice that where gated
  const float* bias;
  int64_t width;
  Activation activation;
  bool gated;

  void operator()(int64_t row, int rows, int64_t column, int, const gemm::Tile& tile) const {
    const int64_t first = gated ? column / 2 : column;
    const int64_t room = gated ? kFloatLanes : gemm::kTileColumns;
    const int64_t count = width - first < room ? width - first : room;
    alignas(kLineBytes) float value[gemm::kTileRows][gemm::kTileColumns];
    const float* lines[gemm::kTileRows];
    with_activation(activation, [&](auto kind) {
      for (int r = 0; r < gemm::kTileRows; ++r) {
        lines[r] = value[r];
        float* const kept =
            hidden != nullptr && r < rows ? hidden + (row + r) * (gated ? 2 : 1) * width : nullptr;
        if (gated) {
          const Floats x = finish(tile.row[r][0], kept, first, count);
          store(value[r], activate<kind()>(x) * finish(tile.row[r][1], kept, width + first, count));
        } else {
          for (int v = 0; v * kFloatLanes < count; ++v) {
            const int64_t at = v * kFloatLanes;
            store(value[r] + at, activate<kind()>(finish(tile.row[r][v], kept, first + at, count - at)));
          }
        }
      }
    });
    gemm::pack_lines(packed + row * width + first * gemm::kTileRows, lines, count);
  }

 private:
  Floats finish(Floats x, float* kept, int64_t at, int64_t count) const {
    if (bias != nullptr) x += load_some(bias + at, count);
    if (kept != nullptr) store_some(kept + at, x, count);
    return x;
  }
};

// Stores tiles into rows of `stride` elements that begin at `to`, with an optional bias per column.
struct StoreRows {
  float* to;
  int64_t stride;
  const float* bias;
  bool add;

  void operator()(int64_t row, int rows, int64_t column, int columns, const gemm::Tile& tile) const {
    for (int r = 0; r < rows; ++r) {
      float* const at = to + (row + r) * stride + column;
      for (int c = 0; c < columns; c += kFloatLanes) {
        Floats value = tile.row[r][c / kFloatLanes];
        if (bias != nullptr) value += load_some(bias + column + c, columns - c);
        if (add) value += load_some(at + c, columns - c);
        store_some(at + c, value, columns - c);
      }
    }
  }
};

// Rows that one task takes: so that all threads have as many tasks.
int64_t rows_of_task(int64_t rows) {
  const int64_t threads = available_threads();
  const int64_t rounds = (rows + kBlockRows * threads - 1) / (kBlockRows * threads);
  const int64_t even = (rows + rounds * threads - 1) / (rounds * threads);
  return gemm::panels(even, gemm::kTileRows) * gemm::kTileRows;
}

// to (m x n, rows of `stride`) = or += A B, for A (m x depth) and B (depth x n).
void product(float* to, int64_t stride, bool add, const Source& a, int64_t m, const Source& b, int64_t n,
             int64_t depth) {
  FloatScratch columns(gemm::packed_columns_size(n, depth));
  pack_columns_parallel(columns.data(), b, n, depth);
  const int64_t task = rows_of_task(m);
  parallel_for((m + task - 1) / task, 1, [&](int64_t begin, int64_t end) {
    FloatScratch rows(gemm::packed_rows_size(task, depth));
    for (int64_t first = begin * task; first < m && first < end * task; first += task) {
      const int64_t count = m - first < task ? m - first : task;
      gemm::pack_rows(rows.data(), a, first, count, depth);
      gemm::multiply(rows.data(), count, columns.data(), n, depth,
                     StoreRows{to + first * stride, stride, nullptr, add});
    }
  });
}

void sum_columns(float* to, bool add, const float* from, int64_t stride, int64_t rows, int64_t width) {
  parallel_for(width, 1 + (1 << 16) / (rows + 1), [&](int64_t begin, int64_t end) {
    if (!add) std::memset(to + begin, 0, static_cast<size_t>(end - begin) * sizeof(float));
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t c = begin; c < end; ++c) to[c] += from[r * stride + c];
    }
  });
}

// ---- the experts ----

Source source_of(const Weights& weights, int64_t expert, bool transposed) {
  const float* const data = weights.data + expert * weights.expert_stride;
  // Element (k, j) of the matrix, j across; of its transpose with the roles exchanged.
  return transposed ? Source{data, weights.row_stride, weights.column_stride}
                    : Source{data, weights.column_stride, weights.row_stride};
}

int64_t first_row(const Experts& experts, int64_t e) { return e == 0 ? 0 : experts.offsets[e - 1]; }

int64_t bad_token(const Experts& experts) {
  for (int64_t r = 0; r < experts.rows; ++r) {
    if (static_cast<uint64_t>(int64_t{experts.token_ids[r]}) >= static_cast<uint64_t>(experts.tokens))
      return r;
  }
  return kFine;
}

// Packs w_in of one expert; for a gated one, each panel holds columns of values and of their factors.
void pack_inner(float* to, const Experts& f, int64_t expert) {
  const Source source = source_of(f.w_in, expert, false);
  if (!f.gated) return pack_columns_parallel(to, source, f.hidden, f.width);
  Source factors = source;
  factors.data += f.hidden * source.across;
  constexpr int kHalf = kFloatLanes, kRow = gemm::kTileColumns;
  parallel_for(gemm::panels(f.hidden, kHalf), 1 + (1 << 14) / (kRow * f.width + 1),
               [&](int64_t begin, int64_t end) {
                 for (int64_t p = begin; p < end; ++p) {
                   float* const panel = to + p * kRow * f.width;
                   gemm::pack_panel<kHalf, kRow>(panel, source, p * kHalf, f.hidden, f.width);
                   gemm::pack_panel<kHalf, kRow>(panel + kHalf, factors, p * kHalf, f.hidden, f.width);
                 }
               });
}

int64_t experts_forward(const Experts& f, float* y, float* hidden) {
  const int64_t bad = bad_token(f);
  if (bad != kFine) return bad;
  const int64_t inner = f.gated ? 2 * f.hidden : f.hidden;
  const int64_t columns = f.gated ? gemm::panels(f.hidden, kFloatLanes) * gemm::kTileColumns : f.hidden;
  FloatScratch packed_in(gemm::packed_columns_size(columns, f.width));
  FloatScratch packed_out(gemm::packed_columns_size(f.width, f.hidden));
  for (int64_t e = 0; e < f.experts; ++e) {
    const int64_t begin = first_row(f, e), count = f.offsets[e] - begin;
    if (count <= 0) continue;
    pack_inner(packed_in.data(), f, e);
    pack_columns_parallel(packed_out.data(), source_of(f.w_out, e, false), f.width, f.hidden);
    const float* const b_in = f.b_in != nullptr ? f.b_in + e * inner : nullptr;
    const float* const b_out = f.b_out != nullptr ? f.b_out + e * f.width : nullptr;
    const Source x{reinterpret_cast<const float*>(f.x.data), f.x.stride / 4, 1, f.token_ids + begin};
    const int64_t task = rows_of_task(count);
    parallel_for((count + task - 1) / task, 1, [&](int64_t first_task, int64_t last_task) {
      FloatScratch rows(gemm::packed_rows_size(task, f.width));
      FloatScratch activated(gemm::packed_rows_size(task, f.hidden));
      for (int64_t i = first_task; i < last_task; ++i) {
        const int64_t first = i * task, many = count - first < task ? count - first : task;
        float* const kept = hidden != nullptr ? hidden + (begin + first) * inner : nullptr;
        gemm::pack_rows(rows.data(), x, first, many, f.width);
        gemm::multiply(rows.data(), many, packed_in.data(), columns, f.width,
                       ActivateInto{activated.data(), kept, b_in, f.hidden, f.activation, f.gated});
        gemm::multiply(activated.data(), many, packed_out.data(), f.width, f.hidden,
                       StoreRows{y + (begin + first) * f.width, f.width, b_out, false});
      }
    });
  }
  return kFine;
}

// The gradient of one expert's weights: to (+)= left^T right, in the layout of `to`, one of whose strides
// is 1.
void weight_gradient(const WeightGrads& to, int64_t expert, bool add, const Source& left, int64_t m,
                     const Source& right, int64_t n, int64_t depth) {
  float* const data = to.data + expert * to.expert_stride;
  if (to.column_stride == 1) return product(data, to.row_stride, add, left, m, right, n, depth);
  product(data, to.column_stride, add, right, n, left, m, depth);
}

void zero_gradient(const WeightGrads& to, int64_t expert, int64_t m, int64_t n) {
  float* const data = to.data + expert * to.expert_stride;
  const bool by_row = to.column_stride == 1;
  for (int64_t i = 0; i < (by_row ? m : n); ++i) {
    std::memset(data + i * (by_row ? to.row_stride : to.column_stride), 0,
                static_cast<size_t>(by_row ? n : m) * sizeof(float));
  }
}

int64_t experts_backward(const Experts& f, const float* hidden, const float* y_grad, float* x_grad,
                         const WeightGrads& w_in_grad, const WeightGrads& w_out_grad, float* b_in_grad,
                         float* b_out_grad) {
  const int64_t bad = bad_token(f);
  if (bad != kFine) return bad;
  const int64_t inner = f.gated ? 2 * f.hidden : f.hidden;
  FloatScratch packed_in(gemm::packed_columns_size(f.width, inner));
  FloatScratch packed_out(gemm::packed_columns_size(f.hidden, f.width));
  int64_t most = 0;
  for (int64_t e = 0; e < f.experts; ++e) {
    const int64_t count = f.offsets[e] - first_row(f, e);
    most = count > most ? count : most;
  }
  most = most < kBackwardRows ? most : kBackwardRows;
  FloatScratch hidden_grad(most * inner), activated(most * f.hidden);
  const float* const x = reinterpret_cast<const float*>(f.x.data);
  const int64_t x_stride = f.x.stride / 4;
  for (int64_t e = 0; e < f.experts; ++e) {
    const int64_t begin = first_row(f, e), end = f.offsets[e];
    if (end <= begin) {
      zero_gradient(w_in_grad, e, f.width, inner);
      zero_gradient(w_out_grad, e, f.hidden, f.width);
      if (b_in_grad != nullptr) sum_columns(b_in_grad + e * inner, false, nullptr, 0, 0, inner);
      if (b_out_grad != nullptr) sum_columns(b_out_grad + e * f.width, false, nullptr, 0, 0, f.width);
      continue;
    }
    pack_columns_parallel(packed_out.data(), source_of(f.w_out, e, true), f.hidden, f.width);
    pack_columns_parallel(packed_in.data(), source_of(f.w_in, e, true), f.width, inner);
    for (int64_t part = begin; part < end; part += kBackwardRows) {
      const int64_t count = end - part < kBackwardRows ? end - part : kBackwardRows;
      const int64_t task = rows_of_task(count);
      parallel_for((count + task - 1) / task, 1, [&](int64_t first_task, int64_t last_task) {
        FloatScratch rows(gemm::packed_rows_size(task, f.width > inner ? f.width : inner));
        FloatScratch grad(task * f.hidden);
        for (int64_t i = first_task; i < last_task; ++i) {
          const int64_t first = i * task, many = count - first < task ? count - first : task;
          const int64_t row = part + first;
          gemm::pack_rows(rows.data(), Source{y_grad + row * f.width, f.width, 1}, 0, many, f.width);
          gemm::multiply(rows.data(), many, packed_out.data(), f.hidden, f.width,
                         StoreRows{grad.data(), f.hidden, nullptr, false});
          for (int64_t r = 0; r < many; ++r) {
            activate_row_backward(hidden_grad.data() + (first + r) * inner,
                                  activated.data() + (first + r) * f.hidden, grad.data() + r * f.hidden,
                                  hidden + (row + r) * inner, f.hidden, f.activation, f.gated);
          }
          if (x_grad == nullptr) continue;
          gemm::pack_rows(rows.data(), Source{hidden_grad.data() + first * inner, inner, 1}, 0, many, inner);
          gemm::multiply(rows.data(), many, packed_in.data(), f.width, inner,
                         StoreRows{x_grad + row * f.width, f.width, nullptr, false});
        }
      });
      const bool add = part > begin;
      const Source tokens{x, 1, x_stride, nullptr, f.token_ids + part};
      const Source before{hidden_grad.data(), 1, inner}, after{activated.data(), 1, f.hidden};
      const Source out{y_grad + part * f.width, 1, f.width};
      weight_gradient(w_in_grad, e, add, tokens, f.width, before, inner, count);
      weight_gradient(w_out_grad, e, add, after, f.hidden, out, f.width, count);
      if (b_in_grad != nullptr) {
        sum_columns(b_in_grad + e * inner, add, hidden_grad.data(), inner, count, inner);
      }
      if (b_out_grad != nullptr) {
        sum_columns(b_out_grad + e * f.width, add, y_grad + part * f.width, f.width, count, f.width);
      }
    }
  }
  return kFine;
}

}  // namespace
}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::moe
