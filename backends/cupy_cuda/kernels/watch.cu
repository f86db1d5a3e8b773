// Checks of values: the first that is not finite, and the largest change of a tile.
#include "reading.cuh"

// *first = min(*first, place): the integer minimum of places is the same in every order of the blocks. A place is the
// layer, then the tile in the order of its list, then the pixel, then the channel.
KERNEL(watch_tiles, WatchTiles, 256) {
  int count = tile_count(a.tiles);
  unsigned long long first = ~0ull;
  for (int k = blockIdx.x; k < count; k += gridDim.x) {
    Place p = tile_place(a.tiles, k);
    for (int i = threadIdx.x; i < PIXELS * a.channels; i += blockDim.x) {
      int pixel = i / a.channels, y = p.y + pixel / TILE, x = p.x + pixel % TILE;
      if (y >= a.height || x >= a.width) continue;
      float v = a.canvas[at(p.n, y, x, a.height, a.width, a.channels) + i % a.channels];
      if (fabsf(v) <= 3.402823466e38f) continue;  // false of NaN
      unsigned long long place =
          (unsigned long long)a.layer << 44 | (unsigned long long)k << 20 | (unsigned)pixel << 16 | (unsigned)(i % a.channels);
      if (place < first) first = place;
    }
  }
  if (first != ~0ull) atomicMin(a.first, first);
}

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
