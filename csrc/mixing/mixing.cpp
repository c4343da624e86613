// Checks in front of the kernels: shapes, types, devices, values.
#include "mixing/mixing.h"

#include <algorithm>
#include <cmath>
#include <string>
#include <vector>

#include "core/checks.h"
#include "core/error.h"
#include "core/philox.h"

namespace tenfold::mixing {
namespace {

constexpr DType kBool{TypeCode::boolean, 8};

const Kernels& kernels() {
  return table_in_use<Kernels>(&baseline::kernels, TENFOLD_AVX2(kernels), TENFOLD_AVX512(kernels));
}

template <class T>
T* data_of(const TensorView& view) {
  return reinterpret_cast<T*>(view.data);
}

[[noreturn]] void throw_shape(const char* name, const TensorView& view, const char* wanted) {
  throw ValueError(std::string(name) + " has shape " + shape_of(view) + ", want " + wanted);
}

Sizes sizes_of(const Inputs& inputs, int64_t width) {
  const TensorView &S = inputs.S, &z = inputs.z;
  want_memory("S", S);
  if (S.rank != 2 || S.shape[1] < 1) throw_shape("S", S, "(1 + n + aux, m) with m of 1 or more");
  want_memory("z", z);
  if (z.rank != 2 || z.shape[1] < 1) throw_shape("z", z, "(samples, n) with n of 1 or more");
  if (S.shape[0] < z.shape[1] + 1) {
    throw ValueError("S has " + std::to_string(S.shape[0]) + " rows, want 1 + n + aux, at least " +
                     std::to_string(z.shape[1] + 1) + " for z of " + std::to_string(z.shape[1]) +
                     " variables");
  }
  return {z.shape[0], S.shape[0], z.shape[1], S.shape[1], width};
}

// Shapes and types; the values are looked at by check_values.
Problem problem_of(const Inputs& inputs, const TensorView& order, int64_t width) {
  const Sizes sizes = sizes_of(inputs, width);
  const TensorView &S = inputs.S, &z = inputs.z, &is_input = inputs.is_input;
  want_dense("S", S, kFloat32, {sizes.variables, sizes.clauses}, "(1 + n + aux, m)");
  want_dense("z", z, kFloat32, {sizes.samples, sizes.user}, "(samples, n)");
  want_together("z", z, "S", S);
  want_memory("is_input", is_input);
  want_type("is_input", is_input, {kBool});
  if (is_input.rank == 1)
    want_dense("is_input", is_input, kBool, {sizes.user}, "one per variable of z");
  else
    want_dense("is_input", is_input, kBool, {sizes.samples, sizes.user}, "as z");
  want_together("is_input", is_input, "S", S);
  want_dense("order", order, kInt32, {sizes.variables - 1}, "one per variable but the first");
  want_together("order", order, "S", S);
  return {sizes,
          data_of<float>(S),
          data_of<float>(z),
          data_of<uint8_t>(is_input),
          is_input.rank == 1 ? 0 : sizes.user,
          data_of<int32_t>(order)};
}

std::string place(const char* name, int64_t at, int64_t width) {
  return std::string(name) + "[" + std::to_string(at / width) + ", " + std::to_string(at % width) + "]";
}

void want_finite(const char* name, const float* values, int64_t count, int64_t width) {
  constexpr float kMost = 3.40282347e38f;
  bool fine = true;
  for (int64_t i = 0; i < count; ++i) fine &= std::fabs(values[i]) <= kMost;
  if (fine) return;
  int64_t i = 0;
  while (std::isfinite(values[i])) ++i;
  throw ValueError(place(name, i, width) + " is " + std::to_string(values[i]) + ", want a finite number");
}

// Entries that are no numbers, or so large that |g|^2 could overflow.
void check_rules(const Problem& problem) {
  const Sizes& sizes = problem.sizes;
  want_finite("S", problem.S, sizes.variables * sizes.clauses, sizes.clauses);
  const auto variables = static_cast<double>(sizes.variables);
  for (int64_t i = 0; i < sizes.variables; ++i) {
    double squares = 0.0;
    for (int64_t j = 0; j < sizes.clauses; ++j) {
      const double value = problem.S[i * sizes.clauses + j];
      squares += value * value;
    }
    if (squares * variables <= kMostSquares) continue;
    throw ValueError("the squares of S[" + std::to_string(i) + "] add up to more than 1e18 divided by the " +
                     std::to_string(sizes.variables) + " rows of S, want smaller numbers");
  }
}

void check_probabilities(const Problem& problem) {
  const Sizes& sizes = problem.sizes;
  const int64_t count = sizes.samples * sizes.user;
  bool fine = true;
  for (int64_t i = 0; i < count; ++i) fine &= problem.z[i] >= 0.0f && problem.z[i] <= 1.0f;
  for (int64_t i = 0; !fine && i < count; ++i) {
    if (problem.z[i] >= 0.0f && problem.z[i] <= 1.0f) continue;
    throw ValueError(place("z", i, sizes.user) + " is " + std::to_string(problem.z[i]) +
                     ", want a probability from 0 to 1");
  }
}

// A sample without a free variable.
void check_inputs(const Problem& problem) {
  const Sizes& sizes = problem.sizes;
  for (int64_t b = 0; b < (problem.input_stride == 0 ? 1 : sizes.samples); ++b) {
    const uint8_t* const mine = problem.is_input + b * problem.input_stride;
    bool has_free = false;
    for (int64_t i = 0; i < sizes.user; ++i) has_free |= mine[i] == 0;
    if (has_free) continue;
    throw ValueError("is_input" + (problem.input_stride == 0 ? "" : "[" + std::to_string(b) + "]") +
                     " is True everywhere, want at least one variable that is not given");
  }
}

void check_order(const int32_t* order, int64_t variables) {
  std::vector<bool> seen(static_cast<size_t>(variables));
  for (int64_t i = 0; i + 1 < variables; ++i) {
    const int32_t variable = order[i];
    if (variable >= 1 && variable < variables && !seen[static_cast<size_t>(variable)]) {
      seen[static_cast<size_t>(variable)] = true;
      continue;
    }
    throw ValueError("order[" + std::to_string(i) + "] is " + std::to_string(variable) +
                     ", want each variable from 1 to " + std::to_string(variables - 1) + " once");
  }
}

// The variables sorted by a random word each: the same order on a GPU, whose threads count smaller words.
void draw_order(int32_t* order, int64_t variables, uint64_t seed) {
  std::vector<uint64_t> keys(static_cast<size_t>(variables - 1));
  for (int64_t i = 1; i < variables; ++i) {
    uint32_t word = static_cast<uint32_t>(i), second = 0, third = 0, purpose = kDrawOrder;
    philox4x32<1>(&word, &second, &third, &purpose, static_cast<uint32_t>(seed),
                  static_cast<uint32_t>(seed >> 32));
    keys[static_cast<size_t>(i - 1)] = uint64_t{word} << 32 | static_cast<uint64_t>(i);
  }
  std::sort(keys.begin(), keys.end());
  for (size_t i = 0; i < keys.size(); ++i) order[i] = static_cast<int32_t>(keys[i] & 0xffffffffu);
}

void want_positive(const char* name, float value) {
  if (value > 0.0f && std::isfinite(value)) return;
  throw ValueError(std::string(name) + " is " + std::to_string(value) + ", want a positive number");
}

// Arrays of a solution that has a V.
void want_solution(const Solution& solution, const Sizes& sizes, const TensorView& S) {
  want_dense("V", solution.V, kFloat32, {sizes.samples, sizes.variables, sizes.width},
             "(samples, variables, k)");
  want_dense("norms", solution.norms, kFloat32, {sizes.samples, sizes.variables}, "(samples, variables)");
  want_dense("negative", solution.negative, kBool, {sizes.samples, sizes.variables}, "(samples, variables)");
  for (const auto& [name, view] : {std::pair{"V", &solution.V}, std::pair{"norms", &solution.norms},
                                   std::pair{"negative", &solution.negative}}) {
    want_together(name, *view, "S", S);
  }
}

}  // namespace

int64_t forward_scratch([[maybe_unused]] const Inputs& inputs, [[maybe_unused]] int64_t width) {
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(inputs.S))
      return cuda::forward_floats(sizes_of(inputs, width)) * static_cast<int64_t>(sizeof(float));
  }
  return 0;
}

