// A side × side convolution of one-hot channels, as a sum of rows of a table:
//
//   out[y][x][o] = activation(bias[o] + sum over taps t, planes p of table[t][indices[tap t][p]][o])
//
// Tap (i, j) of output pixel (y, x) is index pixel ((y + i - side / 2) * step, (x + j - side / 2) * step); outside the
// map, and where no label is set (-1), it adds nothing. A turn of the sum is a tap and a plane of it.
#include "reading.cuh"

#define THREADS 128
#define ACROSS 32  // threads of a tile's row: a thread makes four neighbouring channels of four neighbouring pixels
#define TURNS 72   // that a block resolves at a time
#define AT_ONCE 3  // turns whose loads are under way together
static_assert(THREADS == TILE * ACROSS && TURNS % AT_ONCE == 0, "a thread a row of pixels, and whole groups of turns");

// Add `row` of the table, which has four neighbouring channels, to a pixel's sums.
__device__ __forceinline__ void add_row(float (&sums)[4], float4 row) {
  sums[0] += row.x, sums[1] += row.y, sums[2] += row.z, sums[3] += row.w;
}

// Every thread of the block first finds one row of the table for one turn and pixel, then all of a warp read the same
// four. Most rows of a tile lie in one region of the map: where the four pixels have one label, one load serves them.
template <bool FOURS>
__device__ __forceinline__ void look_up(const Lookup& a, int (&rows)[TURNS][PIXELS]) {
  int count = tile_count(a.tiles), half = a.side / 2, turns = a.side * a.side * a.planes, t = threadIdx.x;
  int y = t / ACROSS, o = (blockIdx.y * ACROSS + t % ACROSS) * 4;
  const float* table = a.table + o;
  const float4 zeros = make_float4(0.f, 0.f, 0.f, 0.f);
  // of a row that is -1 nothing is read
  auto row_of = [&](int row) {
    return row < 0 ? zeros : read_row(table + (long long)row * a.outputs, 0, a.outputs - o, FOURS);
  };
  for (int k = blockIdx.x; k < count; k += gridDim.x) {
    Place p = tile_place(a.tiles, k);
    float4 bias = o < a.outputs ? read_row(a.bias, o, a.outputs, FOURS) : zeros;
    float sums[TILE][4];
#pragma unroll
    for (int i = 0; i < TILE; i++) sums[i][0] = bias.x, sums[i][1] = bias.y, sums[i][2] = bias.z, sums[i][3] = bias.w;
    for (int first = 0; first < turns; first += TURNS) {
      int here = turns - first < TURNS ? turns - first : TURNS;
      __syncthreads();  // nobody reads the turns before these any more
      for (int turn = t / PIXELS; turn < (here + AT_ONCE - 1) / AT_ONCE * AT_ONCE; turn += THREADS / PIXELS) {
        int tap = (first + turn) / a.planes, plane = (first + turn) % a.planes, label = -1;
        int row = (p.y + t % PIXELS / TILE + tap / a.side - half) * a.step;
        int column = (p.x + t % TILE + tap % a.side - half) * a.step;
        if (turn < here && row >= 0 && row < a.index_height && column >= 0 && column < a.index_width)
          label = __ldg(a.indices + at(p.n, row, column, a.index_height, a.index_width, a.planes) + plane);
        rows[turn][t % PIXELS] = label < 0 ? -1 : tap * a.labels + label;
      }
      __syncthreads();
      if (o >= a.outputs || p.y + y >= a.height) continue;
#pragma unroll 1
      for (int turn = 0; turn < here; turn += AT_ONCE) {
        int row[AT_ONCE];
        bool same = true;
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
          int4 four = *reinterpret_cast<const int4*>(&rows[turn + j][y * TILE]);
          row[j] = four.x;
          same = same && four.x == four.y && four.x == four.z && four.x == four.w;
        }
        if (same) {
          float4 v[AT_ONCE];
#pragma unroll
          for (int j = 0; j < AT_ONCE; j++) v[j] = row_of(row[j]);
#pragma unroll
          for (int j = 0; j < AT_ONCE; j++)
#pragma unroll
            for (int i = 0; i < TILE; i++)
              if (row[j] >= 0) add_row(sums[i], v[j]);
        } else {
#pragma unroll 1
          for (int j = 0; j < AT_ONCE; j++) {
            int4 four = *reinterpret_cast<const int4*>(&rows[turn + j][y * TILE]);
            int each[TILE] = {four.x, four.y, four.z, four.w};
            float4 v[TILE];
#pragma unroll
            for (int i = 0; i < TILE; i++) v[i] = row_of(each[i]);
#pragma unroll
            for (int i = 0; i < TILE; i++)
              if (each[i] >= 0) add_row(sums[i], v[i]);
          }
        }
      }
    }
    if (o >= a.outputs || p.y + y >= a.height) continue;
#pragma unroll
    for (int i = 0; i < TILE; i++) {
      if (p.x + i >= a.width) continue;
      activate(sums[i], a.activation);
      store_4(a.out + at(p.n, p.y + y, p.x + i, a.height, a.width, a.outputs) + o,
              make_float4(sums[i][0], sums[i][1], sums[i][2], sums[i][3]), a.outputs - o, FOURS);
    }
  }
}

// grid (tiles, outputs / 128)
KERNEL(lookup, Lookup, THREADS) {
  __shared__ __align__(16) int rows[TURNS][PIXELS];
  if (a.outputs % 4 == 0 && ((int64)a.table | (int64)a.bias | (int64)a.out) % 16 == 0) look_up<true>(a, rows);
  else look_up<false>(a, rows);
}
