// The kernels of one instruction-set level; compiled once per level (core/level.h).
#include <cstdint>
#include <cstring>

#include "core/bfloat16.h"
#include "core/copy.h"
#include "core/level.h"
#include "core/parallel.h"
#include "core/philox.h"
#include "core/simd.h"
#include "patches/patches.h"

namespace tenfold::patches {
namespace TENFOLD_LEVEL {
namespace {

// Below this many bytes of output per thread, waking a thread costs more than it saves.
constexpr int64_t kGrainBytes = 1 << 20;

int64_t id_at(const Ids& ids, const char* sample, int64_t position) {
  const char* const at = sample + position * ids.stride;
  return ids.wide ? read<int64_t>(at) : read<int32_t>(at);
}

// ---- rows ----

template <class T>
void copy_elements(char* to, const char* from, int64_t count, int64_t stride) {
  for (int64_t i = 0; i < count; ++i) {
    const T value = read<T>(from + i * stride);
    std::memcpy(to + i * static_cast<int64_t>(sizeof value), &value, sizeof value);
  }
}

// A row whose elements do not lie side by side, such as one of a transposed array.
void copy_strided(char* to, const char* from, const Rows& rows, int dimension) {
  const int64_t size = rows.size[dimension], stride = rows.stride[dimension];
  if (dimension > 0) {
    // Dimension 0 is the innermost; the bytes below one step of this dimension are contiguous in `to`.
    int64_t below = rows.chunk;
    for (int i = 0; i < dimension; ++i) below *= rows.size[i];
    for (int64_t i = 0; i < size; ++i) copy_strided(to + i * below, from + i * stride, rows, dimension - 1);
    return;
  }
  switch (rows.chunk) {
    case 1:
      return copy_elements<uint8_t>(to, from, size, stride);
    case 2:
      return copy_elements<uint16_t>(to, from, size, stride);
    case 4:
      return copy_elements<uint32_t>(to, from, size, stride);
    case 8:
      return copy_elements<uint64_t>(to, from, size, stride);
    default:
      for (int64_t i = 0; i < size; ++i)
        copy_row(to + i * rows.chunk, from + i * stride, rows.chunk, nullptr, false);
  }
}

void copy_any_row(char* to, const char* from, const Rows& rows, const char* ahead, bool streamed) {
  if (rows.outer > 0) {
    copy_strided(to, from, rows, rows.outer - 1);
  } else {
    copy_row(to, from, rows.row_bytes, ahead, streamed);
  }
}

int64_t rows_ahead(const Rows& rows) { return 1 + kPrefetchBytes / (rows.row_bytes + 1); }

// Which row (or -1) each token of one sample takes. False where an id is out of range or doubled.
// `ids` names tokens; `ranks` names rows, where a rank of `keep` or more is a dropped token.
bool invert(const Ids& ids, bool ranks, const char* sample, Sizes sizes, int32_t* row_of) {
  for (int64_t n = 0; n < sizes.tokens; ++n) row_of[n] = -1;
  const int64_t count = ranks ? sizes.tokens : sizes.keep;
  bool good = true;
  for (int64_t k = 0; k < count; ++k) {
    const int64_t id = id_at(ids, sample, k);
    if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(sizes.tokens)) return false;
    good &= row_of[id] < 0;
    row_of[id] = static_cast<int32_t>(k);
  }
  if (!good || !ranks) return good;
  // For ranks the map now reads rank -> token: every rank occurs once. The map wanted is the ranks
  // themselves.
  for (int64_t n = 0; n < sizes.tokens; ++n) {
    const int64_t rank = id_at(ids, sample, n);
    row_of[n] = rank < sizes.keep ? static_cast<int32_t>(rank) : -1;
  }
  return true;
}

// Runs part(sample, first, last) over [0, batch * rows) cut into runs that stay inside one sample.
template <class Part>
void for_samples(int64_t begin, int64_t end, int64_t rows, Part&& part) {
  for (int64_t at = begin; at < end;) {
    const int64_t sample = at / rows;
    const int64_t stop = end < (sample + 1) * rows ? end : (sample + 1) * rows;
    part(sample, at - sample * rows, stop - sample * rows);
    at = stop;
  }
}

int64_t rows_per_thread(int64_t row_bytes) { return 1 + kGrainBytes / (row_bytes + 1); }

struct Flag {
  // Set from any thread, read after the loop; relaxed is enough because the loop's end is a barrier.
  bool good = true;
  void fail() { __atomic_store_n(&good, false, __ATOMIC_RELAXED); }
};

// ---- gather, restore ----

// Copies the ids of a sample to `to`, checked; false where one is out of range or doubled. `seen` (zero
// before the first sample) keeps the number of the last sample that named a token, so it is never cleared.
bool read_ids(const Ids& ids, int64_t sample, Sizes sizes, int32_t* seen, int32_t stamp, int32_t* to) {
  const char* const from = ids.data + sample * ids.batch_stride;
  bool good = true;
  for (int64_t k = 0; k < sizes.keep; ++k) {
    const int64_t id = id_at(ids, from, k);
    if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(sizes.tokens)) return false;
    good &= seen[id] != stamp;
    seen[id] = stamp;
    to[k] = static_cast<int32_t>(id);
  }
  return good;
}

// The rows [begin, end) of the flat (batch * keep) output. The ids of the next sample are read before this
// one is copied, so that its rows can be prefetched.
bool gather_range(const Rows& out, const Rows& x, const Ids& ids, Sizes sizes, bool streamed, int64_t begin,
                  int64_t end) {
  Scratch<int32_t> seen(sizes.tokens), first_ids(sizes.keep), second_ids(sizes.keep);
  std::memset(seen.data(), 0, static_cast<size_t>(sizes.tokens) * sizeof(int32_t));
  int32_t* now = first_ids.data();
  int32_t* next = second_ids.data();
  const int64_t last_sample = (end - 1) / sizes.keep;
  const int64_t lead = rows_ahead(x);
  int64_t sample = begin / sizes.keep;
  int32_t stamp = 0;
  bool good = read_ids(ids, sample, sizes, seen.data(), ++stamp, now);
  for (; good && sample <= last_sample; ++sample) {
    const bool more = sample < last_sample;
    good = !more || read_ids(ids, sample + 1, sizes, seen.data(), ++stamp, next);
    const char* const from = x.data + sample * x.batch_stride;
    char* const to = out.data + sample * out.batch_stride;
    const int64_t first = begin > sample * sizes.keep ? begin - sample * sizes.keep : 0;
    const int64_t last = more ? sizes.keep : end - sample * sizes.keep;
    for (int64_t k = first; k < last; ++k) {
      const int64_t k_ahead = k + lead;
      const char* ahead = nullptr;
      if (k_ahead < sizes.keep) {
        ahead = from + now[k_ahead] * x.row_stride;
      } else if (more && good && k_ahead - sizes.keep < sizes.keep) {
        ahead = from + x.batch_stride + next[k_ahead - sizes.keep] * x.row_stride;
      }
      copy_any_row(to + k * out.row_stride, from + now[k] * x.row_stride, x, ahead, streamed);
    }
    int32_t* const held = now;
    now = next;
    next = held;
  }
  if (streamed) fence();
  return good;
}

bool gather(const Rows& out, const Rows& x, const Ids& ids, Sizes sizes, Store store) {
  Flag flag;
  parallel_for(sizes.batch * sizes.keep, rows_per_thread(x.row_bytes), [&](int64_t begin, int64_t end) {
    if (!gather_range(out, x, ids, sizes, store == Store::streamed, begin, end)) flag.fail();
  });
  return flag.good;
}

bool restore(const Rows& out, const Rows& y, const Ids& ids, bool ranks, const char* fill, Sizes sizes,
             Store store) {
  Flag flag;
  const bool streamed = store == Store::streamed;
  const int64_t lead = rows_ahead(y);
  parallel_for(sizes.batch * sizes.tokens, rows_per_thread(y.row_bytes), [&](int64_t begin, int64_t end) {
    Scratch<int32_t> row_of(sizes.tokens);
    for_samples(begin, end, sizes.tokens, [&](int64_t b, int64_t first, int64_t last) {
      if (!invert(ids, ranks, ids.data + b * ids.batch_stride, sizes, row_of.data())) return flag.fail();
      const char* const from = y.data + b * y.batch_stride;
      for (int64_t n = first; n < last; ++n) {
        char* const to = out.data + b * out.batch_stride + n * out.row_stride;
        const bool more = n + lead < last && row_of[n + lead] >= 0;
        const char* const ahead = more ? from + row_of[n + lead] * y.row_stride : nullptr;
        if (row_of[n] >= 0) {
          copy_any_row(to, from + row_of[n] * y.row_stride, y, ahead, streamed);
        } else if (fill != nullptr) {
          copy_row(to, fill, out.row_bytes, ahead, streamed);
        } else {
          zero_row(to, out.row_bytes, ahead, streamed);
        }
      }
    });
    if (streamed) fence();
  });
  return flag.good;
}

// ---- the gradient of mask_token ----

// Sum over the samples of one chunk, then over the chunks in order: the same additions for any thread count.
template <class T, class Sum>
bool dropped_sum(T* out, Sum* partial, const Rows& x, const Ids& ids, Sizes sizes) {
  Flag flag;
  const int64_t width = x.row_bytes / static_cast<int64_t>(sizeof(T));
  const int64_t dropped_bytes = (sizes.tokens - sizes.keep) * x.row_bytes * sizes.batch / kSumChunks;
  parallel_for(kSumChunks, 1 + kGrainBytes / (dropped_bytes + 1), [&](int64_t begin, int64_t end) {
    Scratch<char> kept(sizes.tokens);
    for (int64_t chunk = begin; chunk < end; ++chunk) {
      Sum* const sum = partial + chunk * width;  // zero on entry
      const int64_t stop = sizes.batch * (chunk + 1) / kSumChunks;
      for (int64_t b = sizes.batch * chunk / kSumChunks; b < stop; ++b) {
        std::memset(kept.data(), 0, static_cast<size_t>(sizes.tokens));
        for (int64_t k = 0; k < sizes.keep; ++k) {
          const int64_t id = id_at(ids, ids.data + b * ids.batch_stride, k);
          if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(sizes.tokens) || kept[id] != 0) {
            return flag.fail();
          }
          kept[id] = 1;
        }
        for (int64_t n = 0; n < sizes.tokens; ++n) {
          if (kept[n] != 0) continue;
          const char* const row = x.data + b * x.batch_stride + n * x.row_stride;
          for (int64_t d = 0; d < width; ++d) sum[d] += to_float(read<T>(row + d * sizeof(T)));
        }
      }
    }
  });
  for (int64_t d = 0; d < width; ++d) {
    Sum total = 0;
    for (int64_t chunk = 0; chunk < kSumChunks; ++chunk) total += partial[chunk * width + d];
    round_to(out[d], total);
  }
  return flag.good;
}