void forward(const Inputs& inputs, const TensorView* V0, const Options& options, const Solution& out,
             [[maybe_unused]] char* scratch) {
  if (options.width < 2) throw ValueError("k is " + std::to_string(options.width) + ", want 2 or more");
  if (options.max_iter < 1 || options.max_iter > INT32_MAX) {
    throw ValueError("max_iter is " + std::to_string(options.max_iter) + ", want 1 or more sweeps");
  }
  if (!(options.eps >= 0.0f) || !std::isfinite(options.eps)) {
    throw ValueError("eps is " + std::to_string(options.eps) + ", want 0 or a positive number");
  }
  const Problem problem = problem_of(inputs, out.order, options.width);
  const Sizes& sizes = problem.sizes;
  want_dense("out", out.z, kFloat32, {sizes.samples, sizes.user}, "as z");
  want_together("out", out.z, "S", inputs.S);
  want_dense("counts", out.counts, kInt32, {3, sizes.samples}, "three per sample");
  want_together("counts", out.counts, "S", inputs.S);
  const bool keeps = out.V.rank == 3;
  if (keeps) want_solution(out, sizes, inputs.S);
  if (V0 != nullptr) {
    want_dense("V0", *V0, kFloat32, {sizes.samples, sizes.variables, sizes.width}, "(samples, variables, k)");
    want_together("V0", *V0, "S", inputs.S);
  }
  auto* const order = data_of<int32_t>(out.order);
  const Start start{V0 != nullptr ? data_of<const float>(*V0) : nullptr, options.seed, options.first_sample};
  const Stop stop{static_cast<int32_t>(options.max_iter), options.eps};
  const State state{data_of<float>(out.z), keeps ? data_of<float>(out.V) : nullptr,
                    keeps ? data_of<float>(out.norms) : nullptr,
                    keeps ? data_of<uint8_t>(out.negative) : nullptr, data_of<int32_t>(out.counts)};
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(inputs.S)) {
      const Queue queue = queue_of(inputs.S);
      if (options.draw_order) cuda::draw_order(order, sizes.variables, options.seed, queue);
      return cuda::forward(problem, start, stop, state, reinterpret_cast<float*>(scratch), queue);
    }
  }
  check_rules(problem);
  check_probabilities(problem);
  check_inputs(problem);
  if (start.V0 != nullptr)
    want_finite("V0", start.V0, sizes.samples * sizes.variables * sizes.width, sizes.variables * sizes.width);
  if (options.draw_order)
    draw_order(order, sizes.variables, options.seed);
  else
    check_order(order, sizes.variables);
  kernels().forward(problem, start, stop, state);
}

