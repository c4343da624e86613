// The log-semiring matrix product as a product of exponentials, with what underflows computed for itself.
#pragma once

#include <cstdint>
#include <type_traits>
#include <vector>

#include "core/gemm.h"
#include "core/parallel.h"
#include "fuzzy/fuzzy.h"
#include "fuzzy/lanes.h"
#include "fuzzy/tiles.h"

namespace tenfold::fuzzy {
namespace TENFOLD_LEVEL {

// Rows of a product that one task computes.
inline constexpr int64_t kBlock = 48;

// An operand of a product: element (i, k) is data[i * across + k * along].
template <class N>
struct Factor {
  const N* data;
  int64_t across, along;
};

// to[i * stride + j] = sum over k of a(i, k) b(j, k), for up to kBlock rows.
inline void multiply_rows(float* to, int64_t stride, const Factor<float>& a, int64_t rows,
                          const Factor<float>& b, int64_t columns, int64_t depth, float* scratch) {
  gemm::product({to, stride}, {a.data, a.across, a.along}, rows, {b.data, b.across, b.along}, columns, depth,
                scratch);
}
inline void multiply_rows(double* to, int64_t stride, const Factor<double>& a, int64_t rows,
                          const Factor<double>& b, int64_t columns, int64_t depth, float*) {
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) to[i * stride + j] = 0;
    for (int64_t k = 0; k < depth; ++k) {
      const double x = a.data[i * a.across + k * a.along];
      for (int64_t j = 0; j < columns; ++j) to[i * stride + j] += x * b.data[j * b.across + k * b.along];
    }
  }
}

template <class T>
class Product {
 public:
  using N = NumberOf<T>;

  explicit Product(const ProductTask& task)
      : t_(task),
        a_(task.batch * task.X * task.Y),
        b_(task.batch * task.Y * wide()),
        ea_(task.batch * task.X * task.Y),
        eb_(task.batch * task.Y * wide()),
        tops_a_(task.batch * task.X),
        tops_b_(task.batch * wide()),
        some_lost_(static_cast<size_t>(task.batch * task.X)) {
    to_log2_ = static_cast<N>(task.alpha * 1.4426950408889634074);
    exponentiate_rows();
    exponentiate_columns();
  }

  void forward() {
    blocks(t_.X, [&](int64_t batch, int64_t x, int64_t rows, N* sums, float* scratch) {
      sum_rows(batch, x, rows, sums, scratch);
      for (int64_t i = 0; i < rows; ++i) {
        write_out(batch, x + i, sums + i * wide());
      }
    });
  }

  void backward() {
    Memory<N> weights(t_.batch * t_.X * wide());
    blocks(t_.X, [&](int64_t batch, int64_t x, int64_t rows, N* sums, float* scratch) {
      sum_rows(batch, x, rows, sums, scratch);
      N* const own = weights.data() + (batch * t_.X + x) * wide();
      for (int64_t i = 0; i < rows; ++i) {
        some_lost_[batch * t_.X + x + i] = weigh(batch, x + i, sums + i * wide(), own + i * wide());
      }
    });
    if (t_.a_grad.data != nullptr) {
      blocks(t_.X, [&](int64_t batch, int64_t x, int64_t rows, N* to, float* scratch) {
        multiply_rows(to, wide_y(), {weights.data() + (batch * t_.X + x) * wide(), wide(), 1}, rows,
                      {eb(batch), wide(), 1}, t_.Y, t_.Z, scratch);
        for (int64_t i = 0; i < rows; ++i) write_a_grad(batch, x + i, weights.data(), to + i * wide_y());
      });
    }
    if (t_.b_grad.data != nullptr) {
      blocks(t_.Y, [&](int64_t batch, int64_t y, int64_t rows, N* to, float* scratch) {
        multiply_rows(to, wide(), {ea(batch) + y, 1, t_.Y}, rows,
                      {weights.data() + batch * t_.X * wide(), 1, wide()}, t_.Z, t_.X, scratch);
        for (int64_t i = 0; i < rows; ++i) write_b_grad(batch, y + i, weights.data(), to + i * wide());
      });
    }
  }

 private:
  int64_t wide() const { return padded<N>(t_.Z); }
  int64_t wide_y() const { return padded<N>(t_.Y); }
  const N* ea(int64_t batch) const { return ea_.data() + batch * t_.X * t_.Y; }
  const N* eb(int64_t batch) const { return eb_.data() + batch * t_.Y * wide(); }
  N top_a(int64_t batch, int64_t x) const { return tops_a_[batch * t_.X + x]; }

