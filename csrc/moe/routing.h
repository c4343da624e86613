// Which rows go to which expert, one level of it (included by moe_cpu.cpp).
//
// Tokens are taken as many at a time as a vector has lanes, a lane each, and an expert after the other:
// softmax and the choice of the highest need no step across lanes, and no branch that the processor would
// have to guess.
#pragma once

#include <cstdint>
#include <cstring>

#include "core/bfloat16.h"
#include "core/copy.h"
#include "core/gemm.h"
#include "core/level.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "core/vecmath.h"
#include "moe/moe.h"

namespace tenfold::moe {
namespace TENFOLD_LEVEL {
namespace {

// Below this much work per thread, waking a thread costs more than it saves.
constexpr int64_t kGrainLogits = 1 << 13;

constexpr float kInfinity = __builtin_inff();
constexpr int64_t kTokens = kFloatLanes;  // that are taken together

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

// ---- one token ----

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
int64_t read_row(float* to, const Logits& logits, int64_t sample, int64_t token, int64_t experts) {
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

// ---- kTokens tokens ----

// Logits of up to kTokens tokens of a sample, a lane each: columns[e * kTokens + lane] is expert e of one.
struct Together {
  FloatScratch columns, rows;

  explicit Together(int64_t experts) : columns(experts * kTokens), rows(padded(experts) * kTokens) {}

  // Returns (place of the token) * experts + expert of the first logit that is no finite number, or kFine.
  int64_t read(const Logits& logits, int64_t sample, int64_t first, int64_t count, int64_t experts) {
    const char* const from = logits.data + sample * logits.sample_stride + first * logits.token_stride;
    gemm::Source source{reinterpret_cast<const float*>(from), logits.token_stride / 4,
                        logits.expert_stride / 4};
    const bool aligned = (reinterpret_cast<uintptr_t>(from) |
                          static_cast<uintptr_t>(logits.token_stride | logits.expert_stride)) %
                             4 ==
                         0;
    const bool in_place = aligned && !logits.bf16;
    if (!in_place) {
      for (int64_t i = 0; i < count; ++i) {
        read_row(rows.data() + i * experts, logits, sample, first + i, experts);
      }
      source = {rows.data(), experts, 1};
    }
    gemm::pack_panel<kTokens>(columns.data(), source, 0, count, experts);
    Ints wrong{};
    for (int64_t e = 0; e < experts; ++e) wrong |= !(minus_magnitude(column(e)) > -kInfinity);
    for (int64_t i = 0; i < count; ++i) {
      if (wrong[i] == 0) continue;
      int64_t e = 0;
      while (__builtin_fabsf(columns.data()[e * kTokens + i]) < kInfinity) ++e;
      return i * experts + e;
    }
    return kFine;
  }

  Floats column(int64_t e) { return load(columns.data() + e * kTokens); }

  // Makes logits e^(logit - highest) and returns their sums.
  Floats exponentials(int64_t experts) {
    Floats most = column(0), sum{};
    for (int64_t e = 1; e < experts; ++e) most = greater_of(column(e), most);
    for (int64_t e = 0; e < experts; ++e) {
      const Floats value = exp(column(e) - most);
      store(columns.data() + e * kTokens, value);
      sum += value;
    }
    return sum;
  }
};

// ---- top-k ----

// The highest `most` of each lane's experts, highest first; of equal ones the lower id is taken first.
template <int most>
void choose(Floats* values, Ints* ids, const float* columns, int64_t experts) {
  Floats value[most];
  Ints id[most];
  for (int i = 0; i < most; ++i) {
    value[i] = Floats{} - kInfinity;
    id[i] = Ints{};
  }
  for (int64_t e = 0; e < experts; ++e) {
    Floats x = load(columns + e * kTokens);
    Ints which = Ints{} + static_cast<int32_t>(e);
    Ints above{};
#pragma GCC unroll 8
    for (int i = 0; i < most; ++i) {  // from its place on, each moves to the next one
      above |= x > value[i];
      const Floats moved = above ? value[i] : x;
      const Ints of_moved = above ? id[i] : which;
      value[i] = above ? x : value[i];
      id[i] = above ? which : id[i];
      x = moved;
      which = of_moved;
    }
  }
  for (int i = 0; i < most; ++i) {
    values[i] = value[i];
    ids[i] = id[i];
  }
}

// The same for any k, lane by lane.
void choose_many(Floats* values, Ints* ids, const float* columns, int64_t experts, int64_t k) {
  for (int lane = 0; lane < kTokens; ++lane) {
    int64_t filled = 0;
    for (int64_t e = 0; e < experts; ++e) {
      const float value = columns[e * kTokens + lane];
      if (filled == k && value <= values[k - 1][lane]) continue;
      int64_t at = filled < k ? filled++ : k - 1;
      for (; at > 0 && value > values[at - 1][lane]; --at) {
        values[at][lane] = values[at - 1][lane];
        ids[at][lane] = ids[at - 1][lane];
      }
      values[at][lane] = value;
      ids[at][lane] = static_cast<int32_t>(e);
    }
  }
}

constexpr int kMostTogether = 8;  // choices that stay in registers

void choose_any(Floats* values, Ints* ids, const float* columns, int64_t experts, int64_t k) {
  if (k == 1) return choose<1>(values, ids, columns, experts);
  if (k == 2) return choose<2>(values, ids, columns, experts);
  if (k <= 4) return choose<4>(values, ids, columns, experts);
  if (k <= kMostTogether) return choose<kMostTogether>(values, ids, columns, experts);
  choose_many(values, ids, columns, experts, k);
}

void sort_by_id(Floats* values, Ints* ids, int64_t k) {
  for (int64_t i = 1; i < k; ++i) {
    for (int64_t at = i; at > 0; --at) {
      const Ints swap = ids[at - 1] > ids[at];
      const Ints id = ids[at];
      const Floats value = values[at];
      ids[at] = swap ? ids[at - 1] : id;
      ids[at - 1] = swap ? id : ids[at - 1];
      values[at] = swap ? values[at - 1] : value;
      values[at - 1] = swap ? value : values[at - 1];
    }
  }
}

int64_t slices_at_least(int64_t work) { return 1 + kSlices * kGrainLogits / (work + 1); }

// Gives every choice its row: an expert's rows in the order of the tokens. `chosen` (T, k) ascends within a
// token, `counts` (slices, experts) are the choices of each slice of tokens; put(row, i)
// writes the rest.
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
  Scratch<int32_t> chosen(tokens * k), counts(kSlices * experts);
  Scratch<float> gates(tokens * k);
  Fault fault;
  const int64_t blocks = (tokens + kTokens - 1) / kTokens;
  parallel_for(blocks, 1 + kGrainLogits / (experts * kTokens), [&](int64_t begin, int64_t end) {
    Together together(experts);
    const int64_t places = k > kMostTogether ? k : kMostTogether;
    FloatScratch values_of(places * kTokens), ids_of(places * kTokens);
    Floats* const values = reinterpret_cast<Floats*>(values_of.data());
    Ints* const ids = reinterpret_cast<Ints*>(ids_of.data());
    for (int64_t first = begin * kTokens; first < tokens && first < end * kTokens; first += kTokens) {
      const int64_t count = tokens - first < kTokens ? tokens - first : kTokens;
      const int64_t wrong = together.read(logits, 0, first, count, experts);
      if (wrong != kFine) return fault.at(first * experts + wrong);
      if (k == 0) continue;
      choose_any(values, ids, together.columns.data(), experts, k);
      const Floats most = values[0];
      sort_by_id(values, ids, k);
      Floats sum{};
      for (int64_t i = 0; i < k; ++i) {
        values[i] = exp(values[i] - most);
        sum += values[i];
      }
      if (!renormalize) sum = together.exponentials(experts);
      for (int64_t i = 0; i < k; ++i) {
        const Floats gate = values[i] / sum;
        for (int lane = 0; lane < count; ++lane) {
          chosen[(first + lane) * k + i] = ids[i][lane];
          gates[(first + lane) * k + i] = gate[lane];
        }
      }
    }
  });
  if (fault.place() != kFine) return fault.place();
  std::memset(counts.data(), 0, static_cast<size_t>(kSlices * experts) * sizeof(int32_t));
  parallel_for(kSlices, slices_at_least(tokens * k), [&](int64_t begin, int64_t end) {
    for (int64_t slice = begin; slice < end; ++slice) {
      int32_t* const count = counts.data() + slice * experts;
      for (int64_t i = tokens * slice / kSlices * k; i < tokens * (slice + 1) / kSlices * k; ++i)
        ++count[chosen[i]];
    }
  });
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

// A value of which `taken` keys are at or above, and in `*of_equal` how many of those equal to it are taken:
// histograms, each within one bin of the one before, until a bin's keys are all taken.
uint32_t threshold(const uint32_t* keys, int64_t count, int64_t taken, int64_t* of_equal) {
  constexpr int kBits = 7, kBins = 1 << kBits;
  uint32_t low = keys[0], high = keys[0];
  for (int64_t n = 1; n < count; ++n) {
    low = keys[n] < low ? keys[n] : low;
    high = keys[n] > high ? keys[n] : high;
  }
  uint32_t width = high - low;
  int64_t wanted = taken;
  while (width > 0) {
    const int length = bit_length(width);
    const int shift = length > kBits ? length - kBits : 0;
    int32_t histogram[kBins + 1] = {};  // in the last one what is in none
    for (int64_t n = 0; n < count; ++n) {
      const uint32_t above = keys[n] - low;
      ++histogram[above <= width ? above >> shift : kBins];
    }
    int bin = kBins - 1;
    for (; histogram[bin] < wanted; --bin) wanted -= histogram[bin];
    low += static_cast<uint32_t>(bin) << shift;
    if (histogram[bin] == wanted) break;
    width = (1u << shift) - 1u;
  }
  *of_equal = wanted;
  return low;
}

int64_t route_expert_choice(const Logits& logits, Sizes sizes, const RoutingOut& out) {
  const int64_t batch = sizes.batch, tokens = sizes.tokens, experts = sizes.experts, taken = sizes.taken;
  const int64_t blocks = (tokens + kTokens - 1) / kTokens;  // of a sample
  Scratch<uint32_t> keys(batch * experts * tokens);         // bits of softmax: they order as the numbers do
  Fault fault;
  parallel_for(batch * blocks, 1 + kGrainLogits / (experts * kTokens), [&](int64_t begin, int64_t end) {
    Together together(experts);
    for (int64_t i = begin; i < end; ++i) {
      const int64_t b = i / blocks, first = i % blocks * kTokens;
      const int64_t count = tokens - first < kTokens ? tokens - first : kTokens;
      const int64_t wrong = together.read(logits, b, first, count, experts);
      if (wrong != kFine) return fault.at((b * tokens + first) * experts + wrong);
      const Floats sum = together.exponentials(experts);
      for (int64_t e = 0; e < experts; ++e) {
        const Floats gate = together.column(e) / sum;
        uint32_t* const to = &keys[(b * experts + e) * tokens + first];
        if (count == kTokens) {
          std::memcpy(to, &gate, sizeof gate);
        } else {
          std::memcpy(to, &gate, static_cast<size_t>(count) * sizeof(float));
        }
      }
    }
  });
  if (fault.place() != kFine) return fault.place();
  parallel_for(batch, 1 + kGrainLogits / (experts * tokens + 1), [&](int64_t begin, int64_t end) {
    Scratch<int32_t> next(tokens + 1);
    for (int64_t b = begin; b < end; ++b) {
      std::memset(next.data(), 0, static_cast<size_t>(tokens + 1) * sizeof(int32_t));
      for (int64_t e = 0; e < experts; ++e) {
        const uint32_t* const key = &keys[(b * experts + e) * tokens];
        int64_t of_equal = 0;
        const uint32_t least = taken > 0 ? threshold(key, tokens, taken, &of_equal) : UINT32_MAX;
        int64_t row = (e * batch + b) * taken;
        const int64_t last = row + taken;
        // Which keys are taken cannot be foreseen: each is written, and kept by going on to the next row.
        for (int64_t n = 0; row < last; ++n) {
          const bool equal = key[n] == least;
          const bool take = key[n] > least || (equal && of_equal > 0);
          of_equal -= equal;
          out.token_ids[row] = static_cast<int32_t>(b * tokens + n);
          std::memcpy(&out.gates[row], &key[n], sizeof(float));
          next[n] += take;
          row += take;
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
      if (read_row(row.data(), logits, t / sizes.tokens, t % sizes.tokens, experts) != kFine) {
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

}  // namespace
}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::moe
