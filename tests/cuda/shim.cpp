// Runs kernels with one fiber per thread, on one core, in an order chosen by the caller. It reports these faults: lanes
// that synchronise at different places or with different masks, lanes missing from their own mask, shuffles from lanes
// outside the mask, barriers that some threads never reach, oversized blocks, and more shared memory than a device has.
// Shared memory is initialised to NaN. With AddressSanitizer it also detects accesses outside shared memory and arrays;
// with ThreadSanitizer, accesses that no barrier orders (use dynamic shared memory there, since static shared memory
// supports a single block). This file is the scheduler and is never compiled with -fsanitize=thread itself.
#include "shim.h"

#include <sys/mman.h>

#include <cstdarg>
#include <cstdio>
#include <cstdlib>
#include <map>
#include <memory>
#include <string>
#include <vector>

#ifdef SHIM_THREAD_SANITIZER
#include <sanitizer/tsan_interface.h>
extern "C" {  // hides the scheduler's own accesses from ThreadSanitizer
void AnnotateIgnoreReadsBegin(const char* file, int line);
void AnnotateIgnoreReadsEnd(const char* file, int line);
void AnnotateIgnoreWritesBegin(const char* file, int line);
void AnnotateIgnoreWritesEnd(const char* file, int line);
}
#define TSAN(...) __VA_ARGS__
#else
#define TSAN(...)
#endif
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/common_interface_defs.h>
#define ASAN(...) __VA_ARGS__
#else
#define ASAN(...)
#endif

// ---- fibers -------------------------------------------------------------------------------------------------------

// Saves callee-saved registers, stores the stack pointer in *save, and switches to stack `load`.
extern "C" void shim_switch(void** save, void* load);
#if defined(__x86_64__)
asm(R"(
.text
.globl shim_switch
.hidden shim_switch
.type shim_switch,@function
shim_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp,(%rdi)
  movq %rsi,%rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
)");
#else
#error "shim_switch is written for x86-64"
#endif

// The static shared memory of all kernels; undefined if no kernel has any.
extern "C" char __start_shim_shared[] __attribute__((weak));
extern "C" char __stop_shim_shared[] __attribute__((weak));

