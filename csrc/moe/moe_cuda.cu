// Mixture of experts on a GPU. Which rows there are, and in which order, is the CPU's to the bit; gates and
// sums agree to rounding, for they are added up in another order.
//
// Wrong values are reported as core/deferred.h says; no memory outside the arrays is touched, whatever the
// ids.
#include <math.h>

#include <cstdint>

#include "core/bfloat16.h"
#include "core/cuda.cuh"
#include "core/deferred.h"
#include "moe/moe.h"

namespace tenfold::moe::cuda {
namespace {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;
constexpr int kLeastBlocks = 3;
constexpr int kBlocksPerMultiprocessor = 8;
constexpr unsigned kAll = 0xffffffffu;
constexpr int kBins = 256;

__device__ __forceinline__ float logit(const Logits& logits, int64_t sample, int64_t token, int64_t expert) {
  const char* const at = logits.data + sample * logits.sample_stride + token * logits.token_stride +
                         expert * logits.expert_stride;
  return logits.bf16 ? to_float(*reinterpret_cast<const uint16_t*>(at)) : *reinterpret_cast<const float*>(at);
}

__device__ __forceinline__ bool finite(float x) { return fabsf(x) < INFINITY; }

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x = fmaxf(x, __shfl_xor_sync(kAll, x, lanes));
  return x;
}

template <class T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
  for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) x += __shfl_xor_sync(kAll, x, lanes);
  return x;
}

struct Softmax {
  float highest, sum;
};

// Of one token's logits, by a whole warp. A logit that is no finite number is reported.
__device__ Softmax softmax_of(const Logits& logits, int64_t sample, int64_t token, const Sizes& sizes,
                              DeferredWord* bad) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  float highest = -INFINITY;
  for (int64_t e = lane; e < sizes.experts; e += kWarp) {
    const float x = logit(logits, sample, token, e);
    if (!finite(x) && bad != nullptr) *bad = deferred_place(sample * sizes.tokens + token, e);
    highest = fmaxf(highest, x);
  }
  highest = warp_max(highest);
  float sum = 0.0f;
  for (int64_t e = lane; e < sizes.experts; e += kWarp)
    sum += expf(logit(logits, sample, token, e) - highest);
  return {highest, warp_sum(sum)};
}

// Tokens of a warp: warp w of the grid takes w, w + warps, ...
__device__ __forceinline__ int64_t first_of_warp() {
  return int64_t{blockIdx.x} * kWarps + static_cast<int64_t>(threadIdx.x) / kWarp;
}
__device__ __forceinline__ int64_t warps_of_grid() { return int64_t{gridDim.x} * kWarps; }

// ---- top-k ----

// chosen[t, i] and chosen_gates[t, i] for i < k, best first.
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    choose_experts(const Logits logits, const Sizes sizes, const bool renormalize, int32_t* chosen,
                   float* chosen_gates, int32_t* starts, DeferredWord* bad) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  const int64_t k = sizes.taken;
  for (int64_t t = first_of_warp(); t < sizes.tokens; t += warps_of_grid()) {
    const Softmax softmax = softmax_of(logits, 0, t, sizes, bad);
    float last = INFINITY, sum = 0.0f;
    int last_id = -1;
    for (int64_t i = 0; i < k; ++i) {
      // The best of those that come after the last one; every warp finds one even among NaN.
      float best = -INFINITY;
      int id = static_cast<int>(sizes.experts);
      for (int e = lane; e < sizes.experts; e += kWarp) {
        const float x = logit(logits, 0, t, e);
        const bool after = x < last || (x == last && e > last_id);
        if (after && (x > best || id == sizes.experts)) {
          best = x;
          id = e;
        }
      }
#pragma unroll
      for (int lanes = kWarp / 2; lanes > 0; lanes /= 2) {
        const float other = __shfl_xor_sync(kAll, best, lanes);
        const int other_id = __shfl_xor_sync(kAll, id, lanes);
        const bool better = other > best || (other == best && other_id < id);
        best = better ? other : best;
        id = better ? other_id : id;
      }
      id = id < sizes.experts ? id : 0;
      last = best;
      last_id = id;
      const float weight = expf(best - softmax.highest);
      sum += weight;
      if (lane == 0) {
        chosen[t * k + i] = id;
        chosen_gates[t * k + i] = weight;
      }
    }
    __syncwarp();
    const float divisor = renormalize ? sum : softmax.sum;
    for (int64_t i = lane; i < k; i += kWarp) chosen_gates[t * k + i] /= divisor;
    if (lane == 0) {
      starts[t] = static_cast<int32_t>(t * k);
      if (t == sizes.tokens - 1) starts[t + 1] = static_cast<int32_t>((t + 1) * k);
    }
  }
}

