// As many multiply-adds as the registers hold, over and over: the machine's limit of arithmetic in float32.
// Compiled for the machine it runs on.
#include <cstdint>

#if defined(__AVX512F__)
constexpr int kBytes = 64;
#elif defined(__AVX__)
constexpr int kBytes = 32;
#else
constexpr int kBytes = 16;
#endif
typedef float Vector __attribute__((vector_size(kBytes)));
constexpr int kSums = 12;  // enough to hide the latency, and they fit 16 registers

// At least `count` multiply-adds of single numbers, shared out to the threads; returns something of them.
extern "C" float multiply_adds(int64_t count) {
  const int64_t steps = count / (kSums * kBytes / 4) + 1;
  float result = 0;
#pragma omp parallel reduction(+ : result)
  {
    int64_t mine = 0;
#pragma omp for schedule(static) nowait
    for (int64_t block = 0; block < 64; ++block) mine += steps / 64 + 1;
    // Different sums, from a number that the compiler does not know: equal ones it would compute once.
    volatile float unknown = 0.5f;
    const Vector x = Vector{} + 1e-9f, y = Vector{} + unknown;
    Vector sum[kSums];
    for (int i = 0; i < kSums; ++i) sum[i] = Vector{} + unknown * static_cast<float>(i);
    for (int64_t step = 0; step < mine; ++step) {
#pragma GCC unroll 12
      for (int i = 0; i < kSums; ++i) sum[i] = sum[i] * y + x;
    }
    for (int i = 0; i < kSums; ++i) result += sum[i][0];
  }
  return result;
}
