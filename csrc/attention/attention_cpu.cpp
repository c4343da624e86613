// Attention on a CPU. Everything is computed transposed, keys down and queries across: what is reduced over
// keys is then reduced lane by lane, and probabilities come out as the right operand of the next product.
//
//     scores^T = k q^T,  out^T = v^T p^T                                               (forward)
//     dp^T = v dout^T,  dv = p^T dout,  dk = ds^T q,  dq^T = k^T ds^T                  (backward)
//
// One task is one head of one sample. Its keys, without those that the mask leaves out, are packed once;
// queries are taken in blocks. Words and layouts: core/words.h.
#include <cstdint>
#include <cstring>

#include "attention/attention.h"
#include "core/level.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "core/vecmath.h"
#include "core/words.h"

namespace tenfold::attention {
namespace TENFOLD_LEVEL {
namespace {

using words::Word;

constexpr float kLog2e = 1.44269504088896341f;
// Scores of a block of queries stay in the second-level cache: fewer queries where there are many keys.
constexpr int64_t kQueries = 64, kFewQueries = 32, kManyKeys = 512;
constexpr int kVectorsAtOnce = 4;

int64_t begin_of(const int32_t* offsets, int64_t length, int64_t n) {
  return offsets != nullptr ? offsets[n] : n * length;
}
int64_t length_of(const int32_t* offsets, int64_t length, int64_t n) {
  return offsets != nullptr ? offsets[n + 1] - offsets[n] : length;
}
int64_t longest(const int32_t* offsets, int64_t length, int64_t samples) {
  int64_t most = samples > 0 ? length_of(offsets, length, 0) : 0;
  for (int64_t n = 1; n < samples; ++n) {
    const int64_t count = length_of(offsets, length, n);
    most = count > most ? count : most;
  }
  return most;
}

// The first row of a head of a sample.
char* rows_at(const Rows& rows, const int32_t* offsets, int64_t n, int64_t head) {
  char* const data = rows.data + head * rows.head;
  return offsets != nullptr ? data + offsets[n] * rows.row : data + n * rows.sample;
}

// Sizes in words and floats, padded for the products.
template <class T>
struct Sizes {
  static constexpr int64_t kGroup = 16 * (words::kWordSteps<T> > 1 ? words::kPerWord<T> : 1);

  Sizes(int64_t width, int64_t queries, int64_t most_keys)
      : width(width),
        words(words::round_up((width + words::kPerWord<T> - 1) / words::kPerWord<T>, 16)),
        across(words::round_up(width, 16)),
        keys(words::round_up(most_keys, kGroup)),
        block(queries_at_once(queries, most_keys)) {}

  int64_t width, words, across, keys, block;

  static int64_t queries_at_once(int64_t queries, int64_t keys) {
    const int64_t most = keys > kManyKeys ? kFewQueries : kQueries;
    return words::round_up(queries < most ? queries : most, kGroup);
  }
};

// Scratch memory of one thread, handed out piece by piece.
class Pieces {
 public:
  explicit Pieces(float* from) : next_(from) {}
  float* floats(int64_t count) {
    float* const piece = next_;
    next_ += words::round_up(count, 16);
    return piece;
  }
  Word* words(int64_t count) { return reinterpret_cast<Word*>(floats(count)); }

 private:
  float* next_;
};

// The keys of a sample that count: their number, and their rows (null: all of them, in order).
struct Keys {
  int64_t count;
  const int32_t* rows;

