// Adaptive layer normalisation on a GPU: a warp per row. Sums are added up in another order than on the CPU,
// so results agree to rounding, and are the same for every run. Where x is bfloat16, the gate's gradient is
// made from the residual's as it was rounded.
//
// Types of rows are looked at when a kernel runs, the same way by all threads: one kernel for every mix.
#include <math.h>

#include <cstdint>
#include <type_traits>

#include "adaln/adaln.h"
#include "core/bfloat16.h"
#include "core/cuda.cuh"

namespace tenfold::adaln::cuda {
namespace {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;
constexpr int kLeastBlocks = 3;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr unsigned kAll = 0xffffffffu;

// Elements that a thread moves at once where addresses allow it: 16 bytes of bfloat16 or of float64, and
// twice 16 bytes of float32.
template <class Number>
constexpr int kUnit = sizeof(Number) == sizeof(double) ? 2 : 8;

// Units of a row that a thread holds in registers in the forward pass; longer rows are read again.
constexpr int kHeld = 4;

// ---- elements ----

template <class T, int count>
struct alignas(sizeof(T) * count) Vector {
  T values[count];
};

template <class T, class Number, int count>
__device__ __forceinline__ void load_as(Number (&to)[count], const char* row, int64_t d) {
  constexpr int kMost = 16 / static_cast<int>(sizeof(T)), kPart = kMost < count ? kMost : count;
#pragma unroll
  for (int begin = 0; begin < count; begin += kPart) {
    const auto part = reinterpret_cast<const Vector<T, kPart>*>(reinterpret_cast<const T*>(row) + d + begin);
    const Vector<T, kPart> values = *part;
#pragma unroll
    for (int i = 0; i < kPart; ++i) to[begin + i] = to_float(values.values[i]);
  }
}

template <class T, class Number, int count>
__device__ __forceinline__ void store_as(char* row, int64_t d, const Number (&from)[count]) {
  constexpr int kMost = 16 / static_cast<int>(sizeof(T)), kPart = kMost < count ? kMost : count;
#pragma unroll
  for (int begin = 0; begin < count; begin += kPart) {
    Vector<T, kPart> values;
#pragma unroll
    for (int i = 0; i < kPart; ++i) round_to(values.values[i], from[begin + i]);
    *reinterpret_cast<Vector<T, kPart>*>(reinterpret_cast<T*>(row) + d + begin) = values;
  }
}

template <int count>
__device__ __forceinline__ void load(float (&to)[count], Element element, const char* row, int64_t d) {
  if (element == Element::bf16) return load_as<uint16_t>(to, row, d);
  load_as<float>(to, row, d);
}
template <int count>
__device__ __forceinline__ void load(double (&to)[count], Element, const char* row, int64_t d) {
  load_as<double>(to, row, d);
}

template <int count>
__device__ __forceinline__ void store(Element element, char* row, int64_t d, const float (&from)[count]) {
  if (element == Element::bf16) return store_as<uint16_t>(row, d, from);
  store_as<float>(row, d, from);
}
template <int count>
__device__ __forceinline__ void store(Element, char* row, int64_t d, const double (&from)[count]) {
  store_as<double>(row, d, from);
}

__device__ __forceinline__ char* row_of(const Rows& rows, int64_t sample, int64_t row) {
  return rows.data + sample * rows.sample_stride + row * rows.row_stride;
}

template <class Number>
__device__ __forceinline__ Number element_of(const Vectors& vectors, int64_t sample, int64_t d,
                                             Number otherwise) {
  if (vectors.data == nullptr) return otherwise;
  Number value[1];
  load(value, vectors.element, vectors.data + sample * vectors.sample_stride, d);
  return value[0];
}

template <class Number>
__device__ __forceinline__ void set_element(const Vectors& vectors, int64_t sample, int64_t d, Number value) {
  if (vectors.data == nullptr) return;
  const Number values[1] = {value};
  store(vectors.element, vectors.data + sample * vectors.sample_stride, d, values);
}

// Over `lanes` neighbours, a power of two.
template <class Number>
__device__ __forceinline__ Number sum_over(Number x, int lanes) {
  for (lanes /= 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAll, x, lanes);
  return x;
}

__device__ __forceinline__ float rstd_of(float variance, double eps) {
  return 1.0f / sqrtf(variance + static_cast<float>(eps));
}
__device__ __forceinline__ double rstd_of(double variance, double eps) { return 1.0 / sqrt(variance + eps); }

__device__ __forceinline__ int64_t first_of_warp() {
  return int64_t{blockIdx.x} * kWarps + static_cast<int64_t>(threadIdx.x) / kWarp;
}
__device__ __forceinline__ int64_t warps_of_grid() { return int64_t{gridDim.x} * kWarps; }
__device__ __forceinline__ int64_t first_of_thread() { return int64_t{blockIdx.x} * kThreads + threadIdx.x; }
__device__ __forceinline__ int64_t threads_of_grid() { return int64_t{gridDim.x} * kThreads; }

// ---- the vectors of every sample ----

// h = xhat factor + offset; each (N, D) in scratch memory, null where it is not wanted.
template <class Number>
struct Folded {
  Number *factor, *offset, *gate;
};

template <class Number>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    fold_vectors(const Folded<Number> to, const Vectors gate, const Vectors shift, const Vectors scale,
                 const Vectors weight, const Vectors bias, const Sizes sizes) {
  const int64_t count = sizes.samples * sizes.width;
  for (int64_t i = first_of_thread(); i < count; i += threads_of_grid()) {
    const int64_t n = i / sizes.width, d = i - n * sizes.width;
    const Number scaled = Number{1} + element_of(scale, n, d, Number{0});
    if (to.factor != nullptr) to.factor[i] = element_of(weight, n, d, Number{1}) * scaled;
    if (to.offset != nullptr) {
      to.offset[i] = element_of(bias, n, d, Number{0}) * scaled + element_of(shift, n, d, Number{0});
    }
    if (to.gate != nullptr) to.gate[i] = element_of(gate, n, d, Number{1});
  }
}

// ---- forward ----

// Reads the row's units for the first time: adds the branch, and writes the residual. What is returned is
// the residual as it was rounded.
template <class Number, int count>
__device__ __forceinline__ void read_unit(Number (&x)[count], const Forward& task, const Number* gates,
                                          int64_t n, int64_t t, int64_t d) {
  load(x, task.x.element, row_of(task.x, n, t), d);
  if (task.branch.data == nullptr) return;
  Number branch[count], gate[count];
  load(branch, task.branch.element, row_of(task.branch, n, t), d);
  load(gate, Element::f32, reinterpret_cast<const char*>(gates + n * task.sizes.width), d);
#pragma unroll
  for (int i = 0; i < count; ++i) x[i] += gate[i] * branch[i];
  char* const residual = row_of(task.residual, n, t);
  store(task.residual.element, residual, d, x);
  if (task.residual.element == Element::bf16) {
#pragma unroll
    for (int i = 0; i < count; ++i) {
      uint16_t rounded;
      round_to(rounded, static_cast<float>(x[i]));
      x[i] = to_float(rounded);
    }
  }
}

template <class Number, int count>
__device__ __forceinline__ void write_unit(const Forward& task, const Folded<Number>& folded, int64_t n,
                                           int64_t t, int64_t d, const Number (&x)[count], Number mean,
                                           Number rstd) {
  const int64_t sample = n * task.sizes.width;
  Number factor[count], offset[count];
  load(factor, Element::f32, reinterpret_cast<const char*>(folded.factor + sample), d);
  load(offset, Element::f32, reinterpret_cast<const char*>(folded.offset + sample), d);
#pragma unroll
  for (int i = 0; i < count; ++i) factor[i] = (x[i] - mean) * rstd * factor[i] + offset[i];
  store(task.h.element, row_of(task.h, n, t), d, factor);
}

// What was normalised, read for the second and third time.
template <class Number, int count>
__device__ __forceinline__ void read_again(Number (&x)[count], const Forward& task, int64_t n, int64_t t,
                                           int64_t d) {
  const Rows& rows = task.branch.data != nullptr ? task.residual : task.x;
  load(x, rows.element, row_of(rows, n, t), d);
}

template <class Number>
__device__ __forceinline__ void keep_statistics(const Forward& task, int64_t row, int lane, Number mean,
                                                Number rstd) {
  if (lane != 0 || task.mean == nullptr) return;
  static_cast<Number*>(task.mean)[row] = mean;
  static_cast<Number*>(task.rstd)[row] = rstd;
}

// Rows of at most kHeld units per lane, which stay in registers.
template <class Number, int count>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    short_rows(const __grid_constant__ Forward task, const Folded<Number> folded) {
  const int64_t rows = task.sizes.rows, width = task.sizes.width;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t r = first_of_warp(); r < task.sizes.samples * rows; r += warps_of_grid()) {
    const int64_t n = r / rows, t = r - n * rows;
    Number held[kHeld][count];
    Number sum = 0;
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      const int64_t d = int64_t{u * kWarp + lane} * count;
      if (d >= width) continue;
      read_unit(held[u], task, folded.gate, n, t, d);
#pragma unroll
      for (int i = 0; i < count; ++i) sum += held[u][i];
    }
    if (task.h.data == nullptr) continue;
    const Number mean = sum_over(sum, kWarp) / static_cast<Number>(width);
    Number squares = 0;
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      if (int64_t{u * kWarp + lane} * count >= width) continue;
#pragma unroll
      for (int i = 0; i < count; ++i) squares += (held[u][i] - mean) * (held[u][i] - mean);
    }
    const Number rstd = rstd_of(sum_over(squares, kWarp) / static_cast<Number>(width), task.eps);
    keep_statistics(task, r, lane, mean, rstd);
#pragma unroll
    for (int u = 0; u < kHeld; ++u) {
      const int64_t d = int64_t{u * kWarp + lane} * count;
      if (d < width) write_unit(task, folded, n, t, d, held[u], mean, rstd);
    }
  }
}

