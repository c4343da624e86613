// Fuzzy quantifiers on a GPU. A group of neighbouring threads reduces the elements of one result, or those
// that one element of a gradient is added up over; long reductions are cut into pieces, whose partial states
// go to scratch memory and are merged in their order. Orders of additions differ from the CPU's, so results
// agree to rounding, and are the same in every run. A gradient computes the formula once more per operand.
#include <math.h>

#include <cstdint>
#include <type_traits>

#include "core/bfloat16.h"
#include "core/cuda.cuh"
#include "core/deferred.h"
#include "fuzzy/connectives.h"
#include "fuzzy/cuda.h"
#include "fuzzy/fuzzy.h"
#include "fuzzy/state.h"

namespace tenfold::fuzzy::cuda {
namespace {

using namespace TENFOLD_LEVEL;  // NOLINT: the level of files that are compiled once

constexpr int kBlocksPerMultiprocessor = 8;
constexpr int64_t kPiece = 4096;       // elements that a group reduces at least, where there are more
constexpr int64_t kMostPieces = 1024;  // of one result

template <class T>
using NumberOf = std::conditional_t<std::is_same_v<T, double>, double, float>;

// Values of all steps of a formula stay in shared memory: 32 KiB for a block.
template <class T>
constexpr int kThreads = std::is_same_v<T, double> ? 64 : 128;
// Blocks that a multiprocessor has registers for at least: 128 for each thread.
template <class T>
constexpr int kLeastBlocks = 512 / kThreads<T>;

__device__ __forceinline__ float number_exp(float x) { return expf(x); }
__device__ __forceinline__ double number_exp(double x) { return ::exp(x); }
__device__ __forceinline__ float number_log(float x) { return logf(x); }
__device__ __forceinline__ double number_log(double x) { return ::log(x); }
__device__ __forceinline__ float number_log1p(float x) { return log1pf(x); }
__device__ __forceinline__ double number_log1p(double x) { return ::log1p(x); }

template <class N>
__device__ __forceinline__ N least_of_all() {
  return static_cast<N>(-kInfinity);
}

// ---- elements of the index space ----

struct Place {
  int64_t at[kMostAxes];
};

// Some axes of the space, as one index.
struct Axes {
  int64_t counts[kMostAxes];  // 1 where the axis is not among them
  int64_t size;
};

__device__ __forceinline__ void add_place(Place& place, const Axes& axes, int64_t index) {
#pragma unroll
  for (int k = kMostAxes - 1; k >= 0; --k) {
    if (axes.counts[k] == 1) continue;
    const int64_t next = index / axes.counts[k];
    place.at[k] += index - next * axes.counts[k];
    index = next;
  }
}

__device__ __forceinline__ int64_t offset_of(const Strided& array, const Place& place) {
  int64_t offset = 0;
#pragma unroll
  for (int k = 0; k < kMostAxes; ++k) offset += place.at[k] * array.strides[k];
  return offset;
}

template <class T>
__device__ __forceinline__ NumberOf<T> number_at(const Strided& array, const Place& place) {
  return to_float(*reinterpret_cast<const T*>(array.data + offset_of(array, place)));
}

template <class N>
__device__ __forceinline__ bool related(Relation relation, N x, N bound) {
  switch (relation) {
    case Relation::less:
      return x < bound;
    case Relation::at_most:
      return x <= bound;
    case Relation::greater:
      return x > bound;
    default:
      return x >= bound;
  }
}

template <class T>
__device__ __forceinline__ bool holds(const GuardTask& guard, const Place& place) {
  using N = NumberOf<T>;
  if (!guard.present) return true;
  if (guard.relation == Relation::mask) {
    return *reinterpret_cast<const uint8_t*>(guard.values.data + offset_of(guard.values, place)) != 0;
  }
  if (guard.features == 0) {
    return related(guard.relation, number_at<T>(guard.values, place), static_cast<N>(guard.bound));
  }
  const char* a = guard.values.data + offset_of(guard.values, place);
  const char* b = guard.other.data + offset_of(guard.other, place);
  N square = 0;
  for (int64_t f = 0; f < guard.features; ++f) {
    const N difference = to_float(*reinterpret_cast<const T*>(a)) - to_float(*reinterpret_cast<const T*>(b));
    square += difference * difference;
    a += guard.values_step;
    b += guard.other_step;
  }
  const double bound = guard.bound < 0 ? -1.0 : guard.bound * guard.bound;
  return related(guard.relation, square, static_cast<N>(bound));
}

// ---- formulas: the value of an element, and the slope of it by one operand ----

struct LogAnd {
  static constexpr int kSteps = 1;
  template <class T, class Memory>
  static __device__ NumberOf<T> value(const Task& task, const Place& place, Memory&&) {
    NumberOf<T> sum = 0;
    for (int i = 0; i < task.operands; ++i) sum += number_at<T>(task.operand[i], place);
    return sum;
  }
  template <class T, class Memory>
  static __device__ NumberOf<T> slope(const Task&, const Place&, int, Memory&&) {
    return 1;
  }
};

struct LogOr {
  static constexpr int kSteps = 1;
  template <class T>
  static __device__ NumberOf<T> weighted(const Task& task, const Place& place, int i) {
    using N = NumberOf<T>;
    return number_at<T>(task.operand[i], place) + static_cast<N>(task.log_weights[i] / task.alpha);
  }
  // The greatest, and the sum of exponentials relative to it; 0 where all are -inf.
  template <class T>
  static __device__ NumberOf<T> sum(const Task& task, const Place& place, NumberOf<T>* greatest) {
    using N = NumberOf<T>;
    N most = least_of_all<N>();
    for (int i = 0; i < task.operands; ++i) {
      const N x = weighted<T>(task, place, i);
      most = x > most || x != x ? x : most;
    }
    *greatest = most;
    if (most == least_of_all<N>()) return 0;
    N total = 0;
    for (int i = 0; i < task.operands; ++i) {
      total += number_exp((weighted<T>(task, place, i) - most) * static_cast<N>(task.alpha));
    }
    return total;
  }
  template <class T, class Memory>
  static __device__ NumberOf<T> value(const Task& task, const Place& place, Memory&&) {
    NumberOf<T> most;
    const NumberOf<T> total = sum<T>(task, place, &most);
    return total == 0 ? most : most + number_log(total) / static_cast<NumberOf<T>>(task.alpha);
  }
  template <class T, class Memory>
  static __device__ NumberOf<T> slope(const Task& task, const Place& place, int operand, Memory&&) {
    using N = NumberOf<T>;
    N most;
    const N total = sum<T>(task, place, &most);
    if (total == 0) return 0;
    return number_exp((weighted<T>(task, place, operand) - most) * static_cast<N>(task.alpha)) / total;
  }
};

struct Postfix {
  static constexpr int kSteps = kMostSteps;
  // memory(i): the value of step i of this thread.
  template <class T, class Memory>
  static __device__ NumberOf<T> value(const Task& task, const Place& place, Memory&& memory) {
    using N = NumberOf<T>;
    const Away<N> away{static_cast<N>(1.0 - task.eps), static_cast<N>(task.eps)};
    for (int i = 0; i < task.steps; ++i) {
      const Step step = task.program[i];
      if (step.code == Code::operand) {
        memory(i) = number_at<T>(task.operand[step.operand], place);
      } else if (is_unary(step.code)) {
        const N x = memory(i - 1);
        with_unary(step.code, [&](auto f) { memory(i) = f.value(x, away); });
      } else {
        const N x = memory(step.left), y = memory(i - 1);
        with_binary(step.code, [&](auto f) { memory(i) = f.value(x, y, away); });
      }
    }
    return memory(task.steps - 1);
  }
  // A step's value is used once, by the step that it is replaced for with its slope.
  template <class T, class Memory>
  static __device__ NumberOf<T> slope(const Task& task, const Place& place, int operand, Memory&& memory) {
    using N = NumberOf<T>;
    value<T>(task, place, memory);
    const Away<N> away{static_cast<N>(1.0 - task.eps), static_cast<N>(task.eps)};
    N total = 0;
    memory(task.steps - 1) = 1;
    for (int i = task.steps - 1; i >= 0; --i) {
      const Step step = task.program[i];
      const N own = memory(i);
      if (step.code == Code::operand) {
        if (step.operand == operand) total += own;
      } else if (is_unary(step.code)) {
        const N x = memory(i - 1);
        with_unary(step.code, [&](auto f) { memory(i - 1) = own * f.slope(x, away); });
      } else {
        const N x = memory(step.left), y = memory(i - 1);
        with_binary(step.code, [&](auto f) {
          const auto slopes = f.slopes(x, y, away);
          memory(step.left) = own * slopes.x;
          memory(i - 1) = own * slopes.y;
        });
      }
    }
    return total;
  }
};

// A formula by its number, for the sake of names that tests/simt/static.py can show.
template <int formula>
using FormulaOf =
    std::conditional_t<formula == static_cast<int>(Formula::log_and), LogAnd,
                       std::conditional_t<formula == static_cast<int>(Formula::log_or), LogOr, Postfix>>;

// As the quantifier takes it.
template <class N>
__device__ __forceinline__ N prepared(const Reduction& reduction, N value) {
  const N moved = static_cast<N>(reduction.before.scale) * value + static_cast<N>(reduction.before.shift);
  if (!reduction.logged) return moved;
  return moved > 0 ? number_log(moved) : moved <= 0 ? least_of_all<N>() : moved;
}

template <class N>
__device__ __forceinline__ N raised(N x, int power) {
  N result = x;
  for (int i = 1; i < power; ++i) result *= x;
  return result;
}

// ---- groups of threads ----

// Targets (results, or elements of a gradient) in pieces; each is reduced by a group.
struct Plan {
  Axes targets, reduced;
  int64_t pieces;
  int group;
};

template <class N>
__device__ __forceinline__ void see(const Reduction& reduction, Seen<N>& seen, N v) {
  const Quantifier quantifier = reduction.quantifier;
  if (quantifier == Quantifier::add) {
    seen.sum += v;
  } else if (quantifier == Quantifier::power) {
    seen.sum += raised(v, reduction.power);
  } else if (v != v) {
    seen.sum += v;
    if (seen.most == least_of_all<N>()) seen.most = v;
  } else if (v == seen.most && v != least_of_all<N>()) {
    seen.sum += 1;
  } else if (v > seen.most) {
    const bool goes_on = quantifier == Quantifier::scaled ? seen.sum != 0 : seen.sum != seen.sum;
    seen.sum =
        (goes_on ? seen.sum * number_exp((seen.most - v) * static_cast<N>(reduction.sharpness)) : 0) + 1;
    seen.most = v;
  } else if (quantifier == Quantifier::scaled && v != least_of_all<N>()) {
    seen.sum += number_exp((v - seen.most) * static_cast<N>(reduction.sharpness));
  }
}

template <class T, int formula>
__global__ void __launch_bounds__(kThreads<T>, kLeastBlocks<T>)
    reduce_pieces(const __grid_constant__ Task task, const __grid_constant__ Plan plan,
                  Seen<NumberOf<T>>* partial) {
  using N = NumberOf<T>;
  using F = FormulaOf<formula>;
  TENFOLD_SHARED(N, values, F::kSteps * kThreads<T>);
  TENFOLD_SHARED(N, most, kThreads<T>);
  TENFOLD_SHARED(double, sum, kThreads<T>);
  TENFOLD_SHARED(int64_t, count, kThreads<T>);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % plan.group;
  const int64_t groups = kThreads<T> / plan.group, all = plan.targets.size * plan.pieces;
  for (int64_t first = int64_t{blockIdx.x} * groups; first < all; first += int64_t{gridDim.x} * groups) {
    const int64_t task_number = first + thread / plan.group;
    Seen<N> seen;
    if (task_number < all) {
      const int64_t target = task_number / plan.pieces, piece = task_number - target * plan.pieces;
      const int64_t end = plan.reduced.size * (piece + 1) / plan.pieces;
      for (int64_t r = plan.reduced.size * piece / plan.pieces + lane; r < end; r += plan.group) {
        Place place{};
        add_place(place, plan.targets, target);
        add_place(place, plan.reduced, r);
        if (!holds<T>(task.guard, place)) continue;
        ++seen.count;
        const N v =
            F::template value<T>(task, place, [&](int i) -> N& { return values[i * kThreads<T> + thread]; });
        see(task.reduction, seen, prepared(task.reduction, v));
      }
    }
    __syncthreads();
    most[thread] = seen.most;
    sum[thread] = seen.sum;
    count[thread] = seen.count;
    for (int step = plan.group / 2; step > 0; step /= 2) {
      __syncthreads();
      if (lane >= step) continue;
      const Seen<N> other{most[thread + step], sum[thread + step], count[thread + step]};
      merge(task.reduction, seen, other);
      most[thread] = seen.most;
      sum[thread] = seen.sum;
      count[thread] = seen.count;
    }
    if (lane == 0 && task_number < all) partial[task_number] = seen;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads<T>, kLeastBlocks<T>)
    finish_results(const __grid_constant__ Task task, const __grid_constant__ Plan plan,
                   const Seen<NumberOf<T>>* partial) {
  using N = NumberOf<T>;
  const int64_t step = int64_t{gridDim.x} * kThreads<T>;
  for (int64_t i = int64_t{blockIdx.x} * kThreads<T> + threadIdx.x; i < plan.targets.size; i += step) {
    Seen<N> seen = partial[i * plan.pieces];
    for (int64_t k = 1; k < plan.pieces; ++k) merge(task.reduction, seen, partial[i * plan.pieces + k]);
    Place place{};
    add_place(place, plan.targets, i);
    const double value = root(task.reduction, seen);
    round_to(*reinterpret_cast<T*>(task.out.data + offset_of(task.out, place)),
             static_cast<N>(out_of(task.reduction, value, seen.count)));
    if (task.raw.data == nullptr) continue;
    const bool ties = task.reduction.quantifier == Quantifier::most && seen.count > 0;
    const int64_t offset = offset_of(task.raw, place);
    *reinterpret_cast<N*>(task.raw.data + offset) = static_cast<N>(value);
    *reinterpret_cast<N*>(task.count.data + offset) =
        ties ? static_cast<N>(seen.sum) : static_cast<N>(seen.count);
  }
}

template <class T, int formula>
__global__ void __launch_bounds__(kThreads<T>, kLeastBlocks<T>)
    evaluate_elements(const __grid_constant__ Task task, const __grid_constant__ Plan plan) {
  using N = NumberOf<T>;
  using F = FormulaOf<formula>;
  TENFOLD_SHARED(N, values, F::kSteps * kThreads<T>);
  const int thread = static_cast<int>(threadIdx.x);
  const int64_t step = int64_t{gridDim.x} * kThreads<T>;
  for (int64_t i = int64_t{blockIdx.x} * kThreads<T> + thread; i < plan.targets.size; i += step) {
    Place place{};
    add_place(place, plan.targets, i);
    N value = static_cast<N>(task.reduction.empty);
    if (holds<T>(task.guard, place)) {
      value =
          F::template value<T>(task, place, [&](int k) -> N& { return values[k * kThreads<T> + thread]; });
    }
    round_to(*reinterpret_cast<T*>(task.out.data + offset_of(task.out, place)), value);
  }
}

// The slope of the result by the prepared value of an element.
template <class T, class F, class Memory>
__device__ __forceinline__ NumberOf<T> slope_at(const Task& task, const Place& place, Memory&& memory) {
  using N = NumberOf<T>;
  const N grad = number_at<T>(task.out, place);
  const Reduction& reduction = task.reduction;
  if (reduction.quantifier == Quantifier::copy) return grad;
  const N raw = number_at<N>(task.raw, place), count = number_at<N>(task.count, place);
  const Slope<double> slope =
      slope_of(reduction, static_cast<double>(grad), static_cast<double>(raw), static_cast<double>(count));
  const N factor = static_cast<N>(slope.factor), reference = static_cast<N>(slope.reference);
  if (reduction.quantifier == Quantifier::add || factor == 0) return factor;
  const N v = prepared(reduction, F::template value<T>(task, place, memory));
  if (reduction.quantifier == Quantifier::most) return v == reference || factor != factor ? factor : N(0);
  if (reduction.quantifier == Quantifier::power) return factor * raised(v * reference, reduction.power - 1);
  const N sharpness = static_cast<N>(reduction.logged ? reduction.sharpness - 1.0 : reduction.sharpness);
  return factor * number_exp((v - reference) * sharpness);
}

template <class T, int formula>
__global__ void __launch_bounds__(kThreads<T>, kLeastBlocks<T>)
    reduce_gradient(const __grid_constant__ Task task, const __grid_constant__ Plan plan, const int operand,
                    double* partial) {
  using N = NumberOf<T>;
  using F = FormulaOf<formula>;
  TENFOLD_SHARED(N, values, F::kSteps * kThreads<T>);
  TENFOLD_SHARED(double, sum, kThreads<T>);
  const int thread = static_cast<int>(threadIdx.x), lane = thread % plan.group;
  const int64_t groups = kThreads<T> / plan.group, all = plan.targets.size * plan.pieces;
  const auto memory = [&](int i) -> N& { return values[i * kThreads<T> + thread]; };
  for (int64_t first = int64_t{blockIdx.x} * groups; first < all; first += int64_t{gridDim.x} * groups) {
    const int64_t task_number = first + thread / plan.group;
    double total = 0;
    if (task_number < all) {
      const int64_t target = task_number / plan.pieces, piece = task_number - target * plan.pieces;
      const int64_t end = plan.reduced.size * (piece + 1) / plan.pieces;
      for (int64_t r = plan.reduced.size * piece / plan.pieces + lane; r < end; r += plan.group) {
        Place place{};
        add_place(place, plan.targets, target);
        add_place(place, plan.reduced, r);
        if (!holds<T>(task.guard, place)) continue;
        const N slope = slope_at<T, F>(task, place, memory);
        if (slope != 0) total += slope * F::template slope<T>(task, place, operand, memory);
      }
    }
    __syncthreads();
    sum[thread] = total;
    for (int step = plan.group / 2; step > 0; step /= 2) {
      __syncthreads();
      if (lane >= step) continue;
      total += sum[thread + step];
      sum[thread] = total;
    }
    if (lane == 0 && task_number < all) partial[task_number] = total;
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads<T>, kLeastBlocks<T>)
    finish_gradient(const Strided grad, const bool add_to, const __grid_constant__ Plan plan,
                    const double* partial) {
  using N = NumberOf<T>;
  const int64_t step = int64_t{gridDim.x} * kThreads<T>;
  for (int64_t i = int64_t{blockIdx.x} * kThreads<T> + threadIdx.x; i < plan.targets.size; i += step) {
    double total = partial[i * plan.pieces];
    for (int64_t k = 1; k < plan.pieces; ++k) total += partial[i * plan.pieces + k];
    Place place{};
    add_place(place, plan.targets, i);
    T* const to = reinterpret_cast<T*>(grad.data + offset_of(grad, place));
    const N value = static_cast<N>(total);
    round_to(*to, add_to ? static_cast<N>(to_float(*to)) + value : value);
  }
}

// ---- segments ----

__device__ __forceinline__ int64_t within(int64_t x, int64_t values) {
  return x < 0 ? 0 : x > values ? values : x;
}

template <class T>
__global__ void __launch_bounds__(kThreads<T>, kLeastBlocks<T>)
    reduce_segments(const __grid_constant__ SegmentTask task, const int64_t size, DeferredWord* wrong) {
  using N = NumberOf<T>;
  const T* const values = reinterpret_cast<const T*>(task.values);
  const int64_t step = int64_t{gridDim.x} * kThreads<T>;
  for (int64_t i = int64_t{blockIdx.x} * kThreads<T> + threadIdx.x; i < task.segments; i += step) {
    const int64_t begin = task.row_ptr[i], end = task.row_ptr[i + 1];
    const bool fits = begin >= 0 && begin <= end && end <= size && (i > 0 || begin == 0) &&
                      (i + 1 < task.segments || end == size);
    if (!fits) *wrong = deferred_place(0, i);
    Seen<N> seen;
    const int64_t stop = within(end, size);
    for (int64_t j = within(begin, size); j < stop; ++j) {
      ++seen.count;
      see(task.reduction, seen, prepared(task.reduction, static_cast<N>(to_float(values[j]))));
    }
    const double value = root(task.reduction, seen);
    round_to(reinterpret_cast<T*>(task.out)[i], static_cast<N>(out_of(task.reduction, value, seen.count)));
    if (task.raw == nullptr) continue;
    reinterpret_cast<N*>(task.raw)[i] = static_cast<N>(value);
    reinterpret_cast<N*>(task.count)[i] = static_cast<N>(seen.count);
  }
}

// A thread per value, which looks for its segment.
template <class T>
__global__ void __launch_bounds__(kThreads<T>, kLeastBlocks<T>)
    segment_gradients(const __grid_constant__ SegmentTask task, const int64_t size) {
  using N = NumberOf<T>;
  const int64_t step = int64_t{gridDim.x} * kThreads<T>;
  for (int64_t j = int64_t{blockIdx.x} * kThreads<T> + threadIdx.x; j < size; j += step) {
    int64_t low = 0, high = task.segments;  // row_ptr[low] <= j < row_ptr[high]
    while (high - low > 1) {
      const int64_t middle = (low + high) / 2;
      (task.row_ptr[middle] <= j ? low : high) = middle;
    }
    N result = 0;
    if (task.segments > 0) {
      const Slope<double> slope =
          slope_of(task.reduction, static_cast<double>(to_float(reinterpret_cast<const T*>(task.out)[low])),
                   static_cast<double>(reinterpret_cast<const N*>(task.raw)[low]),
                   static_cast<double>(reinterpret_cast<const N*>(task.count)[low]));
      const N factor = static_cast<N>(slope.factor), reference = static_cast<N>(slope.reference);
      const N v =
          prepared(task.reduction, static_cast<N>(to_float(reinterpret_cast<const T*>(task.values)[j])));
      result = factor;
      if (factor != 0 && task.reduction.quantifier == Quantifier::power) {
        result = factor * raised(v * reference, task.reduction.power - 1);
      } else if (factor != 0 && task.reduction.quantifier == Quantifier::scaled) {
        const N sharpness =
            static_cast<N>(task.reduction.logged ? task.reduction.sharpness - 1.0 : task.reduction.sharpness);
        result = factor * number_exp((v - reference) * sharpness);
      }
    }
    round_to(reinterpret_cast<T*>(task.values_grad)[j], result);
  }
}

// ---- atoms ----

template <class T>
__global__ void __launch_bounds__(kThreads<T>, kLeastBlocks<T>)
    sigmoid_atoms(const __grid_constant__ AtomTask task, const bool gradient) {
  using N = NumberOf<T>;
  T *const log = reinterpret_cast<T*>(task.log), *const nlog = reinterpret_cast<T*>(task.nlog);
  const int64_t step = int64_t{gridDim.x} * kThreads<T>;
  for (int64_t i = int64_t{blockIdx.x} * kThreads<T> + threadIdx.x; i < task.rows; i += step) {
    const N z = to_float(reinterpret_cast<const T*>(task.z)[i]), small = number_exp(z < 0 ? z : -z);
    if (!gradient) {
      const N rest = number_log1p(small);
      round_to(log[i], (z < 0 ? z : N(0)) - rest);
      round_to(nlog[i], (z < 0 ? N(0) : -z) - rest);
    } else {
      const N most = 1 / (1 + small), least = small * most, p = z < 0 ? least : most;
      const N other = z < 0 ? most : least;
      round_to(reinterpret_cast<T*>(task.z_grad)[i],
               static_cast<N>(to_float(log[i])) * other - static_cast<N>(to_float(nlog[i])) * p);
    }
  }
}

// What a row of logits comes to, read by one thread.
template <class N>
struct SoftmaxRow {
  int64_t top;
  N most, second, others, rest, log_sum;  // as csrc/fuzzy/atoms.h
};

template <class T>
__device__ __forceinline__ SoftmaxRow<NumberOf<T>> softmax_row(const T* z, int64_t classes) {
  using N = NumberOf<T>;
  SoftmaxRow<N> row{0, to_float(z[0]), least_of_all<N>(), 0, 0, 0};
  for (int64_t c = 1; c < classes; ++c) {
    const N x = to_float(z[c]);
    if (x > row.most) {
      row.second = row.most;
      row.most = x;
      row.top = c;
    } else if (x > row.second) {
      row.second = x;
    }
  }
  const N base = row.second > least_of_all<N>() ? row.second : N(0);
  for (int64_t c = 0; c < classes; ++c) {
    if (c != row.top) row.others += number_exp(static_cast<N>(to_float(z[c])) - base);
  }
  row.rest = row.others * number_exp(row.second - row.most);
  row.log_sum = number_log1p(row.rest);
  return row;
}

template <class N>
__device__ __forceinline__ N softmax_nlog(const SoftmaxRow<N>& row, N z, bool top, int64_t classes) {
  if (!top) return number_log1p(-number_exp(z - row.most) / (1 + row.rest));
  if (classes == 1) return least_of_all<N>();
  return row.second - row.most + number_log(row.others) - row.log_sum;
}

// The class that is asked for in a row, or -1 where it is none.
__device__ __forceinline__ int64_t class_of(const AtomTask& task, int64_t row) {
  const int64_t c = task.index[row];
  return c >= 0 && c < task.classes ? c : -1;
}

template <class T>
__global__ void __launch_bounds__(kThreads<T>, kLeastBlocks<T>)
    softmax_atoms(const __grid_constant__ AtomTask task, DeferredWord* wrong) {
  using N = NumberOf<T>;
  const int64_t step = int64_t{gridDim.x} * kThreads<T>;
  for (int64_t i = int64_t{blockIdx.x} * kThreads<T> + threadIdx.x; i < task.rows; i += step) {
    const T* const z = reinterpret_cast<const T*>(task.z) + i * task.classes;
    const SoftmaxRow<N> row = softmax_row(z, task.classes);
    const auto write = [&](int64_t at, int64_t c) {
      const N x = to_float(z[c]);
      round_to(reinterpret_cast<T*>(task.log)[at], x - row.most - row.log_sum);
      round_to(reinterpret_cast<T*>(task.nlog)[at], softmax_nlog(row, x, c == row.top, task.classes));
    };
    if (task.index == nullptr) {
      for (int64_t c = 0; c < task.classes; ++c) write(i * task.classes + c, c);
      continue;
    }
    const int64_t c = class_of(task, i);
    if (c >= 0) {
      write(i, c);
    } else {
      *wrong = deferred_place(0, i);
      round_to(reinterpret_cast<T*>(task.log)[i], static_cast<N>(nanf("")));
      round_to(reinterpret_cast<T*>(task.nlog)[i], static_cast<N>(nanf("")));
    }
  }
}

template <class T>
__global__ void __launch_bounds__(kThreads<T>, kLeastBlocks<T>)
    softmax_gradients(const __grid_constant__ AtomTask task) {
  using N = NumberOf<T>;
  const T *const logs = reinterpret_cast<const T*>(task.log), *const nlogs =
                                                                  reinterpret_cast<const T*>(task.nlog);
  const int64_t step = int64_t{gridDim.x} * kThreads<T>;
  for (int64_t i = int64_t{blockIdx.x} * kThreads<T> + threadIdx.x; i < task.rows; i += step) {
    const T* const z = reinterpret_cast<const T*>(task.z) + i * task.classes;
    T* const to = reinterpret_cast<T*>(task.z_grad) + i * task.classes;
    if (task.classes == 1) {
      round_to(*to, N(0));
      continue;
    }
    const SoftmaxRow<N> row = softmax_row(z, task.classes);
    const int64_t only = task.index == nullptr ? -2 : class_of(task, i);
    const auto grad = [&](const T* grads, int64_t c) {
      if (only == -2) return static_cast<N>(to_float(grads[i * task.classes + c]));
      return c == only ? static_cast<N>(to_float(grads[i])) : N(0);
    };
    const N scale = 1 / (1 + row.rest);
    const auto p = [&](int64_t c) { return number_exp(static_cast<N>(to_float(z[c])) - row.most) * scale; };
    double sums = 0;  // of the others' shares, less all gradients
    for (int64_t c = 0; c < task.classes; ++c) {
      const N of_nlog = grad(nlogs, c);
      sums -= static_cast<double>(grad(logs, c)) + static_cast<double>(of_nlog);
      if (c != row.top) sums += static_cast<double>(of_nlog / (1 - p(c)));
    }
    const N top_grad = grad(nlogs, row.top) / row.others, all = static_cast<N>(sums);
    const N base = row.second > least_of_all<N>() ? row.second : N(0);
    for (int64_t c = 0; c < task.classes; ++c) {
      const N own = p(c), share = c != row.top ? grad(nlogs, c) / (1 - own) : N(0);
      const N other = c != row.top ? number_exp(static_cast<N>(to_float(z[c])) - base) * top_grad : N(0);
      round_to(to[c], grad(logs, c) + own * (all - share) + other);
    }
  }
}

// ---- products ----

template <class T>
__device__ __forceinline__ NumberOf<T> entry(const Matrix& m, int64_t batch, int64_t row, int64_t column) {
  return to_float(*reinterpret_cast<const T*>(m.data + batch * m.batch + row * m.row + column * m.column));
}
template <class T>
__device__ __forceinline__ void set_entry(const Matrix& m, int64_t batch, int64_t row, int64_t column,
                                          NumberOf<T> value) {
  round_to(*reinterpret_cast<T*>(m.data + batch * m.batch + row * m.row + column * m.column), value);
}

// A thread per element of the product: the log of its sum, rounded to `out` or kept in `totals`.
template <class T>
__global__ void __launch_bounds__(kThreads<T>, kLeastBlocks<T>)
    multiply_logs(const __grid_constant__ ProductTask task, NumberOf<T>* totals) {
  using N = NumberOf<T>;
  const int64_t all = task.batch * task.X * task.Z, step = int64_t{gridDim.x} * kThreads<T>;
  const N alpha = static_cast<N>(task.alpha);
  for (int64_t i = int64_t{blockIdx.x} * kThreads<T> + threadIdx.x; i < all; i += step) {
    const int64_t row = i / task.Z, z = i - row * task.Z, batch = row / task.X, x = row - batch * task.X;
    N most = least_of_all<N>(), sum = 0;
    for (int64_t y = 0; y < task.Y; ++y) {
      const N v = entry<T>(task.a, batch, x, y) + entry<T>(task.b, batch, y, z);
      if (v > most) {
        sum = sum * number_exp((most - v) * alpha) + 1;
        most = v;
      } else if (v > least_of_all<N>()) {
        sum += number_exp((v - most) * alpha);
      } else if (v != v) {
        sum = v;
        most = 0;
      }
    }
    const N total = sum == 0 ? most : most + number_log(sum) / alpha;
    if (totals != nullptr) {
      totals[i] = total;
      continue;
    }
    const bool average = task.mean && task.Y > 0;  // of nothing: -inf
    const N count = average ? static_cast<N>(::log(static_cast<double>(task.Y)) / task.alpha) : N(0);
    set_entry<T>(task.out, batch, x, z, total - count);
  }
}

// A thread per element of a gradient: of a, or of b.
template <class T, bool of_a>
__global__ void __launch_bounds__(kThreads<T>, kLeastBlocks<T>)
    product_gradient(const __grid_constant__ ProductTask task, const NumberOf<T>* totals) {
  using N = NumberOf<T>;
  const int64_t rows = of_a ? task.X : task.Y, columns = of_a ? task.Y : task.Z;
  const int64_t over = of_a ? task.Z : task.X, step = int64_t{gridDim.x} * kThreads<T>;
  const N alpha = static_cast<N>(task.alpha);
  for (int64_t i = int64_t{blockIdx.x} * kThreads<T> + threadIdx.x; i < task.batch * rows * columns;
       i += step) {
    const int64_t line = i / columns, column = i - line * columns, batch = line / rows;
    const int64_t row = line - batch * rows;
    N sum = 0;
    for (int64_t k = 0; k < over; ++k) {
      const int64_t x = of_a ? row : k, y = of_a ? column : row, z = of_a ? k : column;
      const N total = totals[(batch * task.X + x) * task.Z + z];
      if (total == least_of_all<N>()) continue;
      const N v = entry<T>(task.a, batch, x, y) + entry<T>(task.b, batch, y, z);
      sum += entry<T>(task.grad, batch, x, z) * number_exp((v - total) * alpha);
    }
    set_entry<T>(of_a ? task.a_grad : task.b_grad, batch, row, column, sum);
  }
}

// ---- launches ----

template <class F>
void with_element(Element element, F&& f) {
  switch (element) {
    case Element::f32:
      return f(float{});
    case Element::bf16:
      return f(uint16_t{});
    case Element::f64:
      return f(double{});
  }
}

// Calls f with the formula's number.
template <class F>
void with_formula(Formula formula, F&& f) {
  switch (formula) {
    case Formula::log_and:
      return f(std::integral_constant<int, static_cast<int>(Formula::log_and)>{});
    case Formula::log_or:
      return f(std::integral_constant<int, static_cast<int>(Formula::log_or)>{});
    case Formula::postfix:
      return f(std::integral_constant<int, static_cast<int>(Formula::postfix)>{});
  }
}

template <class T>
unsigned grid_of(int64_t tasks, int64_t per_block = kThreads<T>) {
  return grid_for((tasks + per_block - 1) / per_block, kBlocksPerMultiprocessor);
}

// Targets are the axes where target(k), the others are reduced.
template <class F>
Plan plan_of(const Task& task, F&& target) {
  Plan plan{};
  plan.targets.size = plan.reduced.size = 1;
  for (int k = 0; k < kMostAxes; ++k) {
    plan.targets.counts[k] = target(k) ? task.counts[k] : 1;
    plan.reduced.counts[k] = target(k) ? 1 : task.counts[k];
    plan.targets.size *= plan.targets.counts[k];
    plan.reduced.size *= plan.reduced.counts[k];
  }
  const int64_t pieces = (plan.reduced.size + kPiece - 1) / kPiece;
  plan.pieces = pieces < 1 ? 1 : pieces > kMostPieces ? kMostPieces : pieces;
  // Half as many threads as there are elements, so that each has some.
  plan.group = 1;
  while (plan.group < 64 && plan.group * 4 <= plan.reduced.size) plan.group *= 2;
  return plan;
}

Plan result_plan(const Task& task) {
  return plan_of(task, [&](int k) { return task.kept[k]; });
}
Plan gradient_plan(const Task& task, int operand) {
  return plan_of(task, [&](int k) { return task.grads[operand].strides[k] != 0; });
}

template <class T>
void run_quantify(const Task& task, char* scratch, Queue queue) {
  const Plan plan = result_plan(task);
  with_formula(task.formula, [&](auto formula) {
    if (task.reduction.quantifier == Quantifier::copy) {
      return launch(queue.stream, grid_of<T>(plan.targets.size), kThreads<T>, evaluate_elements<T, formula()>,
                    task, plan);
    }
    auto* const partial = reinterpret_cast<Seen<NumberOf<T>>*>(scratch);
    launch(queue.stream, grid_of<T>(plan.targets.size * plan.pieces, kThreads<T> / plan.group), kThreads<T>,
           reduce_pieces<T, formula()>, task, plan, partial);
    launch(queue.stream, grid_of<T>(plan.targets.size), kThreads<T>, finish_results<T>, task, plan, partial);
  });
}

template <class T>
void run_backward(const Task& task, char* scratch, Queue queue) {
  for (int i = 0; i < task.operands; ++i) {
    if (task.grads[i].data == nullptr) continue;
    const Plan plan = gradient_plan(task, i);
    if (plan.targets.size == 0) continue;
    double* const partial = reinterpret_cast<double*>(scratch);
    with_formula(task.formula, [&](auto formula) {
      launch(queue.stream, grid_of<T>(plan.targets.size * plan.pieces, kThreads<T> / plan.group), kThreads<T>,
             reduce_gradient<T, formula()>, task, plan, i, partial);
    });
    launch(queue.stream, grid_of<T>(plan.targets.size), kThreads<T>, finish_gradient<T>, task.grads[i],
           task.add_to[i], plan, partial);
  }
}

}  // namespace

int64_t scratch_bytes(const Task& task, bool backward) {
  if (!backward) {
    if (task.reduction.quantifier == Quantifier::copy) return 0;
    const Plan plan = result_plan(task);
    return plan.targets.size * plan.pieces * static_cast<int64_t>(sizeof(Seen<double>));
  }
  int64_t most = 0;
  for (int i = 0; i < task.operands; ++i) {
    if (task.grads[i].data == nullptr) continue;
    const Plan plan = gradient_plan(task, i);
    const int64_t bytes = plan.targets.size * plan.pieces * static_cast<int64_t>(sizeof(double));
    most = bytes > most ? bytes : most;
  }
  return most;
}

void quantify(const Task& task, char* scratch, Queue queue) {
  const DeviceGuard guard(queue.device);
  with_element(task.element, [&](auto zero) { run_quantify<decltype(zero)>(task, scratch, queue); });
}

void quantify_backward(const Task& task, char* scratch, Queue queue) {
  const DeviceGuard guard(queue.device);
  with_element(task.element, [&](auto zero) { run_backward<decltype(zero)>(task, scratch, queue); });
}

void segments(const SegmentTask& task, int64_t values, Queue queue) {
  if (task.segments == 0) return;
  const DeviceGuard guard(queue.device);
  static const DeferredSlot slot("row_ptr", "segments",
                                 "no numbers that never fall, from 0 to the number of values");
  with_element(task.element, [&](auto zero) {
    using T = decltype(zero);
    launch(queue.stream, grid_of<T>(task.segments), kThreads<T>, reduce_segments<T>, task, values,
           slot.word());
  });
}

void segments_backward(const SegmentTask& task, int64_t values, Queue queue) {
  if (values == 0) return;
  const DeviceGuard guard(queue.device);
  with_element(task.element, [&](auto zero) {
    using T = decltype(zero);
    launch(queue.stream, grid_of<T>(values), kThreads<T>, segment_gradients<T>, task, values);
  });
}

void atom_logits(const AtomTask& task, Queue queue) {
  if (task.rows == 0) return;
  const DeviceGuard guard(queue.device);
  static const DeferredSlot slot("index", "atom_logits", "out of range, want a class");
  with_element(task.element, [&](auto zero) {
    using T = decltype(zero);
    if (task.softmax) {
      launch(queue.stream, grid_of<T>(task.rows), kThreads<T>, softmax_atoms<T>, task, slot.word());
    } else {
      launch(queue.stream, grid_of<T>(task.rows), kThreads<T>, sigmoid_atoms<T>, task, false);
    }
  });
}

void atom_logits_backward(const AtomTask& task, Queue queue) {
  if (task.rows == 0) return;
  const DeviceGuard guard(queue.device);
  with_element(task.element, [&](auto zero) {
    using T = decltype(zero);
    if (task.softmax) {
      launch(queue.stream, grid_of<T>(task.rows), kThreads<T>, softmax_gradients<T>, task);
    } else {
      launch(queue.stream, grid_of<T>(task.rows), kThreads<T>, sigmoid_atoms<T>, task, true);
    }
  });
}

int64_t product_scratch(const ProductTask& task) {
  const int64_t bytes = task.element == Element::f64 ? 8 : 4;
  return task.batch * task.X * task.Z * bytes;
}

void logmatmul(const ProductTask& task, Queue queue) {
  const DeviceGuard guard(queue.device);
  with_element(task.element, [&](auto zero) {
    using T = decltype(zero);
    launch(queue.stream, grid_of<T>(task.batch * task.X * task.Z), kThreads<T>, multiply_logs<T>, task,
           static_cast<NumberOf<T>*>(nullptr));
  });
}

void logmatmul_backward(const ProductTask& task, char* scratch, Queue queue) {
  const DeviceGuard guard(queue.device);
  with_element(task.element, [&](auto zero) {
    using T = decltype(zero);
    auto* const totals = reinterpret_cast<NumberOf<T>*>(scratch);
    const int64_t all = task.batch * task.X * task.Z, of_a = task.batch * task.X * task.Y,
                  of_b = task.batch * task.Y * task.Z;
    if (all > 0) launch(queue.stream, grid_of<T>(all), kThreads<T>, multiply_logs<T>, task, totals);
    if (task.a_grad.data != nullptr && of_a > 0) {
      launch(queue.stream, grid_of<T>(of_a), kThreads<T>, product_gradient<T, true>, task, totals);
    }
    if (task.b_grad.data != nullptr && of_b > 0) {
      launch(queue.stream, grid_of<T>(of_b), kThreads<T>, product_gradient<T, false>, task, totals);
    }
  });
}

}  // namespace tenfold::fuzzy::cuda
