// The kernels of one instruction-set level; compiled once per level (core/level.h).
#include <cstdint>

#include "core/level.h"
#include "core/parallel.h"
#include "pairwise/pairwise.h"
#include "pairwise/tiles.h"

namespace tenfold::pairwise {
namespace TENFOLD_LEVEL {
namespace {

// Below this many activations per thread, waking a thread costs more than it saves.
constexpr int64_t kGrain = 1 << 15;
// Work of a part, in activations (a hidden layer's products count as some): by the shape alone.
constexpr int64_t kPartWork = 1 << 17;
// Tiles whose gradients of weights and of u are added up in float, lane by lane, before they go on in double.
constexpr int kFlushTiles = 16;
// Rows whose gradients of v are added up on their own before they join those of the part.
constexpr int64_t kFlushRows = 256;

// Memory for numbers, aligned to a cache line; contents start undefined.
template <class N>
class Numbers {
 public:
  explicit Numbers(int64_t count) : memory_(count * static_cast<int64_t>(sizeof(N) / sizeof(float))) {}
  N* data() { return reinterpret_cast<N*>(memory_.data()); }

 private:
  FloatScratch memory_;
};

// A task's arrays as the loops want them: v with the pairs of a unit side by side, weights dense.
template <class N>
class Inputs {
 public:
  explicit Inputs(const Task& task)
      : t(task),
        wide(padded<N>(task.m)),
        activate(activate_of<N>(task.activation)),
        v_(task.width * wide),
        hidden_(task.hidden_width * task.width),
        hidden_t_(task.hidden_width * task.width) {
    read_numbers(t.element, t.w.data, t.w.column, t.weights(), w);
    if (t.b.data != nullptr) read_numbers(t.element, t.b.data, t.b.column, 1, &b);
    if (t.hidden_bias.data != nullptr) {
      read_numbers(t.element, t.hidden_bias.data, t.hidden_bias.column, t.hidden_width, hidden_bias);
    }
    for (int k = 0; k < t.hidden_width; ++k) {
      N* const row = hidden() + k * t.width;
      read_numbers(t.element, t.hidden.data + k * t.hidden.row, t.hidden.column, t.width, row);
      for (int h = 0; h < t.width; ++h) hidden_t()[h * t.hidden_width + k] = row[h];
    }
    parallel_for(t.m, kGrain / t.width, [&](int64_t begin, int64_t end) {
      N row[kMostWidth];
      for (int64_t j = begin; j < end; ++j) {
        read_numbers(t.element, t.v.data + j * t.v.row, t.v.column, t.width, row);
        for (int h = 0; h < t.width; ++h) v()[h * wide + j] = row[h];
      }
    });
    for (int h = 0; h < t.width; ++h) {
      for (int64_t j = t.m; j < wide; ++j) v()[h * wide + j] = 0;
    }
  }

  N* v() { return v_.data(); }                // (H, wide)
  N* hidden() { return hidden_.data(); }      // (K, H)
  N* hidden_t() { return hidden_t_.data(); }  // (H, K)
  void read_u(int64_t i, N* u) { read_numbers(t.element, t.u.data + i * t.u.row, t.u.column, t.width, u); }

  const Task& t;
  const int64_t wide;
  const Activate<N> activate;
  N w[kMostWidth] = {}, hidden_bias[kMostWidth] = {}, b = 0;

