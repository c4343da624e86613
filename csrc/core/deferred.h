// Wrong ids that a GPU finds after the call that started the kernel has returned.
//
// A kernel cannot raise, and waiting for it would cost more than the kernel. So it writes where the wrong id
// stands into a word of host memory that the device sees. Later calls, and tenfold.ops.synchronize(), look at
// the words without waiting and raise what they find, as CUDA itself reports its errors.
#pragma once

#include <cstdint>

#include "core/level.h"

namespace tenfold {

using DeferredWord = unsigned long long;

// The word for a place; 0 means that nothing was found. Positions are below 2^31.
TENFOLD_HOST_DEVICE inline DeferredWord deferred_place(int64_t sample, int64_t position) {
  return ((static_cast<DeferredWord>(sample) << 31) | static_cast<DeferredWord>(position)) + 1;
}

// One argument of one op. Made once per process, for words are never given back.
class DeferredSlot {
 public:
  // "argument[sample, position] of op on a GPU was `fault`".
  DeferredSlot(
      const char* argument, const char* op,
      const char* fault = "out of range or doubled, want 0 <= id < tokens, and each id once per sample");
  DeferredWord* word() const { return word_; }

 private:
  DeferredWord* word_;
};

// Raises ValueError for the first word that is set, and clears all. Does not wait for the device.
void raise_deferred();

// Waits for all work of the devices that were used, then raises what they found.
void synchronize_devices();

}  // namespace tenfold
