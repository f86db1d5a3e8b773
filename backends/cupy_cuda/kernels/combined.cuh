// Sources whose values depend on all channels of their pixel:
//
//   layer norm  (v - mean) / sqrt(mean of (v - mean)² + eps) * scale + shift, the means over a pixel's channels
//   geglu       v * gelu(w), w the channel as far behind v as there are outputs
//
// Each pixel of the active tiles is combined once, before a product reads it for every 64 or 128 of its outputs.
#pragma once
#include "reading.cuh"

#define PIXELS_HERE 4  // of a block of 128 threads: a warp a pixel
#define KEPT 1280      // channels that a warp keeps; those beyond are read again

struct __align__(16) Kept {
  float values[PIXELS_HERE][KEPT];
};

// The same in every lane of the warp: at each step two lanes add the same two numbers.
__device__ __forceinline__ float add_warp(float v) {
  for (int apart = 16; apart; apart /= 2) v += __shfl_xor_sync(0xffffffffu, v, apart);
  return v;
}

// Four neighbouring values of geglu; 0 beyond the last channel and of pixels outside the image.
__device__ __forceinline__ float4 gated(const Combined& s, const float* pixel, int c, bool inside) {
  if (!inside || c >= s.channels) return make_float4(0.f, 0.f, 0.f, 0.f);
  float4 v = read_row(pixel, c, s.channels, s.fours), w = read_row(pixel + s.channels, c, s.channels, s.fours);
  return make_float4(v.x * activate(w.x, GELU), v.y * activate(w.y, GELU), v.z * activate(w.z, GELU),
                     v.w * activate(w.w, GELU));
}

// Call `write(tile, pixel, place of the pixel, c, values)` for four values at a time of the `count` tiles from first on,
// c less than `padded`; values from channel C on are 0, those of pixels outside the image anything.
// grid (tiles, 16 / PIXELS_HERE, of geglu slices of the channels)
template <class Write>
__device__ __forceinline__ void combine(const Combined& s, const int* tiles, int first, int count, int padded, Kept& kept,
                                        Write write) {
  int C = s.channels, lane = threadIdx.x % 32, warp = threadIdx.x / 32, pixel = blockIdx.y * PIXELS_HERE + warp;
#pragma unroll 1
  for (int k = blockIdx.x; k < count; k += gridDim.x) {
    Place p = tile_place(tiles, first + k);
    p.y += pixel / TILE, p.x += pixel % TILE;
    bool inside = p.y < s.height && p.x < s.width;  // of all lanes or none
    if (!s.scale) {
      const float* from = s.canvas + at(p.n, p.y, p.x, s.height, s.width, 2 * C);
#pragma unroll 1
      for (int c = (blockIdx.z * 32 + lane) * 4; c < padded; c += gridDim.z * 128)
        write(k, pixel, p, c, gated(s, from, c, inside));
      continue;
    }
    const float* from = s.canvas + at(p.n, p.y, p.x, s.height, s.width, C);
    int row = p.n * s.affine_stride;
    float mean = 0.f, deviation = 0.f;
    // 0: the mean; 1: the deviation; 2: write. A lane has four neighbours, and only itself reads back what it kept.
#pragma unroll 1
    for (int pass = 0; pass < 3; pass++) {
      float sum = 0.f;
#pragma unroll 1
      for (int c = lane * 4; c < (pass < 2 ? C : padded); c += 128) {
        float v[4] = {0.f, 0.f, 0.f, 0.f};
        if (c < C && inside) {
          float4* place = reinterpret_cast<float4*>(&kept.values[warp][c]);
          float4 four = pass && c + 3 < KEPT ? *place : read_row(from, c, C, s.fours);
          if (!pass && c + 3 < KEPT) *place = four;
          v[0] = four.x, v[1] = four.y, v[2] = four.z, v[3] = four.w;
        }
        if (pass < 2) {
#pragma unroll
          for (int i = 0; i < 4; i++) {
            float d = v[i] - mean;
            if (c + i < C) sum = pass ? fmaf(d, d, sum) : sum + d;
          }
        } else if (c < C) {
          float4 scale = read_row(s.scale + row, c, C, s.fours), shift = read_row(s.shift + row, c, C, s.fours);
          // beyond the last channel scale and shift are 0
          write(k, pixel, p, c, make_float4(fmaf((v[0] - mean) / deviation, scale.x, shift.x),
                                            fmaf((v[1] - mean) / deviation, scale.y, shift.y),
                                            fmaf((v[2] - mean) / deviation, scale.z, shift.z),
                                            fmaf((v[3] - mean) / deviation, scale.w, shift.w)));
        } else {
          write(k, pixel, p, c, make_float4(0.f, 0.f, 0.f, 0.f));
        }
      }
      if (pass == 0) mean = add_warp(sum) / C;
      if (pass == 1) deviation = sqrtf(add_warp(sum) / C + s.eps);
    }
  }
}
