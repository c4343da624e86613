// Two-layer networks of experts on the rows of a routing, one level of it (included by moe_cpu.cpp).
//
//     hidden[r] = x[token_ids[r]] w_in[e] + b_in[e],   y[r] = activate(hidden[r]) w_out[e] + b_out[e]
//
// for each row r of expert e. A task takes a block of an expert's rows through both products; rows are found
// while they are packed, so no gathered copy of x is made, and a block's hidden values stay in the caches.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/activation.h"
#include "core/gemm.h"
#include "core/level.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "moe/moe.h"

namespace tenfold::moe {
namespace TENFOLD_LEVEL {
namespace {

constexpr int64_t kPieceRows = gemm::kBlockDepth;  // rows whose share of a gradient is added up at once

// ---- activations ----

// activated = activate(hidden), times the factors behind the values where gated. They may be the same memory.
void activate_row(float* activated, const float* hidden, int64_t width, Activation activation, bool gated) {
  with_activation(activation, [&](auto kind) {
    for (int64_t h = 0; h < width; h += kFloatLanes) {
      const int64_t count = width - h;
      Floats value = apply_activation<kind()>(load_some(hidden + h, count));
      if (gated) value *= load_some(hidden + width + h, count);
      store_some(activated + h, value, count);
    }
  });
}

// The first `width` values of `grad` are the gradient of the activated values; all of them become that of
// `hidden`. `activated` receives the activated values.
void activate_row_backward(float* grad, float* activated, const float* hidden, int64_t width,
                           Activation activation, bool gated) {
  with_activation(activation, [&](auto kind) {
    for (int64_t h = 0; h < width; h += kFloatLanes) {
      const int64_t count = width - h;
      const Floats x = load_some(hidden + h, count), from = load_some(grad + h, count);
      if (gated) {
        const Floats factor = load_some(hidden + width + h, count);
        const ActivatedFloats done = apply_activation<kind()>(x, from * factor);
        store_some(grad + h, done.grad, count);
        store_some(grad + width + h, from * done.value, count);
        store_some(activated + h, done.value * factor, count);
      } else {
        const ActivatedFloats done = apply_activation<kind()>(x, from);
        store_some(grad + h, done.grad, count);
        store_some(activated + h, done.value, count);
      }
    }
  });
}

// ---- blocks of rows ----

using gemm::Source;

// Rows of one expert that share a place in a sum: each expert's rows are cut every kPieceRows, whatever the
// threads. An expert without rows is one empty piece, so that its gradients are written.
struct Piece {
  int64_t expert, begin, count;
  bool first;
};

// A task: rows of a piece.
struct Block {
  int64_t piece, begin, count;
};

int64_t first_row(const Experts& experts, int64_t e) { return e == 0 ? 0 : experts.offsets[e - 1]; }

int64_t pieces_of(const Experts& f, int64_t e) {
  const int64_t count = f.offsets[e] - first_row(f, e);
  return count <= kPieceRows ? 1 : (count + kPieceRows - 1) / kPieceRows;
}

int64_t count_pieces(const Experts& f) {
  int64_t count = 0;
  for (int64_t e = 0; e < f.experts; ++e) count += pieces_of(f, e);
  return count;
}

void cut_pieces(const Experts& f, Piece* pieces) {
  for (int64_t e = 0; e < f.experts; ++e) {
    const int64_t begin = first_row(f, e), end = f.offsets[e];
    for (int64_t p = 0; p < pieces_of(f, e); ++p) {
      const int64_t from = begin + p * kPieceRows;
      *pieces++ = {e, from, gemm::lesser(end - from, kPieceRows), p == 0};
    }
  }
}

// Rows of a block: as many as a product takes, but few enough to give every thread a block.
int64_t rows_of_block(int64_t rows) {
  constexpr int64_t kStep = gemm::kTileColumns;
  const int64_t even = (rows / available_threads() + kStep) / kStep * kStep;
  return gemm::lesser(even, gemm::kBlockRows);
}

int64_t blocks_of(const Piece& piece, int64_t rows) { return (piece.count + rows - 1) / rows; }

int64_t count_blocks(const Piece* pieces, int64_t count, int64_t rows) {
  int64_t blocks = 0;
  for (int64_t p = 0; p < count; ++p) blocks += blocks_of(pieces[p], rows);
  return blocks;
}

void cut_blocks(const Piece* pieces, int64_t count, int64_t rows, Block* blocks) {
  for (int64_t p = 0; p < count; ++p) {
    for (int64_t at = 0; at < pieces[p].count; at += rows) {
      *blocks++ = {p, pieces[p].begin + at, gemm::lesser(pieces[p].count - at, rows)};
    }
  }
}

// ---- the experts ----

Source source_of(const Weights& weights, int64_t expert, bool transposed) {
  const float* const data = weights.data + expert * weights.expert_stride;
  // Element (k, j) of the matrix, j across; of its transpose with the roles exchanged.
  return transposed ? Source{data, weights.row_stride, weights.column_stride}
                    : Source{data, weights.column_stride, weights.row_stride};
}

// Contiguous rows of `width` values as the left operand of a product, and as that of a product with the rows
// turned.
Source rows_of(const float* data, int64_t width) { return {data, width, 1}; }
Source turned_rows_of(const float* data, int64_t width) { return {data, 1, width}; }

Source tokens_of(const Experts& f, int64_t first) {
  return {reinterpret_cast<const float*>(f.x.data), f.x.stride / 4, 1, f.token_ids + first};
}
Source turned_tokens_of(const Experts& f, int64_t first) {
  return {reinterpret_cast<const float*>(f.x.data), 1, f.x.stride / 4, nullptr, f.token_ids + first};
}

int64_t bad_token(const Experts& experts) {
  for (int64_t r = 0; r < experts.rows; ++r) {
    if (static_cast<uint64_t>(int64_t{experts.token_ids[r]}) >= static_cast<uint64_t>(experts.tokens))
      return r;
  }
  return kFine;
}

int64_t experts_forward(const Experts& f, float* y, float* hidden) {
  const int64_t bad = bad_token(f);
  if (bad != kFine) return bad;
  const int64_t inner = f.gated ? 2 * f.hidden : f.hidden;
  const int64_t count = count_pieces(f), rows = rows_of_block(f.rows);
  Scratch<Piece> pieces(count);
  cut_pieces(f, pieces.data());
  const int64_t many = count_blocks(pieces.data(), count, rows);
  Scratch<Block> blocks(many);
  cut_blocks(pieces.data(), count, rows, blocks.data());
  parallel_tasks(many, [&](auto&& next) {
    FloatScratch scratch(gemm::kScratch);
    FloatScratch own(rows * (hidden != nullptr ? f.hidden : inner));  // activated in place where not kept
    for (int64_t i = next(); i < many; i = next()) {
      const Block block = blocks[i];
      const int64_t e = pieces[block.piece].expert;
      const float* const b_in = f.b_in != nullptr ? f.b_in + e * inner : nullptr;
      const float* const b_out = f.b_out != nullptr ? f.b_out + e * f.width : nullptr;
      float* const before = hidden != nullptr ? hidden + block.begin * inner : own.data();
      gemm::product({before, inner, b_in}, tokens_of(f, block.begin), block.count,
                    source_of(f.w_in, e, false), inner, f.width, scratch.data());
      for (int64_t r = 0; r < block.count; ++r) {
        activate_row(own.data() + r * f.hidden, before + r * inner, f.hidden, f.activation, f.gated);
      }
      gemm::product({y + block.begin * f.width, f.width, b_out}, rows_of(own.data(), f.hidden), block.count,
                    source_of(f.w_out, e, false), f.width, f.hidden, scratch.data());
    }
  });
  return kFine;
}

// The gradient of an expert's weights (m x n), to (+)= left^T right: its `part`-th block, in the layout of
// `to`, one of whose strides is 1. Blocks are cut so that all of a layer's cost about as much.
struct WeightGradient {
  const WeightGrads& to;
  int64_t m, n;

