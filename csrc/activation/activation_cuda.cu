// Activations on a GPU: each byte is read and written once, in units of 16 bytes where addresses allow it.
// What is computed agrees with the CPU's to rounding: both are within the bounds of activation.h.
#include <cstdint>
#include <type_traits>

#include "activation/activation.h"
#include "core/activation_kind.h"
#include "core/bfloat16.h"
#include "core/cuda.cuh"

namespace tenfold::activation::cuda {
namespace {

constexpr int kThreads = 256;
constexpr int kLeastBlocks = 3;
constexpr int kBlocksPerMultiprocessor = 8;

template <class T, int count>
struct alignas(sizeof(T) * count) Unit {
  T values[count];
};

template <class T>
using NumberOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

struct Units {
  int64_t of_row, all;
};

// Where a unit is: the indices of its row, the last one first, and its first column.
struct Place {
  int64_t offset[3];
  int64_t column;
};

__device__ __forceinline__ int64_t quotient(int64_t a, int64_t b) {  // of numbers that are seldom large
  if ((a | b) >> 32 != 0) return a / b;
  return static_cast<uint32_t>(a) / static_cast<uint32_t>(b);
}

__device__ __forceinline__ Place place_of(const Grid& grid, int64_t unit, const Units& units, int count) {
  const int64_t row = quotient(unit, units.of_row);
  Place place{{row, 0, 0}, (unit - row * units.of_row) * count};
  if (grid.counts[0] * grid.counts[1] > 1) {  // two divisions that most calls do without
    const int64_t outer = quotient(row, grid.counts[2]), first = quotient(outer, grid.counts[1]);
    place.offset[0] = row - outer * grid.counts[2];
    place.offset[1] = outer - first * grid.counts[1];
    place.offset[2] = first;
  }
  return place;
}

template <class T>
__device__ __forceinline__ T* address(const Rows& rows, const Place& place) {
  char* const row = rows.data + place.offset[0] * rows.strides[2] + place.offset[1] * rows.strides[1] +
                    place.offset[2] * rows.strides[0];
  return reinterpret_cast<T*>(row) + place.column;
}

template <class T, int count>
__device__ __forceinline__ Unit<T, count> read(const T* from) {
  return *reinterpret_cast<const Unit<T, count>*>(from);
}
template <class T, int count>
__device__ __forceinline__ void write(T* to, const Unit<T, count>& unit) {
  *reinterpret_cast<Unit<T, count>*>(to) = unit;
}

// A thread per unit of `count` elements of the result. `kind` is the activation, as a number for the sake of
// names that tests/simt/static.py can show.
template <class T, int kind, bool gated, int count>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    activate_units(const __grid_constant__ Forward task, const Units units) {
  using Number = NumberOf<T>;
  const int64_t width = task.grid.width;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < units.all; i += step) {
    const Place place = place_of(task.grid, i, units, count);
    const T* const from = address<T>(task.x, place);
    const Unit<T, count> x = read<T, count>(from);
    Unit<T, count> factor{}, out;
    if constexpr (gated) factor = read<T, count>(from + width);
#pragma unroll
    for (int j = 0; j < count; ++j) {
      const Number value = to_float(x.values[j]);
      Number result = apply_activation<static_cast<Activation>(kind)>(value, value).value;
      if constexpr (gated) result *= to_float(factor.values[j]);
      round_to(out.values[j], result);
    }
    write<T, count>(address<T>(task.out, place), out);
  }
}

// Everything is read before anything is written: it may be the same memory.
template <class T, int kind, bool gated, int count>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    activate_units_backward(const __grid_constant__ Backward task, const Units units) {
  using Number = NumberOf<T>;
  const int64_t width = task.grid.width;
  const int64_t step = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < units.all; i += step) {
    const Place place = place_of(task.grid, i, units, count);
    const T* const from = address<T>(task.x, place);
    const Unit<T, count> x = read<T, count>(from), grad = read<T, count>(address<T>(task.grad, place));
    Unit<T, count> factor{}, x_grad, factor_grad, activated;
    if constexpr (gated) factor = read<T, count>(from + width);
#pragma unroll
    for (int j = 0; j < count; ++j) {
      const Number value = to_float(x.values[j]), given = to_float(grad.values[j]);
      if constexpr (gated) {
        const Number times = to_float(factor.values[j]);
        const Activated<Number> done = apply_activation<static_cast<Activation>(kind)>(value, given * times);
        round_to(x_grad.values[j], done.grad);
        round_to(factor_grad.values[j], given * done.value);
        round_to(activated.values[j], done.value * times);
      } else {
        const Activated<Number> done = apply_activation<static_cast<Activation>(kind)>(value, given);
        round_to(x_grad.values[j], done.grad);
        round_to(activated.values[j], done.value);
      }
    }
    T* const to = address<T>(task.x_grad, place);
    write<T, count>(to, x_grad);
    if constexpr (gated) write<T, count>(to + width, factor_grad);
    if (task.activated.data != nullptr) write<T, count>(address<T>(task.activated, place), activated);
  }
}

