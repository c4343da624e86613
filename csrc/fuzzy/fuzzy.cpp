// Checks in front of the kernels, and the order in which axes are walked through.
#include "fuzzy/fuzzy.h"

#include <algorithm>
#include <array>
#include <string>
#include <string_view>
#include <utility>

#include "core/checks.h"
#include "core/error.h"
#include "fuzzy/cuda.h"

namespace tenfold::fuzzy {
namespace {

const Kernels& kernels() {
  return table_in_use<Kernels>(&baseline::kernels, TENFOLD_AVX2(kernels), TENFOLD_AVX512(kernels));
}

Element element_of(DType type) {
  return type == kFloat32 ? Element::f32 : type == kBFloat16 ? Element::bf16 : Element::f64;
}
DType state_type(DType type) { return type == kFloat64 ? kFloat64 : kFloat32; }

std::string named(const char* name, size_t i) { return std::string(name) + "[" + std::to_string(i) + "]"; }

// ---- what a request says ----

std::vector<std::string_view> split(std::string_view text, char at) {
  std::vector<std::string_view> parts;
  while (true) {
    const size_t end = text.find(at);
    parts.push_back(text.substr(0, end));
    if (end == std::string_view::npos) return parts;
    text.remove_prefix(end + 1);
  }
}

constexpr std::pair<std::string_view, Code> kCodes[] = {
    {"not", Code::negation},
    {"not_goedel", Code::negation_goedel},
    {"and", Code::conjunction},
    {"or", Code::disjunction},
    {"implies", Code::implication},
    {"implies_goguen", Code::implication_goguen},
    {"and_goedel", Code::conjunction_goedel},
    {"or_goedel", Code::disjunction_goedel},
    {"implies_goedel", Code::implication_goedel},
    {"implies_kleene", Code::implication_kleene},
    {"and_lukasiewicz", Code::conjunction_lukasiewicz},
    {"or_lukasiewicz", Code::disjunction_lukasiewicz},
    {"implies_lukasiewicz", Code::implication_lukasiewicz},
};

Step step_of(std::string_view token, int operands) {
  for (const auto& [name, code] : kCodes) {
    if (name == token) return {code, 0, 0};
  }
  int operand = 0;
  for (const char c : token) {
    if (c < '0' || c > '9' || operand >= operands) operand = operands;
    operand = operand * 10 + (c - '0');
  }
  if (token.empty() || operand >= operands) {
    throw ValueError("formula has '" + std::string(token) + "', want an operand's number or a connective");
  }
  return {Code::operand, operand, 0};
}

void read_formula(Task& task, const Request& request) {
  task.formula = request.formula == "and"  ? Formula::log_and
                 : request.formula == "or" ? Formula::log_or
                                           : Formula::postfix;
  if (task.formula != Formula::postfix) return;
  int depth = 0, stack[kMostSteps];
  for (const std::string_view token : split(request.formula, ' ')) {
    if (token.empty()) continue;
    if (task.steps == kMostSteps) throw ValueError("formula has more than 64 steps, want at most 64");
    Step step = step_of(token, task.operands);
    const bool unary = step.code == Code::negation || step.code == Code::negation_goedel;
    depth += step.code == Code::operand ? 1 : unary ? 0 : -1;
    if (depth < 1) throw ValueError("formula '" + request.formula + "' finds too few values, want postfix");
    step.left = step.code == Code::operand ? 0 : stack[depth - 1];
    stack[depth - 1] = task.steps;
    task.program[task.steps++] = step;
  }
  if (depth != 1) throw ValueError("formula '" + request.formula + "' leaves not one value, want one");
}

constexpr double kGreatestSmallPower = 4;  // up to it powers are products, and underflow below 1e-9 only

Reduction reduction_of(const std::string& quantifier, double number, double eps, double empty) {
  Reduction r{Quantifier::add, {1, 0}, {1, 0}, false, true, 1, 1, empty};
  if (quantifier == "copy") {
    r.quantifier = Quantifier::copy;
  } else if (quantifier == "lme" || quantifier == "lse") {
    r.quantifier = Quantifier::scaled;
    r.average = quantifier == "lme";
    r.sharpness = number;
  } else if (quantifier == "max" || quantifier == "min") {
    r.quantifier = Quantifier::most;
    r.average = false;
    if (quantifier == "min") r.before = r.after = {-1, 0};
  } else if (quantifier == "pmean" || quantifier == "pmean_error") {
    const bool error = quantifier == "pmean_error";
    r.before = error ? Affine{-(1 - eps), 1} : Affine{1 - eps, eps};
    if (error) r.after = {-1, 1};
    r.power = static_cast<int>(number);
    if (number == 1) return r;
    if (number == r.power && number <= kGreatestSmallPower) {
      r.quantifier = Quantifier::power;
    } else {
      r.quantifier = Quantifier::scaled;
      r.logged = true;
      r.sharpness = number;
    }
  } else if (quantifier == "mean" || quantifier == "sum") {
    r.average = quantifier == "mean";
  } else {
    throw ValueError("quantifier is '" + quantifier +
                     "', want lme, lse, max, min, mean, sum, pmean or "
                     "pmean_error");
  }
  return r;
}

Relation relation_of(const std::string& relation) {
  if (relation.empty()) return Relation::mask;
  if (relation == "<") return Relation::less;
  if (relation == "<=") return Relation::at_most;
  if (relation == ">") return Relation::greater;
  if (relation == ">=") return Relation::at_least;
  throw ValueError("guard's relation is '" + relation + "', want <, <=, > or >=");
}

// ---- axes ----

// Sizes of the axes, and the strides of each array by axis; the order of the loops comes later.
class Space {
 public:
  Space() { sizes_.fill(1); }