  static constexpr int64_t kRows = gemm::kBlockRows, kColumns = 2 * gemm::kBlockRows;

  bool by_row() const { return to.column_stride == 1; }
  int64_t down() const { return by_row() ? m : n; }
  int64_t across() const { return by_row() ? n : m; }
  int64_t parts_across() const { return (across() + kColumns - 1) / kColumns; }
  int64_t parts() const { return (down() + kRows - 1) / kRows * parts_across(); }

  void operator()(int64_t part, const Piece& piece, const Source& left, const Source& right,
                  float* scratch) const {
    const int64_t stride = by_row() ? to.row_stride : to.column_stride;
    const int64_t row = part / parts_across() * kRows, column = part % parts_across() * kColumns;
    float* const at = to.data + piece.expert * to.expert_stride + row * stride + column;
    gemm::product({at, stride, nullptr, !piece.first}, (by_row() ? left : right).past_across(row),
                  gemm::lesser(down() - row, kRows), (by_row() ? right : left).past_across(column),
                  gemm::lesser(across() - column, kColumns), piece.count, scratch);
  }
};

// The sums of columns [begin, end) of a piece's rows, which lie `width` apart.
void sum_columns(float* to, bool add, const float* from, int64_t width, int64_t rows, int64_t begin,
                 int64_t end) {
  if (!add) std::memset(to + begin, 0, static_cast<size_t>(end - begin) * sizeof(float));
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t c = begin; c < end; ++c) to[c] += from[r * width + c];
  }
}

int64_t experts_backward(const Experts& f, const float* hidden, const float* y_grad, float* x_grad,
                         const WeightGrads& w_in_grad, const WeightGrads& w_out_grad, float* b_in_grad,
                         float* b_out_grad) {
  const int64_t bad = bad_token(f);
  if (bad != kFine) return bad;
  const int64_t inner = f.gated ? 2 * f.hidden : f.hidden;
  const int64_t all = count_pieces(f);
  Scratch<Piece> every(all);
  cut_pieces(f, every.data());
  // Pieces are taken in groups, one of an expert in each: enough rows for all threads, few enough for a small
  // scratch.
  const int64_t most = gemm::lesser(f.rows, kPieceRows + available_threads() * gemm::kBlockRows);
  FloatScratch hidden_grad(most * inner), activated(most * f.hidden);
  const WeightGradient in{w_in_grad, f.width, inner}, out{w_out_grad, f.hidden, f.width};
  for (int64_t from = 0, to = 0; from < all; from = to) {
    int64_t total = 0;
    do {
      total += every[to++].count;
    } while (to < all && every[to].first && total + every[to].count <= most);
    const Piece* const pieces = every.data() + from;
    const int64_t count = to - from, begin = pieces[0].begin, rows = rows_of_block(total);
    const int64_t many = count_blocks(pieces, count, rows);
    Scratch<Block> blocks(many);
    cut_blocks(pieces, count, rows, blocks.data());
    parallel_tasks(many, [&](auto&& next) {
      FloatScratch scratch(gemm::kScratch);
      for (int64_t i = next(); i < many; i = next()) {
        const Block block = blocks[i];
        const int64_t e = pieces[block.piece].expert;
        float* const grad = hidden_grad.data() + (block.begin - begin) * inner;
        float* const after = activated.data() + (block.begin - begin) * f.hidden;
        gemm::product({grad, inner}, rows_of(y_grad + block.begin * f.width, f.width), block.count,
                      source_of(f.w_out, e, true), f.hidden, f.width, scratch.data());
        for (int64_t r = 0; r < block.count; ++r) {
          activate_row_backward(grad + r * inner, after + r * f.hidden, hidden + (block.begin + r) * inner,
                                f.hidden, f.activation, f.gated);
        }
        if (x_grad == nullptr) continue;
        gemm::product({x_grad + block.begin * f.width, f.width}, rows_of(grad, inner), block.count,
                      source_of(f.w_in, e, true), f.width, inner, scratch.data());
      }
    });
    const int64_t parts = in.parts() + out.parts();
    parallel_tasks(count * parts, [&](auto&& next) {
      FloatScratch scratch(gemm::kScratch);
      for (int64_t i = next(); i < count * parts; i = next()) {
        const Piece& piece = pieces[i / parts];
        const int64_t part = i % parts, row = piece.begin - begin;
        if (part < in.parts()) {
          in(part, piece, turned_tokens_of(f, piece.begin),
             turned_rows_of(hidden_grad.data() + row * inner, inner), scratch.data());
        } else {
          out(part - in.parts(), piece, turned_rows_of(activated.data() + row * f.hidden, f.hidden),
              turned_rows_of(y_grad + piece.begin * f.width, f.width), scratch.data());
        }
      }
    });
    for (int64_t p = 0; p < count; ++p) {
      const Piece& piece = pieces[p];
      const auto sum = [&](float* grad, const float* values, int64_t width) {
        if (grad == nullptr) return;
        parallel_for(width, 1 + (1 << 16) / (piece.count + 1), [&](int64_t first, int64_t last) {
          sum_columns(grad + piece.expert * width, !piece.first, values, width, piece.count, first, last);
        });
      };
      sum(b_in_grad, hidden_grad.data() + (piece.begin - begin) * inner, inner);
      sum(b_out_grad, y_grad + piece.begin * f.width, f.width);
    }
  }
  return kFine;
}

}  // namespace
}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::moe