  int64_t row(int64_t j) const { return rows != nullptr ? rows[j] : j; }
};

Keys keys_of(const Problem& p, int64_t n, int32_t* memory) {
  const int64_t length = length_of(p.k_offsets, p.k_length, n);
  if (p.key_mask == nullptr) return {length, nullptr};
  int64_t count = 0;
  const uint8_t* const mask = p.key_mask + n * p.mask_sample;
  for (int64_t j = 0; j < length; ++j) {
    memory[count] = static_cast<int32_t>(j);
    count += mask[j * p.mask_key] != 0;
  }
  return {count, memory};
}

// The rows of one head lie far apart, which the hardware does not foresee: this many are asked for ahead.
constexpr int64_t kRowsAhead = 12;

template <bool write>
void prefetch_row(const char* row, int64_t bytes) {
  for (int64_t i = 0; i < bytes; i += kLineBytes) __builtin_prefetch(row + i, write ? 1 : 0, 3);
}

// One row of `bytes` to whole cache lines, zeros beyond.
void copy_line(char* to, const char* from, int64_t bytes) {
  int64_t i = 0;
  for (; i + kLineBytes <= bytes; i += kLineBytes) {
    for (int64_t j = i; j < i + kLineBytes; j += kVectorBytes) store(to + j, load(from + j));
  }
  if (i == bytes) return;
  for (int64_t j = i; j < i + kLineBytes; j += kVectorBytes) store(to + j, Bytes{});
  std::memcpy(to + i, from + i, static_cast<size_t>(bytes - i));
}

// Rows of `width` values to `padded` rows of words, zeros beyond.
template <class T>
void pack(Word* to, const char* from, int64_t row, const Keys& keys, int64_t padded, const Sizes<T>& sizes) {
  const int64_t bytes = sizes.width * static_cast<int64_t>(sizeof(T));
  for (int64_t j = 0; j < kRowsAhead && j < keys.count; ++j) {
    prefetch_row<false>(from + keys.row(j) * row, bytes);
  }
  for (int64_t j = 0; j < keys.count; ++j) {
    if (j + kRowsAhead < keys.count) prefetch_row<false>(from + keys.row(j + kRowsAhead) * row, bytes);
    copy_line(reinterpret_cast<char*>(to + j * sizes.words), from + keys.row(j) * row, bytes);
  }
  std::memset(to + keys.count * sizes.words, 0,
              static_cast<size_t>((padded - keys.count) * sizes.words) * sizeof(Word));
}

// Packed rows as the right operand of a product that sums over the rows.
template <class T>
const Word* by_rows(Word* to, int64_t stride, const Word* packed, int64_t packed_stride, int64_t rows,
                    int64_t count) {
  if constexpr (sizeof(T) == 4) return packed;
  words::interleave(to, stride, packed, packed_stride, rows, count);
  return to;
}

// Packed rows, transposed, as the left operand of a product that sums over the rows: (across x rows).
template <class T>
void by_columns(Word* to, Word* memory, const Word* packed, const Sizes<T>& sizes, int64_t rows) {
  const int64_t steps = rows / words::kPerWord<T>;
  if constexpr (sizeof(T) == 4) {
    words::transpose(to, rows, packed, sizes.words, rows, sizes.across);
  } else {
    words::interleave(memory, sizes.across, packed, sizes.words, rows, sizes.across);
    words::transpose(to, steps, memory, sizes.across, steps, sizes.across);
  }
}

// to[i] = from[i] as T, i below `width`.
template <class T>
void store_row(char* to, const float* from, int64_t width) {
  T* const row = reinterpret_cast<T*>(to);
  int64_t i = 0;
  for (; i + kFloatLanes <= width; i += kFloatLanes) words::store_values(row + i, load(from + i));
  if (i < width) {
    alignas(kLineBytes) T rest[kFloatLanes];
    words::store_values(rest, load(from + i));  // rows of scratch are padded
    std::memcpy(row + i, rest, static_cast<size_t>(width - i) * sizeof(T));
  }
}

// The columns of `from` (across x stride), times a factor each, to rows of T.
template <class T>
void store_columns(char* to, int64_t row, float* from, int64_t stride, const float* factor, int64_t count,
                   const Sizes<T>& sizes, float* memory) {
  for (int64_t i = 0; i < count; i += 16) {
    for (int64_t d = 0; d < sizes.across && factor != nullptr; ++d) {
      for (int64_t q = i; q < i + 16; q += kFloatLanes) {
        float* const at = from + d * stride + q;
        store(at, load(at) * load(factor + q));
      }
    }
    words::transpose(reinterpret_cast<Word*>(memory), sizes.across, reinterpret_cast<const Word*>(from + i),
                     stride, sizes.across, 16);
    for (int64_t q = i; q < i + 16 && q < count; ++q) {
      store_row<T>(to + q * row, memory + (q - i) * sizes.across, sizes.width);
    }
  }
}

// ---- softmax and its gradient, on some columns of scores ----

template <int vectors>
struct Columns {
  Floats of[vectors];