  // `leading`: the array has one more dimension than axes, its features.
  void see(const std::string& name, std::string_view axes, const TensorView& view, bool features = false) {
    const int rank = static_cast<int>(axes.size());
    if (view.rank != rank + (features ? 1 : 0)) {
      throw ValueError(name + " has shape " + shape_of(view) + ", want as many dimensions as its axes");
    }
    for (int i = 0; i < rank; ++i) {
      int64_t& size = sizes_[axis(axes[static_cast<size_t>(i)])];
      if (view.shape[i] == 1 || view.shape[i] == size) continue;
      if (size != 1) {
        throw ValueError(name + " has shape " + shape_of(view) + " with size " +
                         std::to_string(view.shape[i]) + " where others have " + std::to_string(size));
      }
      size = view.shape[i];
    }
  }

  // 0 along axes that the array lacks, or has once only; not where it has nothing, whatever strides that has.
  std::array<int64_t, kMostAxes> strides(std::string_view axes, const TensorView& view) const {
    std::array<int64_t, kMostAxes> strides{};
    for (size_t i = 0; i < axes.size(); ++i) {
      if (view.shape[i] == 1) continue;
      strides[axis(axes[i])] = view.shape[i] == 0 ? view.dtype.bytes() : view.strides[i];
    }
    return strides;
  }

  static size_t axis(char letter) {
    if (letter < 'a' || letter >= 'a' + kMostAxes) throw ValueError("axes want letters from a to d");
    return static_cast<size_t>(letter - 'a');
  }

  const std::array<int64_t, kMostAxes>& sizes() const { return sizes_; }