// Rows of any length. A thread reads again only what it has written itself.
template <class Number, int count>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    long_rows(const __grid_constant__ Forward task, const Folded<Number> folded) {
  const int64_t rows = task.sizes.rows, width = task.sizes.width;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t r = first_of_warp(); r < task.sizes.samples * rows; r += warps_of_grid()) {
    const int64_t n = r / rows, t = r - n * rows;
    Number x[count];
    Number sum = 0;
    for (int64_t d = int64_t{lane} * count; d < width; d += kWarp * count) {
      read_unit(x, task, folded.gate, n, t, d);
#pragma unroll
      for (int i = 0; i < count; ++i) sum += x[i];
    }
    if (task.h.data == nullptr) continue;
    const Number mean = sum_over(sum, kWarp) / static_cast<Number>(width);
    Number squares = 0;
    for (int64_t d = int64_t{lane} * count; d < width; d += kWarp * count) {
      read_again(x, task, n, t, d);
#pragma unroll
      for (int i = 0; i < count; ++i) squares += (x[i] - mean) * (x[i] - mean);
    }
    const Number rstd = rstd_of(sum_over(squares, kWarp) / static_cast<Number>(width), task.eps);
    keep_statistics(task, r, lane, mean, rstd);
    for (int64_t d = int64_t{lane} * count; d < width; d += kWarp * count) {
      read_again(x, task, n, t, d);
      write_unit(task, folded, n, t, d, x, mean, rstd);
    }
  }
}

