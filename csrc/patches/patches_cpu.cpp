// The kernels of one instruction-set level; compiled once per level (core/level.h).
#include <cstdint>
#include <cstring>

#include "core/level.h"
#include "core/parallel.h"
#include "core/philox.h"
#include "core/simd.h"
#include "patches/patches.h"

namespace tenfold::patches {
namespace TENFOLD_LEVEL {
namespace {

// Below this many bytes of output per thread, waking a thread costs more than it saves.
constexpr int64_t kGrainBytes = 128 << 10;
// Rows ahead whose beginning is prefetched (the hardware follows a row once it runs), and how much of it.
constexpr int64_t kPrefetchRows = 2;
constexpr int64_t kPrefetchBytes = 512;

template <class T>
T read(const char* from) {  // numpy's arrays may be unaligned
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

int64_t id_at(const Ids& ids, const char* sample, int64_t position) {
  const char* const at = sample + position * ids.stride;
  return ids.wide ? read<int64_t>(at) : read<int32_t>(at);
}

// ---- rows ----

void copy_cached(char* to, const char* from, int64_t bytes) {
  if (bytes < kVectorBytes) {
    std::memcpy(to, from, static_cast<size_t>(bytes));
    return;
  }
  int64_t i = 0;
  for (; i + 4 * kVectorBytes <= bytes; i += 4 * kVectorBytes) {
    const Bytes a = load(from + i), b = load(from + i + kVectorBytes);
    const Bytes c = load(from + i + 2 * kVectorBytes), d = load(from + i + 3 * kVectorBytes);
    store(to + i, a), store(to + i + kVectorBytes, b);
    store(to + i + 2 * kVectorBytes, c), store(to + i + 3 * kVectorBytes, d);
  }
  for (; i + kVectorBytes <= bytes; i += kVectorBytes) store(to + i, load(from + i));
  if (i < bytes)
    store(to + bytes - kVectorBytes, load(from + bytes - kVectorBytes));  // overlaps the last one
}

void zero_cached(char* to, int64_t bytes) { std::memset(to, 0, static_cast<size_t>(bytes)); }

// Calls line(i) for every whole, aligned cache line of [to, to + bytes) and rest(i, n) for the ragged ends.
template <class Line, class Rest>
void by_lines(char* to, int64_t bytes, Line&& line, Rest&& rest) {
  int64_t i = -reinterpret_cast<intptr_t>(to) & (kLineBytes - 1);
  if (i >= bytes) i = bytes;
  if (i > 0) rest(0, i);
  for (; i + kLineBytes <= bytes; i += kLineBytes) line(i);
  if (i < bytes) rest(i, bytes - i);
}

void copy_streamed(char* to, const char* from, int64_t bytes) {
  by_lines(
      to, bytes,
      [&](int64_t i) {
        for (int j = 0; j < kLineBytes; j += kVectorBytes) stream(to + i + j, load(from + i + j));
      },
      [&](int64_t i, int64_t n) { std::memcpy(to + i, from + i, static_cast<size_t>(n)); });
}

void zero_streamed(char* to, int64_t bytes) {
  by_lines(
      to, bytes,
      [&](int64_t i) {
        for (int j = 0; j < kLineBytes; j += kVectorBytes) stream(to + i + j, Bytes{});
      },
      [&](int64_t i, int64_t n) { std::memset(to + i, 0, static_cast<size_t>(n)); });
}

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
      for (int64_t i = 0; i < size; ++i) copy_cached(to + i * rows.chunk, from + i * stride, rows.chunk);
  }
}

struct RowCopy {
  const Rows& from;
  bool streamed;

