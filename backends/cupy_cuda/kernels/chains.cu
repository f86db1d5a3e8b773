// The second half of a convolution whose chains were made by blocks of their own (`direct.cu`, `tensor.cuh`).
#include "reading.cuh"

// out[pixel][o] = epilogue(sum over chains, in their order): grid (tiles, 16 pixels * outputs / 256)
KERNEL(chain_sums, ChainSums, 256) {
  int count = tile_count(a.tiles) - a.first_tile, e = blockIdx.y * blockDim.x + threadIdx.x;
  int pixel = e / a.outputs, o = e % a.outputs;
  if (pixel >= PIXELS) return;
  long long chain = (long long)a.tile_room * PIXELS * a.padded_outputs;
  for (int k = blockIdx.x; k < count && k < a.tile_room; k += gridDim.x) {
    Place p = tile_place(a.tiles, a.first_tile + k);
    int y = p.y + pixel / TILE, x = p.x + pixel % TILE;
    if (y >= a.height || x >= a.width) continue;
    const float* from = a.sums + (long long)(k * PIXELS + pixel) * a.padded_outputs + o;
    float v = 0.f;
#pragma unroll 8
    for (int i = 0; i < a.chains; i++) v += from[i * chain];
    a.out[at(p.n, y, x, a.height, a.width, a.outputs) + o] = finish(a.epilogue, v, p.n, y, x, o);
  }
}
