// The scheduler behind cuda_runtime.h. Never instrumented for ThreadSanitizer: it tells it instead which
// fiber runs and what orders fibers, which is exactly what CUDA promises and no more.
#include "simt.h"

#include <sys/mman.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

#ifdef SIMT_ADDRESS_SANITIZER
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif
#ifdef SIMT_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>
#endif

#ifndef __x86_64__
#error "the emulator switches stacks with x86-64 instructions"
#endif

// void simt_switch(void** save, void* load): keeps the callee-saved registers on the stack it leaves.
extern "C" void simt_switch(void** save, void* load);
asm(R"(
.text
.globl simt_switch
.hidden simt_switch
.type simt_switch, @function
simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size simt_switch, .-simt_switch
)");

namespace simt {

thread_local Index threadIdx, blockIdx;
thread_local Dim blockDim, gridDim;

namespace {

constexpr size_t kStackBytes = 128 << 10, kGuardBytes = 4096;
constexpr int kMaxThreads = 1024, kMaxArrays = 16;
constexpr size_t kStaticLimit = 48 << 10;
constexpr double kPreemption = 0.05;  // of the shared accesses and atomics of a shuffled schedule
// NaN as float, double, half and bfloat16, and far from any index as an integer.
constexpr uint32_t kPoison = 0xFFF5FFF5u;

class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed * 0x9E3779B97F4A7C15ull + 0x2545F4914F6CDD1Dull) {}
  uint64_t next() {  // splitmix64
    uint64_t z = (state_ += 0x9E3779B97F4A7C15ull);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
    return z ^ (z >> 31);
  }
  uint64_t below(uint64_t range) { return next() % range; }
  bool chance(double p) { return static_cast<double>(next() >> 11) < p * 9007199254740992.0; }

 private:
  uint64_t state_;
};

class Stack {
 public:
  Stack() {
    void* const at = mmap(nullptr, kStackBytes + kGuardBytes, PROT_READ | PROT_WRITE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (at == MAP_FAILED) throw std::bad_alloc();
    base_ = static_cast<char*>(at);
    mprotect(base_, kGuardBytes, PROT_NONE);  // an overflow ends the process instead of corrupting
  }
  ~Stack() {
#ifdef SIMT_ADDRESS_SANITIZER
    // Whoever is given these addresses next must not find the marks of our variables.
    __asan_unpoison_memory_region(base_, kStackBytes + kGuardBytes);
#endif
    munmap(base_, kStackBytes + kGuardBytes);
  }
  Stack(const Stack&) = delete;
  Stack& operator=(const Stack&) = delete;
  char* low() const { return base_ + kGuardBytes; }
  char* high() const { return base_ + kGuardBytes + kStackBytes; }

 private:
  char* base_;
};

enum class State { ready, barrier, warp, done };

struct Fiber {
  std::unique_ptr<Stack> stack = std::make_unique<Stack>();
  void* sp = nullptr;
  void* tsan = nullptr;
  void* fake_stack = nullptr;
  State state = State::done;
  WarpOp op{};
  unsigned mask = 0, barriers = 0, syncs = 0;
  uint64_t result = 0;
};

// Runs the blocks of one launch.
class Scheduler {
 public:
  Scheduler(const Launch& launch, uint64_t seed)
      : launch_(launch),
        random_(seed),
        shuffled_(seed != 0),
        fibers_(size_t{launch.block.x} * launch.block.y * launch.block.z),
        arena_(kStaticLimit + launch.dynamic_bytes) {
#ifdef SIMT_THREAD_SANITIZER
    main_tsan_ = __tsan_get_current_fiber();
    for (Fiber& fiber : fibers_) fiber.tsan = __tsan_create_fiber(0);
#endif
  }
  ~Scheduler() {
#ifdef SIMT_THREAD_SANITIZER
    for (Fiber& fiber : fibers_) __tsan_destroy_fiber(fiber.tsan);
#endif
  }

  void run() {
    blockDim = launch_.block;
    gridDim = launch_.grid;
    std::vector<uint64_t> order(uint64_t{gridDim.x} * gridDim.y * gridDim.z);
    for (uint64_t i = 0; i < order.size(); ++i) order[i] = i;
    if (shuffled_) {
      for (uint64_t i = order.size(); i > 1; --i) std::swap(order[i - 1], order[random_.below(i)]);
    }
    for (const uint64_t block : order) run_block(block);
  }

