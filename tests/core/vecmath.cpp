// Reads floats from standard input and writes the value of the named function for each.
#include "core/vecmath.h"

#include <cstdio>
#include <cstring>
#include <vector>

int main(int argc, char** argv) {
  using namespace tenfold;
  std::vector<float> x(1 << 22);
  x.resize(fread(x.data(), sizeof(float), x.size(), stdin));
  const auto named = [&](const char* name) { return argc == 2 && std::strcmp(argv[1], name) == 0; };
  for (size_t i = 0; i + kFloatLanes <= x.size(); i += kFloatLanes) {
    const Floats value = load(&x[i]);
    Floats result{};
    if (named("exp")) result = exp(value);
    if (named("normal_cdf")) result = normal_cdf(value);
    if (named("sigmoid")) result = sigmoid(value);
    if (named("tanh")) result = tanh(value);
    store(&x[i], result);
  }
  fwrite(x.data(), sizeof(float), x.size(), stdout);
}