// The sum over a block, known to every thread. `parts` is shared, of kWarps elements.
template <class Parts>
__device__ int block_sum(Parts& parts, int x) {
  const int thread = static_cast<int>(threadIdx.x);
  x = warp_sum(x);
  __syncthreads();  // parts may still be read
  if (thread % kWarp == 0) parts[thread / kWarp] = x;
  __syncthreads();
  int sum = 0;
#pragma unroll
  for (int warp = 0; warp < kWarps; ++warp) sum += parts[warp];
  return sum;
}

// How many threads before this one say yes, and in `*all` how many of the block do.
template <class Parts>
__device__ int rank_in_block(Parts& parts, bool yes, int* all) {
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  const unsigned votes = __ballot_sync(kAll, yes);
  __syncthreads();  // parts may still be read
  if (lane == 0) parts[warp] = __popc(votes);
  __syncthreads();
  int rank = __popc(votes & ((1u << lane) - 1u)), sum = 0;
#pragma unroll
  for (int other = 0; other < kWarps; ++other) {
    rank += other < warp ? parts[other] : 0;
    sum += parts[other];
  }
  *all = sum;
  return rank;
}

// chosen[t, i] = expert_ids[t, i]; one out of range is reported and becomes 0.
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    read_choice(const Ids ids, const Sizes sizes, int32_t* chosen, int32_t* starts, DeferredWord* bad) {
  const int64_t k = sizes.taken, threads = int64_t{gridDim.x} * kThreads;
  for (int64_t i = int64_t{blockIdx.x} * kThreads + threadIdx.x; i < sizes.tokens * k; i += threads) {
    const int64_t t = i / k, choice = i - t * k;
    const char* const at = ids.data + t * ids.token_stride + choice * ids.choice_stride;
    const int64_t id =
        ids.wide ? *reinterpret_cast<const int64_t*>(at) : *reinterpret_cast<const int32_t*>(at);
    const bool good = static_cast<uint64_t>(id) < static_cast<uint64_t>(sizes.experts);
    if (!good) *bad = deferred_place(t, choice);
    chosen[i] = good ? static_cast<int32_t>(id) : 0;
  }
  for (int64_t t = int64_t{blockIdx.x} * kThreads + threadIdx.x; t <= sizes.tokens; t += threads) {
    starts[t] = static_cast<int32_t>(t * k);
  }
}

__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    count_rows(const int32_t* chosen, const Sizes sizes, int32_t* counts) {
  TENFOLD_SHARED(int, parts, kWarps);
  for (int64_t e = blockIdx.x; e < sizes.experts; e += gridDim.x) {
    int mine = 0;
    for (int64_t i = threadIdx.x; i < sizes.tokens * sizes.taken; i += kThreads) mine += chosen[i] == e;
    const int count = block_sum(parts, mine);
    if (threadIdx.x == 0) counts[e] = count;
  }
}

// An expert's rows in the order of the tokens; a block per expert.
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    place_rows(const int32_t* chosen, const float* chosen_gates, const int32_t* counts, const Sizes sizes,
               const RoutingOut out) {
  TENFOLD_SHARED(int, parts, kWarps);
  const int64_t k = sizes.taken;
  if (sizes.tokens == 0 && blockIdx.x == 0 && threadIdx.x == 0) out.starts[0] = 0;
  for (int64_t e = blockIdx.x; e < sizes.experts; e += gridDim.x) {
    int before = 0;
    for (int64_t other = threadIdx.x; other < e; other += kThreads) before += counts[other];
    int64_t row = block_sum(parts, before);
    if (threadIdx.x == 0) out.offsets[e] = static_cast<int32_t>(row + counts[e]);
    for (int64_t begin = 0; begin < sizes.tokens * k; begin += kThreads) {
      const int64_t i = begin + threadIdx.x;
      const bool mine = i < sizes.tokens * k && chosen[i] == e;
      int all = 0;
      const int64_t to = row + rank_in_block(parts, mine, &all);
      row += all;
      if (!mine) continue;
      const int64_t t = i / k;
      int64_t lower = t * k;  // the token's rows ascend with the expert
      for (int64_t j = t * k; j < (t + 1) * k; ++j) lower += chosen[j] < e || (chosen[j] == e && j < i);
      out.token_ids[to] = static_cast<int32_t>(t);
      if (chosen_gates != nullptr) {
        out.gates[to] = chosen_gates[i];
      } else {
        out.source[to] = static_cast<int32_t>(i);
      }
      out.rows[lower] = static_cast<int32_t>(to);
    }
  }
}