namespace shim {

Where* current;
Counters counters;

namespace {

constexpr size_t stack_bytes = 64 << 10;
constexpr size_t most_shared = 227 << 10;  // bytes on an H100, the maximum of all devices

enum class State { ready, at_barrier, at_collective, done };

struct Thread {
  Where where{};
  State state = State::ready;
  void* stack_pointer = nullptr;
  char* stack = nullptr;
  Wait wait{};  // from here on: the synchronisation it waits for
  unsigned mask = 0;
  uint64_t value = 0, result = 0;
  int source = 0;
  const char* file = nullptr;
  int line = 0;
  TSAN(void* fiber = nullptr;)
  ASAN(void* fake_stack = nullptr;)
};

struct Block {
  std::vector<Thread> threads;
  char* stacks = nullptr;
  void* dynamic_shared = nullptr;
  size_t shared_bytes = 0;
  std::vector<char> statics;  // saved while another block runs
  bool done = false;
};

struct Kernel {
  Launcher launcher;
  std::vector<size_t> sizes;
};
std::map<std::string, Kernel>& kernels() {
  static std::map<std::string, Kernel> all;
  return all;
}

enum Policy { forward, reverse, at_random };
int policy = forward;
int resident = 1;  // number of concurrent blocks
uint64_t random_state = 1;
char message[800];
bool failed;
Launcher launcher;
Arguments arguments;
Thread* self;
Block* running;
void* scheduler_stack;
TSAN(void* scheduler_fiber; char begin_edge, end_edge, rendezvous[4096]; unsigned n_rendezvous;)
ASAN(const void* scheduler_bottom; size_t scheduler_size;)

uint64_t next_random() {
  random_state ^= random_state << 13;
  random_state ^= random_state >> 7;
  random_state ^= random_state << 17;
  return random_state;
}

void to_scheduler([[maybe_unused]] bool dying = false) {
  Thread* const t = self;
  ++counters.switches;
  TSAN(__tsan_switch_to_fiber(scheduler_fiber, __tsan_switch_to_fiber_no_sync);)
  ASAN(__sanitizer_start_switch_fiber(dying ? nullptr : &t->fake_stack, scheduler_bottom, scheduler_size);)
  shim_switch(&t->stack_pointer, scheduler_stack);
  ASAN(__sanitizer_finish_switch_fiber(t->fake_stack, &scheduler_bottom, &scheduler_size);)
}

void run_thread() {
  ASAN(__sanitizer_finish_switch_fiber(nullptr, &scheduler_bottom, &scheduler_size);)
  TSAN(__tsan_acquire(&begin_edge);)
  launcher(arguments);
  TSAN(__tsan_release(&end_edge);)
  self->state = State::done;
  for (;;) to_scheduler(true);
}

void resume(Thread& t) {
  self = &t;
  current = &t.where;
  TSAN(__tsan_switch_to_fiber(t.fiber, __tsan_switch_to_fiber_no_sync);)
  ASAN(void* fake = nullptr; __sanitizer_start_switch_fiber(&fake, t.stack, stack_bytes);)
  shim_switch(&scheduler_stack, t.stack_pointer);
  ASAN(const void* bottom; size_t size; __sanitizer_finish_switch_fiber(fake, &bottom, &size);)
}

void note(const char* format, ...) {
  va_list list;
  va_start(list, format);
  vsnprintf(message, sizeof message, format, list);
  va_end(list);
  failed = true;
}

#ifdef SHIM_THREAD_SANITIZER
// All participants release, then all acquire, on an address used only for this synchronisation.
template <class Meets>
void order(Block& block, size_t first, size_t last, Meets meets) {
  char* const edge = &rendezvous[n_rendezvous++ % sizeof rendezvous];
  for (const bool acquire : {false, true}) {
    for (size_t i = first; i < last; ++i) {
      if (!meets(i)) continue;
      __tsan_switch_to_fiber(block.threads[i].fiber, __tsan_switch_to_fiber_no_sync);
      acquire ? __tsan_acquire(edge) : __tsan_release(edge);
    }
  }
  __tsan_switch_to_fiber(scheduler_fiber, __tsan_switch_to_fiber_no_sync);
}
#endif

// ---- meetings -----------------------------------------------------------------------------------------------------

// Releases lanes of a warp once all lanes of their mask have arrived. Returns true if any were released.
bool release_lanes(Block& block, size_t first, size_t last) {
  bool any = false;
  for (size_t i = first; i < last; ++i) {
    const Thread& a = block.threads[i];
    if (a.state != State::at_collective) continue;
    bool all = true;
    for (unsigned lane = 0; lane < 32; ++lane) {
      if (!(a.mask >> lane & 1)) continue;
      if (first + lane >= last) {
        note("%s:%d: mask %08x names lane %u, beyond the end of the block", a.file, a.line, a.mask, lane);
        return true;
      }
      const Thread& b = block.threads[first + lane];
      if (b.state == State::done) {
        note("%s:%d: mask %08x names lane %u, which has returned", a.file, a.line, a.mask, lane);
        return true;
      }
      if (b.state != State::at_collective) {
        all = false;
      } else if (b.mask != a.mask || b.wait != a.wait || b.line != a.line || std::strcmp(b.file, a.file) != 0) {
        if (b.mask & a.mask) {
          note(
              "lanes of a warp synchronise at different places: lane %zu at %s:%d with mask %08x, lane %u at %s:%d "
              "with %08x",
              i - first, a.file, a.line, a.mask, lane, b.file, b.line, b.mask);
          return true;
        }
        all = false;
      }
    }
    if (!all) continue;
    const unsigned mask = a.mask;
    const Wait wait = a.wait;
    const auto inside = [&](size_t j) { return (mask >> (j - first) & 1) != 0; };
    uint64_t votes = 0;
    for (size_t j = first; j < last; ++j) {
      if (inside(j) && block.threads[j].value) votes |= uint64_t{1} << (j - first);
    }
    for (size_t j = first; j < last; ++j) {
      if (!inside(j)) continue;
      Thread& t = block.threads[j];
      t.result = votes;
      if (wait == Wait::shuffle) {
        if (!(mask >> t.source & 1)) {
          note("%s:%d: lane %zu reads lane %d, outside mask %08x", t.file, t.line, j - first, t.source, mask);
          return true;
        }
        t.result = block.threads[first + t.source].value;
      }
    }
    // Shuffles and votes exchange registers; only __syncwarp orders memory.
    TSAN(if (wait == Wait::warp) order(block, first, last, inside);)
    for (size_t j = first; j < last; ++j) {
      if (inside(j)) block.threads[j].state = State::ready;
    }
    any = true;
  }
  return any;
}

bool release(Block& block) {
  const size_t n = block.threads.size();
  bool any = false;
  for (size_t first = 0; first < n && !failed; first += 32) any |= release_lanes(block, first, std::min(n, first + 32));
  if (any || failed) return true;
  const Thread* other = nullptr;
  for (const Thread& t : block.threads) {
    if (t.state == State::at_collective || t.state == State::ready) return false;
    if (t.state != State::at_barrier) continue;
    if (other && (other->line != t.line || std::strcmp(other->file, t.file) != 0)) {
      note("threads of a block wait at different __syncthreads: %s:%d and %s:%d", other->file, other->line, t.file,
           t.line);
      return true;
    }
    other = &t;
  }
  if (!other) return false;
  for (const Thread& t : block.threads) {
    if (t.state == State::done) {
      note("%s:%d: some threads wait at __syncthreads, others have returned", other->file, other->line);
      return true;
    }
  }
  TSAN(order(block, 0, n, [](size_t) { return true; });)
  bool any_vote = false;
  for (const Thread& t : block.threads) any_vote |= t.value != 0;
  for (Thread& t : block.threads) {
    t.state = State::ready;
    t.result = any_vote;
  }
  return true;
}

// ---- blocks -------------------------------------------------------------------------------------------------------

size_t static_bytes() { return __start_shim_shared ? __stop_shim_shared - __start_shim_shared : 0; }

void show(Block& block) {
  if (running == &block) return;
  if (running) std::copy_n(__start_shim_shared, static_bytes(), running->statics.data());
  std::copy_n(block.statics.data(), static_bytes(), __start_shim_shared);
  running = &block;
}

void begin(Block& block, dim3 grid, dim3 size, uint3 index, size_t shared) {
  const size_t n = size_t{size.x} * size.y * size.z;
  block.threads.resize(n);
  block.statics.assign(static_bytes(), static_cast<char>(0xff));
  block.shared_bytes = shared;
  // A heap block of the exact size lets AddressSanitizer detect overruns. ThreadSanitizer needs memory that it has not
  // seen before.
#ifdef SHIM_THREAD_SANITIZER
  const auto map = [](size_t bytes) {
    return mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  };
  block.stacks = static_cast<char*>(map(n * stack_bytes));
  block.dynamic_shared = shared ? map(shared) : nullptr;
#else
  block.stacks = static_cast<char*>(std::aligned_alloc(4096, n * stack_bytes));
  block.dynamic_shared = shared ? std::malloc(shared) : nullptr;
#endif
  if (shared) std::memset(block.dynamic_shared, 0xff, shared);
  for (size_t i = 0; i < n; ++i) {
    Thread& t = block.threads[i];
    t.where = {{unsigned(i % size.x), unsigned(i / size.x % size.y), unsigned(i / size.x / size.y)},
               index,
               size,
               grid,
               block.dynamic_shared,
               unsigned(i % 32)};
    t.stack = block.stacks + i * stack_bytes;
    void** top = reinterpret_cast<void**>(t.stack + stack_bytes);
    *--top = nullptr;
    *--top = reinterpret_cast<void*>(run_thread);
    for (int saved = 0; saved < 6; ++saved) *--top = nullptr;
    t.stack_pointer = top;
    TSAN(t.fiber = __tsan_create_fiber(0);)
  }
}

void end(Block& block) {
#ifdef SHIM_THREAD_SANITIZER
  if (failed) {  // abandoned threads are ordered before the host continues
    for (Thread& t : block.threads) {
      __tsan_switch_to_fiber(t.fiber, __tsan_switch_to_fiber_no_sync);
      __tsan_release(&end_edge);
    }
    __tsan_switch_to_fiber(scheduler_fiber, __tsan_switch_to_fiber_no_sync);
  }
  for (Thread& t : block.threads) __tsan_destroy_fiber(t.fiber);
  munmap(block.stacks, block.threads.size() * stack_bytes);
  if (block.dynamic_shared) munmap(block.dynamic_shared, block.shared_bytes);
#else
  std::free(block.stacks);
  std::free(block.dynamic_shared);
#endif
  if (running == &block) running = nullptr;
}

// Resumes the ready threads of a block: each once, or random ones for up to 16 turns.
void advance(Block& block) {
  show(block);
  std::vector<Thread*> ready;
  size_t n_done = 0;
  for (Thread& t : block.threads) {
    if (t.state == State::ready) ready.push_back(&t);
    n_done += t.state == State::done;
  }
  if (n_done == block.threads.size()) {
    block.done = true;
  } else if (ready.empty()) {
    if (!release(block)) {
      for (const Thread& t : block.threads) {
        if (t.state == State::at_collective || t.state == State::at_barrier) {
          note("deadlock: threads wait at %s:%d for others that never arrive", t.file, t.line);
        }
      }
    }
  } else if (policy == at_random) {
    for (int turn = 0; turn < 16 && !ready.empty() && !failed; ++turn) {
      const size_t chosen = next_random() % ready.size();
      Thread& t = *ready[chosen];
      resume(t);
      if (t.state != State::ready) ready.erase(ready.begin() + static_cast<std::ptrdiff_t>(chosen));
    }
  } else {
    if (policy == reverse) std::reverse(ready.begin(), ready.end());
    for (Thread* t : ready) {
      if (!failed) resume(*t);
    }
  }
}

}  // namespace

uint64_t meet(Wait wait, unsigned mask, uint64_t value, int source, const char* file, int line) {
  Thread* const t = self;
  ++counters.collectives;
  if (wait != Wait::block && !(mask >> t->where.lane & 1)) {
    fail("%s:%d: lane %u is not in its mask %08x", file, line, t->where.lane, mask);
  }
  t->state = wait == Wait::block ? State::at_barrier : State::at_collective;
  t->wait = wait, t->mask = mask, t->value = value, t->source = source, t->file = file, t->line = line;
  to_scheduler();
  return t->result;
}

void pause() {
  if (policy == at_random && (next_random() & 7) == 0) to_scheduler();
}

void fail(const char* format, ...) {
  va_list list;
  va_start(list, format);
  vsnprintf(message, sizeof message, format, list);
  va_end(list);
  failed = true;
  for (;;) to_scheduler(true);
}

void add_kernel(const char* name, Launcher launcher, std::initializer_list<size_t> sizes) {
  kernels()[name] = {launcher, sizes};
}

}  // namespace shim