 private:
  std::array<int64_t, kMostAxes> sizes_;
};

using Order = std::array<size_t, kMostAxes>;  // the axis at each position of the loops

// Lanes run along the axis in which most numbers of operands lie side by side, unless that is short and
// another twice as long; rows along one that is reduced where lanes are not; the longest of the others.
Order order_of(const std::array<int64_t, kMostAxes>& sizes, const std::array<bool, kMostAxes>& kept,
               const std::vector<std::array<int64_t, kMostAxes>>& strides,
               const std::vector<TensorView>& operands, bool quantified) {
  std::array<double, kMostAxes> side_by_side{};
  for (size_t i = 0; i < operands.size(); ++i) {
    for (size_t axis = 0; axis < kMostAxes; ++axis) {
      if (strides[i][axis] == operands[i].dtype.bytes()) {
        side_by_side[axis] += static_cast<double>(operands[i].count());
      }
    }
  }
  const auto best = [&](auto&& allowed, auto&& better) {
    size_t choice = kMostAxes;
    for (size_t axis = 0; axis < kMostAxes; ++axis) {
      if (allowed(axis) && (choice == kMostAxes || better(axis, choice))) choice = axis;
    }
    return choice;
  };
  const auto longer = [&](size_t a, size_t b) { return sizes[a] > sizes[b]; };
  Order order;
  size_t lane = best([](size_t) { return true; },
                     [&](size_t a, size_t b) {
                       return std::pair(side_by_side[a], sizes[a]) > std::pair(side_by_side[b], sizes[b]);
                     });
  constexpr int64_t kShort = 16;  // lanes for which the work done once for a row is no longer small
  const size_t longest =
      best([](size_t) { return true; },
           [&](size_t a, size_t b) { return sizes[a] >= sizes[b]; });  // the last of equals
  if (sizes[lane] < kShort && sizes[longest] >= 2 * sizes[lane]) lane = longest;
  const bool want_reduced = quantified && kept[lane];
  size_t row = best([&](size_t a) { return a != lane && (!want_reduced || !kept[a]); }, longer);
  // Kept lanes want reduced rows, of one if need be.
  if (row == kMostAxes) row = best([&](size_t a) { return a != lane; }, longer);
  order[kLaneAxis] = lane;
  order[kRowAxis] = row;
  const size_t inner = best([&](size_t a) { return a != lane && a != row; }, longer);
  order[kInner] = inner;
  order[kOuter] = best([&](size_t a) { return a != lane && a != row && a != inner; }, longer);
  return order;
}

Strided placed(const TensorView& view, const std::array<int64_t, kMostAxes>& strides, const Order& order) {
  Strided array{view.data, {}};
  for (int k = 0; k < kMostAxes; ++k) array.strides[k] = strides[order[static_cast<size_t>(k)]];
  return array;
}

// Work is cut along an axis with enough tiles, if possible one whose results differ. No part is without a
// tile: each writes its copy of what parts share.
void cut(Task& task) {
  constexpr int64_t kEnough = 8;
  int64_t best = 0;
  for (const int axis : {kOuter, kRowAxis, kInner, kLaneAxis}) {
    const int64_t unit = axis == kRowAxis ? kTileRows : axis == kLaneAxis ? kTileLanes : 1;
    const int64_t units = std::min<int64_t>((task.counts[axis] + unit - 1) / unit, kMostParts);
    const int64_t worth = units >= kEnough && task.kept[axis] ? 2 * kMostParts
                          : units >= kEnough                  ? kMostParts + 1
                                                              : units;
    if (worth <= best) continue;
    best = worth;
    task.part_axis = axis;
    task.parts = static_cast<int>(std::max<int64_t>(units, 1));
  }
}

struct Call {
  Task task{};
  Space space;
  Order order;
  std::vector<std::string_view> axes;