 private:
  Numbers<N> v_, hidden_, hidden_t_;
};

// Calls body(first column, pairs, width in whole vectors) for the tiles of a row.
template <class N, class Body>
void for_tiles(int64_t m, Body&& body) {
  for (int64_t j = 0; j < m; j += kTile) {
    const int64_t count = m - j < kTile ? m - j : kTile;
    body(j, count, padded<N>(count));
  }
}

template <class N>
void forward(const Task& task) {
  Inputs<N> in(task);
  const int64_t per_row = task.m * (task.width + task.hidden_width);
  parallel_for(task.n, 1 + kGrain / (per_row + 1), [&](int64_t begin, int64_t end) {
    Numbers<N> first(kMostWidth * kTile), second(kMostWidth * kTile), scores(kTile);
    N u[kMostWidth];
    for (int64_t i = begin; i < end; ++i) {
      in.read_u(i, u);
      for_tiles<N>(task.m, [&](int64_t j, int64_t count, int64_t width) {
        const N* last = first.data();
        in.activate(u, in.v() + j, in.wide, task.width, width, first.data(), nullptr);
        if (task.hidden_width > 0) {
          multiply_tile(in.hidden(), task.hidden_width, task.width, first.data(), width, second.data());
          in.activate(in.hidden_bias, second.data(), kTile, task.hidden_width, width, second.data(), nullptr);
          last = second.data();
        }
        weigh_tile(in.w, task.weights(), in.b, last, width, scores.data());
        write_numbers(task.element, scores.data(), count,
                      task.out.data + i * task.out.row + j * task.out.column, task.out.column);
      });
    }
  });
}

// ---- backward ----

// Sums of the gradients of all weights: hidden (K, H), w, hidden_bias and b.
struct WeightSums {
  explicit WeightSums(const Task& task)
      : hidden(0),
        w(task.hidden_width * task.width),
        hidden_bias(w + task.weights()),
        b(hidden_bias + task.hidden_width),
        count(b + 1) {}
  int64_t hidden, w, hidden_bias, b, count;
};

int64_t parts_of(const Task& task) {
  const int64_t work = task.m * task.width * (4 + task.hidden_width) / 4;
  const int64_t rows = 1 + kPartWork / (work + 1), parts = (task.n + rows - 1) / rows;
  return parts < kMostParts ? parts : kMostParts;
}

// The backward pass over the rows of a part.
template <class N>
class Part {
 public:
  explicit Part(Inputs<N>& in)
      : in_(in),
        t_(in.t),
        places_(in.t),
        first_(kMostWidth * kTile),
        first_slopes_(kMostWidth * kTile),
        second_(kMostWidth * kTile),
        second_slopes_(kMostWidth * kTile),
        grad_(kTile),
        u_lanes_(kMostWidth * kLanes<N>),
        weight_lanes_(places_.count * kLanes<N>),
        v_block_(in.t.v_grad.data != nullptr ? in.t.width * in.wide : 0) {}

  // `v_sums` (H, wide) and `weight_sums` receive this part's gradients; the former may be null.
  void run(int64_t begin, int64_t end, N* v_sums, double* weight_sums) {
    N* const v_block = v_sums != nullptr ? v_block_.data() : nullptr;
    for (int64_t i = 0; v_sums != nullptr && i < t_.width * in_.wide; ++i) v_sums[i] = v_block[i] = 0;
    for (int64_t i = 0; i < places_.count; ++i) weight_sums[i] = 0;
    clear(weight_lanes_.data(), places_.count);
    clear(u_lanes_.data(), t_.width);
    int tiles = 0;
    for (int64_t i = begin; i < end; ++i) {
      double u_sums[kMostWidth] = {};
      in_.read_u(i, u_);
      for_tiles<N>(t_.m, [&](int64_t j, int64_t count, int64_t width) {
        add_tile(i, j, count, width, v_block);
        if (++tiles == kFlushTiles) {
          flush(weight_lanes_.data(), places_.count, weight_sums);
          flush(u_lanes_.data(), t_.width, u_sums);
          tiles = 0;
        }
      });
      flush(u_lanes_.data(), t_.width, u_sums);
      if (v_sums != nullptr && ((i - begin + 1) % kFlushRows == 0 || i + 1 == end)) add_block(v_sums);
      if (t_.u_grad.data == nullptr) continue;
      for (int h = 0; h < t_.width; ++h) u_[h] = static_cast<N>(u_sums[h]);
      write_numbers(t_.element, u_, t_.width, t_.u_grad.data + i * t_.u_grad.row, t_.u_grad.column);
    }
    flush(weight_lanes_.data(), places_.count, weight_sums);
  }

