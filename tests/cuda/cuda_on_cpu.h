// Stands in for CUDA's built-ins, so that a C++ compiler turns a kernel's source into code that runs on the host.
//
// A grid runs one block at a time, a block one warp at a time, as far as its next barrier. A thread is a fiber: it runs
// until it waits at a barrier or at an exchange of its warp, or ends; then the next one of the warp runs. So a missing
// barrier is a wrong number, not a matter of luck:
// - threads that meet at different barriers, lanes that never come, and a block that cannot go on are errors, with the
//   block and the lines; lanes that have ended count as missing, though a card may let a warp go on without them;
// - shared memory holds NaN until it is written; asynchronous copies land when they are waited for, not before;
// - `cpu_order` chooses the order of threads and blocks: forwards, backwards, or shuffled;
// - built with -fsanitize=address, an access beyond an array of global or shared memory is an error.
// What it cannot show: speed, races between blocks, the order in which a card's memory sees writes. A thread that spins
// until another one writes never lets that other one run: the launch does not return.
#pragma once
#include <algorithm>
#include <cmath>
#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <numeric>
#include <vector>
#include <sys/mman.h>
#include <ucontext.h>
#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#else
#define ASAN_POISON_MEMORY_REGION(begin, size) ((void)(begin), (void)(size))
#define ASAN_UNPOISON_MEMORY_REGION(begin, size) ((void)(begin), (void)(size))
#endif

#define ON_CPU 1
#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __restrict__
#define __constant__ static const
#define __align__(n) __attribute__((aligned(n)))
// one section holds all shared memory of a file, so that it can be poisoned before each block
#define __shared__ static __attribute__((section("shared_memory"), used))
#define DYNAMIC_SHARED(type, name) type* name = reinterpret_cast<type*>(cpu::dynamic_shared)

struct Index { unsigned x, y, z; };
struct alignas(8) float2 { float x, y; };
struct alignas(16) float4 { float x, y, z, w; };
struct alignas(16) int4 { int x, y, z, w; };
struct alignas(16) uint4 { unsigned x, y, z, w; };
struct alignas(8) uint2 { unsigned x, y; };
struct alignas(16) double2 { double x, y; };
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }
inline uint2 make_uint2(unsigned x, unsigned y) { return {x, y}; }

static Index threadIdx, blockIdx, blockDim, gridDim;
constexpr int warpSize = 32;

extern "C" char __start_shared_memory[] __attribute__((weak, visibility("hidden")));
extern "C" char __stop_shared_memory[] __attribute__((weak, visibility("hidden")));

namespace cpu {

enum State { READY, AT_BARRIER, AT_EXCHANGE, ENDED };
struct PendingCopy { void* to; const void* from; int bytes; };  // from null: zeros
using Jump = void*[5];  // of GCC's built-in jumps: faster than the library's, and no sanitizer takes them for an error
struct Fiber {
  Jump here;
  ucontext_t start;
  char* stack = nullptr;
  bool started = false;
  State state = ENDED;
  Index index;
  unsigned lanes = 0;  // at an exchange: the lanes that must come
  int line = 0;        // where it waits
  std::vector<std::vector<PendingCopy>> copies;  // groups of asynchronous copies, the last one open
};

constexpr size_t STACK = 64 * 1024, GUARD = 4096;
constexpr size_t MOST_SHARED = 99 * 1024;  // of a block on sm_86, 89 and 120, the least of all that kernels run on
static std::vector<Fiber> fibers;
static int current, threads;
static Jump scheduler;
static void (*body)(const void*);
static const void* body_arguments;
static uint64_t slots[32][32][8];  // of each warp and lane: what an exchange hands over
alignas(128) static char dynamic_shared[MOST_SHARED];
static char message[512];
static int order = 0;
static uint64_t seed = 1;

// A built-in jump must not end in the function that it starts from.
#define NOT_INLINE __attribute__((noinline, noclone, no_sanitize("address", "undefined")))
NOT_INLINE static void jump(Jump& to) { __builtin_longjmp(to, 1); }

NOT_INLINE static void wait(State state, int line) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  fiber.line = line;
  if (!__builtin_setjmp(fiber.here)) jump(scheduler);
}

static void entry() {
  for (;;) {  // one stack serves every block
    body(body_arguments);
    wait(ENDED, 0);
  }
}

__attribute__((format(printf, 1, 2))) static bool fail(const char* format, ...) {
  for (Fiber& fiber : fibers) fiber.started = false;  // the next launch begins anew
  int length = snprintf(message, sizeof message, "block (%u, %u, %u): ", blockIdx.x, blockIdx.y, blockIdx.z);
  va_list values;
  va_start(values, format);
  vsnprintf(message + length, sizeof message - length, format, values);
  va_end(values);
  return false;
}