  void barrier() {
    // Edges take turns: a thread that is already at the next barrier must not order what one that is still
    // leaving this one does next.
    char* const edge = &barrier_edges_[fibers_[current_].barriers++ % 2];
    release(edge);
    wait(State::barrier);
    acquire(edge);
  }

  uint64_t warp(unsigned mask, const WarpOp& op) {
    Fiber& me = fibers_[current_];
    if ((mask >> (current_ % kWarp) & 1u) == 0) fault("a warp operation whose mask leaves its own lane out");
    me.op = op;
    me.mask = mask;
    if (op.kind != Shuffle::sync) {  // shuffles and votes order no memory
      wait(State::warp);
      return me.result;
    }
    char* const edge = &warp_edges_[current_ / kWarp][me.syncs++ % 2];
    release(edge);
    wait(State::warp);
    acquire(edge);
    return 0;
  }

  void preempt() {
    if (shuffled_ && random_.chance(kPreemption)) wait(State::ready);
  }

  // Arrays lie one after another in memory that exists before the threads do: ThreadSanitizer would take an
  // allocation by one of them for a write.
  void* shared(const char* name, size_t bytes) {
    for (size_t i = 0; i < arrays_; ++i) {
      if (names_[i] == name) return &arena_[begins_[i]];
    }
    if (arrays_ == kMaxArrays) fault("more shared arrays than the emulator has room for");
    const size_t begin = (used_ + 15) / 16 * 16;
    if (begin + bytes > kStaticLimit) fault("more than 48 KiB of static shared memory");
    names_[arrays_] = name;
    begins_[arrays_++] = begin;
    used_ = begin + bytes;
    return &arena_[begin];
  }

  void* dynamic(size_t* bytes) {
    *bytes = launch_.dynamic_bytes;
    return &arena_[kStaticLimit];
  }

  std::string where() const {
    return " (block " + std::to_string(block_) + ", thread " + std::to_string(current_) + ")";
  }

 private:
  static void entry();

  void run_block(uint64_t block) {
    block_ = block;
    blockIdx = position(block, gridDim);
    for (size_t i = 0; i + sizeof kPoison <= arena_.size(); i += sizeof kPoison) {
      std::memcpy(&arena_[i], &kPoison, sizeof kPoison);
    }
    for (size_t i = 0; i < fibers_.size(); ++i) prepare(fibers_[i]);
    std::fill(std::begin(waiting_), std::end(waiting_), 0);
    release(&begin_edge_);
    while (step()) {
    }
    acquire(&end_edge_);
    if (failure_) std::rethrow_exception(failure_);
  }

  // A stack on which simt_switch "returns" into entry().
  void prepare(Fiber& fiber) {
#ifdef SIMT_ADDRESS_SANITIZER
    __asan_unpoison_memory_region(fiber.stack->low(), kStackBytes);
#endif
    auto** top = reinterpret_cast<void**>(fiber.stack->high());
    *--top = nullptr;  // entry() finds its stack aligned as after a call
    *--top = reinterpret_cast<void*>(&entry);
    for (int i = 0; i < 6; ++i) *--top = nullptr;
    fiber.sp = top;
    fiber.state = State::ready;
    fiber.barriers = fiber.syncs = 0;
  }

  // Lets one thread run until it waits. False when all are done or a fault was found.
  bool step() {
    if (failure_) return false;
    ready_.clear();
    for (size_t i = 0; i < fibers_.size(); ++i) {
      if (fibers_[i].state == State::ready) ready_.push_back(i);
    }
    if (ready_.empty()) return resolve();
    // A batch at a time: looking for the ready threads after every switch would take most of the time.
    if (shuffled_) {
      for (size_t i = ready_.size(); i > 1; --i) std::swap(ready_[i - 1], ready_[random_.below(i)]);
    }
    for (const size_t i : ready_) {
      resume(i);
      // A warp goes on as soon as all its lanes are there, whatever the other warps do.
      if (fibers_[i].state == State::warp && ++waiting_[i / kWarp] >= __builtin_popcount(fibers_[i].mask)) {
        resolve_warp(i / kWarp * kWarp);
      }
      if (failure_) return false;
      // Threads that were let go early have a say at once, so that some run far ahead of others.
      if (shuffled_ && random_.chance(0.25)) return true;
    }
    return true;
  }