 private:
  static void clear(N* lanes, int64_t vectors) {
    for (int64_t i = 0; i < vectors; ++i) write(lanes + i * kLanes<N>, Lanes<N>{});
  }

  static void flush(N* lanes, int64_t vectors, double* sums) {
    for (int64_t i = 0; i < vectors; ++i) sums[i] += static_cast<double>(total(read(lanes + i * kLanes<N>)));
    clear(lanes, vectors);
  }

  void add_block(N* v_sums) {
    N* const block = v_block_.data();
    for (int64_t i = 0; i < t_.width * in_.wide; ++i) {
      v_sums[i] += block[i];
      block[i] = 0;
    }
  }

  void add_tile(int64_t i, int64_t j, int64_t count, int64_t width, N* v_block) {
    const bool deep = t_.hidden_width > 0, further = t_.first_layer_wanted();
    N* const slopes = further ? first_slopes_.data() : nullptr;
    N* const grad = grad_.data();
    read_numbers(t_.element, t_.out.data + i * t_.out.row + j * t_.out.column, t_.out.column, count, grad);
    clear_beyond(grad, 1, count, width);
    in_.activate(u_, in_.v() + j, in_.wide, t_.width, width, first_.data(), slopes);
    clear_beyond(first_.data(), t_.width, count, width);
    clear_beyond(slopes, t_.width, count, width);
    Lanes<N> sum = read(lanes_of(places_.b));
    for (int64_t t = 0; t < width; t += kLanes<N>) sum += read(grad + t);
    write(lanes_of(places_.b), sum);
    if (!deep) {
      weigh_grads(first_.data(), slopes, nullptr, count, width);
      if (further) add_first_layer(slopes, nullptr, width, v_block, j);
      return;
    }
    multiply_tile(in_.hidden(), t_.hidden_width, t_.width, first_.data(), width, second_.data());
    in_.activate(in_.hidden_bias, second_.data(), kTile, t_.hidden_width, width, second_.data(),
                 second_slopes_.data());
    clear_beyond(second_.data(), t_.hidden_width, count, width);
    clear_beyond(second_slopes_.data(), t_.hidden_width, count, width);
    weigh_grads(second_.data(), second_slopes_.data(), lanes_of(places_.hidden_bias), count, width);
    if (t_.hidden_grad.data != nullptr) {
      outer_tile(second_slopes_.data(), t_.hidden_width, first_.data(), t_.width, width,
                 lanes_of(places_.hidden));
    }
    if (!further) return;
    multiply_tile(in_.hidden_t(), t_.width, t_.hidden_width, second_slopes_.data(), width, second_.data());
    clear_beyond(second_.data(), t_.width, count, width);  // 0 times an infinite weight
    add_first_layer(slopes, second_.data(), width, v_block, j);
  }

  N* lanes_of(int64_t place) { return weight_lanes_.data() + place * kLanes<N>; }

  // The last layer: w's gradient, and slopes (null: none wanted) become gradients of what the units were
  // given, whose sums go to `bias`.
  void weigh_grads(const N* values, N* slopes, N* bias, int64_t count, int64_t width) {
    const N* const grad = grad_.data();
    for (int r = 0; r < t_.weights(); ++r) {
      N* const own = lanes_of(places_.w + r);
      Lanes<N> sum = read(own);
      for (int64_t t = 0; t < width; t += kLanes<N>) sum += read(grad + t) * read(values + r * kTile + t);
      write(own, sum);
      if (slopes == nullptr) continue;
      Lanes<N> given{};
      for (int64_t t = 0; t < width; t += kLanes<N>) {
        write(slopes + r * kTile + t, read(grad + t) * in_.w[r] * read(slopes + r * kTile + t));
      }
      clear_beyond(slopes + r * kTile, 1, count, width);  // 0 times an infinite weight
      if (bias == nullptr) continue;
      for (int64_t t = 0; t < width; t += kLanes<N>) given += read(slopes + r * kTile + t);
      write(bias + r * kLanes<N>, read(bias + r * kLanes<N>) + given);
    }
  }

