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

namespace tenfold::moe {
namespace TENFOLD_LEVEL {
namespace {

// Below this much work per thread, waking a thread costs more than it saves.
constexpr int64_t kGrainLogits = 1 << 13;
constexpr int64_t kGrainBytes = 1 << 18;

constexpr float kInfinity = __builtin_inff();

// The smallest place that any thread found wrong: the same for every number of threads.
class Fault {
 public:
  void at(int64_t place) {
    int64_t before = __atomic_load_n(&place_, __ATOMIC_RELAXED);
    while (place < before &&
           !__atomic_compare_exchange_n(&place_, &before, place, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)) {
    }
  }
  int64_t place() const { return place_ == kNone ? kFine : place_; }

 private:
  static constexpr int64_t kNone = INT64_MAX;
  int64_t place_ = kNone;
};

int64_t padded(int64_t experts) { return (experts + kFloatLanes - 1) / kFloatLanes * kFloatLanes; }

template <class T>
void read_strided(float* to, const char* from, int64_t stride, int64_t count) {
  if (stride == static_cast<int64_t>(sizeof(T))) {
    for (int64_t e = 0; e < count; ++e) to[e] = to_float(read<T>(from + e * static_cast<int64_t>(sizeof(T))));
  } else {
    for (int64_t e = 0; e < count; ++e) to[e] = to_float(read<T>(from + e * stride));
  }
}

// The logits of one token, padded with -infinity. Returns the first expert whose logit is no finite number.
int64_t read_logits(float* to, const Logits& logits, int64_t sample, int64_t token, int64_t experts) {
  const char* const from = logits.data + sample * logits.sample_stride + token * logits.token_stride;
  if (logits.bf16) {
    read_strided<uint16_t>(to, from, logits.expert_stride, experts);
  } else {
    read_strided<float>(to, from, logits.expert_stride, experts);
  }
  bool fine = true;
  for (int64_t e = 0; e < experts; ++e) fine &= __builtin_fabsf(to[e]) < kInfinity;
  for (int64_t e = experts; e < padded(experts); ++e) to[e] = -kInfinity;
  if (fine) return kFine;
  int64_t e = 0;
  while (__builtin_fabsf(to[e]) < kInfinity) ++e;
  return e;
}

// Replaces logits by e^(logit - highest) and returns their sum.
float exponentials(float* row, int64_t experts) {
  Floats most = load(row);
  for (int64_t e = kFloatLanes; e < experts; e += kFloatLanes) {
    const Floats other = load(row + e);
    most = other > most ? other : most;
  }
  const float highest = max_of(most);
  Floats sum{};
  for (int64_t e = 0; e < experts; e += kFloatLanes) {
    const Floats value = exp(load(row + e) - highest);
    store(row + e, value);
    sum += value;
  }
  return sum_of(sum);
}

// ---- top-k ----

// The k highest of row, ids ascending; of equal ones the lower id is taken first.
void choose(int32_t* ids, float* values, const float* row, int64_t experts, int64_t k) {
  int64_t filled = 0;
  for (int64_t e = 0; e < experts; ++e) {
    const float value = row[e];
    if (filled == k && value <= values[k - 1]) continue;
    int64_t at = filled < k ? filled++ : k - 1;
    for (; at > 0 && value > values[at - 1]; --at) {
      values[at] = values[at - 1];
      ids[at] = ids[at - 1];
    }
    values[at] = value;
    ids[at] = static_cast<int32_t>(e);
  }
  for (int64_t i = 1; i < k; ++i) {
    const int32_t id = ids[i];
    int64_t at = i;
    for (; at > 0 && ids[at - 1] > id; --at) ids[at] = ids[at - 1];
    ids[at] = id;
  }
}

int64_t slices_at_least(int64_t work) { return 1 + kSlices * kGrainLogits / (work + 1); }

// Gives every choice its row: an expert's rows in the order of the tokens. `chosen` (T, k) ascends within a
// token, `counts` (slices, experts) are the choices of each slice of tokens; put(row, i) writes the rest.
template <class Put>
void place(const int32_t* chosen, int32_t* counts, Sizes sizes, const RoutingOut& out, Put&& put) {
  const int64_t tokens = sizes.tokens, experts = sizes.experts, k = sizes.taken;
  int32_t row = 0;
  for (int64_t e = 0; e < experts; ++e) {
    for (int64_t slice = 0; slice < kSlices; ++slice) {
      int32_t& count = counts[slice * experts + e];
      const int32_t first = row;
      row += count;
      count = first;  // now where the slice's next row of this expert goes
    }
    out.offsets[e] = row;
  }
  parallel_for(kSlices, slices_at_least(tokens * k), [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      int32_t* const next = counts + slice * experts;
      for (int64_t t = tokens * slice / kSlices; t < tokens * (slice + 1) / kSlices; ++t) {
        out.starts[t] = static_cast<int32_t>(t * k);
        for (int64_t i = t * k; i < (t + 1) * k; ++i) {
          const int32_t to = next[chosen[i]]++;
          out.token_ids[to] = static_cast<int32_t>(t);
          out.rows[i] = to;
          put(to, i);
        }
      }
    }
  });
  out.starts[tokens] = static_cast<int32_t>(tokens * k);
}

int64_t route_topk(const Logits& logits, Sizes sizes, bool renormalize, const RoutingOut& out) {
  const int64_t tokens = sizes.tokens, experts = sizes.experts, k = sizes.taken;
  const int64_t grain = slices_at_least(tokens * experts);
  Scratch<int32_t> chosen(tokens * k), counts(kSlices * experts);
  Scratch<float> gates(tokens * k);
  std::memset(counts.data(), 0, static_cast<size_t>(kSlices * experts) * sizeof(int32_t));
  Fault fault;
  parallel_for(kSlices, grain, [&](int64_t begin, int64_t end) {
    Scratch<float> row(padded(experts)), values(k);
    for (int64_t slice = begin; slice < end; ++slice) {
      int32_t* const count = counts.data() + slice * experts;
      for (int64_t t = tokens * slice / kSlices; t < tokens * (slice + 1) / kSlices; ++t) {
        const int64_t wrong = read_logits(row.data(), logits, 0, t, experts);
        if (wrong != kFine) return fault.at(t * experts + wrong);
        int32_t* const ids = chosen.data() + t * k;
        choose(ids, values.data(), row.data(), experts, k);
        float sum = exponentials(row.data(), experts);
        if (renormalize) {
          sum = 0.0f;
          for (int64_t i = 0; i < k; ++i) sum += row[ids[i]];
        }
        for (int64_t i = 0; i < k; ++i) {
          gates[t * k + i] = row[ids[i]] / sum;
          ++count[ids[i]];
        }
      }
    }
  });
  if (fault.place() != kFine) return fault.place();
  place(chosen.data(), counts.data(), sizes, out, [&](int32_t row, int64_t i) { out.gates[row] = gates[i]; });
  return kFine;
}

int64_t read_id(const Ids& ids, int64_t token, int64_t choice) {
  const char* const at = ids.data + token * ids.token_stride + choice * ids.choice_stride;
  return ids.wide ? read<int64_t>(at) : read<int32_t>(at);
}

int64_t route_ids(const Ids& expert_ids, Sizes sizes, const RoutingOut& out) {
  const int64_t tokens = sizes.tokens, experts = sizes.experts, k = sizes.taken;
  Scratch<int32_t> chosen(tokens * k), origin(tokens * k), counts(kSlices * experts);
  std::memset(counts.data(), 0, static_cast<size_t>(kSlices * experts) * sizeof(int32_t));
  Fault fault;
  parallel_for(kSlices, slices_at_least(tokens * k), [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      for (int64_t t = tokens * slice / kSlices; t < tokens * (slice + 1) / kSlices; ++t) {
        int32_t* const ids = chosen.data() + t * k;
        int32_t* const from = origin.data() + t * k;
        for (int64_t i = 0; i < k; ++i) {
          const int64_t id = read_id(expert_ids, t, i);
          if (id < 0 || id >= experts) return fault.at(t * k + i);
          int64_t at = i;  // a token's rows ascend with the expert
          for (; at > 0 && ids[at - 1] > id; --at) {
            ids[at] = ids[at - 1];
            from[at] = from[at - 1];
          }
          ids[at] = static_cast<int32_t>(id);
          from[at] = static_cast<int32_t>(t * k + i);
          ++counts[slice * experts + id];
        }
      }
    }
  });
  if (fault.place() != kFine) return fault.place();
  place(chosen.data(), counts.data(), sizes, out,
        [&](int32_t row, int64_t i) { out.source[row] = origin[i]; });
  return kFine;
}

// ---- expert choice ----

int bit_length(uint32_t x) { return x == 0 ? 0 : 32 - __builtin_clz(x); }

// The value of which `taken` keys are at or above, and in `*of_equal` how many of those equal to it are
// taken: histograms of 256 bins, each within one bin of the one before.
uint32_t threshold(const uint32_t* keys, int64_t count, int64_t taken, int64_t* of_equal) {
  uint32_t low = keys[0], high = keys[0];
  for (int64_t n = 1; n < count; ++n) {
    low = keys[n] < low ? keys[n] : low;
    high = keys[n] > high ? keys[n] : high;
  }
  uint32_t width = high - low;
  int64_t wanted = taken;
  while (width > 0) {
    const int length = bit_length(width);
    const int shift = length > 8 ? length - 8 : 0;
    int32_t histogram[256] = {};
    for (int64_t n = 0; n < count; ++n) {
      const uint32_t above = keys[n] - low;
      if (above <= width) ++histogram[above >> shift];
    }
    int bin = 255;
    for (; histogram[bin] < wanted; --bin) wanted -= histogram[bin];
    low += static_cast<uint32_t>(bin) << shift;
    width = (1u << shift) - 1u;
  }
  *of_equal = wanted;
  return low;
}

int64_t route_expert_choice(const Logits& logits, Sizes sizes, const RoutingOut& out) {
  const int64_t batch = sizes.batch, tokens = sizes.tokens, experts = sizes.experts, taken = sizes.taken;
  Scratch<uint32_t> keys(batch * experts * tokens);  // bits of softmax: they order as the numbers do
  Fault fault;
  parallel_for(batch * tokens, 1 + kGrainLogits / experts, [&](int64_t begin, int64_t end) {
    Scratch<float> row(padded(experts));
    for (int64_t t = begin; t < end; ++t) {
      const int64_t b = t / tokens, n = t - b * tokens;
      const int64_t wrong = read_logits(row.data(), logits, b, n, experts);
      if (wrong != kFine) return fault.at(t * experts + wrong);
      const float sum = exponentials(row.data(), experts);
      for (int64_t e = 0; e < experts; ++e) {
        const float gate = row[e] / sum;
        std::memcpy(&keys[(b * experts + e) * tokens + n], &gate, sizeof gate);
      }
    }
  });
  if (fault.place() != kFine) return fault.place();
  parallel_for(batch, 1 + kGrainLogits / (experts * tokens + 1), [&](int64_t begin, int64_t end) {
    Scratch<int32_t> next(tokens + 1);
    for (int64_t b = begin; b < end; ++b) {
      std::memset(next.data(), 0, static_cast<size_t>(tokens + 1) * sizeof(int32_t));
      for (int64_t e = 0; e < experts; ++e) {
        const uint32_t* const key = keys.data() + (b * experts + e) * tokens;
        int64_t of_equal = 0;
        const uint32_t least = taken > 0 ? threshold(key, tokens, taken, &of_equal) : UINT32_MAX;
        int64_t row = (e * batch + b) * taken;
        for (int64_t n = 0; n < tokens && row < (e * batch + b + 1) * taken; ++n) {
          if (key[n] < least || (key[n] == least && --of_equal < 0)) continue;
          out.token_ids[row] = static_cast<int32_t>(b * tokens + n);
          std::memcpy(&out.gates[row], &key[n], sizeof(float));
          ++next[n];
          ++row;
        }
      }
      int32_t start = static_cast<int32_t>(b * experts * taken);
      for (int64_t n = 0; n < tokens; ++n) {
        const int32_t count = next[n];
        out.starts[b * tokens + n] = next[n] = start;
        start += count;
      }
      for (int64_t e = 0; e < experts; ++e) {
        for (int64_t row = (e * batch + b) * taken; row < (e * batch + b + 1) * taken; ++row) {
          out.rows[next[out.token_ids[row] - b * tokens]++] = static_cast<int32_t>(row);
        }
      }
    }
  });
  for (int64_t e = 0; e < experts; ++e) out.offsets[e] = static_cast<int32_t>((e + 1) * batch * taken);
  out.starts[batch * tokens] = static_cast<int32_t>(experts * batch * taken);
  return kFine;
}

// ---- the gradient of the gates ----

int64_t route_backward(float* grad, const Logits& logits, const float* gates_grad, const int32_t* starts,
                       const int32_t* rows, const int32_t* offsets, int64_t row_count, bool renormalize,
                       Sizes sizes) {
  const int64_t experts = sizes.experts;
  Fault fault;
  parallel_for(sizes.batch * sizes.tokens, 1 + kGrainLogits / experts, [&](int64_t begin, int64_t end) {
    Scratch<float> row(padded(experts));
    for (int64_t t = begin; t < end; ++t) {
      const int64_t first = starts[t], last = starts[t + 1];
      if (first < 0 || last < first || last > row_count) return fault.at(t);
      if (read_logits(row.data(), logits, t / sizes.tokens, t % sizes.tokens, experts) != kFine) {
        return fault.at(t);
      }
      float sum = exponentials(row.data(), experts);
      float* const to = grad + t * experts;
      std::memset(to, 0, static_cast<size_t>(experts) * sizeof(float));
      float chosen = 0.0f, product = 0.0f;
      int64_t e = 0;
      // `to` holds the gates' gradients first, and softmax's own gradient in the end.
      for (int64_t i = first; i < last; ++i) {
        const int64_t at = rows[i];
        if (at < 0 || at >= row_count) return fault.at(t);
        while (e < experts && at >= offsets[e]) ++e;
        if (e == experts) return fault.at(t);
        to[e] = gates_grad[at];
        chosen += row[e];
        product += row[e] * gates_grad[at];
      }
      if (renormalize) {
        const float mean = chosen > 0.0f ? product / chosen : 0.0f;
        e = 0;
        for (int64_t i = first; i < last; ++i) {
          while (rows[i] >= offsets[e]) ++e;
          to[e] = row[e] / chosen * (to[e] - mean);
        }
      } else {
        const float mean = product / sum;
        for (int64_t x = 0; x < experts; ++x) to[x] = row[x] / sum * (to[x] - mean);
      }
    }
  });
  return fault.place();
}

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