  // Nobody can go on by itself: complete warp operations, then the barrier.
  bool resolve() {
    bool released = false;
    for (size_t first = 0; first < fibers_.size(); first += kWarp) released |= resolve_warp(first);
    if (released) return !failure_;
    size_t done = 0, stuck = 0;
    for (const Fiber& fiber : fibers_) {
      done += fiber.state == State::done;
      stuck += fiber.state == State::warp;
    }
    if (done == fibers_.size()) return false;
    if (stuck > 0) return fail("a warp operation that some lanes of its mask never reach");
    if (done > 0) return fail("a barrier that some threads never reach, for they have returned");
    for (Fiber& fiber : fibers_) fiber.state = State::ready;
    return true;
  }

  bool resolve_warp(size_t first) {
    const size_t lanes = std::min<size_t>(kWarp, fibers_.size() - first);
    bool released = false;
    for (size_t lane = 0; lane < lanes; ++lane) {
      const Fiber& leader = fibers_[first + lane];
      if (leader.state != State::warp) continue;
      const unsigned mask = leader.mask;
      bool whole = true;
      for (size_t other = 0; other < kWarp; ++other) {
        if ((mask >> other & 1u) == 0) continue;
        if (other >= lanes || fibers_[first + other].state == State::done) {
          current_ = first + lane;
          return fail("a warp operation whose mask names a lane that has returned or does not exist"), true;
        }
        const Fiber& fiber = fibers_[first + other];
        whole &= fiber.state == State::warp && fiber.mask == mask && fiber.op.kind == leader.op.kind;
      }
      if (!whole) continue;
      complete(first, mask);
      released = true;
    }
    return released;
  }

  void complete(size_t first, unsigned mask) {
    waiting_[first / kWarp] -= __builtin_popcount(mask);
    uint64_t votes = 0;
    for (int lane = 0; lane < kWarp; ++lane) {
      if (mask >> lane & 1u) votes |= (fibers_[first + lane].op.payload & 1u) << lane;
    }
    for (int lane = 0; lane < kWarp; ++lane) {
      if ((mask >> lane & 1u) == 0) continue;
      Fiber& fiber = fibers_[first + lane];
      if (fiber.op.kind == Shuffle::ballot) {
        fiber.result = votes;
      } else if (fiber.op.kind != Shuffle::sync) {
        const int source = source_lane(lane, fiber.op);
        if ((mask >> source & 1u) == 0) {
          current_ = first + static_cast<size_t>(lane);
          fail("a shuffle from a lane outside its mask");
        }
        fiber.result = fibers_[first + source].op.payload;
      }
      fiber.state = State::ready;
    }
  }

  // The lane a shuffle reads; its own where that lies outside the group (CUDA C++ guide, warp shuffles).
  static int source_lane(int lane, const WarpOp& op) {
    const int begin = lane & ~(op.width - 1), end = begin + op.width;
    switch (op.kind) {
      case Shuffle::index:
        return begin + (op.lane & (op.width - 1));
      case Shuffle::up:
        return lane - op.lane >= begin ? lane - op.lane : lane;
      case Shuffle::down:
        return lane + op.lane < end ? lane + op.lane : lane;
      case Shuffle::exclusive_or:
        return (lane ^ op.lane) < end ? lane ^ op.lane : lane;
      default:
        return lane;
    }
  }