// ---- expert choice ----

// weights[b, e, n], the softmax over the experts.
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    weigh_tokens(const Logits logits, const Sizes sizes, float* weights, DeferredWord* bad) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t t = first_of_warp(); t < sizes.batch * sizes.tokens; t += warps_of_grid()) {
    const int64_t b = t / sizes.tokens, n = t - b * sizes.tokens;
    const Softmax softmax = softmax_of(logits, b, n, sizes, bad);
    for (int64_t e = lane; e < sizes.experts; e += kWarp) {
      const float weight = expf(logit(logits, b, n, e) - softmax.highest) / softmax.sum;
      weights[(b * sizes.experts + e) * sizes.tokens + n] = finite(weight) ? weight : 0.0f;
    }
  }
}

// The tokens of one expert and sample; a block each. As the CPU does it: moe_cpu.cpp, threshold().
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    choose_tokens(const uint32_t* keys, const Sizes sizes, const RoutingOut out) {
  TENFOLD_SHARED(int, parts, kWarps);
  TENFOLD_SHARED(int, histogram, kBins);
  TENFOLD_SHARED(uint32_t, range, 2);
  const int thread = static_cast<int>(threadIdx.x);
  for (int64_t task = blockIdx.x; task < sizes.batch * sizes.experts; task += gridDim.x) {
    const int64_t b = task / sizes.experts, e = task - b * sizes.experts;
    const uint32_t* const key = keys + task * sizes.tokens;
    __syncthreads();  // the task before may still be reading
    if (thread == 0) {
      range[0] = UINT32_MAX;
      range[1] = 0;
    }
    __syncthreads();
    for (int64_t n = thread; n < sizes.tokens; n += kThreads) {
      atomicMin(&range[0], key[n]);
      atomicMax(&range[1], key[n]);
    }
    __syncthreads();
    uint32_t low = range[0], width = range[1] - low;
    int wanted = static_cast<int>(sizes.taken);
    while (width > 0) {
      const int length = 32 - __clz(static_cast<int>(width));
      const int shift = length > 8 ? length - 8 : 0;
      __syncthreads();
      histogram[thread] = 0;  // kBins is kThreads
      __syncthreads();
      for (int64_t n = thread; n < sizes.tokens; n += kThreads) {
        const uint32_t above = key[n] - low;
        if (above <= width) atomicAdd(&histogram[static_cast<int>(above >> shift)], 1);
      }
      __syncthreads();
      int bin = kBins - 1;
      for (; histogram[bin] < wanted; --bin) wanted -= histogram[bin];
      low += static_cast<uint32_t>(bin) << shift;
      width = (1u << shift) - 1u;
    }
    int64_t row = (e * sizes.batch + b) * sizes.taken;
    int equal_before = 0;
    for (int64_t begin = 0; begin < sizes.tokens; begin += kThreads) {
      const int64_t n = begin + thread;
      const uint32_t mine = n < sizes.tokens ? key[n] : 0;
      const bool equal = n < sizes.tokens && mine == low;
      int equals = 0, all = 0;
      const int rank_of_equal = equal_before + rank_in_block(parts, equal, &equals);
      equal_before += equals;
      const bool taken = n < sizes.tokens && (mine > low || (equal && rank_of_equal < wanted));
      const int64_t to = row + rank_in_block(parts, taken, &all);
      row += all;
      if (!taken) continue;
      out.token_ids[to] = static_cast<int32_t>(b * sizes.tokens + n);
      out.gates[to] = __uint_as_float(mine);
    }
  }
}