// ---- random ids ----

constexpr int64_t kGrainIds = 1 << 16;  // ids per thread at least
constexpr int kLanes = 32;              // Philox blocks drawn at once
constexpr int kWordsPerBlock = 4;
constexpr int kWords = kLanes * kWordsPerBlock;

// Random words of `kLanes` blocks: from block `block` of sample `sample` on, `per_sample` blocks each; both
// are moved on. Word k of a sample is word k % 4 of the block with counter (k / 4, 0, sample) and the seed as
// key. Layout: words[k % 4][lane].
void draw(uint32_t* words, uint64_t& sample, int64_t& block, int64_t per_sample, uint64_t seed) {
  uint32_t* const c = words;
  for (int lane = 0; lane < kLanes; ++lane) {
    c[lane] = static_cast<uint32_t>(block);
    c[lane + kLanes] = 0;
    c[lane + 2 * kLanes] = static_cast<uint32_t>(sample);
    c[lane + 3 * kLanes] = static_cast<uint32_t>(sample >> 32);
    const bool last = ++block == per_sample;
    block = last ? 0 : block;
    sample += last;
  }
  philox4x32<kLanes>(c, c + kLanes, c + 2 * kLanes, c + 3 * kLanes, static_cast<uint32_t>(seed),
                     static_cast<uint32_t>(seed >> 32));
}

