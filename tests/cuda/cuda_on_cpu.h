// Stands in for CUDA's built-ins, so that a C++ compiler turns a kernel's source into code that runs on the host.
//
// A grid runs one block at a time. A thread of the block is a fiber: it runs until it waits at a barrier or at an
// exchange of its warp, or ends; then the next one runs. So a missing barrier is a wrong number, not a matter of luck:
// - threads that meet at different barriers, lanes that never come, or a block that cannot go on are errors, with the
//   block and the lines;
// - shared memory holds NaN until it is written; asynchronous copies land when they are waited for, not before;
// - `cpu_order` chooses the order of threads and blocks: forwards, backwards, or shuffled.
// What it cannot show: speed, races between blocks, the order in which a card's memory sees writes.
#pragma once
#include <algorithm>
#include <cmath>
#include <csetjmp>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <vector>
#include <sys/mman.h>
#include <ucontext.h>

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
struct Fiber {
  jmp_buf here;
  ucontext_t start;
  char* stack = nullptr;
  bool started = false;
  State state = ENDED;
  Index index;
  unsigned lanes = 0;  // at an exchange: the lanes that must come
  int line = 0;        // where it waits
  std::vector<std::vector<PendingCopy>> copies;  // groups of asynchronous copies, the last one open
};

constexpr size_t STACK = 64 * 1024, MOST_SHARED = 227 * 1024;
static std::vector<Fiber> fibers;
static int current, threads;
static jmp_buf scheduler;
static void (*body)(const void*);
static const void* body_arguments;
static uint64_t slots[32][32][8];  // of each warp and lane: what an exchange hands over
alignas(128) static char dynamic_shared[MOST_SHARED];
static char message[512];
static int order = 0;
static uint64_t seed = 1;

[[noreturn]] static void leave() { _longjmp(scheduler, 1); }

static void wait(State state, int line) {
  Fiber& fiber = fibers[current];
  fiber.state = state;
  fiber.line = line;
  if (!_setjmp(fiber.here)) leave();
}

static void entry() {
  for (;;) {  // one stack serves every block
    body(body_arguments);
    wait(ENDED, 0);
  }
}

static bool fail(const char* what, int a, int b) {
  for (Fiber& fiber : fibers) fiber.started = false;
  snprintf(message, sizeof message, "block (%u, %u, %u): %s (lines %d, %d)", blockIdx.x, blockIdx.y, blockIdx.z, what, a, b);
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

static void run_fiber(int i) {
  Fiber& fiber = fibers[i];
  current = i;
  threadIdx = fiber.index;
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.here, 1);
  fiber.started = true;
  getcontext(&fiber.start);
  fiber.start.uc_stack.ss_sp = fiber.stack;
  fiber.start.uc_stack.ss_size = STACK;
  fiber.start.uc_link = nullptr;
  makecontext(&fiber.start, entry, 0);
  setcontext(&fiber.start);
}

// Let the warps go on whose exchange is complete. -1: an error; 0: none; 1: some.
static int release_warps() {
  int released = 0;
  for (int first = 0; first < threads; first += 32) {
    int end = std::min(threads, first + 32), at = -1;
    unsigned come = 0, wanted = 0, present = end - first == 32 ? ~0u : (1u << (end - first)) - 1;
    for (int i = first; i < end; i++) {
      if (fibers[i].state != AT_EXCHANGE) continue;
      if (at >= 0 && fibers[i].line != fibers[at].line)
        return fail("lanes of a warp meet at different exchanges", fibers[at].line, fibers[i].line), -1;
      come |= 1u << (i - first);
      wanted |= fibers[i].lanes;
      at = i;
    }
    wanted &= present;
    if (!come || (come & wanted) != wanted) continue;
    for (int i = first; i < end; i++) if (fibers[i].state == AT_EXCHANGE) fibers[i].state = READY;
    released = 1;
  }
  return released;
}

static bool run_block(size_t shared) {
  for (int i = 0; i < threads; i++) {
    Fiber& fiber = fibers[i];
    fiber.state = READY;
    fiber.copies.assign(1, {});
    fiber.index = {i % blockDim.x, i / blockDim.x % blockDim.y, i / (blockDim.x * blockDim.y)};
    if (!fiber.stack)
      fiber.stack = (char*)mmap(nullptr, STACK, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  }
  poison(__start_shared_memory, __stop_shared_memory);
  poison(dynamic_shared, dynamic_shared + shared);
  static std::vector<int> turn;
  for (;;) {
    turn.resize(threads);
    for (int i = 0; i < threads; i++) turn[i] = i;
    arrange(turn);
    bool ran = false;
    for (volatile int k = 0; k < threads; k++) {
      if (fibers[turn[k]].state != READY) continue;
      ran = true;
      run_fiber(turn[k]);
    }
    int waiting = 0, ended = 0, first = -1;
    for (int i = 0; i < threads; i++) {
      if (fibers[i].state == AT_BARRIER) { waiting++; if (first < 0) first = i; }
      ended += fibers[i].state == ENDED;
    }
    if (ended == threads) return true;
    int released = release_warps();
    if (released < 0) return false;
    if (released) continue;
    if (waiting + ended == threads) {
      for (int i = 0; i < threads; i++)
        if (fibers[i].state == AT_BARRIER && fibers[i].line != fibers[first].line)
          return fail("threads meet at different __syncthreads", fibers[first].line, fibers[i].line);
      for (int i = 0; i < threads; i++) if (fibers[i].state == AT_BARRIER) fibers[i].state = READY;
      continue;
    }
    if (!ran) return fail("deadlock: some threads wait for others that never come", first < 0 ? 0 : fibers[first].line, 0);
  }
}

static int launch(void (*kernel)(const void*), const unsigned* grid, int block, size_t shared, const void* arguments) {
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {(unsigned)block, 1, 1};
  blockIdx = {0, 0, 0};
  threads = block;
  message[0] = 0;
  if (threads > 1024 || shared > MOST_SHARED) return fail("too many threads, or too much shared memory", threads, (int)shared), 1;
  if ((int)fibers.size() < threads) fibers.resize(threads);
  body = kernel;
  body_arguments = arguments;
  std::vector<uint64_t> blocks((uint64_t)grid[0] * grid[1] * grid[2]);
  for (size_t i = 0; i < blocks.size(); i++) blocks[i] = i;
  arrange(blocks);
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
  memcpy(&other, &slots[warp()][from & 31][0], sizeof other);
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
#define __syncwarp(...) cpu::exchange_barrier(0xffffffffu, __LINE__)
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
