// Checks in front of the kernels: shapes, types, devices; ids are checked in the kernels' own pass.
#include "patches/patches.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/checks.h"
#include "core/error.h"
#include "core/machine.h"

namespace tenfold::patches {
namespace {

const Kernels& kernels() {
  return table_in_use<Kernels>(&baseline::kernels, TENFOLD_AVX2(kernels), TENFOLD_AVX512(kernels));
}

void want_rows(const char* name, const TensorView& view) {
  want_memory(name, view);
  if (view.rank < 2) {
    throw ValueError(std::string(name) + " has shape " + shape_of(view) + ", want (batch, tokens, ...)");
  }
  if (view.dtype.bits % 8 != 0) {
    throw TypeError(std::string(name) + " has type " + to_string(view.dtype) +
                    ", want whole bytes per element");
  }
}

void want_ids(const char* name, const TensorView& ids, const char* rows_name, const TensorView& rows) {
  const int64_t batch = rows.rank > 0 ? rows.shape[0] : 0;
  want_memory(name, ids);
  want_together(name, ids, rows_name, rows);
  if (ids.dtype != kInt32 && ids.dtype != kInt64) {
    throw TypeError(std::string(name) + " has type " + to_string(ids.dtype) + ", want int32 or int64");
  }
  if (ids.rank != 2) {
    throw ValueError(std::string(name) + " has shape " + shape_of(ids) + ", want (batch, ids per sample)");
  }
  const int64_t bits = reinterpret_cast<int64_t>(ids.data) | ids.strides[0] | ids.strides[1];
  if (on_gpu(ids) && ids.count() > 0 && bits % ids.dtype.bytes() != 0) {
    throw ValueError(std::string(name) + " is not aligned to its elements, want aligned ids on a GPU");
  }
  if (ids.shape[0] != batch) {
    throw ValueError(std::string(name) + " has " + std::to_string(ids.shape[0]) + " samples and " +
                     rows_name + " has " + std::to_string(batch) + ", want the same number");
  }
}

void want_keep(const char* name, int64_t keep, int64_t tokens) {
  if (keep > tokens) {
    throw ValueError(std::string(name) + " has " + std::to_string(keep) + " ids per sample and there are " +
                     std::to_string(tokens) + " tokens, want at most one id per token");
  }
  if (tokens > INT32_MAX)
    throw ValueError(std::to_string(tokens) + " tokens per sample, want less than 2^31");
}

bool is_row(const TensorView& row, const TensorView& rows) {
  if (row.rank != rows.rank - 2) return false;
  for (int i = 0; i < row.rank; ++i) {
    if (row.shape[i] != rows.shape[i + 2]) return false;
  }
  return true;
}

Rows rows_of(const TensorView& view) {
  Rows rows{view.data, view.strides[0], view.strides[1], view.dtype.bytes(), view.dtype.bytes(), 0, {}, {}};
  for (int i = view.rank - 1; i >= 2; --i) {
    rows.row_bytes *= view.shape[i];
    if (view.shape[i] == 1) continue;
    if (rows.outer == 0 && view.strides[i] == rows.chunk) {
      rows.chunk *= view.shape[i];
    } else {
      rows.size[rows.outer] = view.shape[i];
      rows.stride[rows.outer] = view.strides[i];
      ++rows.outer;
    }
  }
  return rows;
}

Ids ids_of(const TensorView& view) {
  return {view.data, view.strides[0], view.strides[1], view.dtype == kInt64};
}

// `out` must hold exactly `want`, of the input's type, with whole rows that lie apart from each other.
void want_out(const TensorView& out, const Shape& want, const TensorView& input) {
  want_memory("out", out);
  want_together("out", out, "the input", input);
  want_writable("out", out);
  if (out.dtype != input.dtype) {
    throw TypeError("out has type " + to_string(out.dtype) + ", want " + to_string(input.dtype));
  }
  bool same = out.rank == want.rank;
  for (int i = 0; same && i < want.rank; ++i) same = out.shape[i] == want.size[i];
  if (!same) {
    throw ValueError("out has shape " + shape_of(out) + ", want " + shape_string(want.size, want.rank));
  }
  const Rows rows = rows_of(out);
  const bool rows_apart = out.shape[1] <= 1 || rows.row_stride >= rows.row_bytes;
  const bool samples_apart =
      out.shape[0] <= 1 || rows.batch_stride >= (out.shape[1] - 1) * rows.row_stride + rows.row_bytes;
  if (out.count() > 0 && (rows.outer > 0 || !rows_apart || !samples_apart)) {
    throw ValueError("out has strides that tear its rows apart or let them overlap, want contiguous rows");
  }
}

int64_t read_id(const char* at, bool wide) {  // numpy's arrays may be unaligned
  int64_t value = 0;
  int32_t half = 0;
  std::memcpy(wide ? static_cast<void*>(&value) : &half, at, wide ? sizeof value : sizeof half);
  return wide ? value : half;
}

void write_id(char* at, bool wide, int64_t value) {
  const int32_t half = static_cast<int32_t>(value);
  std::memcpy(at, wide ? static_cast<const void*>(&value) : &half, wide ? sizeof value : sizeof half);
}

int64_t id_at(const Ids& ids, int64_t sample, int64_t position) {
  return read_id(ids.data + sample * ids.batch_stride + position * ids.stride, ids.wide);
}

// Finds the first bad id in reading order. Only called after a kernel has seen one.
[[noreturn]] void throw_bad_id(const char* name, const Ids& ids, int64_t batch, int64_t count,
                               int64_t tokens) {
  std::vector<int64_t> seen(static_cast<size_t>(tokens));
  for (int64_t b = 0; b < batch; ++b) {
    std::fill(seen.begin(), seen.end(), -1);
    for (int64_t k = 0; k < count; ++k) {
      const int64_t id = id_at(ids, b, k);
      const std::string where = std::string(name) + "[" + std::to_string(b) + ", " + std::to_string(k) +
                                "] is " + std::to_string(id);
      const std::string place = " (sample " + std::to_string(b) + ", position " + std::to_string(k) + ")";
      if (id < 0 || id >= tokens) {
        throw ValueError(where + ", want 0 <= id < " + std::to_string(tokens) + place);
      }
      int64_t& first = seen[static_cast<size_t>(id)];
      if (first >= 0) {
        throw ValueError(where + ", the same as at position " + std::to_string(first) +
                         ", want each id once per sample" + place);
      }
      first = k;
    }
  }
  throw ValueError(std::string(name) + " changed while it was being read");
}

// Past the caches where the output and as much input would not fit into the last level anyway: cached stores
// first read each line from memory. Below, streaming still wins a few percent of the op alone from 8 MiB on,
// but whoever reads the output next pays it back: measured, op and reader together, on a last level of 32
// MiB.
Store store_for(int64_t bytes) { return 2 * bytes >= last_level_cache() ? Store::streamed : Store::cached; }

int64_t out_bytes(const TensorView& out) { return out.count() * out.dtype.bytes(); }

// A row as a table of one sample of one row.
TensorView one_row(const TensorView& row) {
  TensorView table = row;
  table.rank = row.rank + 2;
  for (int i = 0; i < table.rank; ++i) {
    table.shape[i] = i < 2 ? 1 : row.shape[i - 2];
    table.strides[i] = i < 2 ? 0 : row.strides[i - 2];
  }
  return table;
}

// The row's bytes side by side: its own memory where it is contiguous, else a copy that `copy` keeps.
const char* packed_row(const TensorView& row, std::unique_ptr<char[]>& copy) {
  const Rows from = rows_of(one_row(row));
  if (from.outer == 0) return row.data;
  copy = std::make_unique<char[]>(static_cast<size_t>(from.row_bytes));
  const Rows to{copy.get(), 0, 0, from.row_bytes, from.row_bytes, 0, {}, {}};
  int64_t first = 0;
  kernels().gather(to, from, {reinterpret_cast<char*>(&first), 0, 0, true}, {1, 1, 1}, Store::cached);
  return copy.get();
}

void restore_with(const TensorView& y, const TensorView& ids, bool ranks, const TensorView* mask_token,
                  const TensorView& out) {
  const char* const name = ranks ? "restore_ids" : "keep_ids";
  want_rows("y", y);
  want_ids(name, ids, "y", y);
  const int64_t keep = y.shape[1];
  const int64_t tokens = ranks ? ids.shape[1] : (out.rank > 1 ? out.shape[1] : 0);
  if (!ranks && ids.shape[1] != keep) {
    throw ValueError("keep_ids has " + std::to_string(ids.shape[1]) + " ids per sample and y has " +
                     std::to_string(keep) + " rows per sample, want the same number");
  }
  want_out(out, restore_shape(y, tokens), y);
  if (keep > tokens) {
    throw ValueError("y has " + std::to_string(keep) + " rows per sample and there are " +
                     std::to_string(tokens) + " tokens, want at most as many");
  }
  want_keep(name, keep, tokens);
  want_apart(out, "y", y);
  want_apart(out, name, ids);
  const char* fill = nullptr;
  std::unique_ptr<char[]> packed;
  if (mask_token != nullptr) {
    want_memory("mask_token", *mask_token);
    want_together("mask_token", *mask_token, "y", y);
    if (mask_token->dtype != y.dtype) {
      throw TypeError("mask_token has type " + to_string(mask_token->dtype) + ", want " + to_string(y.dtype) +
                      " as y");
    }
    if (!is_row(*mask_token, y)) {  // so it has at most kMaxRank - 2 dimensions
      throw ValueError("mask_token has shape " + shape_of(*mask_token) + ", want " +
                       shape_string(y.shape + 2, y.rank - 2) + ", one row of y");
    }
    want_apart(out, "mask_token", *mask_token);
    if (!on_gpu(y)) fill = packed_row(*mask_token, packed);
  }
  const Sizes sizes{y.shape[0], tokens, keep};
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(out)) {
      const Rows row = mask_token != nullptr ? rows_of(one_row(*mask_token)) : Rows{};
      return cuda::restore(rows_of(out), rows_of(y), ids_of(ids), ranks,
                           mask_token != nullptr ? &row : nullptr, sizes, queue_of(out));
    }
  }
  if (!kernels().restore(rows_of(out), rows_of(y), ids_of(ids), ranks, fill, sizes,
                         store_for(out_bytes(out)))) {
    throw_bad_id(name, ids_of(ids), sizes.batch, ids.shape[1], tokens);
  }
}

}  // namespace