// The random words of consecutive samples, in order.
class Words {
 public:
  Words(uint64_t sample, int64_t per_sample, uint64_t seed)
      : sample_(sample), per_sample_(per_sample), seed_(seed) {}

  // The next four words are at four()[0], [kLanes], [2 * kLanes], [3 * kLanes].
  const uint32_t* four() {
    if (lane_ == kLanes) {
      draw(words_, sample_, block_, per_sample_, seed_);
      lane_ = 0;
    }
    return words_ + lane_++;
  }

 private:
  uint64_t sample_;
  int64_t block_ = 0, per_sample_;
  uint64_t seed_;
  int lane_ = kLanes;
  alignas(kLineBytes) uint32_t words_[kWords];
};

// The first `keep` entries of a Fisher-Yates shuffle of 0..tokens-1 (R. Durstenfeld, Algorithm 235, CACM
// 1964). Inlined into its caller GCC 12 makes it a quarter slower.
[[gnu::noinline]] void shuffle(int32_t* ids, Words& words, Sizes sizes) {
  for (int32_t n = 0; n < sizes.tokens; ++n) ids[n] = n;
  const uint32_t* four = nullptr;
  for (int64_t k = 0; k < sizes.keep; ++k) {
    const int64_t word = k % kWordsPerBlock;
    if (word == 0) four = words.four();
    const int64_t other = k + below(four[word * kLanes], static_cast<uint32_t>(sizes.tokens - k));
    const int32_t held = ids[k];
    ids[k] = ids[other];
    ids[other] = held;
  }
}