__attribute__((no_sanitize("address", "undefined"), optimize("no-tree-loop-distribute-patterns")))
static void poison(char* begin, char* end) {
  for (; begin < end; begin++) *(volatile char*)begin = (char)0xff;
}

static uint64_t random_below(uint64_t n) {
  seed = seed * 6364136223846793005ull + 1442695040888963407ull;
  return (seed >> 33) % n;
}
template <class T> static void arrange(std::vector<T>& items) {  // in their first order: as `order` says
  if (order == 1) std::reverse(items.begin(), items.end());
  if (order == 2) for (size_t i = items.size(); i > 1; i--) std::swap(items[i - 1], items[random_below(i)]);
}

NOT_INLINE static void enter(Fiber& fiber) {
  if (fiber.started) jump(fiber.here);
  fiber.started = true;
  ASAN_UNPOISON_MEMORY_REGION(fiber.stack, STACK);
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack;
  fiber.start.uc_stack.ss_size = STACK;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, entry, 0);
  setcontext(&fiber.start);
}

NOT_INLINE static void run_fiber(int i) {
  current = i;
  threadIdx = fibers[i].index;
  if (!__builtin_setjmp(scheduler)) enter(fibers[i]);
}

static bool names(unsigned lanes, int i) { return lanes >> (i & 31) & 1; }

// Let the lanes of a warp go on whose exchange is complete: every lane that the mask names has come. False: an error.
static bool release(int first) {
  int end = std::min(threads, first + 32);
  for (int i = first; i < end; i++)
    if (fibers[i].state == AT_EXCHANGE && !names(fibers[i].lanes, i))
      return fail("a lane exchanges under a mask without it (line %d)", fibers[i].line);
  for (int i = first; i < end; i++) {
    if (fibers[i].state != AT_EXCHANGE) continue;
    unsigned lanes = fibers[i].lanes;
    int line = fibers[i].line;
    bool complete = true;
    for (int j = first; j < end; j++) {
      if (!names(lanes, j)) continue;
      const Fiber& other = fibers[j];
      bool here = other.state == AT_EXCHANGE && names(other.lanes, i);  // else it is at one of other lanes, or not yet here
      if (here && other.line != line) return fail("lanes of a warp meet at different exchanges (lines %d, %d)", line, other.line);
      if (here && other.lanes != lanes) return fail("lanes of a warp name the masks %#x and %#x (line %d)", lanes, other.lanes, line);
      complete = complete && here;
    }
    if (!complete) continue;
    for (int j = first; j < end; j++) if (names(lanes, j)) fibers[j].state = READY;
  }
  return true;
}

// Nobody can go on, for thread i waits at an exchange.
static bool deadlock(int i) {
  unsigned come = 0;
  int first = i & ~31;
  for (int j = first; j < std::min(threads, first + 32); j++)
    if (fibers[j].state == AT_EXCHANGE) come |= 1u << (j - first);
  return fail("deadlock: lanes %#x of warp %d never come to an exchange (line %d)", fibers[i].lanes & ~come, i / 32, fibers[i].line);
}

static void begin(Fiber& fiber, unsigned i) {
  fiber.state = READY;
  if (fiber.copies.size() != 1 || !fiber.copies[0].empty()) fiber.copies.assign(1, {});
  fiber.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
  if (fiber.stack) return;
  char* memory = (char*)mmap(nullptr, GUARD + STACK, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED || mprotect(memory + GUARD, STACK, PROT_READ | PROT_WRITE)) abort();
  fiber.stack = memory + GUARD;  // it grows down, and faults in the guard
}

// The threads wait at a barrier, or have ended; then those that wait go on. False: an error.
static bool release_all() {
  int line = 0;
  for (int i = 0; i < threads; i++) {
    if (fibers[i].state == AT_EXCHANGE) return deadlock(i);
    if (fibers[i].state != AT_BARRIER) continue;
    if (line && fibers[i].line != line) return fail("threads meet at different __syncthreads (lines %d, %d)", line, fibers[i].line);
    line = fibers[i].line;
  }
  for (int i = 0; i < threads; i++) if (fibers[i].state == AT_BARRIER) fibers[i].state = READY;
  return true;
}

