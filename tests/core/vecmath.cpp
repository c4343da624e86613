// Reads floats from standard input and writes the value of the named function for each.
#include "core/vecmath.h"

#include <cstdio>
#include <cstring>
#include <string>
#include <vector>

#include "core/activation.h"

namespace {

using namespace tenfold;

Floats value_of(const char* name, Floats x) {
  const auto named = [&](const std::string& other) { return other == name; };
  if (named("exp")) return exp(x);
  if (named("log")) return log(x);
  if (named("cos")) return turn(x).cos;
  if (named("sin")) return turn(x).sin;
  if (named("square_root")) return square_root(x);
  if (named("exp2_of_negative")) return exp2_of_negative(x);
  if (named("reciprocal")) return reciprocal(x);
  if (named("normal_cdf")) return normal_cdf(x);
  if (named("bell")) return bell(x);
  if (named("sigmoid")) return sigmoid(x);
  Floats result{};
  const char* const kinds[] = {"gelu", "gelu_tanh", "silu", "relu"};  // in the order of the enumeration
  for (int i = 0; i < 4; ++i) {
    with_activation(static_cast<Activation>(i), [&](auto kind) {
      if (named(kinds[i])) result = apply_activation<kind()>(x);
      if (named(std::string("slope of ") + kinds[i]))
        result = apply_activation<kind()>(x, Floats{} + 1.0f).grad;
    });
  }
  return result;
}

}  // namespace

int main(int argc, char** argv) {
  std::vector<float> x(1 << 22);
  x.resize(fread(x.data(), sizeof(float), x.size(), stdin));
  for (size_t i = 0; argc == 2 && i + kFloatLanes <= x.size(); i += kFloatLanes) {
    store(&x[i], value_of(argv[1], load(&x[i])));
  }
  fwrite(x.data(), sizeof(float), x.size(), stdout);
}