// Sorts the kept and the dropped part ascending. `kept` is scratch of `tokens`.
void sort_parts(int32_t* ids, int32_t* kept, Sizes sizes) {
  for (int64_t i = 0; i < sizes.tokens; ++i) kept[ids[i]] = i < sizes.keep;
  int64_t first = 0, second = sizes.keep;
  for (int32_t n = 0; n < sizes.tokens; ++n) ids[kept[n] != 0 ? first++ : second++] = n;
}

template <class Id>
void put(char* row, int64_t position, int64_t value) {
  const Id id = static_cast<Id>(value);
  std::memcpy(row + position * static_cast<int64_t>(sizeof id), &id, sizeof id);
}

template <class Id>
void write_ids(char* keep_row, char* restore_row, const int32_t* ids, Sizes sizes) {
  for (int64_t k = 0; k < sizes.keep; ++k) put<Id>(keep_row, k, ids[k]);
  for (int64_t i = 0; i < sizes.tokens; ++i) put<Id>(restore_row, ids[i], i);
}

void random_keep_ids(const Ids& keep_ids, const Ids& restore_ids, Sizes sizes, uint64_t seed, uint64_t offset,
                     bool ordered) {
  const int64_t per_sample = (sizes.keep + kWordsPerBlock - 1) / kWordsPerBlock;
  parallel_for(sizes.batch, 1 + kGrainIds / (sizes.tokens + 1), [&](int64_t begin, int64_t end) {
    Scratch<int32_t> ids(sizes.tokens), kept(ordered ? sizes.tokens : 0);
    Words words(offset + static_cast<uint64_t>(begin), per_sample, seed);
    for (int64_t b = begin; b < end; ++b) {
      shuffle(ids.data(), words, sizes);
      if (ordered) sort_parts(ids.data(), kept.data(), sizes);
      char* const keep_row = keep_ids.data + b * keep_ids.batch_stride;
      char* const restore_row = restore_ids.data + b * restore_ids.batch_stride;
      if (keep_ids.wide) {
        write_ids<int64_t>(keep_row, restore_row, ids.data(), sizes);
      } else {
        write_ids<int32_t>(keep_row, restore_row, ids.data(), sizes);
      }
    }
  });
}

}  // namespace

extern const Kernels kernels;
const Kernels kernels = {gather,
                         restore,
                         dropped_sum<float, float>,
                         dropped_sum<uint16_t, float>,
                         dropped_sum<double, double>,
                         random_keep_ids};

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::patches
