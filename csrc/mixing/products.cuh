// Products of matrices for mixing on a GPU, in float32 from shared memory.
#pragma once

#include <cstdint>

#include "core/cuda.cuh"
#include "mixing/block.cuh"

namespace tenfold::mixing::cuda {
namespace {

constexpr int kTile = 64, kTileDepth = 16;  // of the result and of what is added up at once
constexpr int kEach = 4;                    // rows, and columns, of one thread

// What is multiplied: C = S S^T, its rows and columns in the order of the visits; M, the sum over samples of
// U V^T; (M + M^T) S.
enum Product : int { kGram = 0, kOuter = 1, kGradient = 2 };

struct Operands {
  const float* left;
  const float* right;
  const int32_t* order;               // of the rows of C, see variable_at
  float* diagonal;                    // of C; C itself has 0 there
  int64_t variables, clauses, width;  // N, m, k
  int64_t left_width;                 // of a row of U
};

// The variable at a place: all in the order of the visits, then 0. What is no variable counts as 0.
__device__ __forceinline__ int64_t variable_at(const int32_t* order, int64_t variables, int64_t place) {
  const int64_t variable = place + 1 < variables ? order[place] : 0;
  return variable > 0 && variable < variables ? variable : 0;
}

// (B, N, k) seen as (N, B k); rows are `stride` apart.
__device__ __forceinline__ float of_sample(const float* vectors, int64_t stride, const Operands& p, int64_t i,
                                           int64_t d) {
  const int64_t sample = d / p.width;
  return vectors[(sample * p.variables + i) * stride + d - sample * p.width];
}

template <int product>
__device__ __forceinline__ float left(const Operands& p, int64_t i, int64_t d) {
  if constexpr (product == kGram) return p.left[variable_at(p.order, p.variables, i) * p.clauses + d];
  if constexpr (product == kOuter) return of_sample(p.left, p.left_width, p, i, d);
  return p.left[i * p.variables + d] + p.left[d * p.variables + i];
}

template <int product>
__device__ __forceinline__ float right(const Operands& p, int64_t j, int64_t d) {
  if constexpr (product == kGram) return p.right[variable_at(p.order, p.variables, j) * p.clauses + d];
  if constexpr (product == kOuter) return of_sample(p.right, p.width, p, j, d);
  return p.right[d * p.clauses + j];
}

// out (rows, columns) = the sum over d of left(i, d) right(j, d), in the order of d.
template <int product>
__global__ void __launch_bounds__(kThreads, 2)
    multiply(float* out, int64_t rows, int64_t columns, int64_t depth, const __grid_constant__ Operands p) {
  TENFOLD_SHARED(float, a, kTileDepth*(kTile + 1));
  TENFOLD_SHARED(float, b, kTileDepth*(kTile + 1));
  const int thread = static_cast<int>(threadIdx.x);
  const int row = thread / (kTile / kEach) * kEach, column = thread % (kTile / kEach) * kEach;
  const int64_t across = (columns + kTile - 1) / kTile, tiles = (rows + kTile - 1) / kTile * across;
  for (int64_t tile = blockIdx.x; tile < tiles; tile += gridDim.x) {
    const int64_t first_row = tile / across * kTile, first_column = tile % across * kTile;
    float sum[kEach][kEach] = {};
    for (int64_t d = 0; d < depth; d += kTileDepth) {
      __syncthreads();
      for (int at = thread; at < kTileDepth * kTile; at += kThreads) {
        const int i = at / kTileDepth, k = at % kTileDepth;
        const bool inside = d + k < depth;
        a[k * (kTile + 1) + i] =
            inside && first_row + i < rows ? left<product>(p, first_row + i, d + k) : 0.0f;
        b[k * (kTile + 1) + i] =
            inside && first_column + i < columns ? right<product>(p, first_column + i, d + k) : 0.0f;
      }
      __syncthreads();
      for (int k = 0; k < kTileDepth; ++k) {
        float mine[kEach];
#pragma unroll
        for (int j = 0; j < kEach; ++j) mine[j] = b[k * (kTile + 1) + column + j];
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          const float value = a[k * (kTile + 1) + row + i];
#pragma unroll
          for (int j = 0; j < kEach; ++j) sum[i][j] += value * mine[j];
        }
      }
    }
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
#pragma unroll
      for (int j = 0; j < kEach; ++j) {
        const int64_t r = first_row + row + i, c = first_column + column + j;
        if (r >= rows || c >= columns) continue;
        const bool apart = product == kGram && r == c;
        if (apart) p.diagonal[r] = sum[i][j];
        out[r * columns + c] = apart ? 0.0f : sum[i][j];
      }
    }
  }
}

template <int product>
void start_product(float* out, int64_t rows, int64_t columns, int64_t depth, const Operands& operands,
                   void* stream) {
  const int64_t tiles = ((rows + kTile - 1) / kTile) * ((columns + kTile - 1) / kTile);
  launch(stream, grid_for(tiles, 2), kThreads, multiply<product>, out, rows, columns, depth, operands);
}

}  // namespace
}  // namespace tenfold::mixing::cuda