// ---- backward ----

// xhat and its gradient, of one unit.
template <class Number, int count>
__device__ __forceinline__ void read_grad(Number (&normalised)[count], Number (&grad)[count],
                                          const Backward& task, const Number* factors, int64_t n, int64_t t,
                                          int64_t d, Number mean, Number rstd) {
  Number factor[count];
  load(normalised, task.x.element, row_of(task.x, n, t), d);
  load(grad, task.h_grad.element, row_of(task.h_grad, n, t), d);
  load(factor, Element::f32, reinterpret_cast<const char*>(factors + n * task.sizes.width), d);
#pragma unroll
  for (int i = 0; i < count; ++i) {
    normalised[i] = (normalised[i] - mean) * rstd;
    grad[i] *= factor[i];
  }
}

// x_grad and branch_grad; each row's second reading comes from the cache.
template <class Number, int count>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    grad_rows(const __grid_constant__ Backward task, const Folded<Number> folded) {
  const int64_t rows = task.sizes.rows, width = task.sizes.width;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const bool normalises = task.h_grad.data != nullptr;
  for (int64_t r = first_of_warp(); r < task.sizes.samples * rows; r += warps_of_grid()) {
    const int64_t n = r / rows, t = r - n * rows;
    Number mean = 0, rstd = 0, grad_mean = 0, product_mean = 0;
    if (normalises) {
      mean = static_cast<const Number*>(task.mean)[r];
      rstd = static_cast<const Number*>(task.rstd)[r];
      for (int64_t d = int64_t{lane} * count; d < width; d += kWarp * count) {
        Number normalised[count], grad[count];
        read_grad(normalised, grad, task, folded.factor, n, t, d, mean, rstd);
#pragma unroll
        for (int i = 0; i < count; ++i) {
          grad_mean += grad[i];
          product_mean += grad[i] * normalised[i];
        }
      }
      grad_mean = sum_over(grad_mean, kWarp) / static_cast<Number>(width);
      product_mean = sum_over(product_mean, kWarp) / static_cast<Number>(width);
    }
    for (int64_t d = int64_t{lane} * count; d < width; d += kWarp * count) {
      Number result[count] = {};
      if (task.residual_grad.data != nullptr) {
        load(result, task.residual_grad.element, row_of(task.residual_grad, n, t), d);
      }
      if (normalises) {
        Number normalised[count], grad[count];
        read_grad(normalised, grad, task, folded.factor, n, t, d, mean, rstd);
#pragma unroll
        for (int i = 0; i < count; ++i) {
          result[i] += rstd * (grad[i] - grad_mean - normalised[i] * product_mean);
        }
        store(task.x_grad.element, row_of(task.x_grad, n, t), d, result);
      }
      if (task.branch_grad.data == nullptr) continue;
      Number gate[count];
      load(gate, Element::f32, reinterpret_cast<const char*>(folded.gate + n * width), d);
#pragma unroll
      for (int i = 0; i < count; ++i) result[i] *= gate[i];
      store(task.branch_grad.element, row_of(task.branch_grad, n, t), d, result);
    }
  }
}

