// The kernels of one instruction-set level; compiled once per level (core/level.h).
#include <cstdint>
#include <cstring>

#include "core/gemm.h"
#include "core/level.h"
#include "core/parallel.h"
#include "core/simd.h"
#include "mixing/blocked.h"
#include "mixing/lanes.h"
#include "mixing/mixing.h"

namespace tenfold::mixing {
namespace TENFOLD_LEVEL {
namespace {

// Multiplications below which a second thread costs more than it saves (some 20 us).
constexpr int64_t kGrain = 1 << 19;

// parallel_tasks where the work is worth it; `work` is that of one task.
template <class Body>
void run_tasks(int64_t count, int64_t work, Body&& body) {
  if (count * work > kGrain) return parallel_tasks(count, body);
  int64_t taken = 0;
  body([&] { return taken++; });
}

// C (rows, stride) = A B + (add) C for whole matrices.
void multiply(float* C, int64_t stride, const gemm::Source& a, int64_t rows, const gemm::Source& b,
              int64_t columns, int64_t depth, bool add = false) {
  const int64_t blocks = (rows + gemm::kBlockRows - 1) / gemm::kBlockRows;
  run_tasks(blocks, rows * columns * depth / (blocks + 1), [&](auto next) {
    FloatScratch scratch(gemm::kScratch);
    for (int64_t block = next(); block < blocks; block = next()) {
      const int64_t first = block * gemm::kBlockRows;
      gemm::product({C + first * stride, stride, nullptr, add}, a.past_across(first),
                    gemm::lesser(rows - first, gemm::kBlockRows), b, columns, depth, scratch.data());
    }
  });
}

// C (N, N) of few variables.
void small_gram(float* C, const Problem& problem) {
  const int64_t variables = problem.sizes.variables, clauses = problem.sizes.clauses;
  for (int64_t i = 0; i < variables; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      const float *const a = problem.S + i * clauses, *const b = problem.S + j * clauses;
      Floats sum{};
      for (int64_t d = 0; d < clauses; d += kFloatLanes)
        sum += load_some(a + d, clauses - d) * load_some(b + d, clauses - d);
      C[i * variables + j] = C[j * variables + i] = sum_of(sum);
    }
  }
}

// Work of a sample in some 20 sweeps, of which most take up more.
int64_t work_of(const Sizes& sizes) { return 20 * sizes.variables * sizes.variables * sizes.width; }

struct Free {
  int64_t most, gram;  // free variables of the sample that has most; samples that have the Gram form
};

Free count_free(const Problem& problem) {
  Free found{0, 0};
  for (int64_t b = 0; b < problem.sizes.samples; ++b) {
    int64_t free = 0;
    for (int64_t i = 0; i < problem.sizes.variables; ++i) free += !problem.given(b, i);
    if (free > found.most) found.most = free;
    found.gram += form_of(problem.sizes, free) == Form::gram;
  }
  return found;
}

// C = S S^T (N, N), if any sample needs it.
class Gram {
 public:
  Gram(const Problem& problem, bool wanted)
      : stride(wanted ? rounded(problem.sizes.variables, kFloatLanes) : 0),
        memory_(problem.sizes.variables * stride) {
    if (wanted) {
      multiply_lower(problem);
      mirror(problem.sizes.variables);
    }
  }
  float* data() { return memory_.data(); }

  const int64_t stride;

 private:
  // Blocks of rows, each up to its own last column.
  void multiply_lower(const Problem& problem) {
    const int64_t variables = problem.sizes.variables, clauses = problem.sizes.clauses;
    const int64_t blocks = (variables + gemm::kBlockRows - 1) / gemm::kBlockRows;
    const gemm::Source S{problem.S, clauses, 1};
    run_tasks(blocks, variables * variables * clauses / (2 * blocks), [&](auto next) {
      FloatScratch scratch(gemm::kScratch);
      for (int64_t taken = next(); taken < blocks; taken = next()) {
        const int64_t first = (blocks - 1 - taken) * gemm::kBlockRows;  // the longest rows first
        const int64_t rows = gemm::lesser(variables - first, gemm::kBlockRows);
        gemm::product({data() + first * stride, stride}, S.past_across(first), rows, S, first + rows, clauses,
                      scratch.data());
      }
    });
  }