// ---- called from Python -------------------------------------------------------------------------------------------

extern "C" {

const char* shim_message() { return shim::message; }

// policy: 0 runs threads in order, 1 in reverse, 2 at random. resident: number of concurrent blocks.
void shim_schedule(int policy, uint64_t seed, int resident) {
  shim::policy = policy;
  shim::resident = resident;
  shim::random_state = seed * 2654435761u + 88172645463325252ull;
}

void shim_counters(uint64_t* out, int reset) {
  std::memcpy(out, &shim::counters, sizeof shim::counters);
  if (reset) shim::counters = {};
}

// Writes the size in bytes of each argument of a kernel. Returns their number, or -1 if the kernel does not exist.
int shim_arguments(const char* name, uint64_t* sizes, int most) {
  const auto found = shim::kernels().find(name);
  if (found == shim::kernels().end()) return -1;
  const auto& all = found->second.sizes;
  for (int i = 0; i < most && i < static_cast<int>(all.size()); ++i) sizes[i] = all[i];
  return static_cast<int>(all.size());
}

#ifdef SHIM_COVERAGE
void __gcov_dump();
void shim_write_coverage() { __gcov_dump(); }
#endif

// Returns 0, or 1 after setting the message.
int shim_launch(const char* name, const unsigned* grid, const unsigned* block, uint64_t shared, void** arguments) {
  using namespace shim;
  message[0] = 0;
  failed = false;
  const auto found = kernels().find(name);
  if (found == kernels().end()) {
    note("no kernel is named %s", name);
    return 1;
  }
  const dim3 grid_size(grid[0], grid[1], grid[2]), block_size(block[0], block[1], block[2]);
  const uint64_t threads = uint64_t{block_size.x} * block_size.y * block_size.z;
  if (threads == 0 || threads > 1024) note("a block has 1 to 1,024 threads, got %llu", (unsigned long long)threads);
  if (shared + static_bytes() > most_shared) {
    note("a block has at most %zu bytes of shared memory, got %llu", most_shared,
         (unsigned long long)(shared + static_bytes()));
  }
  if (uint64_t{grid_size.x} * grid_size.y * grid_size.z == 0) note("the grid is empty");
  if (failed) return 1;
  launcher = found->second.launcher;
  shim::arguments = arguments;
  running = nullptr;
  TSAN(scheduler_fiber = __tsan_get_current_fiber(); __tsan_release(&begin_edge);)
  TSAN(AnnotateIgnoreReadsBegin(__FILE__, __LINE__); AnnotateIgnoreWritesBegin(__FILE__, __LINE__);)
  const uint64_t n_blocks = uint64_t{grid_size.x} * grid_size.y * grid_size.z;
  std::vector<std::unique_ptr<Block>> flight;
  uint64_t started = 0;
  while (!failed && (started < n_blocks || !flight.empty())) {
    while (started < n_blocks && static_cast<int>(flight.size()) < resident) {
      const uint3 index{unsigned(started % grid_size.x), unsigned(started / grid_size.x % grid_size.y),
                        unsigned(started / grid_size.x / grid_size.y)};
      flight.push_back(std::make_unique<Block>());
      begin(*flight.back(), grid_size, block_size, index, shared);
      ++started;
    }
    const size_t chosen = policy == at_random ? next_random() % flight.size() : 0;
    for (size_t i = policy == at_random ? chosen : 0; i < flight.size() && !failed; ++i) {
      advance(*flight[i]);
      if (policy == at_random) break;
    }
    for (size_t i = 0; i < flight.size();) {
      if (!flight[i]->done) {
        ++i;
        continue;
      }
      end(*flight[i]);
      flight.erase(flight.begin() + static_cast<std::ptrdiff_t>(i));
    }
  }
  for (auto& block : flight) end(*block);
  TSAN(AnnotateIgnoreWritesEnd(__FILE__, __LINE__); AnnotateIgnoreReadsEnd(__FILE__, __LINE__);)
  TSAN(__tsan_acquire(&end_edge);)
  return failed;
}

}  // extern "C"
