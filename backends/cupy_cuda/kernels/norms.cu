// Layer norm: each pixel's channels about their mean.
#include "reading.cuh"

#define THREADS 128
#define PIXELS_HERE (THREADS / 32)  // of a block: a warp a pixel
#define KEPT 1280                   // channels that a warp keeps; those beyond are read again

// The same in every lane of the warp: at each step two lanes add the same two numbers.
__device__ __forceinline__ float add_warp(float v) {
  for (int apart = 16; apart; apart /= 2) v += __shfl_xor_sync(0xffffffffu, v, apart);
  return v;
}

// out[tiles] = (v - mean) / sqrt(mean of (v - mean)² + eps) * weight + bias: grid (tiles, 16 / PIXELS_HERE)
KERNEL(layer_norm, LayerNorm, THREADS) {
  __shared__ __align__(16) float values[PIXELS_HERE][KEPT];
  const Source& s = a.source;
  int C = channels(s), count = tile_count(a.tiles), lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int pixel = blockIdx.y * PIXELS_HERE + warp;
#pragma unroll 1
  for (int k = blockIdx.x; k < count; k += gridDim.x) {
    Place p = tile_place(a.tiles, k);
    int y = p.y + pixel / TILE, x = p.x + pixel % TILE;
    if (y >= s.height || x >= s.width) continue;  // all lanes or none
    float mean = 0.f, deviation = 0.f;
    // 0: the mean; 1: the deviation; 2: write. A lane has four neighbours, and only itself reads back what it kept.
#pragma unroll 1
    for (int pass = 0; pass < 3; pass++) {
      float sum = 0.f;
#pragma unroll 1
      for (int c = lane * 4; c < C; c += 128) {
        float4* kept = reinterpret_cast<float4*>(&values[warp][c]);
        float4 four = pass && c + 3 < KEPT ? *kept : read_4(s, p.n, y, x, c, C - c);
        if (!pass && c + 3 < KEPT) *kept = four;
        float v[4] = {four.x, four.y, four.z, four.w};
#pragma unroll
        for (int i = 0; i < 4; i++) {
          float d = v[i] - mean;
          if (c + i >= C) break;
          if (pass < 2)
            sum = pass ? fmaf(d, d, sum) : sum + d;
          else
            a.out[at(p.n, y, x, s.height, s.width, C) + c + i] =
                fmaf(d / deviation, __ldg(a.weight + c + i), __ldg(a.bias + c + i));
        }
      }
      if (pass == 0) mean = add_warp(sum) / C;
      if (pass == 1) deviation = sqrtf(add_warp(sum) / C + a.eps);
    }
  }
}