  void mirror(int64_t variables) {
    constexpr int64_t kSquare = 16;  // at a time, so that lines are used whole
    for (int64_t row = 0; row < variables; row += kSquare) {
      for (int64_t column = 0; column <= row; column += kSquare) {
        for (int64_t i = row; i < row + kSquare && i < variables; ++i) {
          for (int64_t j = column; j < column + kSquare && j < i; ++j)
            data()[j * stride + i] = data()[i * stride + j];
        }
      }
    }
  }

  FloatScratch memory_;
};

constexpr int64_t kNear = 512 << 10;  // bytes of rows of vectors that a second-level cache of 1 MiB keeps

// Calls run(workspaces, count, first sample) for all samples, some at a time: as many as stay in the cache,
// and leave two tasks or more for each thread. (Which ones are together changes no result.)
template <class Run>
void run_samples(const Sizes& sizes, int64_t most_free, Run&& run) {
  const int64_t bytes = 3 * 4 * (most_free + kRows) * rounded(sizes.width, kFloatLanes);
  int64_t together = gemm::lesser(sizes.samples / (2 * available_threads()), kNear / bytes);
  together = together < 1 ? 1 : gemm::lesser(together, kTogether);
  const int64_t tasks = (sizes.samples + together - 1) / together;
  run_tasks(tasks, together * work_of(sizes), [&](auto next) {
    const auto free_in = [&](int place) { return place < together ? most_free : 0; };
    Workspace all[kTogether] = {
        {sizes, free_in(0)}, {sizes, free_in(1)}, {sizes, free_in(2)}, {sizes, free_in(3)}};
    Workspace* const works[kTogether] = {&all[0], &all[1], &all[2], &all[3]};
    for (int64_t task = next(); task < tasks; task = next()) {
      const int64_t sample = task * together;
      run(works, static_cast<int>(gemm::lesser(sizes.samples - sample, together)), sample);
    }
  });
}

void forward_blocked(const Problem& problem, const Start& start, const Stop& stop, const State& out) {
  const Free found = count_free(problem);
  Gram gram(problem, found.gram > 0);
  run_samples(problem.sizes, found.most, [&](Workspace* const* works, int count, int64_t sample) {
    forward_samples(works, count, problem, sample, start, stop, out, gram.data(), gram.stride);
  });
}

int64_t groups_of(const Sizes& sizes) { return (sizes.samples + kFloatLanes - 1) / kFloatLanes; }

// Where there are enough for all threads. (Which ones are together changes no result.)
int64_t groups_together(int64_t groups) { return groups >= kGroups * available_threads() ? kGroups : 1; }

void forward_lanes(const Problem& problem, const Start& start, const Stop& stop, const State& out) {
  const Sizes& sizes = problem.sizes;
  Scratch<float> C(sizes.variables * sizes.variables);
  small_gram(C.data(), problem);
  const int64_t groups = groups_of(sizes), together = groups_together(groups);
  const int64_t tasks = (groups + together - 1) / together;
  run_tasks(tasks, together * work_of(sizes), [&](auto next) {
    Group one(problem, C.data()), two(problem, C.data());
    Group* const both[kGroups] = {&one, &two};
    for (int64_t task = next(); task < tasks; task = next()) {
      const int64_t first = task * together;
      forward_groups(both, static_cast<int>(gemm::lesser(groups - first, together)), first, start, stop, out);
    }
  });
}

void forward(const Problem& problem, const Start& start, const Stop& stop, const State& out) {
  if (problem.sizes.samples == 0) return;
  if (form_of(problem.sizes, 0) == Form::lanes) return forward_lanes(problem, start, stop, out);
  forward_blocked(problem, start, stop, out);
}

// ---- the gradient of S ----

// S_grad = (M + M^T) S, M (N, stride).
void finish_by_products(float* S_grad, float* M, int64_t stride, const Problem& problem) {
  const int64_t variables = problem.sizes.variables, clauses = problem.sizes.clauses;
  for (int64_t i = 0; i < variables; ++i) {
    for (int64_t j = 0; j <= i; ++j) {
      const float sum = M[i * stride + j] + M[j * stride + i];
      M[i * stride + j] = M[j * stride + i] = sum;
    }
  }
  multiply(S_grad, clauses, {M, stride, 1}, variables, {problem.S, 1, clauses}, clauses, variables);
}

// S_grad = U (V^T S) + V (U^T S), or ((U V^T) + (U V^T)^T) S: the one that takes fewer multiplications.
void gradient_of_S(float* S_grad, const Columns& columns, const Problem& problem) {
  const Sizes& sizes = problem.sizes;
  const int64_t depth = sizes.samples * sizes.width, N = sizes.variables, m = sizes.clauses;
  const gemm::Source U{columns.U, columns.stride, 1}, V{columns.V, columns.stride, 1}, S{problem.S, 1, m};
  if (N * (depth + m) <= 4 * depth * m) {
    const int64_t stride = rounded(N, kFloatLanes);
    FloatScratch M(N * stride);
    multiply(M.data(), stride, U, N, V, N, depth);
    return finish_by_products(S_grad, M.data(), stride, problem);
  }
  FloatScratch product(depth * m);
  const auto add = [&](const float* left, const gemm::Source& right, bool to_what_is_there) {
    multiply(product.data(), m, {left, 1, columns.stride}, depth, S, m, N);
    multiply(S_grad, m, right, N, {product.data(), 1, m}, m, depth, to_what_is_there);
  };
  add(columns.V, U, false);
  add(columns.U, V, true);
}

void backward_blocked(const Problem& problem, const Backward& from, const Gradients& out) {
  const Sizes& sizes = problem.sizes;
  const Free found = count_free(problem);
  Gram gram(problem, found.gram > 0);
  const int64_t stride = out.S != nullptr ? rounded(sizes.samples * sizes.width, kFloatLanes) : 0;
  FloatScratch U(sizes.variables * stride), V(sizes.variables * stride);
  const Columns columns{out.S != nullptr ? U.data() : nullptr, V.data(), stride};
  run_samples(sizes, found.most, [&](Workspace* const* works, int count, int64_t sample) {
    backward_samples(works, count, problem, sample, from, columns, out.z, gram.data(), gram.stride);
  });
  if (out.S != nullptr) gradient_of_S(out.S, columns, problem);
}

constexpr int64_t kMostParts =
    64;  // sums over samples, added up in order: more than threads, and few to keep

void backward_lanes(const Problem& problem, const Backward& from, const Gradients& out) {
  const Sizes& sizes = problem.sizes;
  const int64_t square = sizes.variables * sizes.variables, groups = groups_of(sizes);
  const int64_t each = (groups + kMostParts - 1) / kMostParts, parts = (groups + each - 1) / each;
  Scratch<float> C(square);
  small_gram(C.data(), problem);
  Scratch<float> M(parts * square);
  std::memset(M.data(), 0, sizeof(float) * static_cast<size_t>(parts * square));
  const int64_t together = groups_together(parts), tasks = (parts + together - 1) / together;
  run_tasks(tasks, together * each * work_of(sizes), [&](auto next) {
    Group one(problem, C.data()), two(problem, C.data());
    Group* const both[kGroups] = {&one, &two};
    for (int64_t task = next(); task < tasks; task = next()) {
      for (int64_t i = 0; i < each; ++i) {
        int64_t numbers[kGroups];
        float* to[kGroups];
        int many = 0;
        for (int64_t part = task * together; part < (task + 1) * together && part < parts; ++part) {
          if (part * each + i >= groups) continue;
          numbers[many] = part * each + i;
          to[many++] = out.S != nullptr ? &M[part * square] : nullptr;
        }
        backward_groups(both, many, numbers, from, to, out.z);
      }
    }
  });
  if (out.S == nullptr) return;
  for (int64_t part = 1; part < parts; ++part) {
    for (int64_t i = 0; i < square; ++i) M[i] += M[part * square + i];
  }
  const int64_t variables = sizes.variables, clauses = sizes.clauses;
  std::memset(out.S, 0, sizeof(float) * static_cast<size_t>(variables * clauses));
  for (int64_t i = 0; i < variables; ++i) {
    for (int64_t j = 0; j < variables; ++j) {
      const float weight = M[i * variables + j] + M[j * variables + i];
      for (int64_t d = 0; d < clauses; ++d) out.S[i * clauses + d] += weight * problem.S[j * clauses + d];
    }
  }
}

void backward(const Problem& problem, const Backward& from, const Gradients& out) {
  const Sizes& sizes = problem.sizes;
  if (sizes.samples == 0) {
    if (out.S != nullptr)
      std::memset(out.S, 0, sizeof(float) * static_cast<size_t>(sizes.variables * sizes.clauses));
    return;
  }
  if (form_of(sizes, 0) == Form::lanes) return backward_lanes(problem, from, out);
  backward_blocked(problem, from, out);
}

}  // namespace

const Kernels kernels{forward, backward};

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::mixing
