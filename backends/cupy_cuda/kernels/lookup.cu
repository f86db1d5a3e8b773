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
    // no branch between the loads: those of three turns are under way at once
#pragma unroll 3
    for (int turn = 0; turn < a.side * a.side * a.planes; turn++) {
      int tap = turn / a.planes, plane = turn % a.planes;
      int row = (y + tap / a.side - half) * a.step, column = p.x + tap % a.side - half;
      bool inside = row >= 0 && row < a.index_height;
      const int* indices = a.indices + at(p.n, row, 0, a.index_height, a.index_width, a.planes) + plane;
      const float* table = a.table + (long long)tap * a.labels * a.outputs + o;
      int label[TILE];
      float v[TILE];
#pragma unroll
      for (int i = 0; i < TILE; i++) {
        int x = (column + i) * a.step;
        label[i] = inside && x >= 0 && x < a.index_width ? __ldg(indices + (long long)x * a.planes) : -1;
      }
#pragma unroll
      for (int i = 0; i < TILE; i++) v[i] = label[i] >= 0 ? __ldg(table + (long long)label[i] * a.outputs) : 0.f;
#pragma unroll
      for (int i = 0; i < TILE; i++) sums[i] = label[i] >= 0 ? sums[i] + v[i] : sums[i];
    }
#pragma unroll
    for (int i = 0; i < TILE; i++)
      if (p.x + i < a.width)
        a.out[at(p.n, y, p.x + i, a.height, a.width, a.outputs) + o] = activate(sums[i], a.activation);
  }
}
