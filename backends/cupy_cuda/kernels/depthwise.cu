// Depthwise convolutions, float32: each channel of the source with one kernel of its own.
//
//   out[pixel][c] = epilogue(sum over taps t of read(pixel * stride + t - padding, c) * weight[t][c])
//
// A thread makes a channel's 16 outputs of a tile, each one chain of fmaf over the taps in their order. Their windows
// overlap, so what they read is first written into shared memory, by a loop whose branches are compiled once.
#include "reading.cuh"

#define CHANNELS 64  // of a block

// grid (tiles, channels); dynamic shared memory holds the window, [3 * stride + kernel height][.. width][CHANNELS]
KERNEL(depthwise, Conv, CHANNELS) {
  DYNAMIC_SHARED(float, window);
  int count = tile_count(a.tiles), C = a.groups, c = blockIdx.y * CHANNELS + threadIdx.x;
  if (c >= C) return;
  int rows = (TILE - 1) * a.stride + a.kernel_height, columns = (TILE - 1) * a.stride + a.kernel_width;
  float* mine = window + threadIdx.x;  // each thread reads back what it wrote: no barrier
  for (int k = blockIdx.x; k < count; k += gridDim.x) {
    Place p = tile_place(a.tiles, k);
    int top = p.y * a.stride - a.top, left = p.x * a.stride - a.left;
    bool plain = is_plain(a.source);
    for (int i = 0; i < rows; i++) {
      float* row = mine + i * columns * CHANNELS;
      int y = top + i;
      if (plain) {  // nothing but loads, several under way at once
        const float* from = a.source.first + at(p.n, y, left, a.source.height, a.source.width, C) + c;
        bool inside = y >= 0 && y < a.source.height;
#pragma unroll 4
        for (int j = 0; j < columns; j++)
          row[j * CHANNELS] = inside && left + j >= 0 && left + j < a.source.width ? __ldg(from + j * C) : 0.f;
      } else {
#pragma unroll 1
        for (int j = 0; j < columns; j++) row[j * CHANNELS] = read(a.source, p.n, y, left + j, c);
      }
    }
    float sums[PIXELS] = {};
    const float* weight = (const float*)a.weight + c;
    for (int i = 0; i < a.kernel_height; i++)
      for (int j = 0; j < a.kernel_width; j++, weight += C) {
        float w = __ldg(weight);
        const float* tap = mine + (i * columns + j) * CHANNELS;
#pragma unroll
        for (int o = 0; o < PIXELS; o++)
          sums[o] = fmaf(tap[(o / TILE * columns + o % TILE) * a.stride * CHANNELS], w, sums[o]);
      }
#pragma unroll
    for (int o = 0; o < PIXELS; o++) mine[o * CHANNELS] = sums[o];  // a window has at least 16 pixels
#pragma unroll 1
    for (int o = 0; o < PIXELS; o++) {
      int y = p.y + o / TILE, x = p.x + o % TILE;
      if (y < a.height && x < a.width)
        a.out[at(p.n, y, x, a.height, a.width, C) + c] = finish(a.epilogue, mine[o * CHANNELS], p.n, y, x, c);
    }
  }
}