  void operator()(char* to, const char* row) const {
    if (from.outer > 0) {
      copy_strided(to, row, from, from.outer - 1);
    } else if (streamed) {
      copy_streamed(to, row, from.row_bytes);
    } else {
      copy_cached(to, row, from.row_bytes);
    }
  }
};

void prefetch(const char* row, int64_t bytes) {
  for (int64_t i = 0; i < bytes && i < kPrefetchBytes; i += kLineBytes) __builtin_prefetch(row + i);
}

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

// True where all ids of a sample are in range and different; `seen` (zero before the first sample) keeps
// the number of the last sample that named a token, so it is never cleared.
bool distinct(const Ids& ids, const char* sample, Sizes sizes, int32_t* seen, int32_t stamp) {
  bool good = true;
  for (int64_t k = 0; k < sizes.keep; ++k) {
    const int64_t id = id_at(ids, sample, k);
    if (static_cast<uint64_t>(id) >= static_cast<uint64_t>(sizes.tokens)) return false;
    good &= seen[id] != stamp;
    seen[id] = stamp;
  }
  return good;
}

bool gather(const Rows& out, const Rows& x, const Ids& ids, Sizes sizes, Store store) {
  Flag flag;
  const RowCopy copy{x, store == Store::streamed};
  parallel_for(sizes.batch * sizes.keep, rows_per_thread(x.row_bytes), [&](int64_t begin, int64_t end) {
    Scratch<int32_t> seen(sizes.tokens);
    std::memset(seen.data(), 0, static_cast<size_t>(sizes.tokens) * sizeof(int32_t));
    int32_t stamp = 0;
    for_samples(begin, end, sizes.keep, [&](int64_t b, int64_t first, int64_t last) {
      const char* const sample = ids.data + b * ids.batch_stride;
      if (!distinct(ids, sample, sizes, seen.data(), ++stamp)) return flag.fail();
      const char* const from = x.data + b * x.batch_stride;
      char* const to = out.data + b * out.batch_stride;
      for (int64_t k = first; k < last; ++k) {
        if (k + kPrefetchRows < last) {
          prefetch(from + id_at(ids, sample, k + kPrefetchRows) * x.row_stride, x.row_bytes);
        }
        copy(to + k * out.row_stride, from + id_at(ids, sample, k) * x.row_stride);
      }
    });
    if (copy.streamed) fence();
  });
  return flag.good;
}

bool restore(const Rows& out, const Rows& y, const Ids& ids, bool ranks, const char* fill, Sizes sizes,
             Store store) {
  Flag flag;
  const bool streamed = store == Store::streamed;
  const RowCopy copy{y, streamed};
  parallel_for(sizes.batch * sizes.tokens, rows_per_thread(y.row_bytes), [&](int64_t begin, int64_t end) {
    Scratch<int32_t> row_of(sizes.tokens);
    for_samples(begin, end, sizes.tokens, [&](int64_t b, int64_t first, int64_t last) {
      if (!invert(ids, ranks, ids.data + b * ids.batch_stride, sizes, row_of.data())) return flag.fail();
      const char* const from = y.data + b * y.batch_stride;
      char* const to = out.data + b * out.batch_stride;
      for (int64_t n = first; n < last; ++n) {
        char* const row = to + n * out.row_stride;
        if (row_of[n] >= 0) {
          copy(row, from + row_of[n] * y.row_stride);
        } else if (fill != nullptr) {
          streamed ? copy_streamed(row, fill, out.row_bytes) : copy_cached(row, fill, out.row_bytes);
        } else {
          streamed ? zero_streamed(row, out.row_bytes) : zero_cached(row, out.row_bytes);
        }
      }
    });
    if (streamed) fence();
  });
  return flag.good;
}

// ---- the gradient of mask_token ----

float to_float(float x) { return x; }
double to_float(double x) { return x; }
float to_float(uint16_t bfloat) {
  const uint32_t bits = static_cast<uint32_t>(bfloat) << 16;
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

void round_to(float& to, float x) { to = x; }
void round_to(double& to, double x) { to = x; }
void round_to(uint16_t& bfloat, float x) {
  uint32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  const bool nan = (bits & 0x7fffffffu) > 0x7f800000u;
  // Round half to even on the upper 16 bits; a NaN keeps its sign and becomes quiet.
  bfloat = static_cast<uint16_t>(nan ? (bits >> 16) | 0x40u : (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

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

constexpr int64_t kGrainIds = 8192;  // ids per thread at least
constexpr int kLanes = 32;           // Philox blocks drawn at once
constexpr int kWordsPerBlock = 4;

// Random words of the samples from `first` on, `per_sample` blocks each, `count` blocks in all.
// Word k of sample s is word k % 4 of the block with counter (k / 4, 0, s) and the seed as key.
void draw(uint32_t* words, uint64_t first, int64_t per_sample, int64_t count, uint64_t seed) {
  uint32_t c[kWordsPerBlock][kLanes];
  uint64_t sample = first;
  int64_t block = 0;
  for (int64_t done = 0; done < count; done += kLanes) {
    for (int lane = 0; lane < kLanes; ++lane) {
      c[0][lane] = static_cast<uint32_t>(block);
      c[1][lane] = 0;
      c[2][lane] = static_cast<uint32_t>(sample);
      c[3][lane] = static_cast<uint32_t>(sample >> 32);
      if (++block == per_sample) block = 0, ++sample;
    }
    philox4x32<kLanes>(c[0], c[1], c[2], c[3], static_cast<uint32_t>(seed),
                       static_cast<uint32_t>(seed >> 32));
    const int64_t lanes = count - done < kLanes ? count - done : kLanes;
    for (int64_t lane = 0; lane < lanes; ++lane) {
      for (int i = 0; i < kWordsPerBlock; ++i) words[(done + lane) * kWordsPerBlock + i] = c[i][lane];
    }
  }
}

template <class Id>
void put(const Ids& ids, int64_t sample, int64_t position, int64_t value) {
  const Id id = static_cast<Id>(value);
  std::memcpy(ids.data + sample * ids.batch_stride + position * ids.stride, &id, sizeof id);
}

// The first `keep` entries of a Fisher-Yates shuffle of 0..tokens-1 (R. Durstenfeld, Algorithm 235, CACM
// 1964).
void shuffle(int32_t* ids, const uint32_t* words, Sizes sizes) {
  for (int64_t n = 0; n < sizes.tokens; ++n) ids[n] = static_cast<int32_t>(n);
  for (int64_t k = 0; k < sizes.keep; ++k) {
    const int64_t other = k + below(words[k], static_cast<uint32_t>(sizes.tokens - k));
    const int32_t held = ids[k];
    ids[k] = ids[other];
    ids[other] = held;
  }
}

// Sorts the kept and the dropped part ascending. `rank` is scratch of `tokens`.
void sort_parts(int32_t* ids, int32_t* rank, Sizes sizes) {
  for (int64_t i = 0; i < sizes.tokens; ++i) rank[ids[i]] = i < sizes.keep;
  int64_t kept = 0, dropped = sizes.keep;
  for (int64_t n = 0; n < sizes.tokens; ++n) ids[rank[n] != 0 ? kept++ : dropped++] = static_cast<int32_t>(n);
}

template <class Id>
void write_ids(const Ids& keep_ids, const Ids& restore_ids, int64_t sample, const int32_t* ids, Sizes sizes) {
  for (int64_t k = 0; k < sizes.keep; ++k) put<Id>(keep_ids, sample, k, ids[k]);
  for (int64_t i = 0; i < sizes.tokens; ++i) put<Id>(restore_ids, sample, ids[i], i);
}

void random_keep_ids(const Ids& keep_ids, const Ids& restore_ids, Sizes sizes, uint64_t seed, uint64_t offset,
                     bool ordered) {
  const int64_t per_sample = (sizes.keep + kWordsPerBlock - 1) / kWordsPerBlock;
  const int64_t group = per_sample > 0 && per_sample < kLanes ? kLanes / per_sample : 1;  // samples per draw
  parallel_for(sizes.batch, 1 + kGrainIds / (sizes.tokens + 1), [&](int64_t begin, int64_t end) {
    Scratch<int32_t> ids(sizes.tokens), rank(ordered ? sizes.tokens : 0);
    Scratch<uint32_t> words(group * per_sample * kWordsPerBlock);
    for (int64_t b = begin; b < end; ++b) {
      const int64_t member = (b - begin) % group;
      if (member == 0) {
        const int64_t samples = end - b < group ? end - b : group;
        draw(words.data(), offset + static_cast<uint64_t>(b), per_sample, samples * per_sample, seed);
      }
      shuffle(ids.data(), words.data() + member * per_sample * kWordsPerBlock, sizes);
      if (ordered) sort_parts(ids.data(), rank.data(), sizes);
      if (keep_ids.wide && restore_ids.wide) {
        write_ids<int64_t>(keep_ids, restore_ids, b, ids.data(), sizes);
      } else {
        write_ids<int32_t>(keep_ids, restore_ids, b, ids.data(), sizes);
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
