// Convolutions of any kernel, stride, padding and number of groups, float32: a product whose rows are the output pixels
// of the active tiles, whose columns are a group's output channels, and whose depth is the taps times the input channels
// (implicit GEMM: no window is ever written out).
//
//   out[pixel][o] = epilogue(sum over taps t, channels c of read(pixel * stride + t - padding, c) * weight[t][c][o])
#include "product.cuh"
#include "reading.cuh"

struct Pixel {  // row of the product: an output pixel
  int n, y, x;
  bool inside;
};
__device__ __forceinline__ Pixel pixel_of(const Conv& a, int row, int rows) {
  if (row >= rows) return {0, 0, 0, false};
  Place p = tile_place(a.tiles, row / PIXELS);
  int y = p.y + row % PIXELS / TILE, x = p.x + row % TILE;
  return {p.n, y, x, y < a.height && x < a.width};
}

// grid (rows, outputs of a group, groups)
template <class P>
__device__ __forceinline__ void direct_product(const Conv& a, typename P::Shared& shared) {
  int rows = tile_count(a.tiles) * PIXELS, row0 = blockIdx.x * P::BM, o0 = blockIdx.y * P::BN, group = blockIdx.z;
  if (row0 >= rows) return;
  int taps = a.kernel_height * a.kernel_width, depth = taps * a.padded_inputs;
  const float* weight = (const float*)a.weight + (long long)group * depth * a.padded_outputs;
  float sums[P::TM][P::TN] = {};
  const float4 zeros = make_float4(0.f, 0.f, 0.f, 0.f);
  Pixel pixels[P::LEFTS];
#pragma unroll
  for (int e = 0; e < P::LEFTS; e++) pixels[e] = pixel_of(a, row0 + P::left_row(e), rows);
  P::run(
      sums, shared, depth,
      [&](int e, int c) {
        Pixel p = pixels[e];
        if (!p.inside || c >= depth) return zeros;
        int tap = c / a.padded_inputs, first = c % a.padded_inputs;  // padded_inputs is a multiple of four
        int y = p.y * a.stride + tap / a.kernel_width - a.top, x = p.x * a.stride + tap % a.kernel_width - a.left;
        return read_4(a.source, p.n, y, x, group * a.inputs + first, a.inputs - first);
      },
      [&](int c, int column) {
        return c < depth && o0 + column < a.padded_outputs ? load_4(weight + (long long)c * a.padded_outputs + o0 + column)
                                                           : zeros;
      });
  P::each_sum(sums, shared, [&](int row, int column, float sum) {
    Pixel p = pixel_of(a, row0 + row, rows);
    int o = o0 + column, channel = group * a.outputs + o;
    if (p.inside && o < a.outputs)
      a.out[at(p.n, p.y, p.x, a.height, a.width, a.groups * a.outputs) + channel] =
          finish(a.epilogue, sum, p.n, p.y, p.x, channel);
  });
}

#define DIRECT(BM, BN, TM, TN) \
  __shared__ Product<BM, BN, TM, TN>::Shared shared; \
  direct_product<Product<BM, BN, TM, TN>>(a, shared)
KERNEL(direct_128x128, Conv, 256) { DIRECT(128, 128, 8, 8); }
KERNEL(direct_64x64, Conv, 256) { DIRECT(64, 64, 4, 4); }
KERNEL(direct_16x64, Conv, 128) { DIRECT(16, 64, 2, 4); }
KERNEL(direct_64x16, Conv, 256) { DIRECT(64, 16, 4, 1); }