Shape gather_shape(const TensorView& x, const TensorView& keep_ids) {
  want_rows("x", x);
  want_ids("keep_ids", keep_ids, "x", x);
  want_keep("keep_ids", keep_ids.shape[1], x.shape[1]);
  Shape shape{x.rank, {x.shape[0], keep_ids.shape[1]}};
  for (int i = 2; i < x.rank; ++i) shape.size[i] = x.shape[i];
  return shape;
}

Shape restore_shape(const TensorView& y, int64_t tokens) {
  want_rows("y", y);
  if (tokens < 0) throw ValueError("tokens is " + std::to_string(tokens) + ", want 0 or more");
  Shape shape{y.rank, {y.shape[0], tokens}};
  for (int i = 2; i < y.rank; ++i) shape.size[i] = y.shape[i];
  return shape;
}

void gather(const TensorView& x, const TensorView& keep_ids, const TensorView& out) {
  want_out(out, gather_shape(x, keep_ids), x);
  want_apart(out, "x", x);
  want_apart(out, "keep_ids", keep_ids);
  const Sizes sizes{x.shape[0], x.shape[1], keep_ids.shape[1]};
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(out)) return cuda::gather(rows_of(out), rows_of(x), ids_of(keep_ids), sizes, queue_of(out));
  }
  if (!kernels().gather(rows_of(out), rows_of(x), ids_of(keep_ids), sizes, store_for(out_bytes(out)))) {
    throw_bad_id("keep_ids", ids_of(keep_ids), sizes.batch, sizes.keep, sizes.tokens);
  }
}

