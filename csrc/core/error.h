// Errors that reach the user. The bindings turn them into Python's ValueError and TypeError.
// Kernels do not throw (an exception must not leave an OpenMP region): they return a status.
#pragma once

#include <stdexcept>
#include <string>

namespace tenfold {

struct ValueError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct TypeError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

}  // namespace tenfold
