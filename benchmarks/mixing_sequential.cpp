// The mixing method one variable after the other: the baseline of bench_mixing.py.
//
// A restatement, written for this benchmark, of the order of work of SATNet's public CPU code as its
// behaviour is described: threads over samples; W = V^T S (k, m) of each sample kept up to date; for each
// update k inner products of m numbers, four at a time by the SSE4.1 instruction and into one sum, then k
// additions of a multiple of a row; a gradient of S of (m) per variable and sample that torch adds up. It is
// not that code. It is compiled as that is: g++ -O3 -msse4.1 -fopenmp. m is a multiple of 4.
#include <smmintrin.h>

#include <cmath>
#include <cstdint>
#include <cstring>

namespace {

float dot(const float* a, const float* b, int count) {
  __m128 sum = _mm_setzero_ps();
  for (int i = 0; i < count; i += 4)
    sum = _mm_add_ps(sum, _mm_dp_ps(_mm_loadu_ps(a + i), _mm_loadu_ps(b + i), 0xf1));
  return _mm_cvtss_f32(sum);
}

void add_multiple(float* to, float factor, const float* from, int count) {
  const __m128 factors = _mm_set1_ps(factor);
  for (int i = 0; i < count; i += 4) {
    const __m128 product = _mm_mul_ps(factors, _mm_loadu_ps(from + i));
    _mm_storeu_ps(to + i, _mm_add_ps(_mm_loadu_ps(to + i), product));
  }
}

struct Sample {
  int variables, clauses, width;
  const float* S;
  const float* squares;  // (N): |s_i|^2
  const int32_t* order;  // free variables, then 0
};

// g = W s_i - |s_i|^2 x_i.
void gather(const Sample& p, float* g, const float* W, const float* x, int i) {
  for (int c = 0; c < p.width; ++c)
    g[c] = dot(W + c * p.clauses, p.S + i * p.clauses, p.clauses) - p.squares[i] * x[i * p.width + c];
}

void change(const Sample& p, float* W, const float* difference, int i) {
  for (int c = 0; c < p.width; ++c)
    add_multiple(W + c * p.clauses, difference[c], p.S + i * p.clauses, p.clauses);
}

float sweep(const Sample& p, float* V, float* W, float* norms, float* g) {
  float delta = 0;
  for (const int32_t* at = p.order; *at != 0; ++at) {
    const int i = *at;
    gather(p, g, W, V, i);
    const float norm = std::sqrt(dot(g, g, p.width));
    norms[i] = norm;
    float moved = 0;
    for (int c = 0; c < p.width; ++c) {
      const float next = -g[c] / norm, difference = next - V[i * p.width + c];
      V[i * p.width + c] = next;
      g[c] = difference;
      moved += difference * difference;
    }
    delta += norm * moved;
    change(p, W, g, i);
  }
  return delta;
}

void sweep_adjoint(const Sample& p, float prox_lam, float* U, float* Phi, const float* V, const float* norms,
                   const float* slopes, float* g) {
  for (const int32_t* at = p.order; *at != 0; ++at) {
    const int i = *at;
    const float* const v = V + i * p.width;
    gather(p, g, Phi, U, i);
    g[0] += slopes[i];
    const float along = dot(g, v, p.width);
    for (int c = 0; c < p.width; ++c) {
      const float next = -(g[c] - along * v[c]) / (norms[i] + prox_lam);
      g[c] = next - U[i * p.width + c];
      U[i * p.width + c] = next;
    }
    change(p, Phi, g, i);
  }
}

constexpr int kMostWidth = 1024;
constexpr float kPi = 3.14159265358979324f;

}  // namespace