static bool run_block(size_t shared) {
  for (int i = 0; i < threads; i++) begin(fibers[i], i);
  poison(__start_shared_memory, __stop_shared_memory);
  poison(dynamic_shared, dynamic_shared + shared);
  static std::vector<int> warps, lanes;  // in the order in which they have their turns
  warps.resize((threads + 31) / 32);
  lanes.resize(32);
  for (;;) {
    std::iota(warps.begin(), warps.end(), 0);
    arrange(warps);
    bool waiting = false, ready = false;
    for (volatile size_t w = 0; w < warps.size(); w++) {
      // An exchange of one warp is no barrier to the others: it runs on, as far as it can, before another begins.
      for (volatile bool ran = true; ran;) {
        ran = false;
        std::iota(lanes.begin(), lanes.end(), 32 * warps[w]);
        arrange(lanes);
        for (volatile int k = 0; k < 32; k++) {
          if (lanes[k] >= threads || fibers[lanes[k]].state != READY) continue;
          ran = true;
          run_fiber(lanes[k]);
        }
        if (ran && !release(32 * warps[w])) return false;
        if (order == 2 && !random_below(8)) break;  // shuffled: now and then another one goes first
      }
      for (int i = 32 * warps[w]; i < std::min(threads, 32 * warps[w] + 32); i++) {
        waiting |= fibers[i].state != ENDED;
        ready |= fibers[i].state == READY;
      }
    }
    if (!waiting) return true;
    if (!ready && !release_all()) return false;
  }
}

static int launch(void (*kernel)(const void*), const unsigned* grid, int block, size_t shared, const void* arguments) {
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {(unsigned)block, 1, 1};
  blockIdx = {0, 0, 0};
  threads = block;
  message[0] = 0;
  if (threads > 1024 || shared > MOST_SHARED) return fail("%d threads, %zu bytes of shared memory: too many", threads, shared), 1;
  if ((int)fibers.size() < threads) fibers.resize(threads);
  body = kernel;
  body_arguments = arguments;
  std::vector<uint64_t> blocks((uint64_t)grid[0] * grid[1] * grid[2]);
  for (size_t i = 0; i < blocks.size(); i++) blocks[i] = i;
  arrange(blocks);
  ASAN_UNPOISON_MEMORY_REGION(dynamic_shared, shared);
  ASAN_POISON_MEMORY_REGION(dynamic_shared + shared, MOST_SHARED - shared);
  for (uint64_t i : blocks) {
    blockIdx = {(unsigned)(i % grid[0]), (unsigned)(i / grid[0] % grid[1]), (unsigned)(i / ((uint64_t)grid[0] * grid[1]))};
    if (!run_block(shared)) return 1;
  }
  return 0;
}

static int lane() { return current & 31; }
static int warp() { return current >> 5; }
static void exchange_barrier(unsigned mask, int line) {
  fibers[current].lanes = mask;
  wait(AT_EXCHANGE, line);
}
template <class T> static T exchange(unsigned mask, T value, int from, int line) {
  memcpy(&slots[warp()][lane()][0], &value, sizeof value);
  exchange_barrier(mask, line);
  T other;
  if (names(mask, from)) memcpy(&other, &slots[warp()][from & 31][0], sizeof other);
  else memset(&other, 0xff, sizeof other);  // undefined: that lane takes no part
  exchange_barrier(mask, line);
  return other;
}

}  // namespace cpu

#define KERNEL(name, Arguments, block) \
  static void name(const Arguments& a); \
  extern "C" __attribute__((visibility("default"))) int launch_##name(const unsigned* grid, size_t shared, const void* arguments) { \
    return cpu::launch([](const void* p) { name(*static_cast<const Arguments*>(p)); }, grid, block, shared, arguments); \
  } \
  extern "C" __attribute__((visibility("default"))) int size_of_##name() { return sizeof(Arguments); } \
  static void name(const Arguments& a)

#define __syncthreads() cpu::wait(cpu::AT_BARRIER, __LINE__)
#define __syncwarp(...) cpu::exchange_barrier(std::min({~0u, ##__VA_ARGS__}), __LINE__)
#define __shfl_sync(mask, value, from) cpu::exchange(mask, value, from, __LINE__)
#define __shfl_xor_sync(mask, value, bits) cpu::exchange(mask, value, cpu::lane() ^ (bits), __LINE__)
#define __shfl_down_sync(mask, value, by) \
  cpu::exchange(mask, value, cpu::lane() + (by) < 32 ? cpu::lane() + (by) : cpu::lane(), __LINE__)
template <class T> static inline T __ldg(const T* from) { return *from; }
static inline float rsqrtf(float x) { return 1 / sqrtf(x); }
static inline float __int_as_float(int i) { float f; memcpy(&f, &i, 4); return f; }
static inline int __float_as_int(float f) { int i; memcpy(&i, &f, 4); return i; }
template <class T> static inline T atomicMin(T* place, T value) { T old = *place; if (value < old) *place = value; return old; }
template <class T> static inline T atomicMax(T* place, T value) { T old = *place; if (value > old) *place = value; return old; }
using std::max;
using std::min;

extern "C" __attribute__((visibility("default"))) const char* cpu_message() { return cpu::message; }
extern "C" __attribute__((visibility("default"))) void cpu_order(int order, uint64_t seed) { cpu::order = order; cpu::seed = seed; }