// sums (N, chunks, kSums, D), a thread per column of a chunk.
template <class Number>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    sum_columns(Number* sums, const __grid_constant__ Backward task, const int64_t chunks) {
  const int64_t rows = task.sizes.rows, width = task.sizes.width;
  const bool wants_sums = task.wants_sums(), wants_gate = task.gate_grad.data != nullptr;
  const Rows& residual_grad = task.h_grad.data != nullptr ? task.x_grad : task.residual_grad;
  const int64_t tiles = (width + kThreads - 1) / kThreads;
  for (int64_t id = blockIdx.x; id < task.sizes.samples * chunks * tiles; id += gridDim.x) {
    const int64_t part = id / tiles, d = (id - part * tiles) * kThreads + threadIdx.x;
    const int64_t n = part / chunks, chunk = part - n * chunks;
    if (d >= width) continue;
    Number product = 0, sum = 0, gated = 0;
#pragma unroll 4
    for (int64_t t = rows * chunk / chunks; t < rows * (chunk + 1) / chunks; ++t) {
      Number x[1], grad[1];
      if (wants_sums) {
        load(x, task.x.element, row_of(task.x, n, t), d);
        load(grad, task.h_grad.element, row_of(task.h_grad, n, t), d);
        const int64_t r = n * rows + t;
        const Number mean = static_cast<const Number*>(task.mean)[r];
        product += grad[0] * ((x[0] - mean) * static_cast<const Number*>(task.rstd)[r]);
        sum += grad[0];
      }
      if (wants_gate) {
        load(x, task.branch.element, row_of(task.branch, n, t), d);
        load(grad, residual_grad.element, row_of(residual_grad, n, t), d);
        gated += x[0] * grad[0];
      }
    }
    Number* const to = sums + part * kSums * width + d;
    to[0] = product;
    to[width] = sum;
    to[2 * width] = gated;
  }
}