// starts and rows of one sample; a block each. `next` holds a number per token.
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    invert_choice(const Sizes sizes, const RoutingOut out, int32_t* next) {
  TENFOLD_SHARED(int, parts, kWarps);
  const int thread = static_cast<int>(threadIdx.x), warp = thread / kWarp, lane = thread % kWarp;
  for (int64_t b = blockIdx.x; b < sizes.batch; b += gridDim.x) {
    int32_t* const mine = next + b * sizes.tokens;
    __syncthreads();
    for (int64_t n = thread; n < sizes.tokens; n += kThreads) mine[n] = 0;
    __syncthreads();
    for (int64_t i = thread; i < sizes.experts * sizes.taken; i += kThreads) {
      const int64_t e = i / sizes.taken, c = i - e * sizes.taken;
      const int64_t row = (e * sizes.batch + b) * sizes.taken + c;
      atomicAdd(&mine[out.token_ids[row] - b * sizes.tokens], 1);
    }
    __syncthreads();
    int64_t start = b * sizes.experts * sizes.taken;
    for (int64_t begin = 0; begin < sizes.tokens; begin += kThreads) {
      const int64_t n = begin + thread;
      const int count = n < sizes.tokens ? mine[n] : 0;
      int sum = count;  // over the lanes up to this one
#pragma unroll
      for (int lanes = 1; lanes < kWarp; lanes *= 2) {
        const int other = __shfl_up_sync(kAll, sum, lanes);
        sum += lane >= lanes ? other : 0;
      }
      __syncthreads();
      if (lane == kWarp - 1) parts[warp] = sum;
      __syncthreads();
      int before = 0, all = 0;
#pragma unroll
      for (int other = 0; other < kWarps; ++other) {
        before += other < warp ? parts[other] : 0;
        all += parts[other];
      }
      if (n < sizes.tokens) {
        const int32_t at = static_cast<int32_t>(start + before + sum - count);
        mine[n] = at;
        out.starts[b * sizes.tokens + n] = at;
      }
      start += all;
    }
    __syncthreads();
    for (int64_t e = 0; e < sizes.experts; ++e) {  // an expert has a token once, so no two threads meet
      for (int64_t c = thread; c < sizes.taken; c += kThreads) {
        const int64_t row = (e * sizes.batch + b) * sizes.taken + c;
        int32_t& place = mine[out.token_ids[row] - b * sizes.tokens];
        out.rows[place] = static_cast<int32_t>(row);
        ++place;
      }
      __syncthreads();
    }
  }
  if (blockIdx.x > 0) return;
  for (int64_t e = thread; e < sizes.experts; e += kThreads) {
    out.offsets[e] = static_cast<int32_t>((e + 1) * sizes.batch * sizes.taken);
  }
  if (thread == 0) {
    out.starts[sizes.batch * sizes.tokens] = static_cast<int32_t>(sizes.experts * sizes.batch * sizes.taken);
  }
}

// ---- gradients and rows ----

// The expert of a row: the first whose end lies beyond it.
__device__ __forceinline__ int64_t expert_of(const int32_t* offsets, int64_t experts, int64_t row) {
  int64_t low = 0, high = experts;
  while (low < high) {
    const int64_t middle = (low + high) / 2;
    if (offsets[middle] > row) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

struct Span {
  int64_t first, last;
  bool good;
};

__device__ __forceinline__ Span span_of(const int32_t* starts, int64_t token, int64_t row_count) {
  const int64_t first = starts[token], last = starts[token + 1];
  return {first, last, first >= 0 && last >= first && last <= row_count};
}

__device__ __forceinline__ bool inside(int64_t id, int64_t count) {
  return static_cast<uint64_t>(id) < static_cast<uint64_t>(count);
}

__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    softmax_backward(float* grad, const Logits logits, const float* gates_grad, const int32_t* starts,
                     const int32_t* rows, const int32_t* offsets, const int64_t row_count,
                     const bool renormalize, const Sizes sizes, DeferredWord* bad) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t t = first_of_warp(); t < sizes.batch * sizes.tokens; t += warps_of_grid()) {
    const int64_t b = t / sizes.tokens, n = t - b * sizes.tokens;
    const Softmax softmax = softmax_of(logits, b, n, sizes, nullptr);
    const Span span = span_of(starts, t, row_count);
    bool good = span.good;
    float chosen = 0.0f, product = 0.0f;
    for (int64_t i = span.first; good && i < span.last; ++i) {
      const int64_t row = rows[i];
      const int64_t e = inside(row, row_count) ? expert_of(offsets, sizes.experts, row) : sizes.experts;
      good = e < sizes.experts;
      if (!good) break;
      const float weight = expf(logit(logits, b, n, e) - softmax.highest);
      chosen += weight;
      product += weight * gates_grad[row];
    }
    if (!good && lane == 0) *bad = deferred_place(t, 0);
    const float divisor = renormalize ? chosen : softmax.sum;
    const float mean = divisor > 0.0f ? product / divisor : 0.0f;
    float* const to = grad + t * sizes.experts;
    for (int64_t e = lane; e < sizes.experts; e += kWarp) {
      const float weight = expf(logit(logits, b, n, e) - softmax.highest) / divisor;
      to[e] = !good ? NAN : renormalize ? 0.0f : -weight * mean;
    }
    for (int64_t i = span.first; good && i < span.last; ++i) {
      const int64_t row = rows[i], e = expert_of(offsets, sizes.experts, row);
      if (e % kWarp != lane) continue;  // the lane that has written the element above
      to[e] = expf(logit(logits, b, n, e) - softmax.highest) / divisor * (gates_grad[row] - mean);
    }
  }
}

