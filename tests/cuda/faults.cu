// Small kernels, each right without its fault, to see that the stand-in finds faults (`test_harness.py`). `fault` plants
// one at run time, so one build serves all.
enum Fault {
  NONE,
  NO_FIRST_BARRIER,   // before shared memory is read
  NO_SECOND_BARRIER,  // before it is overwritten
  NO_BARRIER,         // between warps, but an exchange within each
  NO_WAIT,            // for an asynchronous copy
  UNWRITTEN,          // shared memory is read that nobody has written
  TWO_LINES,          // halves of a block meet at different barriers
  ABSENT,             // a lane of an exchange waits elsewhere
  ENDED,              // a lane of an exchange has returned
  WITHOUT,            // a lane names a mask that it is not in
  TWO_MASKS,          // lanes of an exchange name different masks
  TWO_EXCHANGES,      // halves of a warp meet at different exchanges
  OTHER_HALF,         // a lane reads another that its mask does not name
};

struct Product {
  const float* left;   // [16, depth]
  const float* right;  // [depth, 16]
  float* out;          // [16, 16]
  int depth, fault;
};

// out[r][c] = sum over k of left[r][k] right[k][c], 16 of the depth at a time: the loop of every product
KERNEL(product, Product, 256) {
  __shared__ float left[16][16], right[16][16];
  int r = threadIdx.x / 16, c = threadIdx.x % 16;
  float sum = 0.f;
  for (int k = 0; k < a.depth; k += 16) {
    left[r][c] = a.left[r * a.depth + k + c];
    right[r][c] = a.right[(k + r) * 16 + c];
    if (a.fault != NO_FIRST_BARRIER) __syncthreads();
    for (int i = 0; i < 16; i++) sum = fmaf(left[r][i], right[i][c], sum);
    if (a.fault != NO_SECOND_BARRIER) __syncthreads();
  }
  a.out[threadIdx.x] = sum;
}

struct Copy {
  const float* from;  // [64]
  float* to;          // [64]
  int at, fault;
};

// to[i] = from[i + 32 or i - 32] + from[i + 1 or i - 1], each warp by way of the other
KERNEL(cross, Copy, 64) {
  __shared__ float held[64];
  int t = threadIdx.x;
  held[t] = a.from[t];
  if (a.fault != NO_BARRIER) __syncthreads();
  float neighbour = __shfl_xor_sync(~0u, held[t], 1);
  a.to[t] = held[t ^ 32] + neighbour;
}

// to[i] = from[63 - i], by asynchronous copies to shared memory
KERNEL(reverse, Copy, 64) {
  __shared__ float held[64];
  auto& groups = cpu::fibers[cpu::current].copies;
  groups.back().push_back({&held[threadIdx.x], a.from + threadIdx.x, 4});
  if (a.fault != NO_WAIT)
    for (auto& copy : groups.back()) memcpy(copy.to, copy.from, copy.bytes);
  __syncthreads();
  a.to[threadIdx.x] = held[63 - threadIdx.x];
}

// to[i] = sum of from, by halves
KERNEL(sum_of_block, Copy, 64) {
  __shared__ float held[64];
  int t = threadIdx.x;
  if (a.fault != UNWRITTEN || t < 32) held[t] = a.from[t];
  __syncthreads();
  for (int half = 32; half; half /= 2) {
    if (t < half) held[t] += held[t + half];
    __syncthreads();
  }
  a.to[t] = held[0];
}

// to[i] = from[i]
KERNEL(meet, Copy, 64) {
  if (a.fault == TWO_LINES && threadIdx.x < 32)
    __syncthreads();
  else
    __syncthreads();
  a.to[threadIdx.x] = a.from[threadIdx.x];
}

// to[i] = sum over the lanes of i's warp
KERNEL(sum_of_warp, Copy, 64) {
  int t = threadIdx.x, lane = t % 32;
  if (a.fault == ABSENT && t == 40) __syncthreads();
  if (a.fault == ENDED && t == 40) return;
  unsigned mask = ~0u;
  if (a.fault == WITHOUT && lane == 8) mask = ~(1u << 8);
  if (a.fault == TWO_MASKS && lane >= 16) mask = 0xffff0001u;
  float v = a.from[t];
  if (a.fault == TWO_EXCHANGES && lane < 16)
    v += __shfl_xor_sync(mask, v, 16);
  else
    v += __shfl_xor_sync(mask, v, 16);
  for (int bits = 8; bits; bits /= 2) v += __shfl_xor_sync(mask, v, bits);
  a.to[t] = v;
}

// to[i] = sum over the half of a warp that i is in, each half under a mask of its own
KERNEL(sum_of_half, Copy, 64) {
  unsigned mask = threadIdx.x % 32 < 16 ? 0xffffu : 0xffff0000u;
  float v = a.from[threadIdx.x];
  if (a.fault == OTHER_HALF) v += __shfl_xor_sync(mask, v, 16);
  for (int bits = 8; bits; bits /= 2) v += __shfl_xor_sync(mask, v, bits);
  a.to[threadIdx.x] = v;
}

// -- to[i] = from[i], with the fault that `at` is not 0: an access of that many values further on -----------------------

KERNEL(read_global, Copy, 64) { a.to[threadIdx.x] = a.from[a.at + (int)threadIdx.x]; }

KERNEL(write_global, Copy, 64) { a.to[a.at + (int)threadIdx.x] = a.from[threadIdx.x]; }

KERNEL(read_shared, Copy, 64) {
  __shared__ float held[64];
  float* first = held;
  first[threadIdx.x] = a.from[threadIdx.x];
  __syncthreads();
  a.to[threadIdx.x] = first[a.at + (int)threadIdx.x];
}

KERNEL(write_shared, Copy, 64) {
  __shared__ float held[64];
  held[a.at + (int)threadIdx.x] = a.from[threadIdx.x];
  __syncthreads();
  a.to[threadIdx.x] = held[threadIdx.x];
}

KERNEL(write_dynamic, Copy, 64) {  // launched with 256 bytes
  DYNAMIC_SHARED(float, held);
  held[a.at + (int)threadIdx.x] = a.from[threadIdx.x];
  __syncthreads();
  a.to[threadIdx.x] = held[threadIdx.x];
}

KERNEL(read_four, Copy, 16) {  // `at` is to be a multiple of four
  *(float4*)(a.to + 4 * threadIdx.x) = *(const float4*)(a.from + a.at + 4 * (int)threadIdx.x);
}