void restore(const TensorView& y, const TensorView& keep_ids, const TensorView* mask_token,
             const TensorView& out) {
  restore_with(y, keep_ids, false, mask_token, out);
}

void restore_from_ranks(const TensorView& y, const TensorView& restore_ids, const TensorView* mask_token,
                        const TensorView& out) {
  restore_with(y, restore_ids, true, mask_token, out);
}

int64_t dropped_sum_scratch(const TensorView& x) {
  int64_t width = 1;
  for (int i = 2; i < x.rank; ++i) width *= x.shape[i];
  return kSumChunks * width * (x.dtype == kFloat64 ? 8 : 4);
}

void dropped_sum(const TensorView& x, const TensorView& keep_ids, const TensorView& out, char* scratch) {
  want_rows("x", x);
  want_ids("keep_ids", keep_ids, "x", x);
  want_keep("keep_ids", keep_ids.shape[1], x.shape[1]);
  const Rows rows = rows_of(x);
  if (rows.outer > 0) throw ValueError("x has rows that are not contiguous, want contiguous rows");
  if (out.dtype != x.dtype || !is_row(out, x)) {
    throw ValueError("out has shape " + shape_of(out) + ", want one row of x");
  }
  want_writable("out", out);
  const Sizes sizes{x.shape[0], x.shape[1], keep_ids.shape[1]};
  const Ids ids = ids_of(keep_ids);
  if (x.dtype != kFloat64 && x.dtype != kFloat32 && x.dtype != kBFloat16) {
    throw TypeError("x has type " + to_string(x.dtype) + ", want float32, float64 or bfloat16");
  }
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(x)) return cuda::dropped_sum(out.data, scratch, x.dtype, rows, ids, sizes, queue_of(x));
  }
  bool good = true;
  if (scratch != nullptr) std::memset(scratch, 0, static_cast<size_t>(dropped_sum_scratch(x)));
  if (x.dtype == kFloat64) {
    good = kernels().dropped_sum_f64(reinterpret_cast<double*>(out.data), reinterpret_cast<double*>(scratch),
                                     rows, ids, sizes);
  } else {
    float* const sums = reinterpret_cast<float*>(scratch);
    good = x.dtype == kFloat32
               ? kernels().dropped_sum_f32(reinterpret_cast<float*>(out.data), sums, rows, ids, sizes)
               : kernels().dropped_sum_bf16(reinterpret_cast<uint16_t*>(out.data), sums, rows, ids, sizes);
  }
  if (!good) throw_bad_id("keep_ids", ids, sizes.batch, sizes.keep, sizes.tokens);
}