  void resume(size_t thread) {
    current_ = thread;
    threadIdx = position(thread, blockDim);
    Fiber& fiber = fibers_[thread];
    fiber.state = State::ready;
#ifdef SIMT_THREAD_SANITIZER
    __tsan_switch_to_fiber(fiber.tsan, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef SIMT_ADDRESS_SANITIZER
    void* fake = nullptr;
    __sanitizer_start_switch_fiber(&fake, fiber.stack->low(), kStackBytes);
#endif
    simt_switch(&main_sp_, fiber.sp);
#ifdef SIMT_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(fake, nullptr, nullptr);
#endif
  }

  void leave(Fiber& fiber, bool for_good) {
#ifdef SIMT_THREAD_SANITIZER
    __tsan_switch_to_fiber(main_tsan_, __tsan_switch_to_fiber_no_sync);
#endif
#ifdef SIMT_ADDRESS_SANITIZER
    __sanitizer_start_switch_fiber(for_good ? nullptr : &fiber.fake_stack, main_low_, main_bytes_);
#endif
    (void)for_good;
    simt_switch(&fiber.sp, main_sp_);
#ifdef SIMT_ADDRESS_SANITIZER
    __sanitizer_finish_switch_fiber(fiber.fake_stack, &main_low_, &main_bytes_);
#endif
  }

  void wait(State state) {
    Fiber& me = fibers_[current_];
    me.state = state;
    leave(me, false);
  }

  bool fail(const std::string& what) {
    if (!failure_) failure_ = std::make_exception_ptr(Fault(what + where()));
    return false;
  }

  static Index position(uint64_t number, Dim extent) {
    const uint64_t layer = uint64_t{extent.x} * extent.y;
    return {static_cast<unsigned>(number % extent.x), static_cast<unsigned>(number / extent.x % extent.y),
            static_cast<unsigned>(number / layer)};
  }

  static void release(void* edge) {
#ifdef SIMT_THREAD_SANITIZER
    __tsan_release(edge);
#else
    (void)edge;
#endif
  }
  static void acquire(void* edge) {
#ifdef SIMT_THREAD_SANITIZER
    __tsan_acquire(edge);
#else
    (void)edge;
#endif
  }

  const Launch& launch_;
  Random random_;
  bool shuffled_;
  std::vector<Fiber> fibers_;
  std::vector<size_t> ready_;
  std::vector<char> arena_;  // static shared memory, then the dynamic array
  const char* names_[kMaxArrays] = {};
  size_t begins_[kMaxArrays] = {}, arrays_ = 0, used_ = 0;
  int waiting_[kMaxThreads / kWarp] = {};  // lanes of each warp at a warp operation
  std::exception_ptr failure_;
  void* main_sp_ = nullptr;
  void* main_tsan_ = nullptr;
  const void* main_low_ = nullptr;
  size_t main_bytes_ = 0;
  uint64_t block_ = 0;
  size_t current_ = 0;
  char barrier_edges_[2] = {}, warp_edges_[kMaxThreads / kWarp][2] = {}, begin_edge_ = 0, end_edge_ = 0;
};

thread_local Scheduler* running = nullptr;

void Scheduler::entry() {
  Scheduler& self = *running;
#ifdef SIMT_ADDRESS_SANITIZER
  __sanitizer_finish_switch_fiber(nullptr, &self.main_low_, &self.main_bytes_);
#endif
  acquire(&self.begin_edge_);
  try {
    self.launch_.body();
  } catch (...) {
    if (!self.failure_) self.failure_ = std::current_exception();
  }
  release(&self.end_edge_);
  Fiber& me = self.fibers_[self.current_];
  me.state = State::done;
  self.leave(me, true);
  std::abort();  // a finished thread is never resumed
}

uint64_t seed_from_environment() {
  const char* const text = std::getenv("TENFOLD_SIMT_SEED");
  return text != nullptr ? std::strtoull(text, nullptr, 10) : 0;
}

}  // namespace

void fault(const std::string& what) { throw Fault(what + (running != nullptr ? running->where() : "")); }

void launch(const Launch& launch) {
  if (running != nullptr) throw Fault("a launch from inside a kernel");
  Scheduler scheduler(launch, seed_from_environment());
  running = &scheduler;
  struct Stop {
    ~Stop() { running = nullptr; }
  } stop;
  scheduler.run();
}

void barrier() { running->barrier(); }
uint64_t warp(unsigned mask, const WarpOp& op) { return running->warp(mask, op); }
void preempt() {
  if (running != nullptr) running->preempt();
}
void* shared_bytes(const char* name, size_t bytes) { return running->shared(name, bytes); }
void* dynamic_bytes(size_t* bytes) { return running->dynamic(bytes); }
void out_of_range(const char* name, int64_t index, int64_t count) {
  fault(std::string(name) + ": index " + std::to_string(index) + " of " + std::to_string(count));
}

}  // namespace simt