// ---- launches ----

// All bits that addresses of the rows may have set.
int64_t bits_of(const Rows& rows) {
  int64_t bits = reinterpret_cast<int64_t>(rows.data);
  for (const int64_t stride : rows.strides) bits |= stride;
  return bits;
}

// Calls f(T{}, count): the element type, and how many of them every address allows to move at once.
template <class F>
void with_units(Element element, int64_t bits, int64_t width, F&& f) {
  const auto choose = [&](auto zero) {
    constexpr int kCount = 16 / static_cast<int>(sizeof(zero));
    if (bits % 16 == 0 && width % kCount == 0) return f(zero, std::integral_constant<int, kCount>{});
    f(zero, std::integral_constant<int, 1>{});
  };
  switch (element) {
    case Element::f32:
      return choose(float{});
    case Element::bf16:
      return choose(uint16_t{});
    case Element::f64:
      return choose(double{});
  }
}

// Calls f(T{}, count, activation, gated).
template <class Task, class F>
void with_choices(const Task& task, int64_t bits, F&& f) {
  with_units(task.element, bits, task.grid.width, [&](auto zero, auto count) {
    with_activation(task.activation, [&](auto kind) {
      if (task.gated) return f(zero, count, kind, std::true_type{});
      f(zero, count, kind, std::false_type{});
    });
  });
}

Units units_of(const Grid& grid, int count) {
  return {grid.width / count, grid.rows() * (grid.width / count)};
}

unsigned grid_of(const Units& units) {
  return grid_for((units.all + kThreads - 1) / kThreads, kBlocksPerMultiprocessor);
}

}  // namespace

void activate(const Forward& task, Queue queue) {
  if (task.grid.rows() * task.grid.width == 0) return;
  const DeviceGuard guard(queue.device);
  with_choices(task, bits_of(task.x) | bits_of(task.out), [&](auto zero, auto count, auto kind, auto gated) {
    const Units units = units_of(task.grid, count());
    launch(queue.stream, grid_of(units), kThreads,
           activate_units<decltype(zero), static_cast<int>(kind()), gated(), count()>, task, units);
  });
}

void activate_backward(const Backward& task, Queue queue) {
  if (task.grid.rows() * task.grid.width == 0) return;
  const DeviceGuard guard(queue.device);
  const int64_t bits = bits_of(task.grad) | bits_of(task.x) | bits_of(task.x_grad) | bits_of(task.activated);
  with_choices(task, bits, [&](auto zero, auto count, auto kind, auto gated) {
    const Units units = units_of(task.grid, count());
    launch(queue.stream, grid_of(units), kThreads,
           activate_units_backward<decltype(zero), static_cast<int>(kind()), gated(), count()>, task, units);
  });
}

}  // namespace tenfold::activation::cuda
