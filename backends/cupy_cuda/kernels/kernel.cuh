// What every kernel file begins with. KERNEL(name, Arguments, threads) { ... a.field ... } declares a kernel of blocks
// of `threads` threads whose arguments are `a`. On a card the compiler is NVRTC; a test compiles the same source with a
// C++ compiler, behind a header that stands in for CUDA's built-ins (ON_CPU).
#pragma once
#include "arguments.cuh"
#define LEAST_BLOCKS(threads) 1  // that a multiprocessor can run at once, which bounds the registers of a thread
#ifndef ON_CPU
#define KERNEL(name, Arguments, threads) \
  extern "C" __global__ void __launch_bounds__(threads, LEAST_BLOCKS(threads)) name(const __grid_constant__ Arguments a)
#define DYNAMIC_SHARED(type, name) \
  extern __shared__ __align__(16) unsigned char name##_bytes[]; \
  type* name = reinterpret_cast<type*>(name##_bytes)
#endif
#include "ptx.cuh"

#define TILE 4
#define PIXELS 16  // of a tile

__device__ __forceinline__ float4 load_4(const float* from) { return __ldg(reinterpret_cast<const float4*>(from)); }

__device__ __forceinline__ int tile_count(const int* tiles) { return __ldg(tiles); }

// the tiles of a batch: from first_tile on, at most room
__device__ __forceinline__ int tiles_here(const int* tiles, int first_tile, int room) {
  int count = tile_count(tiles) - first_tile;
  return count < room ? count : room;
}

struct Place {  // a tile's sample, and its first row and column of pixels
  int n, y, x;
};
__device__ __forceinline__ Place tile_place(const int* tiles, int k) {
  return {__ldg(tiles + 4 + 3 * k), __ldg(tiles + 5 + 3 * k) * TILE, __ldg(tiles + 6 + 3 * k) * TILE};
}

// the place of a value in [N, H, W, C]
__device__ __forceinline__ long long at(int n, int y, int x, int height, int width, int channels) {
  return (((long long)n * height + y) * width + x) * channels;
}