// The gradients of each sample's vectors; the totals take the place of the first chunk's sums.
template <class Number>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    finish_samples(Number* sums, const __grid_constant__ Backward task, const int64_t chunks) {
  const int64_t width = task.sizes.width, step = kSums * width;
  for (int64_t i = first_of_thread(); i < task.sizes.samples * width; i += threads_of_grid()) {
    const int64_t n = i / width, d = i - n * width;
    Number* const mine = sums + n * chunks * step + d;
    Number product = 0, sum = 0, gated = 0;
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      product += mine[chunk * step];
      sum += mine[chunk * step + width];
      gated += mine[chunk * step + 2 * width];
    }
    mine[0] = product;
    mine[width] = sum;
    set_element(task.shift_grad, n, d, sum);
    set_element(task.gate_grad, n, d, gated);
    if (task.scale_grad.data == nullptr) continue;
    const Number weight = element_of(task.weight, n, d, Number{1});
    const Number bias = element_of(task.bias, n, d, Number{0});
    set_element(task.scale_grad, n, d, weight * product + bias * sum);
  }
}

// weight_grad and bias_grad, in the order of the samples.
template <class Number>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    finish_shared(const Number* sums, const __grid_constant__ Backward task, const int64_t chunks) {
  const int64_t width = task.sizes.width;
  for (int64_t d = first_of_thread(); d < width; d += threads_of_grid()) {
    Number weight = 0, bias = 0;
    for (int64_t n = 0; n < task.sizes.samples; ++n) {
      const Number* const mine = sums + n * chunks * kSums * width + d;
      const Number scaled = Number{1} + element_of(task.scale, n, d, Number{0});
      weight += scaled * mine[0];
      bias += scaled * mine[width];
    }
    set_element(task.weight_grad, 0, d, weight);
    set_element(task.bias_grad, 0, d, bias);
  }
}

// ---- rows without parameters ----

__device__ __forceinline__ char* row_of(const GridRows& rows, const Grid& grid, int64_t row) {
  const int64_t i = row / grid.counts[2], last = row - i * grid.counts[2];
  const int64_t first = i / grid.counts[1], middle = i - first * grid.counts[1];
  return rows.data + first * rows.strides[0] + middle * rows.strides[1] + last * rows.strides[2];
}

// `lanes` threads per row, several rows per warp where rows are short. All threads of a warp take part in
// its sums; those behind the last row add nothing.
template <class Number, int count>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    norm_grid(const __grid_constant__ Norm task, const int lanes) {
  const int64_t width = task.grid.width, rows = task.grid.rows();
  const int rows_at_once = kWarp / lanes, mine = static_cast<int>(threadIdx.x) % kWarp / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  for (int64_t first = first_of_warp() * rows_at_once; first < rows;
       first += warps_of_grid() * rows_at_once) {
    const int64_t r = first + mine, end = r < rows ? width : 0;
    const char* const from = row_of(task.x, task.grid, r < rows ? r : 0);
    char* const to = row_of(task.out, task.grid, r < rows ? r : 0);
    Number x[count];
    Number sum = 0, squares = 0;
    for (int64_t d = int64_t{lane} * count; d < end; d += int64_t{lanes} * count) {
      load(x, task.x.element, from, d);
#pragma unroll
      for (int i = 0; i < count; ++i) sum += x[i];
    }
    const Number mean = sum_over(sum, lanes) / static_cast<Number>(width);
    for (int64_t d = int64_t{lane} * count; d < end; d += int64_t{lanes} * count) {
      load(x, task.x.element, from, d);
#pragma unroll
      for (int i = 0; i < count; ++i) squares += (x[i] - mean) * (x[i] - mean);
    }
    const Number rstd = rstd_of(sum_over(squares, lanes) / static_cast<Number>(width), task.eps);
    if (lane == 0 && r < rows) static_cast<Number*>(task.rstd)[r] = rstd;
    for (int64_t d = int64_t{lane} * count; d < end; d += int64_t{lanes} * count) {
      load(x, task.x.element, from, d);
#pragma unroll
      for (int i = 0; i < count; ++i) x[i] = (x[i] - mean) * rstd;
      store(task.out.element, to, d, x);
    }
  }
}