// permutation (N - 1) of 1 ... N - 1, is_input and z (B, N), V (B, N, k) random -> order (B, N): the free
// variables, then 0; V: unit vectors.
extern "C" void sequential_start(int samples, int variables, int width, const int32_t* permutation,
                                 const int32_t* is_input, const float* z, int32_t* order, float* V) {
#pragma omp parallel for
  for (int b = 0; b < samples; ++b) {
    int32_t* next = order + b * variables;
    for (int i = 0; i < variables - 1; ++i) {
      if (is_input[b * variables + permutation[i]] == 0) *next++ = permutation[i];
    }
    while (next < order + (b + 1) * variables) *next++ = 0;
    for (int i = 0; i < variables; ++i) {
      float* const v = V + (b * variables + i) * width;
      if (is_input[b * variables + i] != 0) {
        const float angle = kPi * z[b * variables + i], second = std::copysign(std::sin(angle), v[1]);
        std::memset(v, 0, sizeof(float) * static_cast<size_t>(width));
        v[0] = -std::cos(angle), v[1] = second;
      } else {
        const float factor = 1 / std::sqrt(dot(v, v, width));
        for (int c = 0; c < width; ++c) v[c] *= factor;
      }
    }
  }
}

// S (N, m), squares (N), order and V as above, W (B, k, m) = V^T S; norms (B, N), niter (B); out (B, N) holds
// z.
extern "C" void sequential_forward(int samples, int variables, int clauses, int width, int max_iter,
                                   float eps, const float* S, const float* squares, const int32_t* order,
                                   float* V, float* W, float* norms, int32_t* niter, float* out) {
#pragma omp parallel for schedule(dynamic)
  for (int b = 0; b < samples; ++b) {
    const Sample p{variables, clauses, width, S, squares, order + b * variables};
    float* const v = V + b * variables * width;
    float g[kMostWidth], first = 0;
    niter[b] = max_iter;
    for (int t = 0; t < max_iter; ++t) {
      const float delta = sweep(p, v, W + b * width * clauses, norms + b * variables, g);
      if (t == 0) first = delta;
      if (t > 0 && delta < eps * first) {
        niter[b] = t;
        break;
      }
    }
    for (const int32_t* at = p.order; *at != 0; ++at) {
      const float cosine = v[*at * width];
      out[b * variables + *at] = 1 - std::acos(cosine < -1 ? -1 : cosine > 1 ? 1 : cosine) / kPi;
    }
  }
}

// grad (B, N): of `out`. U (B, N, k) and Phi (B, k, m) are zero; S_grad (B, N, m). z_grad (B, N).
extern "C" void sequential_backward(int samples, int variables, int clauses, int width, float prox_lam,
                                    const float* S, const float* squares, const int32_t* order,
                                    const int32_t* is_input, const float* z, const float* out, const float* V,
                                    const float* W, const float* norms, const int32_t* niter,
                                    const float* grad, float* U, float* Phi, float* S_grad, float* z_grad) {
#pragma omp parallel for schedule(dynamic)
  for (int b = 0; b < samples; ++b) {
    const Sample p{variables, clauses, width, S, squares, order + b * variables};
    const float* const v = V + b * variables * width;
    const float* const w = W + b * width * clauses;
    float* const u = U + b * variables * width;
    float* const phi = Phi + b * width * clauses;
    float* const slopes = z_grad + b * variables;
    float g[kMostWidth];
    for (const int32_t* at = p.order; *at != 0; ++at)
      slopes[*at] = grad[b * variables + *at] / (kPi * std::sin(kPi * out[b * variables + *at]));
    for (int t = 0; t < niter[b]; ++t)
      sweep_adjoint(p, prox_lam, u, phi, v, norms + b * variables, slopes, g);
    for (int i = 0; i < variables; ++i) {
      float* const to = S_grad + (static_cast<int64_t>(b) * variables + i) * clauses;
      std::memset(to, 0, sizeof(float) * static_cast<size_t>(clauses));
      for (int c = 0; c < width; ++c) {
        add_multiple(to, u[i * width + c], w + c * clauses, clauses);
        add_multiple(to, v[i * width + c], phi + c * clauses, clauses);
      }
      if (is_input[b * variables + i] == 0) {
        slopes[i] = 0;
        continue;
      }
      const float angle = kPi * z[b * variables + i];
      const float one = dot(phi, S + i * clauses, clauses),
                  two = dot(phi + clauses, S + i * clauses, clauses);
      slopes[i] =
          grad[b * variables + i] +
          kPi * (one * std::sin(angle) + two * std::copysign(1.0f, v[i * width + 1]) * std::cos(angle));
    }
  }
}