  Strided place(std::string_view letters, const TensorView& view) const {
    return placed(view, space.strides(letters, view), order);
  }
};

void want_operand(const std::string& name, const TensorView& view, const TensorView& first) {
  want_memory(name.c_str(), view);
  want_type(name.c_str(), view, {kFloat32, kBFloat16, kFloat64});
  if (!(view.dtype == first.dtype)) {
    throw TypeError(name + " has type " + to_string(view.dtype) + " and operands[0] " +
                    to_string(first.dtype) + ", want one type");
  }
  want_together(name.c_str(), view, "operands[0]", first);
}

void read_guard(Call& call, const std::vector<TensorView>& guards, std::string_view axes,
                const Request& request, const TensorView& first) {
  GuardTask& guard = call.task.guard;
  guard.present = !guards.empty();
  if (!guard.present) return;
  guard.relation = relation_of(request.relation);
  guard.bound = request.numbers[3];
  const bool points = guards.size() == 2;
  for (const TensorView& view : guards) {
    want_memory("guard", view);
    want_together("guard", view, "operands[0]", first);
    const bool mask = guard.relation == Relation::mask;
    const bool byte = view.dtype.bits == 8 &&
                      (view.dtype.code == TypeCode::boolean || view.dtype.code == TypeCode::uinteger);
    if (mask ? !byte : !(view.dtype == first.dtype)) {
      throw TypeError("guard has type " + to_string(view.dtype) + ", want " +
                      (mask ? std::string("bool") : to_string(first.dtype) + " as the operands, to compare"));
    }
  }
  if (!points) {
    call.space.see("guard", axes, guards[0]);
  } else {
    if (axes.size() != 2 || guards[0].rank != 2 || guards[1].rank != 2 ||
        guards[0].shape[1] != guards[1].shape[1]) {
      throw ValueError("guard's points want shapes (n, features) and (m, features) over two axes");
    }
    call.space.see("guard", axes.substr(0, 1), guards[0], true);
    call.space.see("guard", axes.substr(1, 1), guards[1], true);
    guard.features = guards[0].shape[1];
    guard.values_step = guards[0].strides[1];
    guard.other_step = guards[1].strides[1];
  }
}

Call call_of(const std::vector<TensorView>& operands, const std::vector<TensorView>& guards,
             const Request& request) {
  Call call;
  Task& task = call.task;
  if (operands.empty() || operands.size() > kMostOperands) {
    throw ValueError("operands are " + std::to_string(operands.size()) + ", want 1 to 8");
  }
  task.operands = static_cast<int>(operands.size());
  if (request.numbers.size() < 4) throw ValueError("numbers are too few, want at least 4");
  const std::vector<std::string_view> halves = split(request.axes, '|');
  call.axes = split(halves[0], ',');
  if (call.axes.size() != operands.size() || (halves.size() == 2) != !guards.empty() || guards.size() > 2) {
    throw ValueError("axes are '" + request.axes + "', want those of each operand and of the guard");
  }
  for (size_t i = 0; i < operands.size(); ++i) {
    want_operand(named("operands", i), operands[i], operands[0]);
    call.space.see(named("operands", i), call.axes[i], operands[i]);
  }
  read_guard(call, guards, halves.back(), request, operands[0]);

  std::array<bool, kMostAxes> kept{};
  for (const char letter : request.kept) kept[Space::axis(letter)] = true;
  std::vector<std::array<int64_t, kMostAxes>> strides;
  for (size_t i = 0; i < operands.size(); ++i)
    strides.push_back(call.space.strides(call.axes[i], operands[i]));
  const bool quantified = request.quantifier != "copy";
  for (size_t axis = 0; axis < kMostAxes; ++axis) {
    if (!quantified || call.space.sizes()[axis] == 1) kept[axis] = kept[axis] || !quantified;
  }
  call.order = order_of(call.space.sizes(), kept, strides, operands, quantified);
  for (int k = 0; k < kMostAxes; ++k) {
    task.counts[k] = call.space.sizes()[call.order[static_cast<size_t>(k)]];
    task.kept[k] = kept[call.order[static_cast<size_t>(k)]];
  }
  for (size_t i = 0; i < operands.size(); ++i) task.operand[i] = placed(operands[i], strides[i], call.order);
  task.element = element_of(operands[0].dtype);
  read_formula(task, request);
  task.alpha = request.numbers[0];
  task.eps = request.numbers[1];
  for (size_t i = 0; i < operands.size(); ++i) {
    task.log_weights[i] = 4 + i < request.numbers.size() ? request.numbers[4 + i] : 0.0;
  }
  task.reduction =
      reduction_of(request.quantifier, request.numbers[0], request.numbers[1], request.numbers[2]);
  if (task.guard.present) {
    const std::string_view letters = halves[1];
    const bool points = guards.size() == 2;
    task.guard.values = call.place(points ? letters.substr(0, 1) : letters, guards[0]);
    if (points) task.guard.other = call.place(letters.substr(1, 1), guards[1]);
  }
  cut(task);
  return call;
}

// An array over the kept axes.
Strided place_result(const Call& call, const char* name, const std::string& kept, const TensorView& view,
                     int leading = 0) {
  if (view.rank != static_cast<int>(kept.size()) + leading) {
    throw ValueError(std::string(name) + " has shape " + shape_of(view) + ", want the kept axes");
  }
  std::array<int64_t, kMostAxes> strides{};
  for (size_t i = 0; i < kept.size(); ++i) {
    const size_t axis = Space::axis(kept[i]), at = i + static_cast<size_t>(leading);
    if (view.shape[at] != call.space.sizes()[axis]) {
      throw ValueError(std::string(name) + " has shape " + shape_of(view) + ", want the kept axes' sizes");
    }
    if (view.shape[at] != 1) strides[axis] = view.strides[at];
  }
  return placed(view, strides, call.order);
}

void place_state(Call& call, const std::string& kept, const TensorView& state, DType type) {
  want_memory("state", state);
  want_type("state", state, {state_type(type)});
  if (state.rank < 1 || state.shape[0] != 2) {
    throw ValueError("state has shape " + shape_of(state) + ", want (2, ...)");
  }
  call.task.raw = place_result(call, "state", kept, state, 1);
  call.task.count = call.task.raw;
  call.task.count.data += state.strides[0];
}

Task forward_task(const ForwardArrays& arrays, const Request& request) {
  const std::vector<TensorView>& operands = arrays.operands;
  const TensorView& out = arrays.out;
  Call call = call_of(operands, arrays.guards, request);
  want_memory("out", out);
  want_type("out", out, {operands[0].dtype});
  want_together("out", out, "operands[0]", operands[0]);
  want_writable("out", out);
  for (size_t i = 0; i < operands.size(); ++i) want_apart(out, named("operands", i).c_str(), operands[i]);
  call.task.out = place_result(call, "out", request.kept, out);
  if (arrays.state != nullptr) place_state(call, request.kept, *arrays.state, operands[0].dtype);
  return call.task;
}

void place_gradient(Call& call, const BackwardArrays& arrays, size_t i) {
  const TensorView &grad = *arrays.grads[i], &operand = arrays.operands[i];
  const std::string name = named("grads", i);
  want_operand(name, grad, arrays.operands[0]);
  want_writable(name.c_str(), grad);
  if (grad.rank != operand.rank || !std::equal(operand.shape, operand.shape + operand.rank, grad.shape)) {
    throw ValueError(name + " has shape " + shape_of(grad) + ", want " + shape_of(operand) + " as operands[" +
                     std::to_string(i) + "]");
  }
  for (const TensorView& other : arrays.operands) {
    if (overlap(grad, other)) throw ValueError(name + " shares memory with an operand, want its own memory");
  }
  call.task.grads[i] = call.place(call.axes[i], grad);
  call.task.add_to[i] = arrays.add_to[i];
}

Task backward_task(const BackwardArrays& arrays, const Request& request) {
  Call call = call_of(arrays.operands, arrays.guards, request);
  const TensorView& first = arrays.operands[0];
  want_memory("grad", arrays.grad);
  want_type("grad", arrays.grad, {first.dtype});
  want_together("grad", arrays.grad, "operands[0]", first);
  call.task.out = place_result(call, "grad", request.kept, arrays.grad);
  if (call.task.reduction.quantifier != Quantifier::copy) {
    if (arrays.state == nullptr) throw ValueError("state is None, want that of the forward pass");
    place_state(call, request.kept, *arrays.state, first.dtype);
  }
  if (arrays.grads.size() != arrays.operands.size() || arrays.add_to.size() != arrays.operands.size()) {
    throw ValueError("grads want one array, or None, per operand");
  }
  for (size_t i = 0; i < arrays.operands.size(); ++i) {
    if (arrays.grads[i] != nullptr) place_gradient(call, arrays, i);
  }
  return call.task;
}

bool anything(const BackwardArrays& arrays) {
  return std::any_of(arrays.grads.begin(), arrays.grads.end(),
                     [](const TensorView* grad) { return grad != nullptr && grad->count() > 0; });
}

}  // namespace

int64_t forward_scratch(const ForwardArrays& arrays, const Request& request) {
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(arrays.out)) return cuda::scratch_bytes(forward_task(arrays, request), false);
  }
  return 0;
}