  // Sums of slopes[h] from[h] (null: of slopes) over columns and over rows.
  void add_first_layer(const N* slopes, const N* from, int64_t width, N* v_block, int64_t j) {
    for (int h = 0; h < t_.width; ++h) {
      Lanes<N> sum = read(u_lanes_.data() + h * kLanes<N>);
      for (int64_t t = 0; t < width; t += kLanes<N>) {
        Lanes<N> each = read(slopes + h * kTile + t);
        if (from != nullptr) each *= read(from + h * kTile + t);
        sum += each;
        if (v_block == nullptr) continue;
        N* const own = v_block + h * in_.wide + j + t;
        write(own, read(own) + each);
      }
      write(u_lanes_.data() + h * kLanes<N>, sum);
    }
  }

  Inputs<N>& in_;
  const Task& t_;
  const WeightSums places_;
  Numbers<N> first_, first_slopes_, second_, second_slopes_, grad_, u_lanes_, weight_lanes_, v_block_;
  N u_[kMostWidth];
};

// The parts' gradients of v, added up.
template <class N>
void write_v_grads(const Task& task, const N* sums, int64_t wide, int64_t parts) {
  parallel_for(task.m, kGrain / (task.width * (parts + 1)), [&](int64_t begin, int64_t end) {
    N row[kMostWidth];
    for (int64_t j = begin; j < end; ++j) {
      for (int h = 0; h < task.width; ++h) {
        double sum = 0;
        for (int64_t p = 0; p < parts; ++p) {
          sum += static_cast<double>(sums[(p * task.width + h) * wide + j]);
        }
        row[h] = static_cast<N>(sum);
      }
      write_numbers(task.element, row, task.width, task.v_grad.data + j * task.v_grad.row,
                    task.v_grad.column);
    }
  });
}

template <class N>
void write_weight_grads(const Task& task, double* sums, int64_t parts) {
  const WeightSums places(task);
  for (int64_t p = 1; p < parts; ++p) {
    for (int64_t i = 0; i < places.count; ++i) sums[i] += sums[p * places.count + i];
  }
  N row[kMostWidth];
  const auto put = [&](const Matrix& to, int64_t place, int count) {
    if (to.data == nullptr) return;
    for (int i = 0; i < count; ++i) row[i] = parts > 0 ? static_cast<N>(sums[place + i]) : N(0);
    write_numbers(task.element, row, count, to.data, to.column);
  };
  for (int k = 0; k < task.hidden_width; ++k) {
    Matrix to = task.hidden_grad;
    if (to.data != nullptr) to.data += k * to.row;
    put(to, places.hidden + k * task.width, task.width);
  }
  put(task.w_grad, places.w, task.weights());
  put(task.hidden_bias_grad, places.hidden_bias, task.hidden_width);
  put(task.b_grad, places.b, 1);
}

template <class N>
void backward(const Task& task) {
  Inputs<N> in(task);
  const int64_t parts = parts_of(task), of_v = task.width * in.wide, of_weights = WeightSums(task).count;
  const bool to_v = task.v_grad.data != nullptr;
  Numbers<N> v_sums(to_v ? parts * of_v : 0);
  Numbers<double> weight_sums(parts * of_weights);
  parallel_tasks(parts, [&](auto&& next) {
    Part<N> part(in);
    for (int64_t p = next(); p < parts; p = next()) {
      part.run(task.n * p / parts, task.n * (p + 1) / parts, to_v ? v_sums.data() + p * of_v : nullptr,
               weight_sums.data() + p * of_weights);
    }
  });
  if (to_v) write_v_grads(task, v_sums.data(), in.wide, parts);
  write_weight_grads<N>(task, weight_sums.data(), parts);
}

void pair_scores(const Task& task) {
  task.element == Element::f64 ? forward<double>(task) : forward<float>(task);
}

void pair_gradients(const Task& task) {
  task.element == Element::f64 ? backward<double>(task) : backward<float>(task);
}

}  // namespace

extern const Kernels kernels;
const Kernels kernels{&pair_scores, &pair_gradients};

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::pairwise
