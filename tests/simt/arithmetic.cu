// Numbers of 16 bits in a kernel. Reads pairs of 16-bit patterns, and writes for each what the operations
// give: a + b, a - b, a * b, a / b, fma(a, b, a) as 16 bits, and a widened to 32 bits. `half` or `bfloat16`
// is named on the command line.
#include <cuda_bf16.h>
#include <cuda_fp16.h>

#include <cstdio>
#include <cstring>
#include <vector>

#include "core/cuda.cuh"

namespace {

struct Result {
  uint16_t sum, difference, product, quotient, fused, unused;
  float wide;
};

template <class T>
__global__ void operate(const T* pairs, int64_t count, Result* results) {
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count;
       i += int64_t{gridDim.x} * blockDim.x) {
    const T a = pairs[2 * i], b = pairs[2 * i + 1];
    const T values[5] = {__hadd(a, b), a - b, __hmul(a, b), a / b, __hfma(a, b, a)};
    uint16_t bits[5];
    memcpy(bits, values, sizeof bits);
    results[i] = {bits[0], bits[1], bits[2], bits[3], bits[4], 0, static_cast<float>(a)};
  }
}

template <class T>
int run() {
  std::vector<T> pairs;
  T pair[2];
  while (std::fread(pair, sizeof(T), 2, stdin) == 2) pairs.insert(pairs.end(), pair, pair + 2);
  std::vector<Result> results(pairs.size() / 2);
  const int64_t count = static_cast<int64_t>(results.size());
  tenfold::launch(nullptr, 2, 64, operate<T>, pairs.data(), count, results.data());
  return std::fwrite(results.data(), sizeof(Result), results.size(), stdout) == results.size() ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  return std::strcmp(argv[1], "half") == 0 ? run<__half>() : run<__nv_bfloat16>();
}
