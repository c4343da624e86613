// Masked patch gathering: keep K of N tokens per sample, and put rows back.
//
// The upper half is what other code calls: views in, checks, errors. The lower half is what each
// instruction-set level provides. Scratch memory is stated per kernel, for N tokens in a sample.
#pragma once

#include <cstdint>

#include "core/isa.h"
#include "core/tensor.h"

namespace tenfold::patches {

// x (B, N, ...), keep_ids (B, K) int32 or int64 -> out (B, K, ...) with out[b, k] = x[b, keep_ids[b, k]].
void gather(const TensorView& x, const TensorView& keep_ids, const TensorView& out);

// y (B, K, ...) -> out (B, N, ...) with out[b, keep_ids[b, k]] = y[b, k]; all other rows are mask_token
// (shape (...) of one row) or zero where it is null. One pass, every row of out is written once.
void restore(const TensorView& y, const TensorView& keep_ids, const TensorView* mask_token,
             const TensorView& out);

// The same from restore_ids (B, N), a permutation per sample: out[b, n] = y[b, restore_ids[b, n]] where
// restore_ids[b, n] < K, else mask_token.
void restore_from_ranks(const TensorView& y, const TensorView& restore_ids, const TensorView* mask_token,
                        const TensorView& out);

// x (B, N, ...) -> out (...) = sum of all rows that keep_ids does not name: the gradient of mask_token.
// float32, bfloat16 (summed in float32, rounded once), float64. `scratch` has dropped_sum_scratch(x) bytes,
// on x's device: kSumChunks rows of sums.
int64_t dropped_sum_scratch(const TensorView& x);
void dropped_sum(const TensorView& x, const TensorView& keep_ids, const TensorView& out, char* scratch);

// restore_ids (B, N) -> keep_ids (B, K), the inverse of the ranks below K.
void keep_ids_from_ranks(const TensorView& restore_ids, const TensorView& keep_ids);

// keep_ids (B, K) and restore_ids (B, N): for sample s = offset + b a uniform draw without replacement,
// a function of (seed, s) alone. `ordered` sorts the kept and the dropped ids ascending. `scratch` has
// random_scratch() bytes on the ids' device; 0 on the CPU.
int64_t random_scratch(const TensorView& keep_ids, const TensorView& restore_ids);
void random_keep_ids(const TensorView& keep_ids, const TensorView& restore_ids, uint64_t seed,
                     uint64_t offset, bool ordered, char* scratch);

// Shapes of the results, from checked arguments.
struct Shape {
  int rank;
  int64_t size[kMaxRank];
};
Shape gather_shape(const TensorView& x, const TensorView& keep_ids);
Shape restore_shape(const TensorView& y, int64_t tokens);

// ---- what one level provides
// -------------------------------------------------------------------------------

// A (B, R) table of rows. Within a row there are `chunk` contiguous bytes, repeated over `outer` dimensions.
struct Rows {
  char* data;
  int64_t batch_stride, row_stride;  // bytes
  int64_t row_bytes, chunk;
  int outer;
  int64_t size[kMaxRank], stride[kMaxRank];  // stride in bytes
};

struct Ids {
  char* data;
  int64_t batch_stride, stride;  // bytes
  bool wide;                     // int64, else int32
};

struct Sizes {
  int64_t batch, tokens, keep;
};

// Whether outputs are written past the caches; store_for in patches.cpp decides.
enum class Store : int { cached, streamed };

// The kernels return false where any id is out of range or doubled; patches.cpp then finds it. They never
// touch memory outside the rows, whatever the ids. Scratch memory per thread: gather 4 N + 8 K bytes, restore
// 4 N, dropped_sum N, random_keep_ids 8 N.
struct Kernels {
  bool (*gather)(const Rows& out, const Rows& x, const Ids& ids, Sizes sizes, Store store);
  bool (*restore)(const Rows& out, const Rows& y, const Ids& ids, bool ranks, const char* fill, Sizes sizes,
                  Store store);
  bool (*dropped_sum_f32)(float* out, float* partial, const Rows& x, const Ids& ids, Sizes sizes);
  bool (*dropped_sum_bf16)(uint16_t* out, float* partial, const Rows& x, const Ids& ids, Sizes sizes);
  bool (*dropped_sum_f64)(double* out, double* partial, const Rows& x, const Ids& ids, Sizes sizes);
  void (*random_keep_ids)(const Ids& keep_ids, const Ids& restore_ids, Sizes sizes, uint64_t seed,
                          uint64_t offset, bool ordered);
};

// Samples are summed in this many fixed chunks, whatever the number of threads: same bits always.
inline constexpr int64_t kSumChunks = 64;

// ---- the same on a GPU, on a stream of a device; ids are checked as core/deferred.h says ----

namespace cuda {

void gather(const Rows& out, const Rows& x, const Ids& ids, Sizes sizes, Queue queue);
void restore(const Rows& out, const Rows& y, const Ids& ids, bool ranks, const Rows* fill, Sizes sizes,
             Queue queue);
// `partial` is kSumChunks rows of float, of double for float64, on the device.
void dropped_sum(char* out, char* partial, DType dtype, const Rows& x, const Ids& ids, Sizes sizes,
                 Queue queue);
void keep_ids_from_ranks(const Ids& restore_ids, const Ids& keep_ids, Sizes sizes, Queue queue);
// `scratch` has shuffle_scratch() elements: none for up to kShuffleTokens tokens.
inline constexpr int kShuffleTokens = 8192;
int64_t shuffle_scratch(Sizes sizes, int device);
void random_keep_ids(const Ids& keep_ids, const Ids& restore_ids, int32_t* scratch, Sizes sizes,
                     uint64_t seed, uint64_t offset, bool ordered, Queue queue);

}  // namespace cuda

namespace baseline {
extern const Kernels kernels;
}
namespace avx2 {
extern const Kernels kernels;
}
namespace avx512 {
extern const Kernels kernels;
}

}  // namespace tenfold::patches