  static Columns all(float value) {
    Columns columns;
    for (int v = 0; v < vectors; ++v) columns.of[v] = Floats{} + value;
    return columns;
  }
  static Columns at(const float* from) {
    Columns columns;
    for (int v = 0; v < vectors; ++v) columns.of[v] = load(from + v * kFloatLanes);
    return columns;
  }
  void store_to(float* to) const {
    for (int v = 0; v < vectors; ++v) store(to + v * kFloatLanes, of[v]);
  }
};

// Scores (keys x stride) to powers: words of pairs of keys for bfloat16, in place for float. Writes each
// column's largest score and the inverse of its sum.
template <class T, int vectors>
void softmax(float* scores, Word* powers, int64_t stride, int64_t keys, int64_t padded, float scale,
             float* largest, float* inverse) {
  auto most = Columns<vectors>::at(scores);
  for (int64_t j = 1; j < keys; ++j) {
    for (int v = 0; v < vectors; ++v) {
      const Floats x = load(scores + j * stride + v * kFloatLanes);
      most.of[v] = x > most.of[v] ? x : most.of[v];  // a NaN enters through its power
    }
  }
  most.store_to(largest);
  Columns<vectors> shift;
  for (int v = 0; v < vectors; ++v) shift.of[v] = most.of[v] * scale;
  auto sum = Columns<vectors>::all(0.0f);
  const auto power = [&](int64_t j, int v) {
    const Floats x = exp2(load(scores + j * stride + v * kFloatLanes) * scale - shift.of[v]);
    sum.of[v] += x;
    return x;
  };
  for (int64_t j = 0; j < padded; j += words::kPerWord<T>) {
    for (int v = 0; v < vectors; ++v) {
      if constexpr (sizeof(T) == 4) {
        store(scores + j * stride + v * kFloatLanes, j < keys ? power(j, v) : Floats{});
      } else {
        const Floats first = j < keys ? power(j, v) : Floats{};
        const Floats second = j + 1 < keys ? power(j + 1, v) : Floats{};
        *reinterpret_cast<UnsignedInts*>(powers + j / 2 * stride + v * kFloatLanes) =
            words::pair_words(first, second);
      }
    }
  }
  for (int v = 0; v < vectors; ++v) sum.of[v] = 1.0f / sum.of[v];
  sum.store_to(inverse);
}

// What the backward pass of a block reads and writes; rows of `stride` queries.
template <class T>
struct Gradient {
  float* scores;        // (keys x stride), become probabilities
  float* grads;         // (keys x stride) of the probabilities
  Word* probabilities;  // rows of words of queries: left operand
  Word* by_query;       // the scores' gradient in the same form
  Word* by_key;         // the scores' gradient as words of pairs of keys: right operand
  int64_t stride, keys;
  float scale;
};

template <class T>
T* values_at(Word* words, int64_t row, int64_t stride, int64_t column) {
  return reinterpret_cast<T*>(words) + row * stride + column;
}

template <class T, int vectors>
void softmax_backward(const Gradient<T>& g, int64_t first, const float* largest, const float* inverse) {
  const auto most = Columns<vectors>::at(largest + first), factor = Columns<vectors>::at(inverse + first);
  const float power = g.scale * kLog2e;
  auto mean = Columns<vectors>::all(0.0f);
  for (int64_t j = 0; j < g.keys; ++j) {
    float* const scores = g.scores + j * g.stride + first;
    const float* const grads = g.grads + j * g.stride + first;
    for (int v = 0; v < vectors; ++v) {
      const int64_t at = v * kFloatLanes;
      const Floats p = exp2(load(scores + at) * power - most.of[v] * power) * factor.of[v];
      mean.of[v] += p * load(grads + at);
      store(scores + at, p);
      if constexpr (sizeof(T) == 2) {
        words::store_values(values_at<T>(g.probabilities, j, g.stride, first + at), p);
      }
    }
  }
  const auto grad = [&](int64_t j, int v) {
    const int64_t at = j * g.stride + first + v * kFloatLanes;
    return load(g.scores + at) * (load(g.grads + at) - mean.of[v]) * g.scale;
  };
  for (int64_t j = 0; j < g.keys; j += words::kPerWord<T>) {
    for (int v = 0; v < vectors; ++v) {
      const int64_t column = first + v * kFloatLanes;
      const Floats upper = grad(j, v);
      if constexpr (sizeof(T) == 4) {
        store(g.grads + j * g.stride + column, upper);
      } else {
        const Floats lower = j + 1 < g.keys ? grad(j + 1, v) : Floats{};
        words::store_values(values_at<T>(g.by_query, j, g.stride, column), upper);
        words::store_values(values_at<T>(g.by_query, j + 1, g.stride, column), lower);
        *reinterpret_cast<UnsignedInts*>(g.by_key + j / 2 * g.stride + column) =
            words::pair_words(upper, lower);
      }
    }
  }
}

// Calls run(std::integral_constant<int, vectors>, first column) on columns that cover `count`.
template <class Run>
void for_columns(int64_t count, Run&& run) {
  int64_t i = 0;
  for (; i + kVectorsAtOnce * kFloatLanes <= count; i += kVectorsAtOnce * kFloatLanes) {
    run(std::integral_constant<int, kVectorsAtOnce>{}, i);
  }
  for (; i < count; i += kFloatLanes) run(std::integral_constant<int, 1>{}, i);
}

// ---- forward ----

template <class T>
int64_t forward_scratch(const Sizes<T>& s) {
  const int64_t key_words = s.keys / words::kPerWord<T>;
  return s.keys * s.words + 2 * s.across * key_words + s.block * (2 * s.words + 2 * s.keys + s.across) +
         16 * s.across + 2 * s.block + 16 * 16;
}

template <class T>
void forward_head(const Problem& p, int64_t n, int64_t head, const Keys& keys, const Rows& out,
                  float* statistics, const Sizes<T>& s, float* scratch) {
  const int64_t padded = words::round_up(keys.count, Sizes<T>::kGroup);
  const int64_t key_words = padded / words::kPerWord<T>, per = words::kPerWord<T>;
  const int64_t steps = words::round_up((s.width + per - 1) / per, words::kWordSteps<T>);
  Pieces pieces(scratch);
  Word* const k = pieces.words(s.keys * s.words);
  Word* const v_columns = pieces.words(s.across * (s.keys / per));
  Word* const pairs = pieces.words(s.across * (s.keys / per));
  Word* const q = pieces.words(s.block * s.words);
  Word* const q_columns = pieces.words(s.block * s.words);
  float* const scores = pieces.floats(s.block * s.keys);
  Word* const powers = pieces.words(s.block * s.keys);
  float* const result = pieces.floats(s.block * s.across);
  float* const memory = pieces.floats(16 * s.across);
  float* const most = pieces.floats(s.block);
  float* const inverse = pieces.floats(s.block);

  // v first: its packed rows are not needed again.
  pack(k, rows_at(p.v, p.k_offsets, n, head), p.v.row, keys, padded, s);
  by_columns<T>(v_columns, pairs, k, s, padded);
  pack(k, rows_at(p.k, p.k_offsets, n, head), p.k.row, keys, padded, s);
  const int64_t queries = length_of(p.q_offsets, p.q_length, n);
  const char* const q_rows = rows_at(p.q, p.q_offsets, n, head);
  char* const out_rows = rows_at(out, p.q_offsets, n, head);
  float* const kept = statistics + head * p.q_rows + begin_of(p.q_offsets, p.q_length, n);
  for (int64_t first = 0; first < queries; first += s.block) {
    const int64_t count = queries - first < s.block ? queries - first : s.block;
    const int64_t across = words::round_up(count, Sizes<T>::kGroup);
    pack(q, q_rows + first * p.q.row, p.q.row, {count, nullptr}, across, s);
    words::transpose(q_columns, across, q, s.words, across, s.words);
    words::multiply<T>(scores, across, k, s.words, q_columns, across, padded, across, steps, false);
    for_columns(across, [&](auto vectors, int64_t column) {
      softmax<T, vectors()>(scores + column, powers + column, across, keys.count, padded, p.scale * kLog2e,
                            most + column, inverse + column);
    });
    const Word* const right = sizeof(T) == 4 ? reinterpret_cast<const Word*>(scores) : powers;
    words::multiply<T>(result, across, v_columns, key_words, right, across, s.across, across, key_words,
                       false);
    store_columns<T>(out_rows + first * out.row, out.row, result, across, inverse, count, s, memory);
    std::memcpy(kept + first, most, static_cast<size_t>(count) * sizeof(float));
    std::memcpy(kept + p.heads * p.q_rows + first, inverse, static_cast<size_t>(count) * sizeof(float));
  }
}

// Without keys: zeros.
template <class T>
void clear_rows(const Rows& rows, const int32_t* offsets, int64_t length, int64_t n, int64_t head,
                int64_t width) {
  char* const data = rows_at(rows, offsets, n, head);
  for (int64_t i = 0; i < length_of(offsets, length, n); ++i) {
    std::memset(data + i * rows.row, 0, static_cast<size_t>(width) * sizeof(T));
  }
}

template <class T>
Sizes<T> sizes_of(const Problem& p) {
  return {p.width, longest(p.q_offsets, p.q_length, p.samples), longest(p.k_offsets, p.k_length, p.samples)};
}

// Calls run(sample, head, keys, scratch) for every task.
template <class Run>
void for_heads(const Problem& p, int64_t most_keys, int64_t scratch_floats, Run&& run) {
  parallel_for(p.samples * p.heads, 1, [&](int64_t begin, int64_t end) {
    FloatScratch scratch(scratch_floats);
    Scratch<int32_t> rows(p.key_mask != nullptr ? most_keys : 0);
    [[maybe_unused]] const words::Tiles tiles;
    Keys keys{0, nullptr};
    for (int64_t task = begin; task < end; ++task) {
      const int64_t n = task / p.heads, head = task % p.heads;
      if (task == begin || head == 0) keys = keys_of(p, n, rows.data());
      run(n, head, keys, scratch.data());
    }
  });
}

template <class T>
void forward(const Problem& p, const Rows& out, float* statistics) {
  const Sizes<T> sizes = sizes_of<T>(p);
  for_heads(p, sizes.keys, forward_scratch(sizes),
            [&](int64_t n, int64_t head, const Keys& keys, float* scratch) {
              if (keys.count > 0) return forward_head<T>(p, n, head, keys, out, statistics, sizes, scratch);
              clear_rows<T>(out, p.q_offsets, p.q_length, n, head, p.width);
              float* const kept = statistics + head * p.q_rows + begin_of(p.q_offsets, p.q_length, n);
              for (int64_t i = 0; i < length_of(p.q_offsets, p.q_length, n); ++i) {
                kept[i] = kept[p.heads * p.q_rows + i] = 0.0f;
              }
            });
}

// ---- backward ----

template <class T>
int64_t backward_scratch(const Sizes<T>& s) {
  const int64_t key_words = s.keys / words::kPerWord<T>;
  return 2 * s.keys * s.words + 2 * s.across * key_words + 2 * s.keys * s.across +
         s.block * (4 * s.words + 5 * s.keys + 3 * s.across) + 16 * s.across + 2 * s.block + 16 * 32;
}

// Rows of the gradient of keys or values; zeros where the mask left a key out.
template <class T>
void store_keys(const Rows& to, const Problem& p, int64_t n, int64_t head, const Keys& keys,
                const float* from, const Sizes<T>& s) {
  if (keys.rows != nullptr) clear_rows<T>(to, p.k_offsets, p.k_length, n, head, p.width);
  char* const rows = rows_at(to, p.k_offsets, n, head);
  const int64_t bytes = p.width * static_cast<int64_t>(sizeof(T));
  for (int64_t j = 0; j < keys.count; ++j) {
    if (j + kRowsAhead < keys.count) prefetch_row<true>(rows + keys.row(j + kRowsAhead) * to.row, bytes);
    store_row<T>(rows + keys.row(j) * to.row, from + j * s.across, s.width);
  }
}

template <class T>
void backward_head(const Problem& p, int64_t n, int64_t head, const Keys& keys, const float* statistics,
                   const Rows& out_grad, const Rows& q_grad, const Rows& k_grad, const Rows& v_grad,
                   const Sizes<T>& s, float* scratch) {
  constexpr int64_t per = words::kPerWord<T>;
  const int64_t padded = words::round_up(keys.count, Sizes<T>::kGroup), key_words = padded / per;
  const int64_t steps = words::round_up((s.width + per - 1) / per, words::kWordSteps<T>);
  Pieces pieces(scratch);
  Word* const k = pieces.words(s.keys * s.words);
  Word* const v = pieces.words(s.keys * s.words);
  Word* const k_columns = pieces.words(s.across * (s.keys / per));
  Word* const pairs = pieces.words(s.across * (s.keys / per));
  float* const k_sum = pieces.floats(s.keys * s.across);
  float* const v_sum = pieces.floats(s.keys * s.across);
  Word* const q = pieces.words(s.block * s.words);
  Word* const q_columns = pieces.words(s.block * s.words);
  Word* const q_pairs = pieces.words(s.block * s.across);
  Word* const grad = pieces.words(s.block * s.words);
  Word* const grad_columns = pieces.words(s.block * s.words);
  Word* const grad_pairs = pieces.words(s.block * s.across);
  float* const scores = pieces.floats(s.block * s.keys);
  float* const grads = pieces.floats(s.block * s.keys);
  Word* const probabilities = pieces.words(s.block * s.keys);
  Word* const by_query = pieces.words(s.block * s.keys);
  Word* const by_key = pieces.words(s.block * s.keys);
  float* const result = pieces.floats(s.block * s.across);
  float* const memory = pieces.floats(16 * s.across);
  float* const most = pieces.floats(s.block);
  float* const inverse = pieces.floats(s.block);

  pack(k, rows_at(p.k, p.k_offsets, n, head), p.k.row, keys, padded, s);
  pack(v, rows_at(p.v, p.k_offsets, n, head), p.v.row, keys, padded, s);
  by_columns<T>(k_columns, pairs, k, s, padded);
  const int64_t queries = length_of(p.q_offsets, p.q_length, n);
  const char* const q_rows = rows_at(p.q, p.q_offsets, n, head);
  const char* const grad_rows = rows_at(out_grad, p.q_offsets, n, head);
  char* const q_grad_rows = rows_at(q_grad, p.q_offsets, n, head);
  const float* const kept = statistics + head * p.q_rows + begin_of(p.q_offsets, p.q_length, n);
  if (queries == 0) {
    std::memset(k_sum, 0, static_cast<size_t>(padded * s.across) * sizeof(float));
    std::memset(v_sum, 0, static_cast<size_t>(padded * s.across) * sizeof(float));
  }
  for (int64_t first = 0; first < queries; first += s.block) {
    const int64_t count = queries - first < s.block ? queries - first : s.block;
    const int64_t across = words::round_up(count, Sizes<T>::kGroup), query_words = across / per;
    for (int64_t i = 0; i < across; ++i) {  // a padded query has no probabilities
      most[i] = i < count ? kept[first + i] : 0.0f;
      inverse[i] = i < count ? kept[p.heads * p.q_rows + first + i] : 0.0f;
    }
    pack(q, q_rows + first * p.q.row, p.q.row, {count, nullptr}, across, s);
    pack(grad, grad_rows + first * out_grad.row, out_grad.row, {count, nullptr}, across, s);
    words::transpose(q_columns, across, q, s.words, across, s.words);
    words::transpose(grad_columns, across, grad, s.words, across, s.words);
    words::multiply<T>(scores, across, k, s.words, q_columns, across, padded, across, steps, false);
    words::multiply<T>(grads, across, v, s.words, grad_columns, across, padded, across, steps, false);

    Gradient<T> g{scores, grads, probabilities, by_query, by_key, across, keys.count, p.scale};
    for_columns(across, [&](auto vectors, int64_t column) {
      softmax_backward<T, vectors()>(g, column, most, inverse);
    });
    if constexpr (sizeof(T) == 4) {
      g.probabilities = reinterpret_cast<Word*>(scores);
      g.by_query = g.by_key = reinterpret_cast<Word*>(grads);
    }
    // Rows of keys that are only there to fill up.
    const int64_t filled = words::round_up(keys.count, per);
    const auto unused = static_cast<size_t>((padded - keys.count) * across) * sizeof(T);
    std::memset(values_at<T>(g.probabilities, keys.count, across, 0), 0, unused);
    std::memset(values_at<T>(g.by_query, keys.count, across, 0), 0, unused);
    std::memset(g.by_key + filled / per * across, 0,
                static_cast<size_t>((padded - filled) / per * across) * sizeof(Word));

    const Word* const grad_right = by_rows<T>(grad_pairs, s.across, grad, s.words, across, s.across);
    const Word* const q_right = by_rows<T>(q_pairs, s.across, q, s.words, across, s.across);
    const int64_t right_stride = sizeof(T) == 4 ? s.words : s.across;
    words::multiply<T>(v_sum, s.across, g.probabilities, query_words, grad_right, right_stride, padded,
                       s.across, query_words, first > 0);
    words::multiply<T>(k_sum, s.across, g.by_query, query_words, q_right, right_stride, padded, s.across,
                       query_words, first > 0);
    words::multiply<T>(result, across, k_columns, key_words, g.by_key, across, s.across, across, key_words,
                       false);
    store_columns<T>(q_grad_rows + first * q_grad.row, q_grad.row, result, across, nullptr, count, s, memory);
  }
  store_keys<T>(k_grad, p, n, head, keys, k_sum, s);
  store_keys<T>(v_grad, p, n, head, keys, v_sum, s);
}

template <class T>
void backward(const Problem& p, const float* statistics, const Rows& out_grad, const Rows& q_grad,
              const Rows& k_grad, const Rows& v_grad) {
  const Sizes<T> sizes = sizes_of<T>(p);
  for_heads(p, sizes.keys, backward_scratch(sizes),
            [&](int64_t n, int64_t head, const Keys& keys, float* scratch) {
              if (keys.count > 0) {
                return backward_head<T>(p, n, head, keys, statistics, out_grad, q_grad, k_grad, v_grad, sizes,
                                        scratch);
              }
              clear_rows<T>(q_grad, p.q_offsets, p.q_length, n, head, p.width);
              clear_rows<T>(k_grad, p.k_offsets, p.k_length, n, head, p.width);
              clear_rows<T>(v_grad, p.k_offsets, p.k_length, n, head, p.width);
            });
}

void forward_any(const Problem& p, const Rows& out, float* statistics) {
  return p.bf16 ? forward<uint16_t>(p, out, statistics) : forward<float>(p, out, statistics);
}

void backward_any(const Problem& p, const float* statistics, const Rows& out_grad, const Rows& q_grad,
                  const Rows& k_grad, const Rows& v_grad) {
  return p.bf16 ? backward<uint16_t>(p, statistics, out_grad, q_grad, k_grad, v_grad)
                : backward<float>(p, statistics, out_grad, q_grad, k_grad, v_grad);
}

}  // namespace

const Kernels kernels{forward_any, backward_any};

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::attention