int64_t backward_scratch([[maybe_unused]] const Inputs& inputs, [[maybe_unused]] const Solution& solution) {
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(inputs.S) && solution.V.rank == 3)
      return cuda::backward_floats(sizes_of(inputs, solution.V.shape[2])) *
             static_cast<int64_t>(sizeof(float));
  }
  return 0;
}

void backward(const Inputs& inputs, const Solution& solution, const Adjoint& adjoint,
              const TensorView* S_grad, const TensorView* z_grad, [[maybe_unused]] char* scratch) {
  want_memory("V", solution.V);
  if (solution.V.rank != 3) throw_shape("V", solution.V, "(samples, variables, k), kept by the forward pass");
  const Problem problem = problem_of(inputs, solution.order, solution.V.shape[2]);
  const Sizes& sizes = problem.sizes;
  want_solution(solution, sizes, inputs.S);
  want_dense("counts", solution.counts, kInt32, {3, sizes.samples}, "three per sample");
  want_together("counts", solution.counts, "S", inputs.S);
  want_dense("z_grad", adjoint.z_grad, kFloat32, {sizes.samples, sizes.user}, "as z");
  want_together("z_grad", adjoint.z_grad, "S", inputs.S);
  want_positive("prox_lam", adjoint.prox_lam);
  if (adjoint.sweeps < -1 || adjoint.sweeps > INT32_MAX) {
    throw ValueError("sweeps is " + std::to_string(adjoint.sweeps) + ", want 0 to " +
                     std::to_string(INT32_MAX));
  }
  if (S_grad != nullptr) {
    want_dense("S_grad", *S_grad, kFloat32, {sizes.variables, sizes.clauses}, "as S");
    want_together("S_grad", *S_grad, "S", inputs.S);
  }
  if (z_grad != nullptr) {
    want_dense("input_grad", *z_grad, kFloat32, {sizes.samples, sizes.user}, "as z");
    want_together("input_grad", *z_grad, "S", inputs.S);
  }
  const Backward from{data_of<const float>(solution.V),          data_of<const float>(solution.norms),
                      data_of<const uint8_t>(solution.negative), data_of<const int32_t>(solution.counts),
                      data_of<const float>(adjoint.z_grad),      adjoint.prox_lam,
                      static_cast<int32_t>(adjoint.sweeps),      adjoint.official};
  const Gradients to{S_grad != nullptr ? data_of<float>(*S_grad) : nullptr,
                     z_grad != nullptr ? data_of<float>(*z_grad) : nullptr};
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(inputs.S))
      return cuda::backward(problem, from, to, reinterpret_cast<float*>(scratch), queue_of(inputs.S));
  }
  check_probabilities(problem);
  check_order(problem.order, sizes.variables);
  kernels().backward(problem, from, to);
}

}  // namespace tenfold::mixing