void keep_ids_from_ranks(const TensorView& restore_ids, const TensorView& keep_ids) {
  want_ids("restore_ids", restore_ids, "keep_ids", keep_ids);
  want_ids("keep_ids", keep_ids, "restore_ids", restore_ids);
  want_writable("keep_ids", keep_ids);
  const int64_t tokens = restore_ids.shape[1];
  const int64_t keep = keep_ids.shape[1];
  want_keep("keep_ids", keep, tokens);
  const Ids from = ids_of(restore_ids);
  const Ids to = ids_of(keep_ids);
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(keep_ids)) {
      return cuda::keep_ids_from_ranks(from, to, {restore_ids.shape[0], tokens, keep}, queue_of(keep_ids));
    }
  }
  std::vector<char> seen(static_cast<size_t>(tokens));
  for (int64_t b = 0; b < restore_ids.shape[0]; ++b) {
    std::fill(seen.begin(), seen.end(), 0);
    for (int64_t n = 0; n < tokens; ++n) {
      const int64_t rank = id_at(from, b, n);
      if (rank < 0 || rank >= tokens || seen[static_cast<size_t>(rank)] != 0) {
        throw_bad_id("restore_ids", from, restore_ids.shape[0], tokens, tokens);
      }
      seen[static_cast<size_t>(rank)] = 1;
      if (rank >= keep) continue;
      write_id(to.data + b * to.batch_stride + rank * to.stride, to.wide, n);
    }
  }
}

int64_t random_scratch(const TensorView& keep_ids, const TensorView& restore_ids) {
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(restore_ids) && restore_ids.rank == 2 && keep_ids.rank == 2) {
      const Sizes sizes{restore_ids.shape[0], restore_ids.shape[1], keep_ids.shape[1]};
      return cuda::shuffle_scratch(sizes, restore_ids.device.id) * static_cast<int64_t>(sizeof(int32_t));
    }
  }
  return 0;
}

void random_keep_ids(const TensorView& keep_ids, const TensorView& restore_ids, uint64_t seed,
                     uint64_t offset, bool ordered, char* scratch) {
  want_ids("keep_ids", keep_ids, "restore_ids", restore_ids);
  want_ids("restore_ids", restore_ids, "keep_ids", keep_ids);
  want_writable("keep_ids", keep_ids);
  want_writable("restore_ids", restore_ids);
  if (keep_ids.dtype != restore_ids.dtype) {
    throw TypeError("keep_ids has type " + to_string(keep_ids.dtype) + " and restore_ids has " +
                    to_string(restore_ids.dtype) + ", want one type");
  }
  for (const auto& [name, ids] : {std::pair{"keep_ids", &keep_ids}, std::pair{"restore_ids", &restore_ids}}) {
    const int64_t item = ids->dtype.bytes(), width = ids->shape[1] * item;
    const bool apart = ids->shape[0] <= 1 || ids->strides[0] >= width;
    if (ids->count() == 0 || ((ids->shape[1] <= 1 || ids->strides[1] == item) && apart)) continue;
    throw ValueError(std::string(name) + " has strides that tear its rows apart or let them overlap");
  }
  if (overlap(keep_ids, restore_ids)) throw ValueError("keep_ids shares memory with restore_ids");
  const Sizes sizes{restore_ids.shape[0], restore_ids.shape[1], keep_ids.shape[1]};
  want_keep("keep_ids", sizes.keep, sizes.tokens);
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(keep_ids)) {
      return cuda::random_keep_ids(ids_of(keep_ids), ids_of(restore_ids), reinterpret_cast<int32_t*>(scratch),
                                   sizes, seed, offset, ordered, queue_of(keep_ids));
    }
  }
  kernels().random_keep_ids(ids_of(keep_ids), ids_of(restore_ids), sizes, seed, offset, ordered);
}

}  // namespace tenfold::patches