void quantify(const ForwardArrays& arrays, const Request& request, char* scratch) {
  const Task task = forward_task(arrays, request);
  if (arrays.out.count() == 0) return;
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(arrays.out)) return cuda::quantify(task, scratch, queue_of(arrays.out));
  }
  (void)scratch;
  kernels().quantify(task);
}

int64_t backward_scratch(const BackwardArrays& arrays, const Request& request) {
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(arrays.grad)) return cuda::scratch_bytes(backward_task(arrays, request), true);
  }
  return 0;
}

void quantify_backward(const BackwardArrays& arrays, const Request& request, char* scratch) {
  const Task task = backward_task(arrays, request);
  if (!anything(arrays)) return;
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(arrays.grad)) return cuda::quantify_backward(task, scratch, queue_of(arrays.grad));
  }
  (void)scratch;
  kernels().quantify_backward(task);
}

// ---- segments ----

namespace {

SegmentTask segment_task(const TensorView& values, const TensorView& row_ptr, const std::string& quantifier,
                         const std::vector<double>& numbers, const TensorView& out, const char* out_name) {
  want_memory("values", values);
  want_type("values", values, {kFloat32, kBFloat16, kFloat64});
  want_memory("row_ptr", row_ptr);
  want_together("row_ptr", row_ptr, "values", values);
  if (row_ptr.rank != 1 || row_ptr.shape[0] < 1) {
    throw ValueError("row_ptr has shape " + shape_of(row_ptr) + ", want (segments + 1,)");
  }
  want_dense("row_ptr", row_ptr, kInt64, {row_ptr.shape[0]}, "(segments + 1,)");
  if (values.rank != 1) throw ValueError("values has shape " + shape_of(values) + ", want (n,)");
  want_dense("values", values, values.dtype, {values.shape[0]}, "(n,)");
  want_dense(out_name, out, values.dtype, {row_ptr.shape[0] - 1}, "one per segment");
  want_together(out_name, out, "values", values);
  if (numbers.size() < 3) throw ValueError("numbers are too few, want at least 3");
  SegmentTask task{};
  task.element = element_of(values.dtype);
  task.segments = row_ptr.shape[0] - 1;
  task.row_ptr = reinterpret_cast<const int64_t*>(row_ptr.data);
  task.values = values.data;
  task.out = out.data;
  task.reduction = reduction_of(quantifier, numbers[0], numbers[1], numbers[2]);
  return task;
}

void place_segment_state(SegmentTask& task, const TensorView& state, const TensorView& values) {
  want_dense("state", state, state_type(values.dtype), {2, task.segments}, "two per segment");
  task.raw = state.data;
  task.count = state.data + task.segments * state_type(values.dtype).bytes();
}

}  // namespace