template <class Number, int count>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    norm_grid_backward(const __grid_constant__ NormBackward task, const int lanes) {
  const int64_t width = task.grid.width, rows = task.grid.rows();
  const int rows_at_once = kWarp / lanes, mine = static_cast<int>(threadIdx.x) % kWarp / lanes;
  const int lane = static_cast<int>(threadIdx.x) % lanes;
  for (int64_t first = first_of_warp() * rows_at_once; first < rows;
       first += warps_of_grid() * rows_at_once) {
    const int64_t r = first + mine, end = r < rows ? width : 0, row = r < rows ? r : 0;
    const char* const grads = row_of(task.grad, task.grid, row);
    const char* const from = row_of(task.normalised, task.grid, row);
    char* const to = row_of(task.x_grad, task.grid, row);
    Number grad[count], x[count];
    Number sum = 0, product = 0;
    for (int64_t d = int64_t{lane} * count; d < end; d += int64_t{lanes} * count) {
      load(grad, task.grad.element, grads, d);
      load(x, task.normalised.element, from, d);
#pragma unroll
      for (int i = 0; i < count; ++i) {
        sum += grad[i];
        product += grad[i] * x[i];
      }
    }
    sum = sum_over(sum, lanes) / static_cast<Number>(width);
    product = sum_over(product, lanes) / static_cast<Number>(width);
    const Number rstd = static_cast<const Number*>(task.rstd)[row];
    for (int64_t d = int64_t{lane} * count; d < end; d += int64_t{lanes} * count) {
      load(grad, task.grad.element, grads, d);
      load(x, task.normalised.element, from, d);
#pragma unroll
      for (int i = 0; i < count; ++i) grad[i] = rstd * (grad[i] - sum - x[i] * product);
      store(task.x_grad.element, to, d, grad);
    }
  }
}

// ---- launches ----

unsigned grid_of_warps(int64_t tasks) {
  return grid_for((tasks + kWarps - 1) / kWarps, kBlocksPerMultiprocessor);
}
unsigned grid_of_threads(int64_t tasks) {
  return grid_for((tasks + kThreads - 1) / kThreads, kBlocksPerMultiprocessor);
}

int64_t bits_of(const Rows& rows) {
  return reinterpret_cast<int64_t>(rows.data) | rows.sample_stride | rows.row_stride;
}
int64_t bits_of(const GridRows& rows) {
  return reinterpret_cast<int64_t>(rows.data) | rows.strides[0] | rows.strides[1] | rows.strides[2];
}

// Calls f(Number, count): what is computed in, and how many elements every address allows to move at once.
template <class F>
void with_units(Element x, int64_t bits, int64_t width, F&& f) {
  const auto choose = [&](auto zero) {
    constexpr int kCount = kUnit<decltype(zero)>;
    if (bits % 16 == 0 && width % kCount == 0) return f(zero, std::integral_constant<int, kCount>{});
    f(zero, std::integral_constant<int, 1>{});
  };
  if (x == Element::f64) return choose(double{});
  choose(float{});
}

template <class F>
void with_number(Element x, F&& f) {
  if (x == Element::f64) return f(double{});
  f(float{});
}

int64_t number_bytes(Element x) { return x == Element::f64 ? 8 : 4; }

// Threads per row: enough for one unit each, at most a warp.
int lanes_for(int64_t units) {
  int lanes = 1;
  while (lanes < kWarp && lanes < units) lanes *= 2;
  return lanes;
}

}  // namespace

int64_t forward_scratch(const Forward& task) {
  return 3 * task.sizes.samples * task.sizes.width * number_bytes(task.x.element);
}

void forward(const Forward& task, char* scratch, Queue queue) {
  const int64_t rows = task.sizes.samples * task.sizes.rows, width = task.sizes.width;
  if (rows == 0) return;
  const DeviceGuard guard(queue.device);
  const int64_t bits = bits_of(task.x) | bits_of(task.branch) | bits_of(task.residual) | bits_of(task.h);
  with_units(task.x.element, bits, width, [&](auto zero, auto count) {
    using Number = decltype(zero);
    const int64_t vectors = task.sizes.samples * width;
    Number* const first = reinterpret_cast<Number*>(scratch);
    const bool adds = task.branch.data != nullptr, normalises = task.h.data != nullptr;
    const Folded<Number> folded{normalises ? first : nullptr, normalises ? first + vectors : nullptr,
                                adds ? first + 2 * vectors : nullptr};
    launch(queue.stream, grid_of_threads(vectors), kThreads, fold_vectors<Number>, folded, task.gate,
           task.shift, task.scale, task.weight, task.bias, task.sizes);
    const bool is_short = width <= int64_t{kHeld} * kWarp * count();
    const auto kernel = is_short ? short_rows<Number, count()> : long_rows<Number, count()>;
    launch(queue.stream, grid_of_warps(rows), kThreads, kernel, task, folded);
  });
}

