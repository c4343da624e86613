// The pair perceptron on a GPU. First all inputs are copied to the type that is computed in, the rows of u
// and of v side by side for each unit. Then a thread takes a pair, with the units of a layer in shared
// memory.
//
// Backward, a block takes a row of one side and walks along the other: its gradient is summed up over a
// block's threads. The gradients of u and of v are two such passes. The gradients of the weights are sums of
// products of the two layers' units, which the threads of the first pass take turns to add up for the block,
// in double; one thread per weight then adds up the blocks. Nothing is atomic, and all additions are in an
// order that the shape determines.
//
// What is computed agrees with the CPU's to rounding.
#include <cstdint>
#include <type_traits>

#include "core/bfloat16.h"
#include "core/cuda.cuh"
#include "pairwise/pairwise.h"
#include "pairwise/pointwise.h"

namespace tenfold::pairwise::cuda {
namespace {

using namespace TENFOLD_LEVEL;  // NOLINT: the level of files that are compiled once

// Threads of a block: with three arrays of kMostWidth numbers for each, 48 KiB of shared memory. Layers of up
// to kNarrow units have kernels of their own, which leave room for more blocks.
template <class N>
constexpr int kThreads = std::is_same_v<N, double> ? 32 : 64;
constexpr int kPackThreads = 256;
constexpr int kNarrow = 16;
constexpr int kLeastBlocks = 8;
constexpr int kBlocksPerMultiprocessor = 16;
constexpr int64_t kMostBlocks = 512;  // that have a copy of the gradients of the weights
constexpr int kQuad = 4;              // outputs of a layer that a thread computes at a time

__host__ __device__ constexpr int whole_quads(int count) { return (count + kQuad - 1) / kQuad * kQuad; }

template <class N>
struct alignas(16) Quad {
  N of[kQuad];
};

// The inputs in the type that is computed in.
template <class N>
struct Packed {
  const N *u, *v;     // (H, n), (H, m)
  const N* hidden;    // (H, K): for each unit of the first layer its weights, in whole quads
  const N* hidden_t;  // (K, H), as well
  const N *w, *hidden_bias, *b;
};

template <class N>
__device__ __forceinline__ N number_at(Element element, const char* from) {
  if constexpr (std::is_same_v<N, double>) {
    return *reinterpret_cast<const double*>(from);
  } else {
    if (element == Element::bf16) return to_float(*reinterpret_cast<const uint16_t*>(from));
    return *reinterpret_cast<const float*>(from);
  }
}

template <class N>
__device__ __forceinline__ void put_number(Element element, char* to, N value) {
  if constexpr (std::is_same_v<N, double>) {
    *reinterpret_cast<double*>(to) = value;
  } else {
    if (element == Element::bf16) {
      round_to(*reinterpret_cast<uint16_t*>(to), value);
    } else {
      *reinterpret_cast<float*>(to) = value;
    }
  }
}

// ---- packing ----

// to[row * to_row + column], 0 where the array has no such element.
struct Piece {
  Matrix from;
  int64_t rows, columns, to_rows, to_columns;
  int64_t offset;
};
constexpr int kPieces = 7;
struct Pieces {
  Piece of[kPieces];
};

template <class N>
__global__ void __launch_bounds__(kPackThreads)
    pack_inputs(const __grid_constant__ Pieces pieces, Element element, N* to) {
  const int64_t step = int64_t{gridDim.x} * kPackThreads;
  for (int p = 0; p < kPieces; ++p) {
    const Piece& piece = pieces.of[p];
    const int64_t all = piece.to_rows * piece.to_columns;
    for (int64_t i = int64_t{blockIdx.x} * kPackThreads + threadIdx.x; i < all; i += step) {
      const int64_t row = i / piece.to_columns, column = i - row * piece.to_columns;
      const bool there = piece.from.data != nullptr && row < piece.rows && column < piece.columns;
      to[piece.offset + i] =
          there ? number_at<N>(element, piece.from.data + row * piece.from.row + column * piece.from.column)
                : N(0);
    }
  }
}

// ---- layers ----

template <class N, int kind>
__device__ __forceinline__ Valued<N> unit_of(N x) {
  return value_and_slope<static_cast<Pointwise>(kind)>(x);
}

// Outputs k to k + 3 of a thread's column of `from`, (depth, threads) in shared memory.
template <class N, class Shared>
__device__ __forceinline__ Quad<N> multiply_quad(const N* weights, int stride, int depth, const Shared& from,
                                                 int first, int thread) {
  Quad<N> sums{};
#pragma unroll 4
  for (int d = 0; d < depth; ++d) {
    const N x = from[first + d * kThreads<N> + thread];
    const Quad<N> own = *reinterpret_cast<const Quad<N>*>(weights + d * stride);
#pragma unroll
    for (int c = 0; c < kQuad; ++c) sums.of[c] += own.of[c] * x;
  }
  return sums;
}

// ---- forward: a thread per pair ----

template <class N, int kind, int most>
__global__ void __launch_bounds__(kThreads<N>, kLeastBlocks)
    score_pairs(const __grid_constant__ Task task, const __grid_constant__ Packed<N> in) {
  constexpr int T = kThreads<N>;
  TENFOLD_SHARED(N, units, most * T);  // (H, threads); a thread sees its own column alone
  const int thread = static_cast<int>(threadIdx.x), H = task.width, K = task.hidden_width;
  const int64_t all = task.n * task.m, step = int64_t{gridDim.x} * T;
  for (int64_t pair = int64_t{blockIdx.x} * T + thread; pair < all; pair += step) {
    const int64_t i = pair / task.m, j = pair - i * task.m;
    N score = 0;
#pragma unroll 1
    for (int h = 0; h < H; ++h) {
      const N value = unit_of<N, kind>(in.u[h * task.n + i] + in.v[h * task.m + j]).value;
      if (K == 0) {
        score += in.w[h] * value;
      } else {
        units[h * T + thread] = value;
      }
    }
#pragma unroll 1
    for (int k = 0; k < K; k += kQuad) {
      const Quad<N> given = multiply_quad<N>(in.hidden + k, whole_quads(K), H, units, 0, thread);
#pragma unroll
      for (int c = 0; c < kQuad; ++c) {
        if (k + c < K) score += in.w[k + c] * unit_of<N, kind>(given.of[c] + in.hidden_bias[k + c]).value;
      }
    }
    put_number<N>(task.element, task.out.data + i * task.out.row + j * task.out.column, score + *in.b);
  }
}

// ---- backward: a block per row of one side ----

template <class N>
struct Side {
  const N *own, *other;  // (H, own count), (H, other count)
  int64_t own_count, other_count;
  const char* grad;
  int64_t grad_own, grad_other;  // strides in bytes
  Matrix to;                     // the gradient of `own`; data null: not wanted
  double* partial;               // of each block: as Places
};

// Where the gradients of the weights are in a block's copy: (K, H + 1), the last column for hidden_bias, then
// w, then b.
struct Places {
  int w, b, count;
  __host__ __device__ explicit Places(const Task& task)
      : w(task.hidden_width * (task.width + 1)), b(w + task.weights()), count(b + 1) {}
};

template <class N, int kind, int most, bool weights>
__global__ void __launch_bounds__(kThreads<N>, kLeastBlocks)
    sum_rows(const __grid_constant__ Task task, const __grid_constant__ Packed<N> in,
             const __grid_constant__ Side<N> side) {
  constexpr int T = kThreads<N>, kOwn = (most + T - 1) / T;
  constexpr int second = most * T, seen = 2 * most * T;  // after the first layer: the second, w's gradient
  TENFOLD_SHARED(N, units, (weights ? 3 : 2) * most * T);
  const int thread = static_cast<int>(threadIdx.x), H = task.width, K = task.hidden_width;
  const Places places(task);
  double* const partial = weights ? side.partial + int64_t{blockIdx.x} * places.count : nullptr;
  const bool further = side.to.data != nullptr;
  double grads = 0;
  if constexpr (weights) {
    for (int i = thread; i < places.count; i += T) partial[i] = 0;
  }
  for (int64_t row = blockIdx.x; row < side.own_count; row += gridDim.x) {
    double sums[kOwn] = {};
    if constexpr (weights) {
      for (int r = 0; r < task.weights(); ++r) units[seen + r * T + thread] = 0;
    }
    for (int64_t chunk = 0; chunk < side.other_count; chunk += T) {
      const int64_t at = chunk + thread;
      const bool there = at < side.other_count;
      const N grad =
          there ? number_at<N>(task.element, side.grad + row * side.grad_own + at * side.grad_other) : N(0);
      const auto given_to = [&](int h) {
        return side.own[h * side.own_count + row] + (there ? side.other[h * side.other_count + at] : N(0));
      };
      grads += static_cast<double>(grad);
#pragma unroll 1
      for (int h = 0; h < H; ++h) {
        const Valued<N> unit = unit_of<N, kind>(given_to(h));
        if (K > 0) {
          units[h * T + thread] = there ? unit.value : N(0);
          continue;
        }
        if constexpr (weights) {
          if (there) units[seen + h * T + thread] += grad * unit.value;
        }
        units[h * T + thread] = there ? grad * in.w[h] * unit.slope : N(0);
      }
#pragma unroll 1
      for (int k = 0; k < K; k += kQuad) {
        const Quad<N> given = multiply_quad<N>(in.hidden + k, whole_quads(K), H, units, 0, thread);
#pragma unroll
        for (int c = 0; c < kQuad; ++c) {
          if (k + c >= K) continue;
          const Valued<N> unit = unit_of<N, kind>(given.of[c] + in.hidden_bias[k + c]);
          if constexpr (weights) {
            if (there) units[seen + (k + c) * T + thread] += grad * unit.value;
          }
          units[second + (k + c) * T + thread] = there ? grad * in.w[k + c] * unit.slope : N(0);
        }
      }
      if constexpr (weights) {
        __syncthreads();
#pragma unroll 1
        for (int i = thread; i < places.w; i += T) {
          const int k = i / (H + 1), h = i - k * (H + 1);
          N dot = 0;
#pragma unroll 4
          for (int s = 0; s < T; ++s) {  // from another thread's column on: other banks
            const int column = (s + thread) % T;
            const N given = units[second + k * T + column];
            dot += h < H ? given * units[h * T + column] : given;
          }
          partial[i] += static_cast<double>(dot);
        }
        __syncthreads();
      }
      if (!further) continue;
#pragma unroll 1
      for (int h = 0; h < H && K > 0; h += kQuad) {
        const Quad<N> given = multiply_quad<N>(in.hidden_t + h, whole_quads(H), K, units, second, thread);
#pragma unroll
        for (int c = 0; c < kQuad; ++c) {
          if (h + c >= H) continue;
          const N slope = unit_of<N, kind>(given_to(h + c)).slope;
          units[(h + c) * T + thread] = there ? given.of[c] * slope : N(0);
        }
      }
      __syncthreads();
#pragma unroll
      for (int own = 0; own < kOwn; ++own) {
        const int h = thread + own * T;
        N sum = 0;
#pragma unroll 4
        for (int s = 0; s < T && h < H; ++s) sum += units[h * T + (s + thread) % T];
        sums[own] += static_cast<double>(sum);
      }
      __syncthreads();
    }
#pragma unroll
    for (int own = 0; own < kOwn; ++own) {
      const int h = thread + own * T;
      if (further && h < H) {
        put_number<N>(task.element, side.to.data + row * side.to.row + h * side.to.column,
                      static_cast<N>(sums[own]));
      }
    }
    if constexpr (weights) {
      __syncthreads();
      for (int r = thread; r < task.weights(); r += T) {
        N sum = 0;
#pragma unroll 4
        for (int s = 0; s < T; ++s) sum += units[seen + r * T + (s + thread) % T];
        partial[places.w + r] += static_cast<double>(sum);
      }
      __syncthreads();
    }
  }
  if constexpr (weights) {
    units[thread] = static_cast<N>(grads);
    __syncthreads();
    if (thread == 0) {
      double sum = 0;
      for (int s = 0; s < T; ++s) sum += static_cast<double>(units[s]);
      partial[places.b] = sum;
    }
  }
}

// A thread per weight.
template <class N>
__global__ void __launch_bounds__(kPackThreads)
    finish_weights(const __grid_constant__ Task task, const double* partial, int blocks) {
  const Places places(task);
  const int step = static_cast<int>(gridDim.x) * kPackThreads, H = task.width;
  for (int i = static_cast<int>(blockIdx.x * kPackThreads + threadIdx.x); i < places.count; i += step) {
    double sum = 0;
    for (int block = 0; block < blocks; ++block) sum += partial[int64_t{block} * places.count + i];
    const int k = i / (H + 1), h = i - k * (H + 1);
    const Matrix& to = i == places.b   ? task.b_grad
                       : i >= places.w ? task.w_grad
                       : h == H        ? task.hidden_bias_grad
                                       : task.hidden_grad;
    if (to.data == nullptr) continue;
    const int64_t offset = i == places.b   ? 0
                           : i >= places.w ? (i - places.w) * to.column
                           : h == H        ? k * to.column
                                           : k * to.row + h * to.column;
    put_number<N>(task.element, to.data + offset, static_cast<N>(sum));
  }
}

// ---- launches ----

template <class F>
void with_number(Element element, F&& f) {
  element == Element::f64 ? f(double{}) : f(float{});
}

// Calls f(N{}, the function's number, units of a layer at most).
template <class F>
void with_choices(const Task& task, F&& f) {
  const bool narrow = task.width <= kNarrow && task.hidden_width <= kNarrow;
  with_number(task.element, [&](auto zero) {
    with_pointwise(task.activation, [&](auto function) {
      constexpr std::integral_constant<int, static_cast<int>(function())> kind;
      if (narrow) return f(zero, kind, std::integral_constant<int, kNarrow>{});
      f(zero, kind, std::integral_constant<int, kMostWidth>{});
    });
  });
}

Matrix turned(const Matrix& matrix) { return {matrix.data, matrix.column, matrix.row}; }

// What is packed, one after the other, each from a multiple of 16 bytes on.
Pieces pieces_of(const Task& task, int64_t* numbers) {
  const int64_t H = task.width, K = task.hidden_width, all = task.weights();
  const int64_t H4 = whole_quads(task.width), K4 = whole_quads(task.hidden_width);
  Pieces pieces{{{turned(task.u), H, task.n, H, task.n, 0},
                 {turned(task.v), H, task.m, H, task.m, 0},
                 {turned(task.hidden), H, K, H, K4, 0},
                 {task.hidden, K, H, K, H4, 0},
                 {task.w, 1, all, 1, all, 0},
                 {task.hidden_bias, 1, K, 1, K, 0},
                 {task.b, 1, 1, 1, 1, 0}}};
  *numbers = 0;
  for (Piece& piece : pieces.of) {
    piece.offset = *numbers;
    *numbers += (piece.to_rows * piece.to_columns + kQuad - 1) / kQuad * kQuad;
  }
  return pieces;
}

template <class N>
Packed<N> pack(const Task& task, char* scratch, Queue queue) {
  int64_t numbers = 0;
  const Pieces pieces = pieces_of(task, &numbers);
  N* const to = reinterpret_cast<N*>(scratch);
  const unsigned blocks = grid_for((numbers + kPackThreads - 1) / kPackThreads, kBlocksPerMultiprocessor);
  launch(queue.stream, blocks, kPackThreads, pack_inputs<N>, pieces, task.element, to);
  const auto at = [&](int piece) { return to + pieces.of[piece].offset; };
  return {at(0), at(1), at(2), at(3), at(4), at(5), at(6)};
}

int64_t packed_bytes(const Task& task) {
  int64_t numbers = 0;
  pieces_of(task, &numbers);
  return (numbers * (task.element == Element::f64 ? 8 : 4) + 15) / 16 * 16;
}

int64_t weight_blocks(const Task& task) { return task.n < kMostBlocks ? task.n : kMostBlocks; }

}  // namespace

int64_t scratch_bytes(const Task& task, bool backward) {
  const int64_t partial = weight_blocks(task) * Places(task).count * static_cast<int64_t>(sizeof(double));
  return packed_bytes(task) + (backward ? partial : 0);
}

void pair_mlp(const Task& task, char* scratch, Queue queue) {
  const DeviceGuard guard(queue.device);
  with_choices(task, [&](auto zero, auto kind, auto most) {
    using N = decltype(zero);
    const Packed<N> in = pack<N>(task, scratch, queue);
    const int64_t blocks = (task.n * task.m + kThreads<N> - 1) / kThreads<N>;
    launch(queue.stream, grid_for(blocks, kBlocksPerMultiprocessor), kThreads<N>,
           score_pairs<N, kind(), most()>, task, in);
  });
}

void pair_mlp_backward(const Task& task, char* scratch, Queue queue) {
  const DeviceGuard guard(queue.device);
  double* const partial = reinterpret_cast<double*>(scratch + packed_bytes(task));
  const int64_t blocks = weight_blocks(task);
  with_choices(task, [&](auto zero, auto kind, auto most) {
    using N = decltype(zero);
    const Packed<N> in = pack<N>(task, scratch, queue);
    const Matrix& grad = task.out;
    const Side<N> of_u{in.u, in.v, task.n, task.m, grad.data, grad.row, grad.column, task.u_grad, partial};
    const Side<N> of_v{in.v, in.u, task.m, task.n, grad.data, grad.column, grad.row, task.v_grad, nullptr};
    if (task.n > 0 && task.weights_wanted()) {
      launch(queue.stream, static_cast<unsigned>(blocks), kThreads<N>, sum_rows<N, kind(), most(), true>,
             task, in, of_u);
    } else if (task.n > 0 && task.u_grad.data != nullptr) {
      launch(queue.stream, grid_for(task.n, kBlocksPerMultiprocessor), kThreads<N>,
             sum_rows<N, kind(), most(), false>, task, in, of_u);
    }
    if (task.m > 0 && task.v_grad.data != nullptr) {
      launch(queue.stream, grid_for(task.m, kBlocksPerMultiprocessor), kThreads<N>,
             sum_rows<N, kind(), most(), false>, task, in, of_v);
    }
    if (!task.weights_wanted()) return;
    const unsigned grid = grid_for((Places(task).count + kPackThreads - 1) / kPackThreads, 1);
    launch(queue.stream, grid, kPackThreads, finish_weights<N>, task, partial, static_cast<int>(blocks));
  });
}

}  // namespace tenfold::pairwise::cuda