void segments(const TensorView& values, const TensorView& row_ptr, const std::string& quantifier,
              const std::vector<double>& numbers, const TensorView& out, const TensorView* state) {
  SegmentTask task = segment_task(values, row_ptr, quantifier, numbers, out, "out");
  want_writable("out", out);
  if (state != nullptr) place_segment_state(task, *state, values);
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(values)) return cuda::segments(task, values.shape[0], queue_of(values));
  }
  const int64_t wrong = kernels().wrong_segment(task.row_ptr, task.segments, values.shape[0]);
  if (wrong >= 0) {
    throw ValueError("row_ptr[" + std::to_string(wrong) + "] is " + std::to_string(task.row_ptr[wrong]) +
                     ", want numbers that never fall, from 0 to " + std::to_string(values.shape[0]));
  }
  kernels().segments(task);
}

void segments_backward(const TensorView& grad, const TensorView& state, const TensorView& values,
                       const TensorView& row_ptr, const std::string& quantifier,
                       const std::vector<double>& numbers, const TensorView& values_grad) {
  SegmentTask task = segment_task(values, row_ptr, quantifier, numbers, grad, "grad");
  place_segment_state(task, state, values);
  want_dense("values_grad", values_grad, values.dtype, {values.shape[0]}, "as values");
  want_writable("values_grad", values_grad);
  task.values_grad = values_grad.data;
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(values)) return cuda::segments_backward(task, values.shape[0], queue_of(values));
  }
  kernels().segments_backward(task);
}

