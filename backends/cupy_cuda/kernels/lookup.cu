// A side × side convolution of one-hot channels, as a sum of rows of a table:
//
//   out[y][x][o] = activation(bias[o] + sum over taps t, planes p of table[t][indices[tap t][p]][o])
//
// Tap (i, j) of output pixel (y, x) is index pixel ((y + i - side / 2) * step, (x + j - side / 2) * step); outside the
// map, and where no label is set (-1), it adds nothing.
#include "reading.cuh"

#define CHANNELS 128  // of a block: a thread makes one output channel of a tile's row, four neighbouring pixels

// grid (tiles, outputs, the four rows of a tile): all threads of a warp read the same index, and neighbouring outputs
KERNEL(lookup, Lookup, CHANNELS) {
  int count = tile_count(a.tiles), o = blockIdx.y * CHANNELS + threadIdx.x, half = a.side / 2;
  if (o >= a.outputs) return;
  for (int k = blockIdx.x; k < count; k += gridDim.x) {
    Place p = tile_place(a.tiles, k);
    int y = p.y + blockIdx.z;
    if (y >= a.height) continue;
    float sums[TILE], bias = __ldg(a.bias + o);
#pragma unroll
    for (int i = 0; i < TILE; i++) sums[i] = bias;
    for (int tap = 0; tap < a.side * a.side; tap++) {
      int row = (y + tap / a.side - half) * a.step, column = p.x + tap % a.side - half;
      if (row < 0 || row >= a.index_height) continue;
      const int* indices = a.indices + at(p.n, row, 0, a.index_height, a.index_width, a.planes);
      const float* table = a.table + (long long)tap * a.labels * a.outputs + o;
      for (int plane = 0; plane < a.planes; plane++) {
#pragma unroll
        for (int i = 0; i < TILE; i++) {
          int x = (column + i) * a.step;
          int label = x < 0 || x >= a.index_width ? -1 : __ldg(indices + (long long)x * a.planes + plane);
          if (label >= 0) sums[i] += __ldg(table + (long long)label * a.outputs);
        }
      }
    }
#pragma unroll
    for (int i = 0; i < TILE; i++)
      if (p.x + i < a.width)
        a.out[at(p.n, y, p.x + i, a.height, a.width, a.outputs) + o] = activate(sums[i], a.activation);
  }
}
