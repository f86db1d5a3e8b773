// Pointwise work: a source's pending work is written out, rows of channels are joined.
#include "reading.cuh"

// out[tiles] = source + residual: a thread takes four neighbouring channels of a pixel. grid (tiles, channels)
KERNEL(pointwise, Pointwise, 256) {
  const Source& s = a.source;
  int C = channels(s), count = tile_count(a.tiles), groups = (C + 3) / 4;
  bool fours = C % 4 == 0 && (int64)a.out % 16 == 0;
#pragma unroll 1
  for (int k = blockIdx.x; k < count; k += gridDim.x) {
    Place p = tile_place(a.tiles, k);
#pragma unroll 1
    for (int i = blockIdx.y * blockDim.x + threadIdx.x; i < PIXELS * groups; i += gridDim.y * blockDim.x) {
      int pixel = i / groups, y = p.y + pixel / TILE, x = p.x + pixel % TILE, c = i % groups * 4;
      if (y >= s.height || x >= s.width) continue;
      float4 v = read_4(s, p.n, y, x, c, C - c);
      if (a.residual.first) {
        float4 r = read_4(a.residual, p.n, y, x, c, C - c);
        v = make_float4(v.x + r.x, v.y + r.y, v.z + r.z, v.w + r.w);
      }
      float* out = a.out + at(p.n, y, x, s.height, s.width, C) + c;
      store_4(out, v, C - c, fours);
    }
  }
}

// out[row][offset …] = the words of first[row], then of second[row]: grid (words, rows)
KERNEL(join_channels, JoinChannels, 256) {
  int word = blockIdx.x * blockDim.x + threadIdx.x, row = blockIdx.y;
  if (word >= a.first_words + a.second_words) return;
  a.out[(long long)row * a.stride + a.offset + word] =
      word < a.first_words ? a.first[(long long)row * a.first_words + word]
                           : a.second[(long long)row * a.second_words + word - a.first_words];
}