// ---- atoms ----

namespace {

void want_dense_like(const char* name, const TensorView& view, const TensorView& z, int rank) {
  want_memory(name, view);
  want_type(name, view, {z.dtype});
  want_together(name, view, "z", z);
  if (view.rank != rank || !std::equal(z.shape, z.shape + rank, view.shape)) {
    throw ValueError(std::string(name) + " has shape " + shape_of(view) + ", want " +
                     shape_string(z.shape, rank));
  }
  int64_t stride = view.dtype.bytes();
  for (int i = rank - 1; i >= 0; --i) {
    if (view.shape[i] > 1 && view.strides[i] != stride && view.count() > 0) {
      throw ValueError(std::string(name) + " is not contiguous, want a contiguous array");
    }
    stride *= view.shape[i];
  }
}

AtomTask atom_task(const TensorView& z, bool softmax, const TensorView* index, const TensorView& log,
                   const TensorView& nlog, bool gradients) {
  want_memory("z", z);
  want_type("z", z, {kFloat32, kBFloat16, kFloat64});
  want_dense_like("z", z, z, z.rank);
  if (softmax && (z.rank < 1 || z.shape[z.rank - 1] < 1)) {
    throw ValueError("z has shape " + shape_of(z) + ", want (..., classes)");
  }
  const int rank = z.rank - (index != nullptr ? 1 : 0);
  want_dense_like(gradients ? "log_grad" : "log", log, z, rank);
  want_dense_like(gradients ? "nlog_grad" : "nlog", nlog, z, rank);
  AtomTask task{};
  task.element = element_of(z.dtype);
  task.softmax = softmax;
  task.classes = softmax ? z.shape[z.rank - 1] : 1;
  task.rows = z.count() / task.classes;
  task.z = z.data;
  task.log = log.data;
  task.nlog = nlog.data;
  if (index != nullptr) {
    want_memory("index", *index);
    want_together("index", *index, "z", z);
    want_type("index", *index, {kInt64});
    if (index->rank != rank || !std::equal(z.shape, z.shape + rank, index->shape)) {
      throw ValueError("index has shape " + shape_of(*index) + ", want " + shape_string(z.shape, rank));
    }
    task.index = reinterpret_cast<const int64_t*>(index->data);
  }
  return task;
}

}  // namespace

void atom_logits(const TensorView& z, bool softmax, const TensorView* index, const TensorView& log,
                 const TensorView& nlog) {
  const AtomTask task = atom_task(z, softmax, index, log, nlog, false);
  want_writable("log", log);
  want_writable("nlog", nlog);
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(z)) return cuda::atom_logits(task, queue_of(z));
  }
  const int64_t wrong = index == nullptr ? -1 : kernels().wrong_index(task);
  if (wrong >= 0) {
    throw ValueError("index has " + std::to_string(task.index[wrong]) + " at place " + std::to_string(wrong) +
                     ", want classes from 0 to below " + std::to_string(task.classes));
  }
  kernels().atom_logits(task);
}