template <class T, int count>
struct alignas(sizeof(T) * count) Vector {
  T values[count];
};

template <class T>
struct SumOf {
  using type = float;
};
template <>
struct SumOf<double> {
  using type = double;
};

// out[r] = x[token_ids[r]]: a warp per row.
template <class T, int count>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    dispatch_rows(const Table out, const Table x, const int32_t* token_ids, const int64_t rows,
                  const int64_t tokens, const int64_t width, DeferredWord* bad) {
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t r = first_of_warp(); r < rows; r += warps_of_grid()) {
    const int64_t token = token_ids[r];
    const bool good = inside(token, tokens);
    if (!good && lane == 0) *bad = deferred_place(0, r);
    T* const to = reinterpret_cast<T*>(out.data + r * out.stride);
    const T* const from = reinterpret_cast<const T*>(x.data + (good ? token : 0) * x.stride);
    for (int64_t d = int64_t{lane} * count; d < width; d += kWarp * count) {
      Vector<T, count> value{};
      if (good) {
        value = *reinterpret_cast<const Vector<T, count>*>(from + d);
      } else {
#pragma unroll
        for (int i = 0; i < count; ++i) round_to(value.values[i], NAN);
      }
      *reinterpret_cast<Vector<T, count>*>(to + d) = value;
    }
  }
}

// out[t] = the sum of gates[r] y[r], in the order of the rows: a warp per token.
template <class T, int count>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    combine_rows(const Table out, const Table y, const void* gates, const int32_t* starts,
                 const int32_t* rows, const int64_t tokens, const int64_t row_count, const int64_t width,
                 DeferredWord* bad) {
  using Sum = typename SumOf<T>::type;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t t = first_of_warp(); t < tokens; t += warps_of_grid()) {
    const Span span = span_of(starts, t, row_count);
    bool good = span.good;
    for (int64_t i = span.first; good && i < span.last; ++i) good = inside(rows[i], row_count);
    if (!good && lane == 0) *bad = deferred_place(t, 0);
    T* const to = reinterpret_cast<T*>(out.data + t * out.stride);
    for (int64_t d = int64_t{lane} * count; d < width; d += kWarp * count) {
      Sum sum[count];
#pragma unroll
      for (int i = 0; i < count; ++i) sum[i] = good ? Sum{0} : static_cast<Sum>(NAN);
      for (int64_t j = span.first; good && j < span.last; ++j) {
        const int64_t row = rows[j];
        const Sum gate = gates != nullptr ? static_cast<const Sum*>(gates)[row] : Sum{1};
        const T* const from = reinterpret_cast<const T*>(y.data + row * y.stride);
        const Vector<T, count> value = *reinterpret_cast<const Vector<T, count>*>(from + d);
#pragma unroll
        for (int i = 0; i < count; ++i) sum[i] += gate * to_float(value.values[i]);
      }
      Vector<T, count> result;
#pragma unroll
      for (int i = 0; i < count; ++i) round_to(result.values[i], sum[i]);
      *reinterpret_cast<Vector<T, count>*>(to + d) = result;
    }
  }
}