  static T* at(const Matrix& m, int64_t batch, int64_t row, int64_t column) {
    return reinterpret_cast<T*>(m.data + batch * m.batch + row * m.row + column * m.column);
  }
  static bool dense(const Matrix& m) {
    return std::is_same_v<T, N> && m.column == static_cast<int64_t>(sizeof(N));
  }
  // `count` elements of a row, from a column on; side by side they are copied as they are.
  static void load_row(const Matrix& m, int64_t batch, int64_t row, int64_t column, int64_t count, N* to) {
    if (dense(m)) return convert(to, reinterpret_cast<const N*>(at(m, batch, row, column)), count);
    for (int64_t k = 0; k < count; ++k) to[k] = static_cast<N>(to_float(*at(m, batch, row, column + k)));
  }
  static void store_row(const Matrix& m, int64_t batch, int64_t row, int64_t column, int64_t count,
                        const N* from) {
    if (dense(m)) return convert(reinterpret_cast<N*>(at(m, batch, row, column)), from, count);
    for (int64_t k = 0; k < count; ++k) round_to(*at(m, batch, row, column + k), from[k]);
  }
  static N finite(N top) { return top > static_cast<N>(-kInfinity) ? top : N(0); }

  void exponentiate_rows() {
    parallel_for(t_.batch * t_.X, 1 + (1 << 13) / (t_.Y + 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        N* const row = a_.data() + i * t_.Y;
        load_row(t_.a, i / t_.X, i % t_.X, 0, t_.Y, row);
        const int64_t whole = t_.Y / kLanes<N> * kLanes<N>;
        N last[kLanes<N>], top = row_max(row, whole);
        for (int64_t k = 0; k < kLanes<N>; ++k) {
          last[k] = whole + k < t_.Y ? row[whole + k] : static_cast<N>(-kInfinity);
          top = larger_of(top, last[k]);
        }
        tops_a_[i] = top = finite(top);
        N* const to = ea_.data() + i * t_.Y;
        int64_t y = 0;
        for (; y < whole; y += kLanes<N>) write(to + y, power_of_two((read(row + y) - top) * to_log2_));
        if (y == t_.Y) continue;
        write(last, power_of_two((read(last) - top) * to_log2_));
        for (int64_t k = y; k < t_.Y; ++k) to[k] = last[k - y];
      }
    });
  }

  static N larger_of(N a, N b) { return a > b ? a : b; }

  void exponentiate_columns() {
    const int64_t vectors = wide() / kLanes<N>;
    parallel_for(t_.batch * vectors, 1 + (1 << 13) / (t_.Y * kLanes<N> + 1), [&](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        const int64_t batch = i / vectors, z = i % vectors * kLanes<N>;
        Lanes<N> top = splat(static_cast<N>(-kInfinity));
        for (int64_t y = 0; y < t_.Y; ++y) {
          N* const to = b_.data() + (batch * t_.Y + y) * wide() + z;
          const int64_t count = t_.Z - z < kLanes<N> ? t_.Z - z : kLanes<N>;
          load_row(t_.b, batch, y, z, count, to);
          for (int64_t k = count; k < kLanes<N>; ++k) to[k] = 0;
          top = larger(read(to), top);
        }
        const Lanes<N> safe = top > static_cast<N>(-kInfinity) ? top : Lanes<N>{};
        write(tops_b_.data() + batch * wide() + z, safe);
        for (int64_t y = 0; y < t_.Y; ++y) {
          const int64_t place = (batch * t_.Y + y) * wide() + z;
          write(eb_.data() + place, power_of_two((read(b_.data() + place) - safe) * to_log2_));
        }
      }
    });
  }

  // Calls body(batch, first row, rows, memory for kBlock rows, scratch) for blocks of rows.
  template <class Body>
  void blocks(int64_t count, Body&& body) {
    const int64_t per_batch = (count + kBlock - 1) / kBlock, width = wide() > wide_y() ? wide() : wide_y();
    parallel_tasks(t_.batch * per_batch, [&](auto&& next) {
      Memory<N> rows(kBlock * width);
      FloatScratch scratch(std::is_same_v<N, float> ? gemm::kScratch : 0);
      for (int64_t i = next(); i < t_.batch * per_batch; i = next()) {
        const int64_t first = i % per_batch * kBlock;
        body(i / per_batch, first, count - first < kBlock ? count - first : kBlock, rows.data(),
             scratch.data());
      }
    });
  }

  void sum_rows(int64_t batch, int64_t x, int64_t rows, N* sums, float* scratch) {
    multiply_rows(sums, wide(), {ea(batch) + x * t_.Y, t_.Y, 1}, rows, {eb(batch), 1, wide()}, t_.Z, t_.Y,
                  scratch);
    for (int64_t i = 0; i < rows; ++i) {
      for (int64_t z = t_.Z; z < wide(); ++z) sums[i * wide() + z] = 1;
    }
  }

  // For a vector of columns: the largest a + b, and the sum of exponentials relative to it.
  Lanes<N> own_sum(int64_t batch, int64_t x, int64_t z, Lanes<N>* own_top) const {
    const N* const a = a_.data() + (batch * t_.X + x) * t_.Y;
    const N* const b = b_.data() + batch * t_.Y * wide() + z;
    Lanes<N> top = splat(static_cast<N>(-kInfinity)), sum{};
    for (int64_t y = 0; y < t_.Y; ++y) top = larger(a[y] + read(b + y * wide()), top);
    for (int64_t y = 0; y < t_.Y; ++y) sum += power_of_two((a[y] + read(b + y * wide()) - top) * to_log2_);
    *own_top = top;
    return top > static_cast<N>(-kInfinity) ? sum : Lanes<N>{};
  }

  void write_out(int64_t batch, int64_t x, const N* sums) const {
    const N inverse_alpha = static_cast<N>(1.0 / t_.alpha);
    const bool average = t_.mean && t_.Y > 0;  // of nothing: -inf
    const N count = average ? static_cast<N>(__builtin_log(static_cast<double>(t_.Y)) / t_.alpha) : N(0);
    for (int64_t z = 0; z < t_.Z; z += kLanes<N>) {
      const Lanes<N> sum = read(sums + z);
      Lanes<N> value =
          (top_a(batch, x) + read(tops_b_.data() + batch * wide() + z)) + natural_log(sum) * inverse_alpha;
      if (any_below(sum, kTiny(N{}))) {
        Lanes<N> top;
        const Lanes<N> own = own_sum(batch, x, z, &top);
        value = own <= N(0) ? splat(static_cast<N>(-kInfinity)) : top + natural_log(own) * inverse_alpha;
      }
      N lanes[kLanes<N>];
      write(lanes, value - count);
      store_row(t_.out, batch, x, z, t_.Z - z < kLanes<N> ? t_.Z - z : kLanes<N>, lanes);
    }
  }

  // weights: grad / sum. Where the sum underflows it stays 0, and the element is remembered by a sign of 0.
  // Whether there is such a one.
  bool weigh(int64_t batch, int64_t x, const N* sums, N* weights) const {
    load_row(t_.grad, batch, x, 0, t_.Z, weights);
    for (int64_t z = t_.Z; z < wide(); ++z) weights[z] = 0;  // where sums are 1
    bool some = false;
    for (int64_t z = 0; z < wide(); z += kLanes<N>) {
      const Lanes<N> sum = read(sums + z);
      write(weights + z, read(weights + z) / sum + N(0));  // and -0 is 0
      if (!any_below(sum, kTiny(N{}))) continue;
      for (int64_t k = z; k < z + kLanes<N>; ++k) {
        if (sums[k] >= kTiny(N{})) continue;
        weights[k] = -N(0);
        some = true;
      }
    }
    return some;
  }
  static bool lost(N weight) { return weight == N(0) && __builtin_signbit(weight); }

  // Calls f(z, sum's share factor, top) for the lost elements of a row.
  template <class F>
  void for_lost(int64_t batch, int64_t x, const N* weights, F&& f) const {
    if (some_lost_[batch * t_.X + x] == 0) return;
    const N* const row = weights + (batch * t_.X + x) * wide();
    for (int64_t z = 0; z < t_.Z; ++z) {
      if (!lost(row[z])) continue;
      const int64_t first = z / kLanes<N> * kLanes<N>;
      Lanes<N> tops;
      N sum[kLanes<N>], top[kLanes<N>];
      write(sum, own_sum(batch, x, first, &tops));
      write(top, tops);
      if (sum[z - first] > N(0)) {
        f(z, static_cast<N>(to_float(*at(t_.grad, batch, x, z))) / sum[z - first], top[z - first]);
      }
    }
  }

  N term(int64_t batch, int64_t x, int64_t y, int64_t z, N top) const {
    const N a = a_[(batch * t_.X + x) * t_.Y + y], b = b_[(batch * t_.Y + y) * wide() + z];
    return static_cast<N>(__builtin_exp2(static_cast<double>((a + b - top) * to_log2_)));
  }

  void write_a_grad(int64_t batch, int64_t x, const N* weights, N* row) const {
    const N* const own = ea(batch) + x * t_.Y;
    for (int64_t y = 0; y < t_.Y; ++y) row[y] *= own[y];
    for_lost(batch, x, weights, [&](int64_t z, N factor, N top) {
      for (int64_t y = 0; y < t_.Y; ++y) row[y] += factor * term(batch, x, y, z, top);
    });
    store_row(t_.a_grad, batch, x, 0, t_.Y, row);
  }

  void write_b_grad(int64_t batch, int64_t y, const N* weights, N* row) const {
    const N* const own = eb(batch) + y * wide();
    for (int64_t z = 0; z < t_.Z; ++z) row[z] *= own[z];
    for (int64_t x = 0; x < t_.X; ++x) {
      for_lost(batch, x, weights,
               [&](int64_t z, N factor, N top) { row[z] += factor * term(batch, x, y, z, top); });
    }
    store_row(t_.b_grad, batch, y, 0, t_.Z, row);
  }

  const ProductTask& t_;
  Memory<N> a_, b_, ea_, eb_, tops_a_, tops_b_;
  std::vector<char> some_lost_;  // of each row
  N to_log2_;
};

}  // namespace TENFOLD_LEVEL
}  // namespace tenfold::fuzzy