void atom_logits_backward(const TensorView& log_grad, const TensorView& nlog_grad, const TensorView& z,
                          bool softmax, const TensorView* index, const TensorView& z_grad) {
  AtomTask task = atom_task(z, softmax, index, log_grad, nlog_grad, true);
  want_dense_like("z_grad", z_grad, z, z.rank);
  want_writable("z_grad", z_grad);
  task.z_grad = z_grad.data;
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(z)) return cuda::atom_logits_backward(task, queue_of(z));
  }
  kernels().atom_logits_backward(task);
}

// ---- products ----

namespace {

Matrix matrix_of(const char* name, const TensorView& view, const TensorView& first, int64_t batch,
                 int64_t rows, int64_t columns) {
  want_memory(name, view);
  want_type(name, view, {kFloat32, kBFloat16, kFloat64});
  if (!(view.dtype == first.dtype)) {
    throw TypeError(std::string(name) + " has type " + to_string(view.dtype) + " and a " +
                    to_string(first.dtype) + ", want one type");
  }
  want_together(name, view, "a", first);
  want_shape(name, view, {batch, rows, columns}, "batches of matrices");
  return {view.data, view.strides[0], view.strides[1], view.strides[2]};
}

ProductTask product_task(const TensorView& a, const TensorView& b, double alpha, bool mean) {
  ProductTask task{};
  if (a.rank != 3 || b.rank != 3) {
    throw ValueError("a has shape " + shape_of(a) + " and b " + shape_of(b) + ", want three dimensions each");
  }
  task.element = element_of(a.dtype);
  task.batch = a.shape[0];
  task.X = a.shape[1];
  task.Y = a.shape[2];
  task.Z = b.shape[2];
  task.alpha = alpha;
  task.mean = mean;
  task.a = matrix_of("a", a, a, task.batch, task.X, task.Y);
  task.b = matrix_of("b", b, a, task.batch, task.Y, task.Z);
  return task;
}

}  // namespace

void logmatmul(const TensorView& a, const TensorView& b, double alpha, bool mean, const TensorView& out) {
  ProductTask task = product_task(a, b, alpha, mean);
  task.out = matrix_of("out", out, a, task.batch, task.X, task.Z);
  want_writable("out", out);
  if (out.count() == 0) return;
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(a)) return cuda::logmatmul(task, queue_of(a));
  }
  kernels().logmatmul(task);
}

int64_t logmatmul_backward_scratch(const TensorView& a, const TensorView& b) {
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(a)) return cuda::product_scratch(product_task(a, b, 1.0, false));
  }
  return 0;
}

void logmatmul_backward(const TensorView& grad, const TensorView& a, const TensorView& b, double alpha,
                        bool mean, const TensorView* a_grad, const TensorView* b_grad, char* scratch) {
  ProductTask task = product_task(a, b, alpha, mean);
  task.grad = matrix_of("grad", grad, a, task.batch, task.X, task.Z);
  if (a_grad != nullptr) {
    task.a_grad = matrix_of("a_grad", *a_grad, a, task.batch, task.X, task.Y);
    want_writable("a_grad", *a_grad);
  }
  if (b_grad != nullptr) {
    task.b_grad = matrix_of("b_grad", *b_grad, a, task.batch, task.Y, task.Z);
    want_writable("b_grad", *b_grad);
  }
  if constexpr (kBuiltWithCuda) {
    if (on_gpu(a)) return cuda::logmatmul_backward(task, scratch, queue_of(a));
  }
  (void)scratch;
  kernels().logmatmul_backward(task);
}

}  // namespace tenfold::fuzzy