// y_grad[r] = gates[r] out_grad[token], gates_grad[r] = y[r] . out_grad[token]: a warp per row.
template <class T, int count>
__global__ void __launch_bounds__(kThreads, kLeastBlocks)
    combine_rows_backward(const Table y_grad, void* gates_grad, const Table out_grad, const Table y,
                          const void* gates, const int32_t* token_ids, const int64_t rows,
                          const int64_t tokens, const int64_t width, DeferredWord* bad) {
  using Sum = typename SumOf<T>::type;
  const int lane = static_cast<int>(threadIdx.x) % kWarp;
  for (int64_t r = first_of_warp(); r < rows; r += warps_of_grid()) {
    const int64_t token = token_ids[r];
    const bool good = inside(token, tokens);
    if (!good && lane == 0) *bad = deferred_place(0, r);
    const Sum gate = good ? static_cast<const Sum*>(gates)[r] : static_cast<Sum>(NAN);
    const T* const from = reinterpret_cast<const T*>(out_grad.data + (good ? token : 0) * out_grad.stride);
    const T* const row = reinterpret_cast<const T*>(y.data + r * y.stride);
    Sum dot = 0;
    for (int64_t d = int64_t{lane} * count; good && d < width; d += kWarp * count) {
      const Vector<T, count> grad = *reinterpret_cast<const Vector<T, count>*>(from + d);
      const Vector<T, count> value = *reinterpret_cast<const Vector<T, count>*>(row + d);
#pragma unroll
      for (int i = 0; i < count; ++i)
        dot += static_cast<Sum>(to_float(grad.values[i])) * to_float(value.values[i]);
      if (y_grad.data == nullptr) continue;
      Vector<T, count> result;
#pragma unroll
      for (int i = 0; i < count; ++i) round_to(result.values[i], gate * to_float(grad.values[i]));
      T* const to = reinterpret_cast<T*>(y_grad.data + r * y_grad.stride);
      *reinterpret_cast<Vector<T, count>*>(to + d) = result;
    }
    dot = warp_sum(dot);
    if (lane == 0) static_cast<Sum*>(gates_grad)[r] = good ? dot : static_cast<Sum>(NAN);
  }
}

// ---- launches ----

unsigned grid_of_warps(int64_t tasks) {
  return grid_for((tasks + kWarps - 1) / kWarps, kBlocksPerMultiprocessor);
}

int64_t bits_of(const Table& table) { return reinterpret_cast<int64_t>(table.data) | table.stride; }

// Calls f(T, count): the element type, and how many of them every address allows to move at once.
template <class F>
void with_elements(Element element, int64_t bits, int64_t width, F&& f) {
  const auto choose = [&](auto zero) {
    using T = decltype(zero);
    constexpr int kCount = 16 / static_cast<int>(sizeof(T));
    if (bits % 16 == 0 && width % kCount == 0) return f(zero, std::integral_constant<int, kCount>{});
    f(zero, std::integral_constant<int, 1>{});
  };
  switch (element) {
    case Element::bf16:
      return choose(uint16_t{});
    case Element::f64:
      return choose(double{});
    default:
      return choose(float{});
  }
}

}  // namespace

int64_t topk_scratch(Sizes sizes) { return 2 * sizes.tokens * sizes.taken + sizes.experts; }

void route_topk(const Logits& logits, Sizes sizes, bool renormalize, const RoutingOut& out, int32_t* scratch,
                Queue queue) {
  const DeviceGuard guard(queue.device);
  static const DeferredSlot slot("logits", "route_topk", "NaN or infinite, want numbers (token, expert)");
  int32_t* const chosen = scratch;
  float* const gates = reinterpret_cast<float*>(scratch + sizes.tokens * sizes.taken);
  int32_t* const counts = scratch + 2 * sizes.tokens * sizes.taken;
  if (sizes.tokens > 0) {
    launch(queue.stream, grid_of_warps(sizes.tokens), kThreads, choose_experts, logits, sizes, renormalize,
           chosen, gates, out.starts, slot.word());
  }
  const unsigned grid = grid_for(sizes.experts, kBlocksPerMultiprocessor);
  launch(queue.stream, grid, kThreads, count_rows, chosen, sizes, counts);
  launch(queue.stream, grid, kThreads, place_rows, chosen, gates, counts, sizes, out);
}

int64_t ids_scratch(Sizes sizes) { return sizes.tokens * sizes.taken + sizes.experts; }

void route_ids(const Ids& expert_ids, Sizes sizes, const RoutingOut& out, int32_t* scratch, Queue queue) {
  const DeviceGuard guard(queue.device);
  static const DeferredSlot slot("expert_ids", "routing_from_ids", "out of range");
  int32_t* const counts = scratch + sizes.tokens * sizes.taken;
  launch(queue.stream, grid_for((sizes.tokens * sizes.taken + kThreads) / kThreads, kBlocksPerMultiprocessor),
         kThreads, read_choice, expert_ids, sizes, scratch, out.starts, slot.word());
  const unsigned grid = grid_for(sizes.experts, kBlocksPerMultiprocessor);
  launch(queue.stream, grid, kThreads, count_rows, scratch, sizes, counts);
  launch(queue.stream, grid, kThreads, place_rows, scratch, static_cast<const float*>(nullptr), counts, sizes,
         out);
}