int64_t backward_scratch(const Backward& task) {
  const int64_t vectors = task.sizes.samples * task.sizes.width;
  return (2 + kSums * chunks_of(task.sizes.rows)) * vectors * number_bytes(task.x.element);
}

void backward(const Backward& task, char* scratch, Queue queue) {
  const DeviceGuard guard(queue.device);
  const int64_t rows = task.sizes.samples * task.sizes.rows, width = task.sizes.width;
  const int64_t vectors = task.sizes.samples * width, chunks = chunks_of(task.sizes.rows);
  const int64_t bits = bits_of(task.x) | bits_of(task.residual_grad) | bits_of(task.h_grad) |
                       bits_of(task.x_grad) | bits_of(task.branch_grad);
  if (rows > 0 && (task.x_grad.data != nullptr || task.branch_grad.data != nullptr)) {
    with_units(task.x.element, bits, width, [&](auto zero, auto count) {
      using Number = decltype(zero);
      Number* const first = reinterpret_cast<Number*>(scratch);
      const Folded<Number> folded{first, nullptr, first + vectors};
      launch(queue.stream, grid_of_threads(vectors), kThreads, fold_vectors<Number>, folded, task.gate,
             Vectors{}, task.scale, task.weight, Vectors{}, task.sizes);
      launch(queue.stream, grid_of_warps(rows), kThreads, grad_rows<Number, count()>, task, folded);
    });
  }
  if (!task.wants_sums() && task.gate_grad.data == nullptr) return;
  with_number(task.x.element, [&](auto zero) {
    using Number = decltype(zero);
    Number* const sums = reinterpret_cast<Number*>(scratch) + 2 * vectors;
    if (vectors > 0) {
      const int64_t tiles = task.sizes.samples * chunks * ((width + kThreads - 1) / kThreads);
      launch(queue.stream, grid_for(tiles, kBlocksPerMultiprocessor), kThreads, sum_columns<Number>, sums,
             task, chunks);
      launch(queue.stream, grid_of_threads(vectors), kThreads, finish_samples<Number>, sums, task, chunks);
    }
    if (task.weight_grad.data == nullptr && task.bias_grad.data == nullptr) return;
    launch(queue.stream, grid_of_threads(width), kThreads, finish_shared<Number>,
           static_cast<const Number*>(sums), task, chunks);
  });
}

void norm_rows(const Norm& task, Queue queue) {
  const int64_t rows = task.grid.rows(), width = task.grid.width;
  if (rows == 0) return;
  const DeviceGuard guard(queue.device);
  with_units(task.x.element, bits_of(task.x) | bits_of(task.out), width, [&](auto zero, auto count) {
    const int lanes = lanes_for(width / count());
    launch(queue.stream, grid_of_warps((rows * lanes + kWarp - 1) / kWarp), kThreads,
           norm_grid<decltype(zero), count()>, task, lanes);
  });
}

void norm_rows_backward(const NormBackward& task, Queue queue) {
  const int64_t rows = task.grid.rows(), width = task.grid.width;
  if (rows == 0) return;
  const DeviceGuard guard(queue.device);
  const int64_t bits = bits_of(task.grad) | bits_of(task.normalised) | bits_of(task.x_grad);
  with_units(task.grad.element, bits, width, [&](auto zero, auto count) {
    const int lanes = lanes_for(width / count());
    launch(queue.stream, grid_of_warps((rows * lanes + kWarp - 1) / kWarp), kThreads,
           norm_grid_backward<decltype(zero), count()>, task, lanes);
  });
}

}  // namespace tenfold::adaln::cuda
