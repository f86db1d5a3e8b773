// Checks of values: the first that is not finite, and the largest change of a tile.
#include "reading.cuh"

// A comparison with NaN is false.
__device__ __forceinline__ bool is_finite(float v) { return fabsf(v) <= 3.402823466e38f; }

// *first = min(*first, place): the integer minimum of places is the same in every order of the blocks. A place is the
// layer, then the tile in the order of its list, then the pixel, then the channel. A thread takes four neighbouring
// channels of a pixel, and grid y shares out those of a tile: a loop over them would wait for each load in turn.
__device__ __forceinline__ void watch_one(const WatchTiles& a) {
  int count = tile_count(a.tiles), C = a.channels, groups = (C + 3) / 4;
  bool fours = C % 4 == 0 && (int64)a.canvas % 16 == 0;
  for (int k = blockIdx.x; k < count; k += gridDim.x) {
    Place p = tile_place(a.tiles, k);
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < PIXELS * groups; i += gridDim.y * blockDim.x) {
      int pixel = i / groups, c = i % groups * 4, y = p.y + pixel / TILE, x = p.x + pixel % TILE;
      if (y >= a.height || x >= a.width) continue;
      const float* from = a.canvas + at(p.n, y, x, a.height, a.width, C) + c;
      float v[4] = {};
      if (fours) {
        load<4>(from, v);
      } else {
#pragma unroll
        for (int j = 0; j < 4; j++)
          if (c + j < C) v[j] = __ldg(from + j);
      }
      int first = 4;
#pragma unroll
      for (int j = 3; j >= 0; j--)
        if (!is_finite(v[j])) first = j;
      if (first < 4)
        atomicMin(a.first, (unsigned long long)a.layer << 44 | (unsigned long long)k << 20 | (unsigned)pixel << 16 |
                               (unsigned)(c + first));
    }
  }
}

KERNEL(watch_tiles, WatchTiles, 256) { watch_one(a); }
// the same of many canvases at once: grid z counts them
KERNEL(watch_many_tiles, WatchManyTiles, 256) { watch_one(a.each[blockIdx.z]); }

// largest[k] = max over tile k of |canvas - old|: a block a tile
KERNEL(largest_change, LargestChange, 256) {
  __shared__ float largest[256];
  int count = tile_count(a.tiles), t = threadIdx.x;
  for (int k = blockIdx.x; k < count; k += gridDim.x) {
    Place p = tile_place(a.tiles, k);
    float most = 0.f;
    for (int i = t; i < PIXELS * a.channels; i += blockDim.x) {
      int pixel = i / a.channels, y = p.y + pixel / TILE, x = p.x + pixel % TILE;
      if (y >= a.height || x >= a.width) continue;
      long long value = (long long)k * PIXELS * a.channels + i;
      long long place = at(p.n, y, x, a.height, a.width, a.channels) + i % a.channels;
      float moved;
      if (a.type == 2)
        moved = fabsf((float)((const int*)a.canvas)[place] - (float)((const int*)a.old)[value]);
      else
        moved = fabsf(a.canvas[place] - (a.type == 1 ? ptx::from_half(((const unsigned short*)a.old)[value])
                                                     : ((const float*)a.old)[value]));
      most = fmaxf(most, moved);
    }
    largest[t] = most;
    __syncthreads();
    for (int half = 128; half; half /= 2) {
      if (t < half) largest[t] = fmaxf(largest[t], largest[t + half]);
      __syncthreads();
    }
    if (!t) a.largest[k] = largest[0];
    __syncthreads();
  }
}