int64_t choice_scratch(Sizes sizes) { return sizes.batch * sizes.tokens * (sizes.experts + 1); }

void route_expert_choice(const Logits& logits, Sizes sizes, const RoutingOut& out, int32_t* scratch,
                         Queue queue) {
  const DeviceGuard guard(queue.device);
  static const DeferredSlot slot("logits", "route_expert_choice",
                                 "NaN or infinite, want numbers (token, expert)");
  if (sizes.batch * sizes.tokens > 0) {
    launch(queue.stream, grid_of_warps(sizes.batch * sizes.tokens), kThreads, weigh_tokens, logits, sizes,
           reinterpret_cast<float*>(scratch), slot.word());
  }
  if (sizes.batch * sizes.taken > 0) {
    launch(queue.stream, grid_for(sizes.batch * sizes.experts, kBlocksPerMultiprocessor), kThreads,
           choose_tokens, reinterpret_cast<const uint32_t*>(scratch), sizes, out);
  }
  launch(queue.stream, grid_for(sizes.batch > 0 ? sizes.batch : 1, kBlocksPerMultiprocessor), kThreads,
         invert_choice, sizes, out, scratch + sizes.batch * sizes.tokens * sizes.experts);
}

void route_backward(float* grad, const Logits& logits, const float* gates_grad, const int32_t* starts,
                    const int32_t* rows, const int32_t* offsets, int64_t row_count, bool renormalize,
                    Sizes sizes, Queue queue) {
  if (sizes.batch * sizes.tokens == 0) return;
  const DeviceGuard guard(queue.device);
  static const DeferredSlot slot("rows", "the gradient of a routing", "out of range (token)");
  launch(queue.stream, grid_of_warps(sizes.batch * sizes.tokens), kThreads, softmax_backward, grad, logits,
         gates_grad, starts, rows, offsets, row_count, renormalize, sizes, slot.word());
}

void dispatch(const Table& out, const Table& x, const int32_t* token_ids, int64_t rows, int64_t tokens,
              int64_t width, Element element, Queue queue) {
  if (rows * width == 0) return;
  const DeviceGuard guard(queue.device);
  static const DeferredSlot slot("token_ids", "dispatch", "out of range (row)");
  with_elements(element, bits_of(out) | bits_of(x), width, [&](auto zero, auto count) {
    launch(queue.stream, grid_of_warps(rows), kThreads, dispatch_rows<decltype(zero), count()>, out, x,
           token_ids, rows, tokens, width, slot.word());
  });
}

void combine(const Table& out, const Table& y, const void* gates, const int32_t* starts, const int32_t* rows,
             int64_t tokens, int64_t row_count, int64_t width, Element element, Queue queue) {
  if (tokens * width == 0) return;
  const DeviceGuard guard(queue.device);
  static const DeferredSlot slot("rows", "combine", "out of range (token)");
  with_elements(element, bits_of(out) | bits_of(y), width, [&](auto zero, auto count) {
    launch(queue.stream, grid_of_warps(tokens), kThreads, combine_rows<decltype(zero), count()>, out, y,
           gates, starts, rows, tokens, row_count, width, slot.word());
  });
}

void combine_backward(const Table& y_grad, void* gates_grad, const Table& out_grad, const Table& y,
                      const void* gates, const int32_t* token_ids, int64_t rows, int64_t tokens,
                      int64_t width, Element element, Queue queue) {
  if (rows == 0) return;
  const DeviceGuard guard(queue.device);
  static const DeferredSlot slot("token_ids", "the gradient of combine", "out of range (row)");
  with_elements(element, bits_of(y_grad) | bits_of(out_grad) | bits_of(y), width, [&](auto zero, auto count) {
    launch(queue.stream, grid_of_warps(rows), kThreads, combine_rows_backward<decltype(zero), count()>,
           y_grad, gates_grad, out_grad, y, gates, token_ids, rows, tokens, width, slot.word());
  });
}

}  // namespace tenfold::moe::cuda
